# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes beyond the mesh, as this node sees them: who offers which, which it takes, what is wrong. Sans-I/O.

An offer counts if the member's certificate grants the prefix, the grant was not withdrawn, and the member's
record offers it now. A record that offers anything else moves nothing.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from phantommesh.config.sections import ALL_ROUTES, RoutesSection
from phantommesh.faults import FaultKind
from phantommesh.overlay.prefixes import HostRange
from phantommesh.records.roster import Entry
from phantommesh.routable import Network, is_exit, order, parse_prefix
from phantommesh.routing.constraints import called
from phantommesh.routing.prefixes import EVERYTHING, Conflict, Offer, Taken, accepted, exits, taken
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.trust.routes import standing

NOT_CERTIFIED = FaultKind("route-not-certified", "medium")
CONFLICT = FaultKind("route-conflict", "medium")
NOT_APPROVED = FaultKind("route-not-approved", "low")

MAX_NAMED: Final = 8  # faults of one kind


@dataclass(frozen=True, slots=True)
class Claim:
    """A member's record offers a prefix that its certificate does not have."""

    node_id: NodeId
    name: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Change:
    """A prefix is taken that was not, is no longer taken, or moves to other routers. ``routers`` are those it
    has now, none where it is lost."""

    kind: Literal["taken", "lost", "moved"]
    prefix: Network
    routers: tuple[bytes, ...]
    before: tuple[bytes, ...]


def offered(entry: Entry, revoked: Container[NodeId]) -> tuple[Network, ...]:
    """The prefixes that a member may route and offers now, sorted."""
    said = frozenset(entry.record.routes)
    grants = standing(entry.member.grants, entry.member.node_id, revoked) if said else ()
    return tuple(grant.prefix for grant in grants if str(grant.prefix) in said)


def claims(entry: Entry) -> tuple[Claim, ...]:
    """The prefixes that a member's record offers and its certificate does not have."""
    if not entry.record.routes:
        return ()
    member, had = entry.member, frozenset(map(str, entry.member.routes))
    return tuple(Claim(member.node_id, member.name, text) for text in entry.record.routes if text not in had)


def accepts(section: RoutesSection) -> tuple[Network, ...]:
    """What the operator lets this node take: prefixes within one of these."""
    return EVERYTHING if section.accept == (ALL_ROUTES,) else tuple(map(parse_prefix, section.accept))


def sites(section: RoutesSection) -> dict[Network, Network]:
    """The networks that are really there, by the advertised prefix that stands for each in the mesh."""
    return {parse_prefix(prefix): parse_prefix(site) for prefix, site in section.sites.items()}


def really_there(section: RoutesSection) -> tuple[Network, ...]:
    """The networks behind this node that it is to route for others, by the addresses that they have here."""
    there = sites(section)
    return tuple(there.get(prefix, prefix) for prefix in map(parse_prefix, section.advertise))


class Routes:
    """What one node takes. ``region`` is its own: routers of the region come first, then by node id. ``own``
    are the prefixes that it advertises itself: it takes none of those from others. ``networks``: the
    addresses that may be taken, so what the host has of its own there matters. What is really there for an
    advertised prefix is such a range, by whatever route: members' packets have to find it here. ``exits`` are
    the names or node ids of the members by which all other traffic is to leave, the best first."""

    def __init__(self, section: RoutesSection, overlay: Iterable[Network], region: str = "") -> None:
        self._overlay, self._region = tuple(overlay), region
        self.configure(section)
        self.exits = section.exit
        self.taken: tuple[Taken, ...] = ()
        self.conflicts: tuple[Conflict, ...] = ()
        self.claims: frozenset[Claim] = frozenset()

    def configure(self, section: RoutesSection) -> None:
        """Judge by these settings from now on."""
        self.own = frozenset(map(parse_prefix, section.advertise))
        self.networks = accepts(section)
        self._sites = tuple(HostRange("route", site, "") for site in sites(section).values())

    def allows(self, prefix: Network) -> bool:
        """Whether the operator lets this node take a prefix of any member."""
        return bool(self.exits) if is_exit(prefix) else accepted(prefix, self.networks)

    def look(
        self, entries: Iterable[Entry], revoked: Container[NodeId], host: Iterable[HostRange]
    ) -> tuple[list[Change], list[Claim]]:
        """Judge anew, given the members in good standing and what the host has of its own. Return what has
        changed, and the claims that are new."""
        offering = (entry for entry in entries if entry.record.routes)  # few, of many members
        listed = sorted(offering, key=self._preference)
        offers = [
            Offer(prefix, entry.member.node_id, entry.record.condition.draining)
            for entry in listed
            for prefix in offered(entry, revoked)
            if prefix not in self.own
        ]
        before = {one.prefix: one.routers for one in self.taken}
        others, self.conflicts = taken(offers, self.networks, self._overlay, (*host, *self._sites))
        liked: dict[bytes, int] = {}
        for entry in listed:
            by = called(entry.member.name, format_node_id(entry.member.node_id))
            places = [place for place, name in enumerate(self.exits) if name in by]
            if places:
                liked[entry.member.node_id] = places[0]
        self.taken = tuple(sorted((*exits(offers, liked), *others), key=lambda one: order(one.prefix)))
        fresh = frozenset(claim for entry in listed for claim in claims(entry))
        new = sorted(fresh - self.claims, key=lambda claim: (claim.node_id, claim.prefix))
        self.claims = fresh
        return list(_changes(before, self.taken)), new

    def _preference(self, entry: Entry) -> tuple[bool, NodeId]:
        return not self._region or entry.record.region != self._region, entry.member.node_id


def _changes(before: Mapping[Network, tuple[bytes, ...]], now: Iterable[Taken]) -> Iterable[Change]:
    left = dict(before)
    for one in now:
        was = left.pop(one.prefix, ())
        if not was:
            yield Change("taken", one.prefix, one.routers, ())
        elif was[0] != one.routers[0]:
            yield Change("moved", one.prefix, one.routers, was)
    for prefix, was in left.items():
        yield Change("lost", prefix, (), was)
