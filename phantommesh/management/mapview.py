# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to GET /v1/map: the members and links of the mesh with places to draw them at.

Two sources are one picture: what this node sees of its peers, now, and what members told of their links
when they were asked last. Members are not asked for it: see GET /v1/topology.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from phantommesh.management.layout import Place
from phantommesh.management.topoview import Advice, MeasuredLink, StationView, TopologyView
from phantommesh.management.views import Flow, LinkView, MemberState, PathView, PeerView, Status
from phantommesh.management.wayview import WayKind

Health: TypeAlias = Literal["good", "poor", "down", "unknown"]
"""``good``: packets pass. ``poor``: they pass, with loss, on some dimensions only, or by a relay or TCP.
``down``: none pass. ``unknown``: nobody has said."""

# Tuning.
MOST_MEMBERS: Final = 1_000  # that are drawn; the worst come first
MOST_LINKS: Final = 2_000  # this node's own come first, then the worst
LOSSY: Final = 0.02  # the ratio lost from which on a link is called poor

_WORST: Final[tuple[Health, ...]] = ("down", "poor", "unknown", "good")


class MapMember(msgspec.Struct, frozen=True, kw_only=True):
    """One member. ``x`` and ``y`` are from 0 to 1, y downwards. The rest is how this node sees the member;
    ``traffic`` is None for this node itself."""

    name: str
    node_id: str
    x: float
    y: float
    health: Health
    region: str = ""
    relay: bool = False
    nat: bool = False
    traffic: Flow | None = None
    membership: MemberState = "unknown"
    dimensions: int = 0
    """Dimensions keyed and answering, 0 to 7."""
    rtt_s: float | None = None
    """The least of all dimensions."""
    loss: float | None = None
    """The ratio lost on the worst dimension that carries traffic, 0 to 1."""
    way: WayKind = "none"
    """The best of the ways that its dimensions take."""
    psk_age_s: float | None = None
    rotates_in_s: float | None = None
    """As in `LinkView`."""


class MapLink(msgspec.Struct, frozen=True, kw_only=True):
    """One pair, by node id. ``own``: it is a link of this node, as measured now."""

    one: str
    two: str
    health: Health
    way: str
    own: bool = False
    rtt_s: float | None = None
    loss: float | None = None
    via: list[str] = []


