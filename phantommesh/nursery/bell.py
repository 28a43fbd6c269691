# SPDX-License-Identifier: GPL-3.0-or-later
"""Wake all who wait for the next change."""

import trio


class Bell:
    """A waiter hears the next ring, and none that came before: look first, and wait if there is nothing.

    Between the look and `wait` nothing may await, or a ring is missed.
    """

    def __init__(self) -> None:
        self._rung: trio.Event | None = None

    def ring(self) -> None:
        """Wake all who wait now. Most rings find nobody, and cost nothing."""
        if self._rung is not None:
            self._rung.set()
            self._rung = None

    async def wait(self) -> None:
        """Return at the next ring."""
        if self._rung is None:
            self._rung = trio.Event()
        await self._rung.wait()
