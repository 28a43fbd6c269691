# SPDX-License-Identifier: GPL-3.0-or-later
"""How often a node reads what the kernel has: often while anything moves, seldom while nothing does.

Three words shorten the wait. The kernel tells of changes to links, addresses, routes and filters
(`host/changes.py`). WireGuard tells of nothing, so the bytes that its interfaces have sent are looked at
every interval (`host/traffic.py`), which costs one read of a file. And the node's own parts say when
something is not as it should be yet (`stir`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

# Tuning.
SELDOM: Final = 10.0  # s between readings while nothing moves, or the interval where that is longer
STIRRED: Final = 10.0  # s that readings stay frequent after the last movement
BUSY_RATE: Final = 600.0  # bytes a second sent that count as traffic, as in `paths/pace.py`
HANDSHAKES: Final = 20.0  # bytes a second and peer that WireGuard's own handshakes and keepalives come to


class Calm:
    """Whether anything moves at one node. ``interval``: seconds between readings while something does.

    ``told`` says whether the kernel tells of changes: while it does not, nothing counts as calm. ``sent``
    returns the bytes that the interfaces have sent so far, None where that cannot be read; ``probed`` those
    of them that were probes; ``peers`` how many peers there are. ``woken`` is called when the calm ends.
    """

    def __init__(
        self,
        interval: float,
        *,
        told: Callable[[], bool],
        sent: Callable[[], int | None],
        probed: Callable[[], int],
        peers: Callable[[], int],
        woken: Callable[[], None],
    ) -> None:
        self.interval = interval
        self._told, self._sent, self._probed, self._peers = told, sent, probed, peers
        self._woken = woken
        self._stirred_until = trio.current_time() + STIRRED
        self._before: tuple[float, int] | None = None  # when looked, and bytes sent that were no probes

    @property
    def pause(self) -> float:
        """The seconds until the next reading, from now."""
        return max(SELDOM, self.interval) if self._is_calm() else self.interval

    def stir(self) -> None:
        """Something moves, or is not as it should be: read often for a while."""
        calm = self._is_calm()
        self._stirred_until = trio.current_time() + STIRRED
        if calm:
            self._woken()

    def look(self) -> None:
        """Stir where traffic has begun since the look before."""
        now, sent = trio.current_time(), self._sent()
        before, self._before = self._before, None
        if sent is None:
            self.stir()
            return
        carried = sent - self._probed()
        self._before = now, carried
        if before is not None and now > before[0]:
            rate = (carried - before[1]) / (now - before[0])
            if not 0.0 <= rate < BUSY_RATE + HANDSHAKES * self._peers():
                self.stir()

    def _is_calm(self) -> bool:
        return trio.current_time() >= self._stirred_until and self._told()