class MapView(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh as a picture. ``node_id`` is this node's. ``surveyed_s``: seconds since members told of their
    links; None: they have not, and only this node's own links are here."""

    node_id: str
    members: list[MapMember]
    links: list[MapLink]
    members_total: int
    links_total: int
    surveyed_s: float | None = None
    advice: list[Advice] = []


def pairs(
    status: Status, peers: Sequence[PeerView], paths: Iterable[PathView], topology: TopologyView
) -> list[MapLink]:
    """Return the links to draw: one to each peer, and those that members told of."""
    by_peer = _by_peer(paths)
    own = [
        MapLink(
            one=status.node_id,
            two=peer.node_id,
            health=_health(peer, by_peer[peer.node_id]),
            way=_way(by_peer[peer.node_id]),
            own=True,
            rtt_s=_rtt(by_peer[peer.node_id]),
            loss=_loss(by_peer[peer.node_id]),
            via=_via(by_peer[peer.node_id]),
        )
        for peer in peers
    ]
    ids = {member.name: member.node_id for member in topology.members}
    known = {peer.node_id for peer in peers}
    told = [
        _told(link, ids[link.one], ids[link.two])
        for link in topology.links
        if ids.get(link.one) in known and ids.get(link.two) in known
    ]
    own.sort(key=_by_health)
    told.sort(key=_by_health)
    return [*own, *told]


def picture(
    status: Status,
    peers: Sequence[PeerView],
    links: Iterable[LinkView],
    paths: Iterable[PathView],
    topology: TopologyView,
    drawn: Sequence[MapLink],
    places: Mapping[str, Place],
) -> MapView:
    """Return the whole view. ``drawn`` is what `pairs` gave, ``places`` those of all members by node id."""
    by_peer, by_link = _by_peer(paths), {link.node_id: link for link in links}
    stations = {member.node_id: member for member in topology.members}
    members = [
        _member(peer, by_link.get(peer.node_id), by_peer[peer.node_id], stations, places) for peer in peers
    ]
    members.sort(key=lambda member: (_WORST.index(member.health), member.name))
    members = [_self(status, stations, places), *members[: MOST_MEMBERS - 1]]
    shown = {member.node_id for member in members}
    return MapView(
        node_id=status.node_id,
        members=members,
        links=[link for link in drawn if link.one in shown and link.two in shown][:MOST_LINKS],
        members_total=len(peers) + 1,
        links_total=max(len(drawn), topology.links_total),
        surveyed_s=topology.age_s,
        advice=topology.advice,
    )


def _by_peer(paths: Iterable[PathView]) -> defaultdict[str, list[PathView]]:
    found: defaultdict[str, list[PathView]] = defaultdict(list)
    for path in paths:
        found[path.node_id].append(path)
    return found


def _self(status: Status, stations: Mapping[str, StationView], places: Mapping[str, Place]) -> MapMember:
    station, place = stations.get(status.node_id), places[status.node_id]
    return MapMember(
        name=status.node,
        node_id=status.node_id,
        x=place.x,
        y=place.y,
        health="good" if status.ready else "down",
        region=status.region,
        relay=station is not None and station.relay,
        nat=station is not None and station.nat,
        membership="alive",
    )


def _member(
    peer: PeerView,
    link: LinkView | None,
    paths: Sequence[PathView],
    stations: Mapping[str, StationView],
    places: Mapping[str, Place],
) -> MapMember:
    station, place = stations.get(peer.node_id), places[peer.node_id]
    return MapMember(
        name=peer.name,
        node_id=peer.node_id,
        x=place.x,
        y=place.y,
        health=_health(peer, paths),
        region=peer.region,
        relay=station is not None and station.relay,
        nat=station is not None and station.nat,
        traffic=peer.traffic,
        membership=peer.membership,
        dimensions=0 if link is None else link.dimensions,
        rtt_s=_rtt(paths),
        loss=_loss(paths),
        way=_way(paths),
        psk_age_s=None if link is None else link.psk_age_s,
        rotates_in_s=None if link is None else link.rotates_in_s,
    )


def _health(peer: PeerView, paths: Sequence[PathView]) -> Health:
    match peer.traffic:
        case "dark" | "unkeyed":
            return "down"
        case "joining" | "left":
            return "unknown"
        case "up":
            whole = all(path.state == "up" for path in paths)
            loss = _loss(paths)
            fine = whole and (loss is None or loss < LOSSY) and _way(paths) in ("direct", "none")
            return "good" if fine else "poor"


def _told(link: MeasuredLink, one: str, two: str) -> MapLink:
    good = link.way == "direct" and link.loss < LOSSY
    return MapLink(
        one=one,
        two=two,
        health="good" if good else "down" if link.loss >= 1 else "poor",
        way=link.way,
        rtt_s=link.rtt_s,
        loss=link.loss,
        via=link.via,
    )


def _by_health(link: MapLink) -> tuple[int, float]:
    return _WORST.index(link.health), -(link.rtt_s or 0.0)


def _rtt(paths: Sequence[PathView]) -> float | None:
    return min((path.rtt_s for path in paths if path.rtt_s is not None), default=None)


def _loss(paths: Sequence[PathView]) -> float | None:
    return max((path.loss for path in paths if path.state == "up"), default=None)


def _way(paths: Sequence[PathView]) -> WayKind:
    taken = {path.way for path in paths}
    ranked: tuple[WayKind, ...] = ("direct", "relayed", "tcp")
    return next((way for way in ranked if way in taken), "none")


def _via(paths: Sequence[PathView]) -> list[str]:
    return sorted({path.via for path in paths if path.via is not None})
