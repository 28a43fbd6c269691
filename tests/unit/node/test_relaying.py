# SPDX-License-Identifier: GPL-3.0-or-later
"""A node as a relay: who gets leases, and who hears of them."""

from __future__ import annotations

from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.node.relaying import Lends, Relay
from phantommesh.routing.leases import Leases, Terms
from phantommesh.trust.identity import NodeId

OWN, A, B, C = (NodeId(bytes((n,)) * 16) for n in range(4))


class World:
    """A relay among three members, and what it told whom."""

    def __init__(self, among: set[bytes] | None = None) -> None:
        self.standing, self.barred = {OWN, A, B, C}, set[bytes]()
        self.ways: dict[NodeId, float | None] = {A: 0.01, B: 0.02}
        self.told: list[tuple[NodeId, messages.OfferRelay]] = []
        self.changes = 0
        self._serial = 0
        lends = Lends(OWN, lambda: self.standing, lambda: self.barred, among)
        leases = Leases(Terms(rate=1, quota=1), lends, lambda place: False, self._random)
        self.relay = Relay(
            leases,
            51700,
            far=self.ways.get,
            tell=lambda peer, word: self.told.append((peer, word)),
            changed=self._change,
        )

    def _random(self, size: int) -> bytes:
        self._serial += 1
        return self._serial.to_bytes(size, "big")

    def _change(self) -> None:
        self.changes += 1

    def ask(self, asker: NodeId, peer: NodeId, dimensions: int = 0b11) -> messages.Answer:
        return self.relay.answer(asker, messages.AskRelay(peer, dimensions, tagging=True), 0.0)


def test_the_other_end_hears_of_each_question_of_the_end_that_chooses() -> None:
    """It may have started anew, and not know of a lease that it seems to hold."""
    world = World()
    first = world.ask(A, B)
    assert isinstance(first, messages.Relayed)
    assert (first.port, first.far, [leg.dimension for leg in first.legs]) == (51700, 20_000, [0, 1])
    assert world.told == [(B, messages.OfferRelay(A, 0b11))]
    second = world.ask(B, A, 0b01)
    assert isinstance(second, messages.Relayed)
    assert second.legs[0].ticket != first.legs[0].ticket
    assert len(world.told) == 1
    world.ask(A, B)
    assert world.told[1:] == [(B, messages.OfferRelay(A, 0b11))]


def test_a_question_for_the_cost_makes_no_lease() -> None:
    world = World()
    assert world.ask(A, B, 0) == messages.Relayed(51700, 20_000)
    assert len(world.relay.leases) == 0
    assert not world.told


def test_a_relay_without_a_way_to_the_other_end_does_not_offer() -> None:
    assert isinstance(World().ask(A, C), messages.Refused)


def test_leases_are_for_members_in_good_standing_and_among_those_named() -> None:
    world = World()
    world.barred.add(B)
    assert isinstance(world.ask(A, B), messages.Refused)
    world.barred.clear()
    world.standing.discard(B)
    assert isinstance(world.ask(A, B), messages.Refused)
    assert isinstance(World(among={A}).ask(A, B), messages.Refused)
    assert isinstance(World(among={A, B}).ask(A, B), messages.Relayed)
    assert isinstance(World().ask(A, A), messages.Refused)


def test_a_member_that_is_revoked_is_forwarded_no_more() -> None:
    world = World()
    first, second = world.ask(A, B), world.ask(B, A)
    assert isinstance(first, messages.Relayed)
    assert isinstance(second, messages.Relayed)
    leases = world.relay.leases
    leases.bind(first.legs[0].ticket, Address("192.0.2.1", 1), 0.0)
    leases.bind(second.legs[0].ticket, Address("192.0.2.2", 2), 0.0)
    assert leases.forwards(0.0)
    world.standing.discard(A)
    assert not leases.forwards(0.0)


def test_either_end_may_end_a_lease() -> None:
    world = World()
    world.ask(A, B)
    assert world.relay.answer(B, messages.LeaveRelay(A, 0b10), 0.0) == messages.Done()
    assert len(world.relay.leases) == 1
    assert world.changes == 1


def test_a_legs_key_does_not_show() -> None:
    answer = World().ask(A, B)
    assert isinstance(answer, messages.Relayed)
    assert repr(answer.legs[0].key) not in repr(answer)
