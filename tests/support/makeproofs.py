# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that prove to each other what a simulated scatter did: real ledgers, certificates and signatures."""

import functools
import random
from collections.abc import Sequence
from typing import cast

from phantommesh.dimensions import SLOTS
from phantommesh.proofs.archive import Archive, Certificates
from phantommesh.proofs.ledger import Chain, Closed, Kept, Ledger
from phantommesh.proofs.statement import CONTEXT, VERSION, ZEROS, Plan, Proof, Scheduler, Seven, Signed
from phantommesh.scatter import maps
from phantommesh.trust.identity import Identity, NodeId
from tests.support.makemesh import NOW, TestMesh, identity, make_mesh

EQUAL: Seven = (12, 12, 12, 12, 12, 12, 12)
UNEQUAL: Seven = (30, 20, 10, 10, 8, 4, 2)
MTU = 1420
EPOCH = 60.0  # s

MESH: TestMesh = make_mesh()
NAMES = ("pm-1", "pm-2", "pm-3")


@functools.cache
def node(name: str) -> Identity:
    return identity(name)


@functools.cache
def certificate(name: str) -> bytes:
    return MESH.certify(node(name), name)


def seven(values: Sequence[int]) -> Seven:
    assert len(values) == 7
    return cast("Seven", tuple(values))


def plus(*parts: Sequence[int]) -> Seven:
    return seven([sum(column) for column in zip(*parts, strict=True)])


def cards_of(scheduler: Scheduler, weights: Sequence[float] = EQUAL) -> Seven:
    """The cards of a plan with these weights, as the scatterer would have it."""
    return seven(maps.cards(weights, (1.0,) * 7, SLOTS[scheduler]))


def scatter(rng: random.Random, scheduler: Scheduler, run: int, cards: Seven, packets: int) -> Seven:
    """How many of so many packets each dimension gets from an honest scheduler."""
    if scheduler in ("deck", "batch"):
        held = [i for i, card in enumerate(cards) for _ in range(card)]
        places = [place for card in cards for place in range(card)]
        at = [(places[j] + rng.random()) / cards[i] for j, i in enumerate(held)]
        order = sorted(range(len(held)), key=at.__getitem__)
        if scheduler == "batch":
            rng.shuffle(order)
        cycle = [held[j] for j in order for _ in range(run)]
        start, (whole, rest) = rng.randrange(len(cycle)), divmod(packets, len(cycle))
        dealt = (cycle * 2)[start : start + rest]
        return seven([whole * cycle.count(i) + dealt.count(i) for i in range(7)])
    if scheduler in ("flow", "flowlet"):
        sizes = [rng.randrange(packets + 1) for _ in range(4)]
        counts = [0] * 7
        for size in sizes:
            counts[rng.choices(range(7), cards)[0]] += size
        return seven(counts)
    drawn = rng.choices(range(7), cards, k=packets)
    return seven([drawn.count(i) for i in range(7)])


