# SPDX-License-Identifier: GPL-3.0-or-later
"""A member that is not where its record says: it is found where it was heard, and copies mislead nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from random import Random

import pytest

from phantommesh.endpoint import Address
from phantommesh.gossip.envelope import Envelope
from phantommesh.gossip.machine import HINT, HINTS, SHORT, Datagram, Gossip, Hinted
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import State
from phantommesh.membership.reach import IN_A_ROW
from phantommesh.membership.signs import MAX_HEARD, QUESTIONS, RETURN, Way, Whereabouts
from phantommesh.trust.groupkey import GroupKey, Keyring
from phantommesh.trust.identity import NodeId

KEY = GroupKey(1, bytes(32), 0, b"k" * 32, b"", b"")
HOMES = {bytes([i]) * 16: Address(f"192.0.2.{i}", 51800) for i in (1, 2, 3)}
A, B, C = (NodeId(node) for node in HOMES)
NAT, COPIER = Address("203.0.113.1", 40_000), Address("198.51.100.66", 4000)


def agree(one: bytes, other: bytes, draw: int) -> bytes:
    return blake2b(b"".join(sorted((one, other)))).digest()


class End:
    """A node that knows the two others."""

    def __init__(self, me: NodeId) -> None:
        self.id, ring = me, Keyring()
        ring.install(KEY, 1000.0)
        self.membership = Membership(
            node=me, generation=1, record_seq=1, record_hash=bytes(16), rng=Random(me[0]), now=1000.0,
            agree=partial(agree, me),
        )  # fmt: skip
        envelope = Envelope(me, ring, start=1, revoked=(), digest=lambda: b"digest 1")
        self.gossip = Gossip(
            self.membership, envelope, where=lambda who: (HOMES[who],), digest=lambda: b"digest 1",
            in_use=lambda key: None,
        )  # fmt: skip
        for other in sorted(HOMES.keys() - {me}):
            self.gossip.seal(self.membership.verified(other, 1, bytes(16), 1000.0), 1000.0)


class World:
    """Three nodes; B is behind a NAT if ``nat``. ``on_way`` may do something with each datagram that arrives:
    it gets the receiver, the datagram and its source, before the receiver does."""

    def __init__(self, *, nat: bool = True) -> None:
        self.now, self.nat, self.at = 1000.0, nat, NAT
        self.hints: list[tuple[NodeId, Hinted]] = []
        self.ends = {A: End(A), B: End(B), C: End(C)}
        self.sent: list[tuple[NodeId, Datagram]] = []
        self.on_way: Callable[[NodeId, bytes, Address], None] = lambda to, data, source: None

    def deliver(self, to: NodeId, data: bytes, source: Address) -> None:
        self.carry(to, self.ends[to].gossip.receive(data, source, self.now))

    def carry(self, sender: NodeId, effects: Sequence[object]) -> None:
        for effect in effects:
            if isinstance(effect, Hinted):
                self.hints.append((sender, effect))
            if not isinstance(effect, Datagram):
                continue
            self.sent.append((sender, effect))
            to = next((node for node, home in HOMES.items() if home == effect.to), None)
            if self.nat:
                to = B if effect.to == self.at else None if to == B else to
            source = self.at if sender == B and self.nat else HOMES[sender]
            if to is not None and to in self.ends:
                self.on_way(NodeId(to), effect.data, source)
                self.deliver(NodeId(to), effect.data, source)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            for node, node_end in list(self.ends.items()):
                self.carry(node, [*node_end.gossip.tick(self.now)])

    def state(self, viewer: NodeId, of: NodeId) -> tuple[State | None, Way]:
        membership = self.ends[viewer].membership
        return membership.state(of), membership.way(of)

    def to(self, address: Address) -> list[Datagram]:
        return [datagram for _, datagram in self.sent if datagram.to == address]


def test_a_member_behind_a_nat_is_found_where_it_speaks_from() -> None:
    world = World()
    world.run(60)
    assert world.state(A, B) == world.state(C, B) == (State.ALIVE, Way.ELSEWHERE)
    assert world.state(B, A) == (State.ALIVE, Way.DIRECT)
    del world.ends[B]
    world.run(30)
    assert world.state(A, B)[0] is State.DEAD


def test_a_witness_says_where_a_member_is_seen() -> None:
    world = World()
    world.run(30)
    for witness in (A, C):
        seen = dict(world.ends[witness].gossip.seen(B, world.now))
        assert NAT in seen and world.now - seen[NAT] < 10
    world.nat = False
    world.run(30)
    for witness in (A, C):
        seen = dict(world.ends[witness].gossip.seen(B, world.now))
        assert seen.keys() == {HOMES[B]} and world.now - seen[HOMES[B]] < 10


def test_a_member_whose_nat_changes_is_told_so_within_a_few_probes() -> None:
    world = World()
    world.run(30)
    places = {(hint.member, hint.place) for _, hint in world.hints}
    assert places == {(A, str(NAT)), (C, str(NAT))}
    assert {to for to, _ in world.hints} == {B}
    assert len(world.hints) <= 2 * HINTS  # however long the record stays as it is
    world.hints.clear()
    world.at = Address("198.51.100.9", 1024)
    world.run(2)
    assert {hint.place for _, hint in world.hints} == {"198.51.100.9:1024"}


def test_a_member_at_home_is_told_nothing() -> None:
    world = World(nat=False)
    world.run(30)
    assert not world.hints


def test_a_hint_for_another_or_that_is_none_is_counted() -> None:
    end, ring = End(A), Keyring()
    ring.install(KEY, 1000.0)
    envelope = Envelope(B, ring, start=2, revoked=(), digest=lambda: b"digest 1")
    for payload in (C + b"192.0.2.7:1", A + b"\xff", A + b"1" * 65, b""):
        assert end.gossip.receive(envelope.seal(HINT, payload), HOMES[B], 1001.0) == []
    assert end.gossip.drops == {"gossip-hint": 4}
    hint = end.gossip.receive(envelope.seal(HINT, A + b"junk"), HOMES[B], 1001.0)
    assert hint == [Hinted(B, "junk")]  # `node.whereabouts` looks at the text


def test_a_copier_beside_a_member_is_not_where_it_is_seen() -> None:
    world = World(nat=False)
    world.on_way = lambda to, data, source: (
        world.deliver(to, data, COPIER) if source == HOMES[B] and to == A else None
    )
    world.run(30)
    assert COPIER not in dict(world.ends[A].gossip.seen(B, world.now))


def test_it_is_at_home_again_when_its_record_holds() -> None:
    world = World()
    world.run(30)
    world.nat = False
    world.run(30)
    assert world.state(A, B) == (State.ALIVE, Way.DIRECT)


def test_a_copy_that_comes_first_leads_nobody_astray() -> None:
    """Somebody on the path copies all that B sends and is faster, from an address of its own."""
    world = World(nat=False)
    world.on_way = lambda to, data, source: (
        world.deliver(to, data, COPIER) if source == HOMES[B] and to == A else None
    )
    world.run(60)
    assert world.state(A, B) == (State.ALIVE, Way.DIRECT)
    assert not world.ends[A].membership.proved(COPIER)
    assert all(len(datagram.data) <= SHORT + 64 for datagram in world.to(COPIER))


def test_a_neighbour_that_passes_on_copies_becomes_no_way() -> None:
    """Somebody beside B copies all that B sends, is faster, and passes what comes for that on to B: B answers
    there, and at home first."""
    world = World(nat=False)
    late: list[tuple[float, bytes]] = []
    membership = world.ends[A].membership

    def copy(to: NodeId, data: bytes, source: Address) -> None:
        if source == HOMES[B] and to == A:
            world.deliver(A, data, COPIER)

    world.run(5)
    world.on_way = copy
    start = world.now
    while world.now < start + 60:
        world.run(0.05)
        asked, world.sent = world.to(COPIER), []
        for when, data in list(late):
            if when <= world.now:
                late.remove((when, data))
                world.deliver(A, data, COPIER)
        for datagram in asked:
            for answer in world.ends[B].gossip.receive(datagram.data, COPIER, world.now):
                if isinstance(answer, Datagram) and answer.to == COPIER:
                    late.append((world.now + 0.1, answer.data))
        assert membership._core.places.instead(B, world.now) is None
    assert world.state(A, B) == (State.ALIVE, Way.DIRECT)


def test_a_copy_does_not_take_the_place_of_a_proved_address() -> None:
    world = World()
    world.run(30)
    world.on_way = lambda to, data, source: world.deliver(to, data, COPIER) if source == NAT else None
    world.run(60)
    assert world.state(A, B) == (State.ALIVE, Way.ELSEWHERE)
    assert world.ends[A].membership.heard_at(B)[0] == NAT
    assert not world.ends[A].membership.proved(COPIER)


@pytest.mark.parametrize("died", [False, True])
def test_one_forged_source_costs_its_victim_few_datagrams(died: bool) -> None:
    """Somebody sends a copy of a datagram of B's in a victim's name, and it comes first."""
    world, victim = World(nat=False), Address("198.51.100.200", 53)
    world.run(5)
    copied: list[bytes] = []

    def copy(to: NodeId, data: bytes, source: Address) -> None:
        if not copied and source == HOMES[B] and to == A:
            copied.append(data)
            world.deliver(A, data, victim)

    world.on_way = copy
    if died:
        world.run(3)
        del world.ends[B]
    world.run(400)
    assert copied
    sent = world.to(victim)  # the answer to the datagram itself, and questions
    assert len(sent) <= 1 + (QUESTIONS if died else 1)
    assert all(len(datagram.data) <= SHORT + 64 for datagram in sent)


def test_an_insider_can_not_answer_in_anothers_name() -> None:
    """C seals in the name of a B that is dead, and answers all that comes to C's other address."""
    world = World(nat=False)
    world.run(5)
    del world.ends[B]
    forger = End(B)  # it holds the group key, and no key of B's
    forger.membership._probing._agree = forger.membership._probing._carrying._agree = lambda node, draw: (
        b"made up"
    )
    start = world.now
    while world.now < start + 40:
        world.run(0.5)
        for effect in forger.gossip.tick(world.now):
            if isinstance(effect, Datagram) and effect.to == HOMES[A]:
                world.deliver(A, effect.data, COPIER)
        asked, world.sent = world.to(COPIER), []
        for datagram in asked:
            for answer in forger.gossip.receive(datagram.data, HOMES[A], world.now):
                if isinstance(answer, Datagram):
                    world.deliver(A, answer.data, COPIER)
    assert world.state(A, B)[0] is State.DEAD
    assert not world.ends[A].membership.proved(COPIER)


