# SPDX-License-Identifier: GPL-3.0-or-later
"""A burst of pings to one peer inside each dimension, as an operator asks for it. Sans-I/O.

The pings of a burst are those of `paths.probe`, or sized ones, with numbers of their own. Their answers are
counted here and nowhere else, so a burst neither helps nor harms a path: `machine` judges by its own probes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import DecodeError
from phantommesh.paths.effects import Effect, Send
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import OVER, decode_probe_untrusted
from phantommesh.paths.sized import decode_sized_untrusted, is_sized
from phantommesh.paths.state import PathState

# Tuning.
INTERVAL: Final = 0.2  # s between two pings of a dimension; a peer answers 25 sized ones a second
MOST: Final = 50  # pings of one burst in a dimension
PATIENCE: Final = 1.5  # s that the last answers have, at least
NEVER: Final = float("inf")


@dataclass(slots=True)
class Tally:
    """Pings of one dimension: how many were sent, and the round trips of those that came back, in seconds."""

    sent: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The ratio lost, 0 to 1; 0 where nothing was sent."""
        return 1.0 - len(self.times) / self.sent if self.sent else 0.0


class Burst:
    """``count`` pings to a peer in each dimension that has keys. ``size`` is that of each ping in bytes as a
    packet of the overlay; None: as small as other probes."""

    def __init__(
        self, paths: Paths, fitting: Fitting, peer: bytes, *, count: int, size: int | None, random: Random,
        now: float,
    ) -> None:  # fmt: skip
        self.tallies = [Tally() for _ in range(DIMENSIONS)]
        self.done = False
        self._paths, self._fitting, self._peer, self._size = paths, fitting, peer, size
        self._left = [0] * DIMENSIONS
        self._next = [NEVER] * DIMENSIONS
        self._number = random.getrandbits(31)
        self._awaited: dict[tuple[int, int], float] = {}  # by dimension and number: when it was sent
        patience = PATIENCE
        for i in range(DIMENSIONS):
            path = paths.path(peer, i)
            if path is not None and path.state is not PathState.CLOSED:
                self._left[i], self._next[i] = count, now + random.uniform(0.0, INTERVAL)
                patience = max(patience, 2 * path.quality.timeout)
        self.end = now + count * INTERVAL + patience if any(self._left) else now

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return NEVER if self.done else min(*self._next, self.end)

    def tick(self, now: float) -> list[Effect]:
        """Send the pings that are due. After the end, forgive what was lost of sized ones: their loss says
        nothing of smaller packets."""
        effects = list[Effect]()
        for i in range(DIMENSIONS):
            while self._next[i] <= now < self.end:
                effects += self._ping(i, now)
        if now >= self.end:
            self._finish()
        return effects

    def _ping(self, dimension: int, now: float) -> list[Send]:
        self._left[dimension] -= 1
        self._next[dimension] = self._next[dimension] + INTERVAL if self._left[dimension] else NEVER
        number = self._number = (self._number + 1) & 0xFFFF_FFFF
        if self._size is None:
            ping = self._paths.ask(self._peer, dimension, number, now)
        else:
            ping = self._fitting.ask(self._peer, dimension, number, self._size)
        if ping is None:  # the keys are gone, or the peer
            return []
        self.tallies[dimension].sent += 1
        self._awaited[dimension, number] = now
        return [ping]

    def receive(self, datagram: bytes, dimension: int, now: float) -> bool:
        """Take a datagram that came from the peer through this dimension. Return whether it answers a ping of
        this burst; it is for nobody else then."""
        number = _answered(datagram, sized=self._size is not None)
        sent = None if number is None else self._awaited.pop((dimension, number), None)
        if sent is None:
            return False
        self.tallies[dimension].times.append(now - sent)
        if not self._awaited and not any(self._left):
            self._finish()
        return True

    def _finish(self) -> None:
        self.done = True
        for dimension, _ in self._awaited if self._size is not None else ():
            path = self._paths.path(self._peer, dimension)
            if path is not None:
                path.quality.counted.forgive((self._size or 0) + OVER)
        self._awaited.clear()


def _answered(datagram: bytes, *, sized: bool) -> int | None:
    """The number of the ping that a datagram answers; None for what is no such answer."""
    if is_sized(datagram) is not sized:
        return None
    try:
        probe = decode_sized_untrusted(datagram) if sized else decode_probe_untrusted(datagram)
    except DecodeError:
        return None
    return probe.number if probe.pong else None
