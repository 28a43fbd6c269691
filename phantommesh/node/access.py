# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom access rules know: the members as their certificates say, for one node. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from phantommesh.acl.compiled import Compiled, compile_for
from phantommesh.acl.policy import holding
from phantommesh.acl.rules import Party, Policy, policy_of
from phantommesh.config.acl import AclSection
from phantommesh.records.roster import Dispute, Roster
from phantommesh.trust.certificates import Member


def party_of(member: Member) -> Party:
    """A member as rules see it."""
    return Party(member.name, member.node_id, (member.ip4, member.ip6), frozenset(member.tags))


def parties(members: Iterable[Member], disputes: Iterable[Dispute]) -> list[Party]:
    """The members, without what they have lost to another: a name that two have is the winner's alone. Who
    has lost an IPv4 address stands before all others, so that the address is the winner's (`by_address`). The
    IPv6 address is the loser's own: rules go on to hold for it, or a dispute would end what denies."""
    lost = {(dispute.loser, dispute.over) for dispute in disputes}
    found = [
        Party("", member.node_id, (member.ip4, member.ip6), frozenset(member.tags))
        if (member.node_id, "name") in lost
        else party_of(member)
        for member in members
    ]
    return sorted(found, key=lambda party: (party.node_id, "address") not in lost)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a node's access rules depend on. ``own`` are the UDP ports by which members measure the
    mesh; ``mesh`` is the mesh's policy, which ``section`` can only tighten."""

    section: AclSection
    me: Party
    others: tuple[Party, ...]
    own: tuple[int, ...]
    mesh: Policy | None = None

    def compile(self) -> Compiled:
        """The rules as they hold for this node."""
        return self.seen_by(self.me)

    def seen_by(self, party: Party) -> Compiled:
        """The rules as they would hold for another member with the same configuration."""
        policies = holding(self.mesh, policy_of(self.section, "node"))
        return compile_for(party, policies, (self.me, *self.others), self.own)


def situation(
    section: AclSection, me: Member, roster: Roster, wall: float, own: Iterable[int],
    mesh: Policy | None = None,
) -> Situation:  # fmt: skip
    """The situation of a node with the members that are in good standing at ``wall``, unix time."""
    others = (member for member in roster.members(wall) if member.node_id != me.node_id)
    return Situation(section, party_of(me), tuple(parties(others, roster.disputes(wall))), tuple(own), mesh)
