# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node sees of each other member, as the views of the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import time

import trio

from phantommesh.dimensions import DIMENSIONS, has
from phantommesh.link.effects import LinkState
from phantommesh.management.peerfaults import PeerSeen, Starts, flow
from phantommesh.management.views import (
    DimensionView,
    Flow,
    LinkView,
    MemberState,
    PathView,
    PeerView,
    ProofDirection,
    ProofEpoch,
    ProofsView,
    Reached,
    ScatterClass,
    ScatterDimension,
    ScatterView,
)
from phantommesh.membership.messages import State
from phantommesh.membership.signs import Way
from phantommesh.moments import rfc3339
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting import waysof
from phantommesh.proofs import fit
from phantommesh.proofs.review import Shown
from phantommesh.proofs.shelf import DIRECTIONS
from phantommesh.records.roster import Entry, name_of
from phantommesh.scatter.goals import goal_of
from phantommesh.scatter.maps import entropy_bits
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import PeerState

MEMBER_STATES: Mapping[State, MemberState] = {
    State.ALIVE: "alive",
    State.SUSPECT: "suspect",
    State.DEAD: "dead",
    State.LEFT: "left",
}
WAYS: Mapping[Way, Reached] = {
    Way.DIRECT: "direct",
    Way.ELSEWHERE: "elsewhere",
    Way.HELPERS: "helpers",
    Way.TRAFFIC: "traffic",
}
REJECT_AFTER = 180.0  # s; WireGuard's REJECT_AFTER_TIME: an older session carries nothing


