# SPDX-License-Identifier: GPL-3.0-or-later
"""Honest links of all kinds, simulated: all schedulers and weights, traffic from next to nothing to 100 MB/s,
in bursts and in rhythms, with loss, drained paths, clocks that are set, epochs that are missed, restarts."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from phantommesh.dimensions import SLOTS
from phantommesh.proofs.statement import ZEROS, Plan, Scheduler, Seven
from phantommesh.scatter import maps
from tests.support.makeproofs import node, plus, seven
from tests.unit.proofs.telling import A, Act, B, Story, clock_ms

SCHEDULERS: Sequence[Scheduler] = maps.SCHEDULERS
PROBE = 112  # bytes by WireGuard's count

MIXES: Sequence[Sequence[tuple[int, float]]] = (  # sizes of packets, and how often each is
    ((65_575, 0.9), (52, 0.1)),  # bulk
    ((65_000, 0.2), (30_000, 0.2), (1_420, 0.2), (52, 0.4)),
    ((1_420, 0.5), (52, 0.5)),
    ((1_420, 1.0),),
    ((200, 1.0),),  # voice
    ((52, 0.97), (65_575, 0.03)),  # acknowledgements, and now and then a burst
)


def binomial(rng: random.Random, n: int, p: float) -> int:
    """Draw one; by the normal distribution where both tails are long."""
    if n <= 0 or p <= 0:
        return 0
    if p >= 1:
        return n
    if p > 0.5:
        return n - binomial(rng, n, 1 - p)
    if n * p > 60:
        return min(n, max(0, round(rng.gauss(n * p, math.sqrt(n * p * (1 - p))))))
    count, at, scale = 0, 0, math.log1p(-p)
    while True:
        at += int(math.log(1.0 - rng.random()) / scale) + 1
        if at > n:
            return count
        count += 1


def multinomial(rng: random.Random, n: int, weights: Sequence[float]) -> list[int]:
    left, found = sum(weights), []
    for weight in weights:
        found.append(binomial(rng, n, weight / left) if left > 0 else 0)
        n, left = n - found[-1], left - weight
    return found


def decisions(rng: random.Random, plan: Plan, n: int) -> list[int]:
    """How many of so many packets each dimension gets."""
    cycle, cards = sum(plan.cards), plan.cards
    if not cycle or not n:
        return [0] * 7
    match plan.scheduler:
        case "packet":
            return multinomial(rng, n, cards)
        case "deck":
            whole, rest = divmod(n, cycle)
            exact = [rest * card / cycle for card in cards]
            dealt = [math.floor(share) for share in exact]
            for i in sorted(range(7), key=lambda i: (dealt[i] - exact[i]) * rng.random())[
                : rest - sum(dealt)
            ]:
                dealt[i] += 1
            return [whole * card + extra for card, extra in zip(cards, dealt, strict=True)]
        case "batch":
            whole, rest = divmod(n, cycle * plan.run)
            runs = [i for i, card in enumerate(cards) for _ in range(card)]
            drawn = rng.sample(runs, min(len(runs), rest // plan.run + 1))
            counts = [whole * card * plan.run for card in cards]
            for i in drawn[:-1]:
                counts[i] += plan.run
            counts[drawn[-1]] += rest - plan.run * (len(drawn) - 1)
            return counts
        case _:
            flows = [rng.paretovariate(0.8) for _ in range(rng.choice((1, 2, 5, 40)))]
            counts = [0] * 7
            for part in multinomial(rng, n, flows):
                counts[rng.choices(range(7), cards)[0]] += part
            return counts


def rhythm(rng: random.Random, plan: Plan, n: int, period: int) -> tuple[list[int], list[int]]:
    """The same of a deck where every so many packets one is large: all packets, and the large ones."""
    held = [i for i, card in enumerate(plan.cards) for _ in range(card)]
    at = [(place + rng.random()) / card for card in plan.cards for place in range(card)]
    order = [held[j] for j in sorted(range(len(held)), key=at.__getitem__)]
    whole, rest = divmod(n, len(order) * period)
    counts, large = [0] * 7, [0] * 7
    for place in range(len(order) * period):
        times = whole + (place < rest)
        counts[order[place % len(order)]] += times
        if place % period == 0:
            large[order[place % len(order)]] += times
    return counts, large


def wired(size: int) -> int:
    """The bytes that WireGuard makes of a packet."""
    return size + 40 * math.ceil(size / 1_380)


@dataclass(frozen=True)
class Sent:
    """Packets and bytes of a time, by dimension."""

    packets: Seven = ZEROS
    octets: Seven = ZEROS
    wire: Seven = ZEROS

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(
            plus(self.packets, other.packets), plus(self.octets, other.octets), plus(self.wire, other.wire)
        )


class Honest:
    """One honest link's story, at random."""

    def __init__(self, rng: random.Random, scheduler: Scheduler | None = None) -> None:
        self.rng = rng
        self.scheduler: Scheduler = rng.choice(SCHEDULERS) if scheduler is None else scheduler
        self.run = rng.randint(2, 32) if self.scheduler == "batch" else 1
        self.seconds = rng.choice((2.0, 10.0, 60.0, 60.0, 60.0, 600.0))
        self.rate = 10 ** rng.uniform(3, 8)
        self.mix = rng.choice(MIXES)
        self.unequal = self.scheduler == "batch" and rng.random() < 0.5
        self.scores = [1.0] * 7 if rng.random() < 0.5 else [rng.uniform(1, 10) for _ in range(7)]
        self.losses = [rng.choice((0.0, rng.uniform(0, 0.03))) for _ in range(7)]
        self.up = [True] * 7
        self.flaps = rng.random() < 0.3
        self.lost = rng.choice((0.0, 0.02, 0.08))
        self.lag = rng.choice((0.005, 0.02, 0.2))
        self.bursty = rng.choice((0.0, 0.4, 0.8))
        self.idle = rng.choice((0.0, 0.3))
        self.fast = rng.choice((10.0, 10.0, 50.0))
        self.period = rng.randint(2, 7) if self.scheduler == "deck" and rng.random() < 0.1 else 0
        self.number = 0

    def plan(self) -> Plan:
        if self.flaps:
            for i in range(7):
                if self.rng.random() < (0.05 if self.up[i] else 0.4):
                    self.up[i] = not self.up[i]
            if sum(self.up) < 2:
                self.up = [True] * 7
        draws = [self.rng.random() for _ in range(7)]
        noise = [max(1e-9, d**3) if self.unequal else 0.8 + 0.4 * d for d in draws]
        scores = [score if up else 0.0 for score, up in zip(self.scores, self.up, strict=True)]
        cards = seven(maps.cards(scores, noise, SLOTS[self.scheduler]))
        self.number += 1
        return Plan(node(A).node_id, node(B).node_id, 1, self.number, self.scheduler, self.run, cards)

    def send(self, plan: Plan, volume: float) -> Sent:
        """So many bytes, scattered."""
        mean = sum(size * often for size, often in self.mix)
        n = int(volume / mean) + (self.rng.random() < volume / mean % 1)
        packets, octets, wire = [0] * 7, [0] * 7, [0] * 7
        if self.period and len(self.mix) > 1 and n > 2:
            packets, large = rhythm(self.rng, plan, n, self.period)
            sizes = max(size for size, _ in self.mix), min(size for size, _ in self.mix)
            for i in range(7):
                parts = (large[i], sizes[0]), (packets[i] - large[i], sizes[1])
                octets[i] = sum(count * size for count, size in parts)
                wire[i] = sum(count * wired(size) for count, size in parts)
            return Sent(seven(packets), seven(octets), seven(wire))
        packets = decisions(self.rng, plan, n)
        for i, count in enumerate(packets):
            classes = multinomial(self.rng, count, [often for _, often in self.mix])
            octets[i] = sum(k * size for k, (size, _) in zip(classes, self.mix, strict=True))
            wire[i] = sum(k * wired(size) for k, (size, _) in zip(classes, self.mix, strict=True))
        return Sent(seven(packets), seven(octets), seven(wire))

    def own(self, plan: Plan, seconds: float, rate: float) -> Sent:
        """Probes and handshakes: not the scheduler's."""
        pace = self.fast * min(1.0, rate / 20_000) if rate > 600 else 0.1
        bytes_ = [
            int(
                seconds * PROBE * 2 * self.rng.uniform(0.9, 1.1) * (pace if card else min(1.0, pace))
                + 300 * (seconds / 90 + self.rng.random())
            )
            for card in plan.cards
        ]
        return Sent(wire=seven(bytes_))

    def lose(self, wire: Seven) -> Seven:
        return seven(
            [binomial(self.rng, size, 1 - loss) for size, loss in zip(wire, self.losses, strict=True)]
        )

    def story(self, epochs: int) -> Story:
        """So many epochs, all of them in the file; some the receiver has not signed."""
        rng, now, acts = self.rng, 0.0, list[Act]()
        sets = (
            {rng.randrange(epochs): rng.choice((-1, 1)) * rng.choice((4.0, 300.0))}
            if rng.random() < 0.2
            else {}
        )
        theirs = (
            {rng.randrange(epochs): rng.choice((-1, 1)) * rng.choice((4.0, 60.0))}
            if rng.random() < 0.1
            else {}
        )
        stops = {rng.randrange(1, epochs)} if epochs > 20 and rng.random() < 0.1 else set()
        ahead, ahead_there = rng.uniform(-100, 100), rng.uniform(-100, 100)
        plan, lag = self.plan(), self.late()
        head = Sent()  # what was sent by this plan before the receiver was told of it
        pending = ZEROS
        for number in range(epochs):
            seconds = self.seconds * rng.uniform(0.9, 1.1)
            rate = self.rate * math.exp(rng.gauss(0, self.bursty)) * (rng.random() >= self.idle)
            body = self.send(plan, rate * seconds) + self.own(plan, seconds, rate)
            following, next_lag = self.plan(), self.late()
            # Late packets go by the next plan: as much as fits the time, or, rarely, a burst.
            share = next_lag / seconds if rng.random() > next_lag / self.seconds else rng.random()
            tail = self.send(following, min(1.0, share) * rate * seconds)
            ahead += sets.get(number, 0.0)
            ahead_there += theirs.get(number, 0.0)
            opened, closed = now + lag, now + seconds + next_lag
            whole = head + body
            start_ms = clock_ms(now, ahead)
            act = Act(
                plan=plan, opened=opened, closed=closed, came=self.lose(plus(body.wire, tail.wire)),
                packets=whole.packets, octets=whole.octets, wire=whole.wire, start_ms=start_ms,
                end_ms=start_ms + round(seconds * 1000), before=pending, late_open=head.wire,
                late_close=tail.wire, told=epochs < 5 or rng.random() >= self.lost, ahead=ahead_there,
                restarted=number - 1 in stops,
            )  # fmt: skip
            pending = ZEROS
            if number in stops:  # the receiver is away for a while, and hears of nothing
                act = replace(act, told=False)
            acts.append(act)
            now += seconds
            plan, lag, head = following, next_lag, tail
            if number in stops:
                away = rng.uniform(0.1, 1.0) * self.seconds
                gone = self.send(plan, rate * away) + self.own(plan, away, rate)
                now += away
                pending, head, plan = self.lose(gone.wire), Sent(), self.plan()
        return acts

    def late(self) -> float:
        """How long after the swap of maps the receiver is told, s."""
        return min(2.4, self.seconds / 4, self.rng.expovariate(1 / self.lag))


def honest(seed: int, epochs: int | None = None, scheduler: Scheduler | None = None) -> Story:
    """One honest link's story."""
    rng = random.Random(seed)
    link = Honest(rng, scheduler)
    few = (
        1 if link.scheduler in ("packet", "deck") else 20
    )  # a few flows, or runs of packets, show no scattering
    return link.story(max(few, rng.choice((1, 2, 5, 20, 60, 60))) if epochs is None else epochs)
