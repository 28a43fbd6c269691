# SPDX-License-Identifier: GPL-3.0-or-later
"""The present moment, and how a task sleeps that ticks a protocol: until something is due there."""

from __future__ import annotations

from collections.abc import Callable
from time import time

import trio

from phantommesh.node.steps import Moment
from phantommesh.nursery.pulse import alive


def moment() -> Moment:
    """The present time."""
    return Moment(trio.current_time(), time())


class Due:
    """The sleep of the one task that ticks a protocol. ``deadline`` says when something is next to be done
    there, in seconds on trio's clock; infinity is never. ``turns``: the task is the loop of its service, and
    tells the service's pulse."""

    def __init__(self, deadline: Callable[[], float], *, turns: bool = False) -> None:
        self._deadline, self._turns = deadline, turns
        self._until, self._moved = float("inf"), trio.Event()

    async def sleep(self) -> None:
        """Sleep until the deadline."""
        await trio.lowlevel.checkpoint()
        while True:
            deadline, now = self._deadline(), trio.current_time()
            if self._turns:
                alive(max(0.0, deadline - now))
            if deadline <= now:
                return
            self._until, self._moved = deadline, trio.Event()
            with trio.move_on_at(deadline):
                await self._moved.wait()

    def look(self) -> None:
        """The deadline may be another. A sleeper is woken only if it is earlier: most datagrams move it the
        other way."""
        if self._deadline() < self._until:
            self._moved.set()
