# SPDX-License-Identifier: GPL-3.0-or-later
"""The present moment; how a task sleeps that ticks a protocol, until something is due there; and when a
service is due.

At each turn of its loop a supervised service says when its next turn is due: its *pulse*. A service whose
turn does not come waits for something that does not come either: a thread that hangs in the kernel, a lock,
an answer. Nothing raises then, so that the supervisor alone would never know. A service that waits for news
only, and has nothing due, is never late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from time import time
from typing import Final

import trio

from phantommesh.node.steps import Moment

# Tuning.
WORK = 1.0  # s that a turn's own work may take: some calls of the kernel, or of an nft child
TELLING: Final = 0.5  # s by which a turn has to be late to be remembered: below, it changes no bound
REMEMBERED: Final = 600.0  # s for which a late turn speaks for its service
MOST_DELAYS: Final = 32  # late turns of a service that are remembered


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


class Pulse:
    """The pulse of one service, and the way to start it again. Times are on trio's clock."""

    def __init__(self) -> None:
        self.due = float("inf")
        """When the next turn should begin at the latest, but for the time that the turn before takes."""
        self.turns = 0
        self._delays = deque[tuple[float, float]](maxlen=MOST_DELAYS)
        # When a late turn was due, and when it came.
        self.restarts = 0
        """How often the service was started again, whatever for."""
        self.ordered: float | None = None
        """Since when the service is to end, and be started again; None: it runs."""
        self.scope: trio.CancelScope | None = None

    def turn(self, within: float) -> None:
        """Another turn begins; the next one is due within so many seconds."""
        now = trio.current_time()
        if self.turns and now - self.due > TELLING:
            self._delays.append((self.due, now))
        self.due, self.turns = now + within, self.turns + 1

    def slowest(self, held: Iterable[tuple[float, float]]) -> float:
        """The longest time in seconds that a turn came after it was due, of the last `MOST_DELAYS` late turns
        within `REMEMBERED` seconds. ``held``: from when until when the whole process was held up, in order
        and without overlaps; the services are not to blame for that time."""
        since, pauses = trio.current_time() - REMEMBERED, list(held)
        return max(
            (
                came - due - sum(max(0.0, min(came, end) - max(due, begin)) for begin, end in pauses)
                for due, came in self._delays
                if came > since
            ),
            default=0.0,
        )

    def begin(self, scope: trio.CancelScope) -> None:
        """The service begins, in a scope of its own; nothing is due until its first turn."""
        self.scope, self.due, self.turns, self.ordered = scope, float("inf"), 0, None

    def restart(self) -> None:
        """Have the service end and begin again. A task that hangs in a thread ends when the thread does."""
        if self.scope is not None and self.ordered is None:
            self.ordered = trio.current_time()
            self.scope.cancel()


_OURS: ContextVar[Pulse | None] = ContextVar("pulse", default=None)


def take(pulse: Pulse) -> None:
    """The task that calls this, and those that it starts, are this service from now on."""
    _OURS.set(pulse)


def alive(within: float) -> None:
    """The loop of a service begins a turn, and begins the next one within so many seconds of waiting.

    Only one loop of a service may call this. Where nobody supervises, this does nothing.
    """
    pulse = _OURS.get()
    if pulse is not None:
        pulse.turn(within)
