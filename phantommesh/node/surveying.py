# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node surveys the mesh: whom it asks for their links and when, what it answers, and who stands where.
Sans-I/O.

A sweep asks each member once, with one salt for all, so that the answers are about the same pairs. Then it
asks the other ends of links that one end alone has told of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from typing import Final

from phantommesh.control import messages
from phantommesh.endpoint import parse_endpoint
from phantommesh.reachable import IpAddress, of_a_site, special
from phantommesh.records.candidate import Kind as Source
from phantommesh.records.record import NodeRecord
from phantommesh.records.roster import Entry
from phantommesh.routing.drift import Summary
from phantommesh.routing.graph import Station, Survey
from phantommesh.routing.neighbours import ALL_PAIRS, Link, Look, share_of, told, unconfirmed
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

# Tuning.
SALT: Final = 8  # bytes
ENOUGH: Final = 8  # members, from which on a node surveys the mesh unasked
PERIOD: Final = 600.0  # s from one sweep to the next,
PERIOD_EACH: Final = 20.0  # and s for each member: so a member is asked by all others once in so long
HEARD: Final = 0.5  # of the members, without which nothing is analysed

_NONE: Final[Mapping[NodeId, NodeId]] = {}
_MOST_US: Final = 60_000_000


def period(members: int) -> float:
    """Return the seconds from one sweep to the next."""
    return max(PERIOD, PERIOD_EACH * members)


def pace(members: int) -> float:
    """Return the seconds from one question of a sweep to the next: a sweep takes a quarter of its period."""
    return period(members) / 4 / max(1, members)


class Sweep:
    """One sweep over the ``members`` there are, this node aside."""

    def __init__(self, me: NodeId, members: Iterable[NodeId], salt: bytes) -> None:
        self._me, self.salt = me, salt
        self.members = frozenset(members) - {me}
        self.share = share_of(len(self.members) + 1)
        self.words: dict[NodeId, dict[NodeId, Link]] = {}

    @property
    def possible(self) -> float:
        """How many links a member would tell of on average, if it had all."""
        return len(self.members) * self.share / ALL_PAIRS

    @property
    def enough(self) -> bool:
        """Whether so many members have answered that something can be said."""
        return len(self.words) - 1 >= HEARD * len(self.members)

    def begin(self, look: Look) -> list[tuple[NodeId, messages.AskNeighbours]]:
        """Take in this node's own links; return whom to ask what."""
        self.words[self._me] = told(self._me, self.members, look, self.salt, self.share)
        return [(one, messages.AskNeighbours(self.salt, self.share)) for one in sorted(self.members)]

    def confirm(self, look: Look) -> list[tuple[NodeId, messages.AskNeighbours]]:
        """Return whom to ask about the links that one end alone has told of. This node says it at once."""
        asked = unconfirmed(self.words)
        for peer in asked.pop(self._me, []):
            if (link := look(peer)) is not None:
                self.words[self._me][peer] = link
        return [
            (member, messages.AskNeighbours(self.salt, 1, tuple(sorted(about)[: messages.MAX_ABOUT])))
            for member, about in sorted(asked.items())
        ]

    def heard(self, member: NodeId, answer: messages.NeighboursAre) -> None:
        """Take a member's answer. What is said of those that are no members is left out."""
        word = self.words.setdefault(member, {})
        for said in answer.links:
            peer = NodeId(said.peer)
            if peer == member or (peer not in self.members and peer != self._me):
                continue
            if len(word) >= 2 * messages.MAX_NEIGHBOURS:
                return
            word[peer] = Link(
                said.rtt / 1e6, said.jitter / 1e6, said.loss / 1e4, Kind(said.kind), said.capacity * 1000,
                tuple(NodeId(relay) for relay in said.relays),
            )  # fmt: skip

    def survey(
        self, stations: Mapping[NodeId, Station], wall: float, before: Summary | None,
        held: Mapping[NodeId, NodeId] = _NONE,
    ) -> Survey:  # fmt: skip
        """Return what there is to analyse."""
        return Survey(stations, self.words, self.possible, wall, before, self._me, held)


def answer(
    me: NodeId, peers: Collection[NodeId], look: Look, request: messages.AskNeighbours
) -> messages.NeighboursAre:
    """Answer a member's question for this node's links to these peers."""
    chosen = told(me, peers, look, request.salt, request.share, map(NodeId, request.about))
    return messages.NeighboursAre(
        tuple(_row(peer, link) for peer, link in sorted(chosen.items())[: messages.MAX_NEIGHBOURS])
    )


def _row(peer: NodeId, link: Link) -> messages.Neighbour:
    return messages.Neighbour(
        peer,
        _microseconds(link.rtt),
        _microseconds(link.jitter),
        max(0, min(10_000, round(link.loss * 1e4))),
        link.capacity // 1000,
        int(link.kind),
        link.relays[:2],
    )


def _microseconds(seconds: float) -> int:
    return max(0, min(_MOST_US, round(seconds * 1e6)))


def stations(entries: Iterable[Entry]) -> dict[NodeId, Station]:
    """Return the members of these entries as the graph has them."""
    return {entry.member.node_id: _station(entry.member.name, entry.record) for entry in entries}


def _station(name: str, record: NodeRecord) -> Station:
    own = {one.host for one in record.candidates if one.kind == Source.OWN}
    nat = any(one.kind in (Source.MAPPED, Source.SEEN) and one.host not in own for one in record.candidates)
    return Station(name, record.region, record.relay is not None, nat, frozenset(_places(record)))


def _places(record: NodeRecord) -> Iterator[str]:
    """The public addresses of a record: members that share one share a machine, a router or a site."""
    for ip in (*(one.ip for one in record.candidates), *_written(record)):
        if special(ip) is None and not of_a_site(ip):
            yield str(ip) if ip.version == 4 else str(ip_network((ip, 64), strict=False))


def _written(record: NodeRecord) -> Iterator[IpAddress]:
    for endpoint in record.control:
        try:
            yield ip_address(parse_endpoint(endpoint)[0])
        except ValueError:  # a name
            continue
