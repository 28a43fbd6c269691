# SPDX-License-Identifier: GPL-3.0-or-later
"""Many nodes whose traffic takes the quickest dimension, each with one peer: real `Paths` on a virtual clock.

The peer is a model that answers at once. Each path has a round trip of its own, to which each probe adds
noise: a little always, much seldom, as when a host is busy; and it loses probes. No node's paths depend on
another node's, so the nodes run one after the other.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.effects import Effect, Rescore, Send
from phantommesh.paths.machine import Paths
from phantommesh.paths.peer import ANSWERS
from phantommesh.paths.probe import ON_WIRE, Probe, decode_probe_untrusted
from phantommesh.rates import Bucket

PEER = b"p" * 16
INTERVAL = 0.1  # s: `paths.probe_seconds`
READ = 2.0  # s between two readings of the counters


@dataclass(slots=True)
class Noise:
    """What paths do without getting better or worse. Seconds, shares of the probes, and how many a second."""

    trips: tuple[float, float] = (0.005, 0.060)  # the round trips that a mesh's paths have
    jitter: float = 0.15  # of the round trip: the standard deviation of what a probe takes longer
    spikes: float = 0.01  # of the probes take longer by
    spike: tuple[float, float] = (0.02, 0.3)
    stalls: float = 1 / 60  # moments a second at which nothing is answered on any path for
    stall: tuple[float, float] = (0.05, 0.25)
    loss: float = 0.001


@dataclass
class Model:
    """One node's seven paths. ``rate``: bytes a second of traffic. ``late`` and ``loss`` are added to a
    path's. ``seeks``: the traffic takes the quickest path; else all of them."""

    seed: int
    noise: Noise = field(default_factory=Noise)
    rate: float = 50_000.0
    seeks: bool = True
    now: float = 1000.0
    late: list[float] = field(default_factory=lambda: [0.0] * DIMENSIONS)
    loss: list[float] = field(default_factory=lambda: [0.0] * DIMENSIONS)
    probes: list[int] = field(default_factory=lambda: [0] * DIMENSIONS)
    changes: list[tuple[float, int | None, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.paths = Paths(random=random.Random(self.seed + 1), interval=INTERVAL)
        self.trips = [self.chance.uniform(*self.noise.trips) for _ in range(DIMENSIONS)]
        self.sent = [0.0] * DIMENSIONS
        self.refused = 0  # pings that the peer did not answer, as there were too many
        self._answers = [Bucket(*ANSWERS, self.now) for _ in range(DIMENSIONS)]
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()
        self._read, self._stalled = self.now, self.now
        self._stall_at = self.now + self._until_stall()
        self._carry_out(self.paths.set_peers({PEER: ALL}, self.now))
        self._carry_out(self.paths.seek_quickest({PEER} if self.seeks else set(), self.now))

    @property
    def taken(self) -> int | None:
        """The dimension that has the traffic."""
        return self.changes[-1][1] if self.changes else None

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let so many seconds pass, or fewer, until this is so."""
        end = self.now + seconds
        while self.now < end and not until():
            first = self._queue[0][0] if self._queue else inf
            self.now = min(end, max(self.now, min(first, self.paths.deadline, self._read, self._stall_at)))
            while self._queue and self._queue[0][0] <= self.now:
                _, _, dimension, pong = heapq.heappop(self._queue)
                self._carry_out(self.paths.receive(pong, PEER, dimension, self.now))
            if self.paths.deadline <= self.now:
                self._carry_out(self.paths.tick(self.now))
            if self._stall_at <= self.now:
                self._stalled = self.now + self.chance.uniform(*self.noise.stall)
                self._stall_at = self.now + self._until_stall()
            if self._read <= self.now:
                self._read = self.now + READ
                carries = 0 if self.taken is None else self.taken
                self.sent[carries] += self.rate * READ
                counters = [(round(self.sent[i]) + self.probes[i] * ON_WIRE, 0) for i in range(DIMENSIONS)]
                self.paths.read(PEER, counters, self.now)

    def _until_stall(self) -> float:
        return self.chance.expovariate(self.noise.stalls) if self.noise.stalls else inf

    def weigh(self, dimension: int, factor: float) -> None:
        """Multiply the weight of a dimension by this from now on."""
        self._carry_out(self.paths.set_factor(PEER, dimension, factor, self.now))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._transmit(effect.dimension, effect.datagram)
            elif isinstance(effect, Rescore) and effect.quickest != self.taken:
                found = self.paths.quickest(PEER)
                assert found is not None
                self.changes.append((self.now, effect.quickest, str(found.reason)))

    def _transmit(self, dimension: int, datagram: bytes) -> None:
        self.probes[dimension] += 1
        if self.chance.random() < self.noise.loss + self.loss[dimension]:
            return
        if not self._answers[dimension].take(self.now):
            self.refused += 1
            return
        trip = self.trips[dimension] * (1.0 + abs(self.chance.gauss(0.0, self.noise.jitter)))
        if self.chance.random() < self.noise.spikes:
            trip += self.chance.uniform(*self.noise.spike)
        at = max(self.now, self._stalled) + trip + self.late[dimension]
        ping = decode_probe_untrusted(datagram)
        pong = Probe(True, dimension, ping.number, leaving=False, drained=False, received=0, age=None)
        heapq.heappush(self._queue, (at, next(self._order), dimension, pong.encode()))
