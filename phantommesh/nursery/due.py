# SPDX-License-Identifier: GPL-3.0-or-later
"""The present moment, and how a task sleeps that ticks a protocol: until something is due there."""

from __future__ import annotations

from collections.abc import Callable
from time import time

import trio

from phantommesh.node.steps import Moment


def moment() -> Moment:
    """The present time."""
    return Moment(trio.current_time(), time())


class Due:
    """The sleep of the one task that ticks a protocol. ``deadline`` says when something is next to be done
    there, in seconds on trio's clock; infinity is never."""

    def __init__(self, deadline: Callable[[], float]) -> None:
        self._deadline = deadline
        self._until, self._moved = float("inf"), trio.Event()

    async def sleep(self) -> None:
        """Sleep until the deadline."""
        await trio.lowlevel.checkpoint()
        while (deadline := self._deadline()) > trio.current_time():
            self._until, self._moved = deadline, trio.Event()
            with trio.move_on_at(deadline):
                await self._moved.wait()

    def look(self) -> None:
        """The deadline may be another. A sleeper is woken only if it is earlier: most datagrams move it the
        other way."""
        if self._deadline() < self._until:
            self._moved.set()
