# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that moved or slept has some members hear of it at once, and hears what they say of it."""

from phantommesh.membership.machine import ROUSED
from phantommesh.membership.messages import Kind
from tests.unit.membership.test_membership import NOW, make, sends


def test_some_members_are_asked_at_once_and_hear_of_this_node() -> None:
    member = make(known=30)
    asked = sends(member.rouse(NOW))
    assert {message.kind for message, _ in asked} == {Kind.PING}
    assert len({to for _, to in asked}) == ROUSED
    assert all(member.member(message.sender) and message.events for message, _ in asked)


def test_a_node_that_knows_nobody_asks_nobody() -> None:
    assert make(known=0).rouse(NOW) == []