class Rows:
    """The views that have one row a member, a path or a link. They read; nothing is changed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._starts = Starts()

    def seen(self) -> list[PeerSeen]:
        """All that this node sees of each peer."""
        now, entries = trio.current_time(), self._parts.peers.entries
        self._starts.retain({entry.member.node_id for entry in entries})
        return [self._seen(entry, now) for entry in entries]

    def _seen(self, entry: Entry, now: float) -> PeerSeen:
        parts, node_id = self._parts, entry.member.node_id
        ages = [p.age(time()) for _, _, p in self.devices(entry) if p is not None]
        view, standing = parts.gossip.membership.member(node_id), self._membership(entry)
        paths, through = self._paths(entry, now), self._through(entry)
        return PeerSeen(
            self._link(entry),
            paths,
            standing,
            self._starts.look(
                node_id,
                0 if view is None else view.generation,
                left=standing == "left",
                up=any(path.answers for path in paths),
                now=now,
            ),
            None if through else parts.gossip.membership.silence(node_id, now),
            min((age for age in ages if age is not None), default=None),
            through,
            WAYS[parts.gossip.membership.way(node_id)],
            [parts.paths.unsent.get((node_id, i), "") for i in range(DIMENSIONS)],
        )

    def flows(self, seen: Iterable[PeerSeen]) -> Counter[Flow]:
        """How traffic stands with how many peers."""
        measured = self._parts.paths.problem is None
        return Counter(flow(peer, measured=measured) for peer in seen)

    def peers(self) -> list[PeerView]:
        """All other members."""
        return [self._peer(entry) for entry in self._parts.peers.entries]

    def links(self) -> list[LinkView]:
        """The link to each of them."""
        return [self._link(entry) for entry in self._parts.peers.entries]

    def _membership(self, entry: Entry) -> MemberState:
        state = self._parts.gossip.membership.state(entry.member.node_id)
        return "unknown" if state is None else MEMBER_STATES[state]

    def _through(self, entry: Entry) -> list[str]:
        return self.names_of(self._parts.gossip.membership.through(entry.member.node_id))

    def names_of(self, members: Iterable[bytes]) -> list[str]:
        """Their names, or the node ids of those whose records are gone."""
        roster = self._parts.keeper.roster
        return [name_of(roster.get(NodeId(node)), node) for node in members]

    def _state(self, entry: Entry) -> LinkState:
        return self._parts.links.state(entry.member.node_id, trio.current_time())

    def devices(self, entry: Entry) -> Iterator[tuple[int, str, PeerState | None]]:
        """Return what WireGuard says of a member: number and name of each interface, and the peer there."""
        wg_keys = self._parts.peers.wg_keys_of(entry)
        for i, name in enumerate(self._parts.names):
            device = self._parts.reconciler.actual.get(name)
            yield i, name, None if device is None else device.peers.get(wg_keys[i])

    def _link(self, entry: Entry) -> LinkView:
        state = self._state(entry)
        bound = self._parts.links.bound(entry.member.node_id)
        psks = self._parts.links.psks(entry.member.node_id)
        now = time()
        answering = sum(
            peer is not None
            and has(bound, i)
            and peer.psk == psks[i]
            and (since := peer.age(now)) is not None
            and since < REJECT_AFTER
            for i, _, peer in self.devices(entry)
        )
        age = None if state.age is None else round(state.age, 1)
        due = self._parts.config.link.rotate_seconds
        return LinkView(
            peer=entry.member.name,
            node_id=format_node_id(entry.member.node_id),
            epoch=state.epoch,
            state=state.phase.value,
            role=state.role or "none",
            dimensions=answering,
            handshake_age_s=age,
            psk_age_s=age if bound else None,
            rotates_in_s=None if age is None or not bound else max(0.0, round(due - age, 1)),
            chain_reset=state.chain_reset,
            last_error=state.last_error,
        )

    def _peer(self, entry: Entry) -> PeerView:
        member, state, now = entry.member, self._state(entry), time()
        bound = self._parts.links.bound(member.node_id)
        dimensions, ends = [], []
        for i, name, peer in self.devices(entry):
            since = peer.age(now) if peer is not None else None
            ends.append(self._sends_to(entry, peer))
            dimensions.append(
                DimensionView(
                    index=i,
                    interface=name,
                    endpoint=str(peer.endpoint) if peer is not None and peer.endpoint is not None else None,
                    last_handshake_s=None if since is None else round(since, 1),
                    rx_bytes=peer.rx_bytes if peer is not None else 0,
                    tx_bytes=peer.tx_bytes if peer is not None else 0,
                    psk_age_s=round(state.age, 1) if has(bound, i) and state.age is not None else None,
                )
            )
        return PeerView(
            name=member.name,
            node_id=format_node_id(member.node_id),
            role=member.role.value,
            ip4=str(member.ip4),
            ip6=str(member.ip6),
            state=state.phase.value,
            traffic=flow(self._seen(entry, trio.current_time()), measured=self._parts.paths.problem is None),
            membership=self._membership(entry),
            reached=WAYS[self._parts.gossip.membership.way(member.node_id)],
            through=self._through(entry),
            gossip_rtt_s=self._parts.gossip.membership.round_trip(member.node_id),
            endpoint=waysof.endpoint_of(
                ends,
                self._parts.paths.paths.view(member.node_id, trio.current_time()),
                entry.record,
            ),
            dimensions=dimensions,
            rx_bytes=sum(d.rx_bytes for d in dimensions),
            tx_bytes=sum(d.tx_bytes for d in dimensions),
            region=entry.record.region,
        )

    def _sends_to(self, entry: Entry, peer: PeerState | None) -> str | None:
        """Where a dimension's packets leave this host for: the other end of the connection where WireGuard
        sends to the local socket of one."""
        framed = self._parts.framed
        if peer is None or peer.endpoint is None:
            return None
        if framed.owns(peer.endpoint):
            return str(framed.way_of(entry.member.node_id) or peer.endpoint)
        return str(peer.endpoint)

    def paths(self) -> list[PathView]:
        """Every dimension of each of them, and why it takes its way."""
        now = trio.current_time()
        entries = self._parts.peers.entries
        return [view for entry in entries for view in self._paths(entry, now, explained=True)]

    def measured(self) -> list[PathView]:
        """The same without reasons, for what is read all the time."""
        now = trio.current_time()
        return [view for entry in self._parts.peers.entries for view in self._paths(entry, now)]

    def paths_to(self, entry: Entry) -> list[PathView]:
        """The dimensions of one of them, and why each takes its way."""
        return self._paths(entry, trio.current_time(), explained=True)

    def _paths(self, entry: Entry, now: float, *, explained: bool = False) -> list[PathView]:
        views, node_id, ways = [], entry.member.node_id, self._parts.ways
        found = self._parts.paths.paths.view(node_id, now)
        sizes = self._parts.paths.fitting.sizes(node_id)
        hosts = self._parts.places.uplinks(entry) if explained else []
        search, bound = self._parts.punching.state(node_id), self._parts.links.bound(node_id)
        for (i, name, peer), path in zip(self.devices(entry), found, strict=False):
            endpoint = peer.endpoint if peer is not None else None
            offered = None if endpoint is None else ways.at(node_id, i, endpoint)
            way = waysof.taken(offered, endpoint, path)
            why = ""
            if explained:
                tried = hosts[i % len(hosts)] if hosts else ()
                why = waysof.why(
                    way, entry.record, offered, endpoint, path,
                    search=search, keyed=has(bound, i), tried=tried,
                )  # fmt: skip
            views.append(
                PathView(
                    peer=entry.member.name,
                    node_id=format_node_id(entry.member.node_id),
                    dimension=i,
                    interface=name,
                    endpoint=self._sends_to(entry, peer),
                    state=path.state.value,
                    since_s=round(path.since, 1),
                    rtt_s=None if path.rtt is None else round(path.rtt, 6),
                    jitter_s=round(path.jitter, 6),
                    loss=round(path.loss, 4),
                    weight=path.weight,
                    answers=path.answers,
                    answered_s=None if path.answered is None else round(path.answered, 1),
                    heard_s=None if path.heard is None else round(path.heard, 1),
                    opened_s=None if path.opened is None else round(path.opened, 1),
                    way=way.shown,
                    via=self.names_of([way.relay])[0] if way.relay else None,
                    mtu=sizes[i] if way.answers else None,
                    why=why,
                )
            )
        return views

    def scatter(self) -> list[ScatterView]:
        """How the traffic to each of those is scattered that have a map."""
        return [view for entry in self._parts.peers.entries if (view := self.scatter_to(entry)) is not None]

    def scatter_to(self, entry: Entry) -> ScatterView | None:
        """How the traffic to one of those is scattered; None where it has no map."""
        scattering, node_id = self._parts.scattering, entry.member.node_id
        snapshot = scattering.snapshot(node_id)
        if snapshot is None:
            return None
        now, goal = snapshot.current, goal_of(entry.member.name, self._parts.config.scatter)
        weights = _shares(now.cards)
        return ScatterView(
            peer=entry.member.name,
            node_id=format_node_id(node_id),
            hook=scattering.hook,
            goal=goal,
            scheduler=now.classes[-1].scheduler if now.classes else now.scheduler,
            link_epoch=now.epoch.link,
            epoch=now.epoch.number,
            epoch_age_s=round(max(0.0, trio.current_time() - now.began), 1),
            entropy_bits=None if (bits := snapshot.entropy_bits) is None else round(bits, 4),
            dimensions=[
                ScatterDimension(
                    index=i,
                    interface=name,
                    score=now.scores[i],
                    weight=weights[i],
                    packets=now.hits.packets[i],
                    bytes=now.hits.bytes[i],
                )
                for i, name in enumerate(self._parts.names)
            ],
            classes=[
                ScatterClass(
                    name=part.name,
                    goal=part.goal or goal,
                    scheduler=part.scheduler,
                    entropy_bits=_entropy(part.hits.packets),
                    weights=_shares(part.cards),
                    packets=list(part.hits.packets),
                    bytes=list(part.hits.bytes),
                    closed=part.closed,
                )
                for part in now.classes
            ],
        )

    def proofs(self) -> list[ProofsView]:
        """Return what is kept of the scatter proofs of each link, also with nodes that have left."""
        review, roster = self._parts.proving.review, self._parts.keeper.roster
        views = []
        for peer in review.links():
            sent, received = (_direction(review.link(peer, direction)) for direction in DIRECTIONS)
            views.append(
                ProofsView(
                    peer=name_of(roster.get(peer), peer),
                    node_id=format_node_id(peer),
                    sent=sent,
                    received=received,
                )
            )
        return views


def _direction(shown: Shown) -> ProofDirection:
    return ProofDirection(
        kept=len(shown.whole), countersigned=sum(shown.whole.values()), newest=_epoch(shown)
    )


def _epoch(shown: Shown) -> ProofEpoch | None:
    if shown.newest is None:
        return None
    statement, receipt = shown.newest.statement, shown.newest.receipt
    plan = statement.plan
    return ProofEpoch(
        number=statement.number,
        link_epoch=plan.link,
        epoch=plan.epoch,
        start=rfc3339(statement.start_ms / 1000),
        end=rfc3339(statement.end_ms / 1000),
        scheduler=plan.scheduler,
        cards=list(plan.cards),
        packets=list(statement.packets),
        bytes=list(statement.octets),
        wire_bytes=list(statement.wire),
        received_bytes=None if receipt is None else list(receipt.received),
        entropy_bits=statement.shannon / 1e6,
        min_entropy_bits=statement.minimum / 1e6,
        p_value=fit.fit(plan, statement.packets).p_value,
        problem=shown.problem,
    )


def _entropy(packets: Sequence[int]) -> float | None:
    """The entropy of the packets' dimensions in bits; None where there are no packets."""
    return round(entropy_bits(packets), 4) if any(packets) else None


def _shares(cards: Sequence[int]) -> list[float]:
    """The share of each dimension by a map, 0 to 1."""
    total = sum(cards)
    return [round(count / total, 4) if total else 0.0 for count in cards]
