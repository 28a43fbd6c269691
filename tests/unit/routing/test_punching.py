# SPDX-License-Identifier: GPL-3.0-or-later
"""Two searches and their NATs under a virtual clock: which pairs find each other, and what nobody is made to
send."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from phantommesh.dimensions import ALL, DIMENSIONS, only
from phantommesh.endpoint import Address
from phantommesh.routing import knocks
from phantommesh.routing.knocks import SIZE, Keys, Kind
from phantommesh.routing.punching import (
    ANSWERS,
    BACK,
    GRACE,
    KNOCKS,
    LASTS,
    LATE,
    PAUSES,
    PROVES,
    ROUNDS,
    STRAYS,
    Punching,
)
from phantommesh.routing.search import OTHER, Ask, Effect, Lost, Send, Standing, State, Target, Won, missing
from phantommesh.secret import Secret

A, B = b"a" * 16, b"b" * 16
FIRST = 51820
REMEMBERS = 30.0  # s that a NAT remembers a packet without an answer
SECRETS = {A: (Secret(b"1" * 32), Secret(b"2" * 32)), B: (Secret(b"2" * 32), Secret(b"1" * 32))}


@dataclass
class Nat:
    """As Linux does it: a mapping and a hole for each destination, and a memory of what its own ports were
    sent. ``kind``: ``public`` (there is none), ``keeps`` (the port, where it is free), ``random``, ``cone``
    (one mapping for all, open to all). ``answers``: its own ports take packets."""

    kind: str
    answers: bool
    host: str
    rng: Random
    out: dict[tuple[int, Address | None], int] = field(default_factory=dict)
    back: dict[tuple[int, Address | None], int] = field(default_factory=dict)
    taken: dict[tuple[int, Address], float] = field(default_factory=dict)
    used: dict[tuple[int, Address | None], float] = field(default_factory=dict)

    def leaves(self, port: int, to: Address, now: float) -> Address:
        """Where a packet from a port inside seems to come from."""
        if self.kind == "public":
            return Address(self.host, port)
        who = None if self.kind == "cone" else to
        forgets = self.kind != "cone" and now - self.used.get((port, who), now) >= REMEMBERS
        self.used[port, who] = now
        if forgets:
            del self.back[self.out.pop((port, who)), who]
        if (port, who) not in self.out:
            outside = port
            if self.kind != "keeps" or now - self.taken.get((port, to), -inf) < REMEMBERS:
                outside = self.rng.randrange(1024, 65536)
            self.out[port, who], self.back[outside, who] = outside, port
        return Address(self.host, self.out[port, who])

    def enters(self, port: int, source: Address, now: float) -> int | None:
        """The port inside that a packet gets to; None for none."""
        if self.kind == "public":
            return port
        inside = self.back.get((port, None if self.kind == "cone" else source))
        if inside is None and self.answers:
            self.taken[port, source] = now
        return inside


class Net:
    """Two ends. A channel between them always works, and takes ``delay`` each way, as datagrams do."""

    def __init__(self, one: tuple[str, bool], two: tuple[str, bool], delay: float, lose: Sequence[int] = ()):
        rng = Random(7)
        self.now, self.delay, self.lose = 0.0, delay, frozenset(lose)
        self.nats = {A: Nat(*one, "192.0.2.1", rng), B: Nat(*two, "192.0.2.2", rng)}
        self.won: dict[bytes, dict[int, Address]] = {A: {}, B: {}}
        self.sent: Counter[tuple[bytes, int, Address]] = Counter()
        self.answers = 0
        self.channel, self.routers = True, True
        self._number, self._events = count(), list[tuple[float, int, str, tuple[object, ...]]]()
        self.ends = {
            me: Punching(
                me, targets=lambda peer: self.targets(peer), may=lambda peer, host: True,
                random=rng.randbytes, chance=rng,
            )
            for me in (A, B)
        }  # fmt: skip
        for me, end in self.ends.items():
            end.key(other(me), Keys.of(*SECRETS[me]), 0.0)

    def targets(self, peer: bytes) -> list[list[Target]]:
        """What the peer's record says: where a witness sees it, with the ports that all would see."""
        nat, witness = self.nats[peer], Address("192.0.2.9", 51820)
        ports = [FIRST + i for i in range(DIMENSIONS)]
        if nat.kind == "cone":
            ports = [nat.leaves(port, witness, self.now).port for port in ports]
        return [[Target(Address(nat.host, port), 2, nat.kind != "public")] for port in ports]

    def at(self, when: float, what: str, *about: object) -> None:
        heapq.heappush(self._events, (when, next(self._number), what, about))

    def carry_out(self, me: bytes, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(dimension, to, datagram, hops):
                    self.send(me, dimension, to, datagram, hops)
                case Ask(peer, dimensions, turn):
                    self.at(self.now + self.delay, "meet", peer, dimensions, turn, self.now)
                case Won(_, dimension, address):
                    self.won[me][dimension] = address
                case Lost(_, dimension):
                    del self.won[me][dimension]

    def send(self, me: bytes, dimension: int, to: Address, datagram: bytes, hops: int | None) -> None:
        source = self.nats[me].leaves(FIRST + dimension, to, self.now)
        if datagram[4] == Kind.KNOCK:
            self.sent[me, dimension, to] += 1
        number = sum(self.sent.values()) + self.answers
        self.answers += datagram[4] == Kind.ANSWER
        if (hops is None or not self.routers) and number not in self.lose:
            self.at(self.now + self.delay, "datagram", source, to, datagram)

    def run(self, until: float) -> None:
        while (when := min(self._events[0][0] if self._events else inf, *self.deadlines())) <= until:
            self.now = when
            if self._events and self._events[0][0] <= when:
                _, _, what, about = heapq.heappop(self._events)
                getattr(self, what)(*about)
                continue
            for me, end in self.ends.items():
                if end.deadline <= when:
                    self.carry_out(me, end.tick(when))
        self.now = until

    def deadlines(self) -> list[float]:
        return [end.deadline for end in self.ends.values()]

    def datagram(self, source: Address, to: Address, datagram: bytes) -> None:
        for me, nat in self.nats.items():
            if nat.host == to.host:
                port = nat.enters(to.port, source, self.now)
                if port is not None and port in range(FIRST, FIRST + DIMENSIONS):
                    self.carry_out(me, self.ends[me].receive(port - FIRST, source, datagram, self.now))

    def meet(self, peer: bytes, dimensions: int, turn: int, asked: float) -> None:
        refused = "nobody in common"
        if self.channel:
            refused = self.ends[peer].asked(other(peer), dimensions, 0.25, turn, self.now)
        self.at(self.now + self.delay, "met", other(peer), asked, refused)

    def met(self, me: bytes, asked: float, refused: str) -> None:
        end = self.ends[me]
        if refused:
            end.apart(other(me), refused, self.now, alone=False)
        else:
            end.agreed(other(me), (asked + self.now) / 2 + 0.25, self.now)

    def want(self, me: bytes) -> None:
        wanted = ALL & ~sum(map(only, self.won[me]))
        self.carry_out(me, self.ends[me].want(other(me), wanted, self.now, soon=True))


def other(end: bytes) -> bytes:
    return B if end == A else A


OPEN, KEEPS = ("public", "cone"), ("keeps",)
KINDS = [
    ("public", True),
    ("keeps", True),
    ("keeps", False),
    ("random", True),
    ("random", False),
    ("cone", False),
]


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("two", KINDS)
@pytest.mark.parametrize("delay", [0.0005, 0.02, 0.15])
def test_which_pairs_find_each_other(one: tuple[str, bool], two: tuple[str, bool], delay: float) -> None:
    """All whose NATs keep ports; and whoever is open, or has one mapping for all, with everybody. Both ends
    then send to where the other's packets come from."""
    net = Net(one, two, delay)
    net.want(A)
    net.want(B)
    net.run(2.0)
    kinds = {one[0], two[0]}
    possible = bool(kinds & set(OPEN)) or kinds <= set(KEEPS)
    for me, won in net.won.items():
        assert set(won) == (set(range(DIMENSIONS)) if possible else set())
        for dimension, address in won.items():
            nat = net.nats[other(me)]
            here = net.nats[me].leaves(FIRST + dimension, address, net.now)
            assert nat.leaves(FIRST + dimension, here, net.now) == address
    assert all(sent <= KNOCKS for sent in net.sent.values())


@given(st.sets(st.integers(0, 150), max_size=60), st.sampled_from(KINDS[:3]), st.sampled_from(KINDS[:3]))
@settings(deadline=None, max_examples=40)
def test_losses_are_made_up_for_in_later_rounds(
    lose: set[int], one: tuple[str, bool], two: tuple[str, bool]
) -> None:
    net = Net(one, two, 0.02, sorted(lose))
    for _ in range(8):
        net.want(A)
        net.want(B)
        net.run(net.now + 70.0)
    assert all(set(won) == set(range(DIMENSIONS)) for won in net.won.values())


@pytest.mark.parametrize("answers", [(True, False), (False, True)])
def test_without_a_router_between_the_nats_the_one_that_remembers_is_first_in_some_dimensions(
    answers: tuple[bool, bool],
) -> None:
    net = Net(("keeps", answers[0]), ("keeps", answers[1]), 0.0001)
    net.routers = False
    net.want(A)
    net.want(B)
    net.run(3.0)
    first = [set(won) for won in net.won.values()]
    assert first[0] == first[1] and 3 <= len(first[0]) <= 4
    net.run(PAUSES[0] * 1.2 + 2 * LASTS)  # the other way round
    assert all(set(won) == set(range(DIMENSIONS)) for won in net.won.values())


def test_a_round_that_failed_is_followed_by_silence() -> None:
    net = Net(("random", True), ("random", True), 0.01)
    net.want(A)
    net.want(B)
    net.run(LASTS + LATE + 1)
    sent = net.sent.total()
    assert 0 < sent <= 2 * DIMENSIONS * KNOCKS
    assert net.ends[A].state(B).standing is net.ends[B].state(A).standing is Standing.SILENT
    again_at = net.ends[A].again_at(B)
    assert REMEMBERS < again_at < inf
    assert net.ends[A].again_at(b"x" * 16) == inf
    net.run(REMEMBERS)
    assert net.sent.total() == sent
    assert net.ends[A].again_at(B) == again_at
    net.run(PAUSES[0] * 1.2 + LASTS + LATE)
    assert sent < net.sent.total() <= 2 * sent
    net.run(3600.0)
    assert net.sent.total() <= 12 * sent


@pytest.mark.parametrize("kind", ["keeps", "public"])
def test_without_anybody_in_common_both_try_alone_in_the_end(kind: str) -> None:
    net = Net((kind, False), ("keeps", False), 0.02)
    net.channel = False
    net.want(A)
    net.want(B)
    net.run(10.0)
    assert not net.sent and net.ends[A].state(B).standing is Standing.APART
    assert net.ends[A].state(B).why == "nobody in common"
    net.run(120.0)
    assert all(set(won) == set(range(DIMENSIONS)) for won in net.won.values())


def test_other_addresses_are_tried_at_once() -> None:
    net = Net(("random", False), ("random", False), 0.01)
    net.want(A)
    net.want(B)
    net.run(5.0)
    net.nats[A].kind = "public"
    net.ends[A].anew(B, net.now)
    net.ends[B].anew(A, net.now)
    net.run(net.now + 2.0)
    assert all(set(won) == set(range(DIMENSIONS)) for won in net.won.values())


def test_a_way_that_goes_dark_is_lost_and_found_again() -> None:
    net = Net(("keeps", False), ("keeps", False), 0.01)
    net.want(A)
    net.want(B)
    net.run(2.0)
    net.carry_out(A, net.ends[A].want(B, ALL, net.now, soon=True))
    assert net.won[A]  # WireGuard has its time
    net.run(PROVES + 5.0)
    for nat in net.nats.values():  # both have forgotten everything
        nat.out, nat.back, nat.used = {}, {}, {}
    net.carry_out(A, net.ends[A].want(B, ALL, net.now, soon=True))
    assert not net.won[A]
    net.run(net.now + 2.0)
    assert all(set(won) == set(range(DIMENSIONS)) for won in net.won.values())


def test_a_way_that_carried_and_goes_dark_is_lost_at_once() -> None:
    net = Net(("public", False), ("public", False), 0.01)
    net.want(A)
    net.want(B)
    net.run(2.0)
    assert net.ends[A].want(B, ALL, net.now, soon=True) == []  # WireGuard has its time
    net.ends[A].want(B, 0, net.now, soon=True, up=only(3))
    assert net.ends[A].want(B, ALL, net.now, soon=True, up=0) == [Lost(B, 3)]


def test_wireguard_may_try_first_where_that_does_no_harm() -> None:
    net = Net(("public", True), ("public", True), 0.01)
    net.ends[A].want(B, ALL, 0.0, soon=False)
    net.run(GRACE - 0.1)
    assert not net.sent
    assert net.ends[A].busy
    net.ends[A].want(B, 0, net.now, soon=False)
    assert not net.ends[A].busy
    net.run(100.0)
    assert not net.sent


def test_the_better_way_is_taken() -> None:
    """Both answer; the one in a network of both comes later and is better."""
    net = Net(("public", True), ("public", True), 0.01)
    near = Address("192.0.2.2", FIRST)
    end = net.ends[A]
    end._targets = lambda peer: [[Target(Address("198.51.100.2", FIRST), 2), Target(near, 0)]]
    end.want(B, 1, 0.0, soon=True)
    end.agreed(B, 0.0, 0.0)
    sends = [effect for effect in end.tick(0.0) if isinstance(effect, Send)]
    won = list[Address]()
    for send in sorted(sends, key=lambda send: send.destination == near):
        read = knocks.decode_untrusted(send.datagram)
        answer = knocks.encode(Kind.ANSWER, 0, read.nonce, Keys.of(*SECRETS[B]), Address("192.0.2.1", 9))
        won += [e.address for e in end.receive(0, send.destination, answer, 0.1) if isinstance(e, Won)]
    assert won == [Address("198.51.100.2", FIRST), near]
    assert end.state(B).direct == 1


def test_an_answer_counts_from_where_the_knock_went_and_once_asked_for() -> None:
    net = Net(("public", True), ("public", True), 0.01)
    end, keys = net.ends[A], Keys.of(*SECRETS[B])
    end.want(B, ALL, 0.0, soon=True)
    end.agreed(B, 0.0, 0.0)
    [first, *_] = [effect for effect in end.tick(0.0) if isinstance(effect, Send)]
    nonce = knocks.decode_untrusted(first.datagram).nonce
    good = knocks.encode(Kind.ANSWER, first.dimension, nonce, keys, Address("192.0.2.1", FIRST))
    bad = knocks.encode(Kind.ANSWER, first.dimension, bytes(16), keys, Address("192.0.2.1", FIRST))
    assert end.receive(first.dimension, Address("192.0.2.66", FIRST), good, 0.1) == []
    assert end.receive(first.dimension, first.destination, bad, 0.1) == []
    assert end.receive(first.dimension + 1, first.destination, good, 0.1) == []
    assert end.receive(first.dimension, first.destination, good[:-1] + b"\0", 0.1) == []
    assert end.receive(first.dimension, first.destination, good[:63], 0.1) == []
    assert end.dropped == {"knock-unasked": 2, "knock-dimension": 1, "knock-mac": 1, "knock-malformed": 1}
    assert end.receive(first.dimension, first.destination, good, 0.1) == [
        Won(B, first.dimension, first.destination)
    ]


class Victim(RuleBasedStateMachine):
    """A member does all it can to have a node send to an address of its choice."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        rng = Random(seed)
        self.now, self.start = 0.0, 0.0
        self.victim = Address("203.0.113.66", 53)
        self.sent, self.genuine, self.strays = Counter[str](), 0, set[tuple[int, Address]]()
        another = Address("203.0.113.68", 53)  # on another uplink than the dimension's
        targets = [[Target(self.victim, 2, True), Target(another, OTHER + 2)] for _ in range(DIMENSIONS)]
        self.end = Punching(
            A, targets=lambda peer: targets, may=lambda peer, host: not host.startswith("10."),
            random=rng.randbytes, chance=rng,
        )  # fmt: skip
        self.keys = Keys.of(*SECRETS[B])
        self.end.key(B, Keys.of(*SECRETS[A]), 0.0)

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                assert len(effect.datagram) == SIZE
                assert not effect.destination.host.startswith("10.")
                kind = "answer" if effect.datagram[4] == Kind.ANSWER else "knock"
                self.sent[f"{kind} {effect.destination.host}"] += 1
            elif isinstance(effect, Ask):
                self.end.agreed(B, self.now, self.now)

    @rule(dimensions=st.integers(1, ALL), soon=st.booleans())
    def want(self, dimensions: int, soon: bool) -> None:
        self.take(self.end.want(B, dimensions, self.now, soon=soon))

    @rule()
    def rest(self) -> None:
        self.take(self.end.want(B, 0, self.now, soon=False))

    @rule()
    def anew(self) -> None:
        self.end.anew(B, self.now)

    @rule(dimensions=st.integers(0, ALL), ahead=st.floats(0, 100), turn=st.integers(0, 1))
    def asked(self, dimensions: int, ahead: float, turn: int) -> None:
        self.end.asked(B, dimensions, ahead, turn, self.now)

    @rule(alone=st.booleans())
    def apart(self, alone: bool) -> None:
        self.end.apart(B, "no", self.now, alone=alone)

    @rule(
        dimension=st.integers(0, DIMENSIONS - 1),
        host=st.sampled_from(["203.0.113.66", "203.0.113.67", "203.0.113.68", "10.0.0.1"]),
        port=st.integers(1, 65535), nonce=st.binary(min_size=16, max_size=16), kind=st.sampled_from(Kind),
    )  # fmt: skip
    def hear(self, dimension: int, host: str, port: int, nonce: bytes, kind: Kind) -> None:
        self.genuine += kind is Kind.KNOCK
        seen = None if kind is Kind.KNOCK else Address("192.0.2.1", 1)
        data = knocks.encode(kind, dimension, nonce, self.keys, seen)
        self.take(self.end.receive(dimension, Address(host, port), data, self.now))

    @rule(data=st.binary(min_size=SIZE, max_size=SIZE))
    def garbage(self, data: bytes) -> None:
        assert self.end.receive(0, self.victim, data, self.now) == []

    @rule(steps=st.integers(1, 30))
    def wait(self, steps: int) -> None:
        for _ in range(steps):
            deadline = self.end.deadline
            if deadline == inf:
                self.now += 1.0
                return
            assert deadline >= self.now or self.end.deadline <= self.now
            self.now = max(self.now, deadline)
            self.take(self.end.tick(self.now))
            assert self.end.deadline > self.now or self.end.deadline == inf or self.end.deadline >= deadline

    @invariant()
    def bounded(self) -> None:
        passed = self.now - self.start
        rounds = ROUNDS[1] + passed * ROUNDS[0] + 1
        strays = STRAYS[1] + passed * STRAYS[0] + 1
        for what, number in self.sent.items():
            assert what.startswith("answer") or number <= rounds * DIMENSIONS * KNOCKS + strays * len(BACK)
        answers = sum(number for what, number in self.sent.items() if what.startswith("answer"))
        assert answers <= min(self.genuine, ANSWERS[1] + passed * ANSWERS[0])


TestVictim = Victim.TestCase
TestVictim.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_what_is_gone_is_forgotten() -> None:
    net = Net(("public", True), ("public", True), 0.01)
    end = net.ends[A]
    end.want(B, ALL, 0.0, soon=True)
    for _ in range(10):
        end.key(B, Keys.of(*SECRETS[A]), 0.0)
    assert len(end._names) == DIMENSIONS  # the same keys, each time
    end.key(B, Keys.of(Secret(b"3" * 32), Secret(b"4" * 32)), 0.0)
    assert len(end._names) == 2 * DIMENSIONS
    end.retain(set())
    assert not end._names and end.deadline == inf
    assert end.state(B) == State(Standing.IDLE)


def test_a_direct_way_is_wanted_where_none_answers_and_where_others_carry_it() -> None:
    assert missing(0b1111, up=0b0011, dark=0b1000, direct=0b0000, detour=0b0010) == 0b1110
    assert missing(0b1111, up=0b0000, dark=0b1000, direct=0b1100, detour=0b0000) == 0b1011
    assert missing(0b0000, up=0b0000, dark=0b1111, direct=0b0000, detour=0b0000) == 0
