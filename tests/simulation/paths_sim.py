# SPDX-License-Identifier: GPL-3.0-or-later
"""Two real `Paths` under a virtual clock, with seven modelled dimensions between them."""

from __future__ import annotations

import heapq
import itertools
import random

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.effects import Effect, Rescore, Send, Turned
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import ON_WIRE, SIZE
from phantommesh.paths.state import PathState
from phantommesh.paths.weights import FULL

A, B = b"a" * 16, b"b" * 16
INTERVAL, RATE = 0.1, 200.0


class End:
    """One node with one peer. Its kernel sends by ``in_force`` a moment after it is told to."""

    def __init__(self, world: World, me: bytes, peer: bytes, seed: int) -> None:
        self.world, self.me, self.peer = world, me, peer
        self.paths = Paths(random=random.Random(seed), interval=INTERVAL)
        self.scores: tuple[float, ...] = FULL
        self.rescored: list[tuple[float, tuple[float, ...]]] = []
        self.turned: list[tuple[float, Turned]] = []
        self.sent = [0] * DIMENSIONS
        self.received = [0] * DIMENSIONS
        self.probes = 0
        self.stalled_until = 0.0

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, dimension, datagram):
                    assert peer == self.peer and len(datagram) == SIZE
                    self.probes += 1
                    self.world.transmit(self, dimension, datagram, ON_WIRE)
                case Rescore(_, scores):
                    assert len(scores) == DIMENSIONS and any(scores)
                    assert all(0.0 <= score <= 1.0 for score in scores)
                    self.rescored.append((self.world.now, scores))
                    self.world.later(0.005, ("applied", self, scores))
                case Turned():
                    self.turned.append((self.world.now, effect))

    def states(self) -> list[PathState]:
        return [view.state for view in self.paths.view(self.peer, self.world.now)]

    def open(self, ready: int = ALL) -> None:
        self.carry_out(self.paths.set_peers({self.peer: ready}, self.world.now))

    def leave(self, dimensions: int) -> None:
        self.carry_out(self.paths.leave(dimensions, self.world.now))


class World:
    """The event loop. Each end reads its counters every 2 s; traffic is ``rate`` packets/s of 1,400 bytes."""

    def __init__(self, seed: int = 0, *, ready: int = ALL) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.cut = 0  # bitmap of dimensions on which nothing passes
        self.loss = [0.0] * DIMENSIONS
        self.delay = [0.01] * DIMENSIONS
        self.rate = 0.0
        self.lost: list[tuple[float, int]] = []
        self.carried = [0] * DIMENSIONS
        self._queue: list[tuple[float, int, tuple[object, ...]]] = []
        self._order = itertools.count()
        self.a, self.b = End(self, A, B, seed), End(self, B, A, seed + 1)
        self.ends = (self.a, self.b)
        for end in self.ends:
            end.open(ready)
            self.later(self.rng.uniform(0, 2), ("read", end))
        self.later(0.0, ("traffic",))

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def later(self, delay: float, event: tuple[object, ...]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), event))

    def passes(self, dimension: int) -> bool:
        return not self.cut >> dimension & 1 and self.rng.random() >= self.loss[dimension]

    def transmit(self, end: End, dimension: int, datagram: bytes | None, size: int) -> None:
        end.sent[dimension] += size
        if self.passes(dimension):
            self.later(self.delay[dimension], ("arrives", self.other(end), dimension, datagram, size))
        elif datagram is None:
            self.lost.append((self.now, dimension))

    def run(self, seconds: float) -> None:
        end_at = self.now + seconds
        while True:
            moments = [max(end.paths.deadline, end.stalled_until) for end in self.ends]
            if self._queue:
                moments.append(self._queue[0][0])
            moment = max(self.now, min(moments))
            if moment > end_at:
                self.now = end_at
                return
            self.now = moment
            while self._queue and self._queue[0][0] <= self.now:
                self._handle(heapq.heappop(self._queue)[2])
            for end in self.ends:
                if end.paths.deadline <= self.now and end.stalled_until <= self.now:
                    end.carry_out(end.paths.tick(self.now))

    def _handle(self, event: tuple[object, ...]) -> None:
        match event:
            case ("arrives", End() as end, int() as dimension, datagram, int() as size):
                if end.stalled_until > self.now and datagram is not None:
                    self.later(end.stalled_until - self.now, event)
                    return
                end.received[dimension] += size
                if isinstance(datagram, bytes):
                    end.carry_out(end.paths.receive(datagram, end.peer, dimension, self.now))
            case ("applied", End() as end, tuple() as scores):
                end.scores = scores
                end.paths.in_force(end.peer, scores)
            case ("read", End() as end):
                counters = list(zip(end.sent, end.received, strict=True))
                end.paths.read(end.peer, counters, self.now)
                self.later(2.0, event)
            case ("traffic",):
                for end in self.ends if self.rate else ():
                    (dimension,) = self.rng.choices(range(DIMENSIONS), end.scores)
                    self.carried[dimension] += 1
                    self.transmit(end, dimension, None, 1400)
                self.later(1 / self.rate if self.rate else 0.1, event)


def busy(seed: int = 0) -> World:
    world = World(seed)
    world.rate = RATE
    world.run(6)
    assert world.a.states() == world.b.states() == [PathState.UP] * 7
    return world
