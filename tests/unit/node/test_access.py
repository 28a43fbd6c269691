# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom access rules know, where members claim the same."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from phantommesh.acl.compiled import compile_for
from phantommesh.acl.rules import TCP, Party, by_address, policy_of
from phantommesh.config.acl import AclSection, RuleSection
from phantommesh.node.access import parties
from phantommesh.records.roster import Dispute
from phantommesh.trust.certificates import Member, Role
from phantommesh.trust.identity import Identity, NodeId, format_node_id

KEY = Identity.generate().public_key
IP4 = IPv4Address("100.64.0.9")
DB = Party("db", NodeId(bytes(16)), (IPv4Address("100.64.0.1"), IPv6Address("fd00::1")))


def member(number: int, *tags: str) -> Member:
    node_id = NodeId(bytes([number]) * 16)
    return Member(node_id, f"m{number}", Role.NODE, IP4, IPv6Address(f"fd00::{number}"), KEY, 0, 1, tags=tags)


@pytest.mark.parametrize("losers_first", [False, True])
@pytest.mark.parametrize("by", ["tag:guest", format_node_id(NodeId(bytes([7]) * 16))])
def test_who_has_lost_its_ipv4_address_is_denied_on(by: str, losers_first: bool) -> None:
    """Else a member that is denied asks for an address that another has, and is in no rule any more."""
    winner, loser = member(3), member(7, "guest")
    both = [loser, winner] if losers_first else [winner, loser]
    found = parties(both, [Dispute(loser.node_id, winner.node_id, "address")])
    assert by_address(found)[IP4].node_id == winner.node_id
    rules = AclSection("allow", (RuleSection("guests", action="deny", source=(by,)),))
    compiled = compile_for(DB, [policy_of(rules, "node")], found)
    assert not compiled.decide(loser.ip6, DB.addresses[1], TCP, 22).allowed
    assert compiled.decide(winner.ip6, DB.addresses[1], TCP, 22).allowed
    assert compiled.decide(IP4, DB.addresses[0], TCP, 22).allowed


def test_a_name_is_the_winners_alone() -> None:
    one, other = member(3), member(7)
    found = parties([one, other], [Dispute(other.node_id, one.node_id, "name")])
    assert [party.name for party in found] == ["m3", ""]
