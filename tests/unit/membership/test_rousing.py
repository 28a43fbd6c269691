# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that moved or slept has some members hear of it at once, and hears what they say of it."""

from phantommesh.endpoint import Address
from phantommesh.membership.effects import Effect
from phantommesh.membership.machine import ROUSED
from phantommesh.membership.messages import Kind
from phantommesh.membership.signs import PROMPTS
from tests.simulation.gossip_sim import node_id
from tests.unit.membership.test_membership import NOW, B, gossip, make, sends


def test_some_members_are_asked_at_once_and_hear_of_this_node() -> None:
    member = make(known=30)
    asked = sends(member.rouse(NOW))
    assert {message.kind for message, _ in asked} == {Kind.PING}
    assert len({to for _, to in asked}) == ROUSED
    assert all(member.member(message.sender) and message.events for message, _ in asked)


def test_a_node_that_knows_nobody_asks_nobody() -> None:
    assert make(known=0).rouse(NOW) == []


STRANGE = Address("203.0.113.9", 40001)


def asked_there(effects: list[Effect], place: Address) -> int:
    return sum(to == place and message.kind == Kind.PING_REQ for message, to in sends(effects))


def test_a_member_that_is_heard_elsewhere_is_asked_there_at_once() -> None:
    """Its NAT may have given it another address, which it does not know. Its turn comes in minutes."""
    member = make(known=200)
    heard = member.receive(gossip(sender=B), STRANGE, NOW, usable=True)
    assert asked_there(heard, STRANGE) == 1
    again = member.receive(gossip(sender=B), STRANGE, NOW + 0.01, usable=True)
    assert asked_there(again, STRANGE) == 0


def test_whoever_forges_many_places_makes_a_node_ask_few_times() -> None:
    member, asked = make(known=200), 0
    for number in range(2000):
        place = Address(f"203.0.113.{number % 250}", 1024 + number)
        heard = member.receive(gossip(sender=node_id(1 + number % 150)), place, NOW, usable=True)
        asked += asked_there(heard, place)
    assert asked <= PROMPTS[1]
    one = make(known=200)
    places = [Address("203.0.113.9", 1024 + number) for number in range(100)]
    asked = sum(
        asked_there(one.receive(gossip(sender=B), place, NOW, usable=True), place) for place in places
    )
    assert asked == 1