def test_only_probes_that_were_not_answered_at_home_speak_for_another_way() -> None:
    places = Whereabouts()
    for _ in range(2 * IN_A_ROW):
        places.at_home(B)
        places.prove(B, NAT, 10.0, first=False)
    assert places.instead(B, 10.0) is None
    assert not places.only(B)
    for missing in range(IN_A_ROW, 0, -1):
        assert places.instead(B, 10.0) is None
        assert places.unsettled(B) == (missing < IN_A_ROW)
        places.prove(B, NAT, 10.0, first=True)
    assert places.instead(B, 10.0) == NAT
    assert places.only(B)
    assert not places.unsettled(B)
    places.at_home(B)
    assert places.instead(B, 10.0) is None
    assert places.home(B)


def test_few_addresses_of_a_member_are_kept() -> None:
    world = World(nat=False)
    world.run(2)
    membership = world.ends[A].membership
    for port in range(1, 50):
        world.on_way = lambda to, data, source, port=port: (  # type: ignore[misc]
            world.deliver(to, data, COPIER._replace(port=port)) if source == HOMES[B] else None
        )
        world.run(0.6)
    assert 0 < len(membership.heard_at(B)) <= MAX_HEARD


def test_a_sign_of_life_clears_a_suspect_and_brings_back_the_dead() -> None:
    world = World(nat=False)
    world.run(5)
    del world.ends[B]
    membership = world.ends[A].membership
    while membership.state(B) is not State.SUSPECT:
        world.run(0.1)
    world.carry(A, [*membership.lives(B, world.now)])
    assert membership.state(B) is State.ALIVE
    for _ in range(60):  # its traffic flows
        world.run(1)
        world.carry(A, [*membership.lives(B, world.now)])
        assert membership.state(B) is State.ALIVE
    assert membership.way(B) is Way.TRAFFIC
    world.run(90)
    assert membership.state(B) is State.DEAD
    membership.lives(B, world.now)
    assert membership.state(B) is State.DEAD  # it may have started again, and tell so itself
    world.run(RETURN + 0.5)
    membership.lives(B, world.now)
    assert membership.state(B) is State.ALIVE
