# SPDX-License-Identifier: GPL-3.0-or-later
"""Flows as fluids, over paths with queues, on a virtual clock: senders like CUBIC and BBR, and steady ones.

A model of what TCP does in seconds, not in round trips: a sender has a rate, and paths have a queue of bytes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.splitting import Load, Splitting
from phantommesh.scatter.steering import NOTHING, Steering

BUCKETS = 256
HOMES = [bucket % DIMENSIONS for bucket in range(BUCKETS)]
LOOK = 0.25
STEP = 0.05
PACKET = 1400
RECEIVER = 6_000_000  # bytes of its window


@dataclass
class Path:
    """``rate`` bytes a second, ``rtt`` seconds while empty, ``loss`` of packets, ``buffer`` seconds."""

    rate: float
    rtt: float = 0.03
    loss: float = 0.0
    buffer: float = 0.1
    waiting: float = 0.0  # bytes

    @property
    def delay(self) -> float:
        return self.rtt + self.waiting / self.rate

    def carry(self, arriving: float) -> tuple[float, float]:
        """Take bytes for one step. Return the share of them that finds no room, and how much comes out at the
        other end for each that came in."""
        out = min(self.rate * STEP, self.waiting + arriving)
        held = self.waiting + arriving - out
        lost = max(0.0, held - self.rate * self.buffer)
        self.waiting = max(0.0, held - lost)
        return (lost / arriving, out / arriving) if arriving else (0.0, 0.0)


@dataclass
class Steady:
    """Sends at one rate, whatever comes: a call or a film."""

    rate: float
    size: float = 1200.0  # bytes of a packet

    def offers(self, rtt: float) -> float:
        return self.rate

    def told(self, got: float, lost: float, rtt: float, late: float, random: Random) -> None: ...


@dataclass
class Cubic:
    """Fills the queue until it loses, then sends 0.7 of that, and grows by the cube of the time or half a
    packet a round trip (RFC 9438, sections 4.2 and 4.3).

    ``minds``: it takes packets that come later than others for lost, and each time waits for such a quarter
    of the least round trip longer (RACK, RFC 8985, section 6.2). Linux often takes the loss back when it
    learns of its error; this sender never does."""

    minds: bool = False
    window: float = 20 * PACKET
    most: float = 0.0
    since: float = 0.0  # s since the latest loss
    reno: float = 0.0
    size: float = PACKET
    waits: float = 0.0  # s
    quickest: float = float("inf")

    def offers(self, rtt: float) -> float:
        return self.window / rtt

    def told(self, got: float, lost: float, rtt: float, late: float, random: Random) -> None:
        self.since += STEP
        self.quickest = min(self.quickest, rtt)
        hit = lost > 0.0 and random.random() < 1.0 - (1.0 - min(1.0, lost)) ** (got * STEP / PACKET + 1.0)
        recovered = not self.most or self.since >= rtt
        if self.minds and recovered and late > self.waits:
            self.waits += self.quickest / 4
            hit = True
        if hit and recovered:
            self.most, self.window, self.since = self.window, max(4 * PACKET, 0.7 * self.window), 0.0
            self.reno = self.window
        elif self.most:
            self.reno += 0.53 * PACKET * STEP / rtt
            turn = (0.3 * self.most / PACKET / 0.4) ** (1 / 3)
            self.window = max(self.window, self.reno, self.most + 0.4 * PACKET * (self.since - turn) ** 3)
        else:
            self.window *= 1.0 + 0.5 * STEP / rtt
        self.window = min(self.window, RECEIVER)


@dataclass
class Bbr:
    """Sends what it saw arrive, and a quarter more for one round trip of eight; it leaves no queue."""

    paced: float = 100_000.0
    phase: float = 0.0
    size: float = PACKET
    seen: deque[float] = field(default_factory=lambda: deque(maxlen=round(0.5 / STEP)))

    def offers(self, rtt: float) -> float:
        cycle = int(self.phase) % 8
        return self.paced * (1.25 if cycle == 0 else 0.75 if cycle == 1 else 1.0)

    def told(self, got: float, lost: float, rtt: float, late: float, random: Random) -> None:
        self.phase += STEP / rtt
        self.seen.append(got)
        self.paced = max(4 * PACKET / rtt, *self.seen)


Sender = Steady | Cubic | Bbr


@dataclass
class World:
    """Seven paths, and a sender by bucket. ``cpu``: the bytes a second that all of them together can have, of
    which a split flow costs ``reordering`` times as many. ``noise``: by how much the CPU is another one from
    second to second."""

    paths: Sequence[Path]
    senders: dict[int, Sender]
    cpu: float = 1e12
    reordering: float = 1.4
    noise: float = 0.0
    machine: Splitting = field(default_factory=Splitting)
    random: Random = field(default_factory=lambda: Random(7))
    now: float = 0.0
    packets: Counter[int] = field(default_factory=Counter)
    sent: Counter[int] = field(default_factory=Counter)
    delivered: float = 0.0
    homes: list[int | None] = field(default_factory=lambda: list(HOMES))
    steering: Steering = NOTHING
    changes: list[tuple[float, Steering]] = field(default_factory=list)
    reads: int = 0
    _power: float = 1.0

    @property
    def split(self) -> frozenset[int]:
        return self.steering.split

    def run(self, seconds: float) -> float:
        """Return the bytes a second that arrived over the time."""
        before, ends = self.delivered, self.now + seconds
        while self.now < ends - STEP / 2:
            self._step()
            if round(self.now / STEP) % round(LOOK / STEP) == 0:
                self._look()
        return (self.delivered - before) / seconds

    def _ways(self, bucket: int) -> Sequence[int]:
        if bucket in self.split:
            return range(DIMENSIONS)
        return (dict(self.steering.moved).get(bucket, self.homes[bucket] or 0),)

    def _step(self) -> None:
        if round(self.now / STEP) % round(1.0 / STEP) == 0:
            self._power = self.random.uniform(1.0 - self.noise, 1.0 + self.noise)
        rtts = {b: sum(self.paths[i].delay for i in ways) / len(ways) for b, ways in self._all()}
        offered = {b: sender.offers(rtts[b]) for b, sender in self.senders.items()}
        cost = sum(rate * (self.reordering if b in self.split else 1.0) for b, rate in offered.items())
        scale = min(1.0, self.cpu * self._power / cost) if cost else 1.0
        rates = {b: rate * scale for b, rate in offered.items()}
        arriving = [0.0] * DIMENSIONS
        for b, ways in self._all():
            for i in ways:
                arriving[i] += rates[b] * STEP / len(ways)
        carried = [path.carry(amount) for path, amount in zip(self.paths, arriving, strict=True)]
        for b, ways in self._all():
            full = sum(carried[i][0] for i in ways) / len(ways)
            by_chance = sum(self.paths[i].loss for i in ways) / len(ways)
            got = rates[b] * sum(carried[i][1] * (1.0 - self.paths[i].loss) for i in ways) / len(ways)
            self.sent[b] += round(rates[b] * STEP)
            self.packets[b] += max(1, round(rates[b] * STEP / self.senders[b].size))
            self.delivered += got * STEP
            delays = [self.paths[i].rtt / 2 + self.paths[i].waiting / self.paths[i].rate for i in ways]
            late = max(delays) - min(delays)
            self.senders[b].told(got, full + by_chance, rtts[b], late, self.random)
        self.now += STEP

    def _all(self) -> list[tuple[int, Sequence[int]]]:
        return [(b, self._ways(b)) for b in self.senders]

    def loads(self) -> list[Load]:
        return [Load(path.waiting / path.rate, path.loss) for path in self.paths]

    def _look(self) -> None:
        rate = sum(sender.offers(0.1) for sender in self.senders.values())
        if not self.machine.wants(self.loads(), rate, self.now):
            return
        self.reads += 1
        counted = {b: (self.packets[b], size) for b, size in self.sent.items()}
        found = self.machine.look(self.loads(), counted, self.homes, self.now)
        if found is not None:
            assert found != self.steering
            self.steering = found
            self.changes.append((self.now, found))