class World:
    """Nodes in one mesh, whose epochs turn one link at a time at exact moments."""

    def __init__(self, seed: int = 0, names: Sequence[str] = NAMES[:2]) -> None:
        self.rng = random.Random(seed)
        self.names = names
        self.now = NOW + 3600
        self.ledgers = {name: Ledger(node(name).node_id, self.rng.randbytes, {}, Chain()) for name in names}
        self.wire: dict[tuple[str, str], Seven] = {}
        self.came: dict[tuple[str, str], Seven] = {}
        self.began: dict[tuple[str, str], tuple[Plan, float]] = {}
        self.shelf: dict[tuple[str, NodeId, str, int], Kept] = {}
        self.epoch = 0

    def plan(
        self, a: str, b: str, scheduler: Scheduler = "packet", run: int = 1, cards: Seven | None = None
    ) -> Plan:
        cards = cards_of(scheduler) if cards is None else cards
        return Plan(node(a).node_id, node(b).node_id, 3, self.epoch, scheduler, run, cards)

    def turn(
        self, a: str, b: str, plan: Plan | None, counts: tuple[Seven, Seven] | None, *, reached: bool = True
    ) -> None:
        """End the epoch of a link, in which so many packets and bytes were scattered, and begin another."""
        link, before = (a, b), self.began.pop((a, b), None)
        closed = None
        if before is not None and counts is not None:
            closed = Closed(before[0], int(before[1] * 1000), int(self.now * 1000), *counts)
        wire = self.wire.get(link, ZEROS)
        closes, opens = self.ledgers[a].turn(node(b).node_id, closed, plan, wire)
        if reached:
            came = self.came.get(link, ZEROS)
            self.ledgers[b].turned(node(a).node_id, closes, opens, came, self.now, int(self.now * 1000))
        self.ledgers[a].answered(node(b).node_id, wire if reached else None)
        if plan is not None:
            self.began[link] = (plan, self.now)

    def carry(
        self, a: str, b: str, packets: Seven, size: int = MTU, loss: float = 0.0, unsent: float = 0.0
    ) -> tuple[Seven, Seven]:
        """Send so many packets of that size; ``unsent`` is lost before WireGuard, ``loss`` after it."""
        link = (a, b)
        sent = seven([int(count * (size + 47) * (1 - unsent)) for count in packets])
        came = seven([int(size * (1 - loss)) for size in sent])
        self.wire[link] = plus(self.wire.get(link, ZEROS), sent)
        self.came[link] = plus(self.came.get(link, ZEROS), came)
        return packets, seven([count * size for count in packets])

    def round(self, deliver: bool = True) -> None:
        """Every node signs and delivers."""
        for name, ledger in self.ledgers.items():
            made = ledger.gather(int(self.now * 1000))
            if made is not None:
                for kept in ledger.seal(made, node(name).sign(made.head, CONTEXT)):
                    self._keep(name, kept)
        for name, ledger in self.ledgers.items():
            for other in self.names:
                parts = ledger.unsent(node(other).node_id) if deliver and other != name else ()
                for part in parts:
                    kept_there = self.ledgers[other].take(
                        node(name).node_id, Signed.decode_untrusted(part), int(self.now * 1000)
                    )
                    if kept_there is not None:
                        self._keep(other, kept_there)
                ledger.sent(node(other).node_id, parts)

    def _keep(self, name: str, kept: Kept) -> None:
        self.shelf[name, kept.peer, kept.direction, kept.number] = kept

    def run(
        self, epochs: int, scheduler: Scheduler = "packet", *, run: int = 1, weights: Seven = EQUAL,
        packets: int = 2000, loss: float = 0.0,
    ) -> None:  # fmt: skip
        """Let every link run for so many epochs, and all be signed by both ends."""
        links = [(a, b) for a in self.names for b in self.names if a != b]
        counts: dict[tuple[str, str], tuple[Seven, Seven]] = {}
        cards = cards_of(scheduler, weights)
        for number in range(epochs + 1):
            self.epoch += 1
            for a, b in links:
                plan = self.plan(a, b, scheduler, run, cards) if number < epochs else None
                self.turn(a, b, plan, counts.get((a, b)))
                sent = scatter(self.rng, scheduler, run, cards, self.rng.randint(packets // 2, packets))
                counts[a, b] = self.carry(a, b, sent, loss=loss)
            self.round()
            self.now += EPOCH
        self.round()

    def steady(
        self, epochs: int, packets: Seven, loss: float = 0.0, unsent: float = 0.0,
        scheduler: Scheduler = "packet",
    ) -> None:  # fmt: skip
        """Let the first node send the second the same packets in each of so many epochs."""
        a, b = self.names[:2]
        counts = None
        for number in range(epochs + 1):
            self.epoch += 1
            self.turn(a, b, self.plan(a, b, scheduler) if number < epochs else None, counts)
            counts = self.carry(a, b, packets, loss=loss, unsent=unsent)
            self.round()
            self.now += EPOCH
        self.round()

    def proofs(self, name: str) -> list[Proof]:
        return [self.shelf[key].proof for key in sorted(self.shelf) if key[0] == name]

    def archive(self, proofs: Sequence[Proof] | None = None) -> Archive:
        known = {
            bytes(node(name).node_id): Certificates(certificate(name), MESH.authority.der)
            for name in self.names
        }
        return Archive(
            VERSION, MESH.root_der, known, tuple(self.proofs(self.names[0]) if proofs is None else proofs)
        )
