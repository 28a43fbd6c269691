# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node says of itself: the views of the API, and the metrics. It reads; `rotate` is all it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING

import structlog
import trio

from phantommesh import __version__
from phantommesh.events import EventLog
from phantommesh.identity import IdentityError, NodeId, format_node_id, parse_node_id
from phantommesh.link.effects import Alarm, LinkState, Opened, Role
from phantommesh.link.psk import PskPhase
from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import State
from phantommesh.metrics import Metrics, PathSample, ScatterSample, WireGuardSample
from phantommesh.paths.effects import Turned
from phantommesh.proofs import fit
from phantommesh.proofs.review import Shown
from phantommesh.proofs.shelf import DIRECTIONS
from phantommesh.records import Entry
from phantommesh.scatter.intents import intent_of
from phantommesh.sizes import DIMENSIONS
from phantommesh.views import (
    DimensionView,
    LinkView,
    MemberState,
    PathView,
    PeerView,
    ProofDirection,
    ProofEpoch,
    ProofsView,
    RevocationResult,
    Rotation,
    RotationResult,
    ScatterDimension,
    ScatterView,
    Status,
)
from phantommesh.wireguard import PeerState

if TYPE_CHECKING:
    from phantommesh.nursery.node import Node

MEMBER_STATES: Mapping[State, MemberState] = {
    State.ALIVE: "alive",
    State.SUSPECT: "suspect",
    State.DEAD: "dead",
    State.LEFT: "left",
}
REJECT_AFTER = 180.0  # s; WireGuard's REJECT_AFTER_TIME: an older session carries nothing

# Tuning.
_UNSCATTERED = "traffic takes dimension 0 alone"

RENEWAL = 15.0  # s that a dimension may have no keys, or prove itself, before it is called a fault
ROTATE_WAIT = 5.0  # s that a rotation is watched before it is reported as merely started
TOLD_REASONS = 8  # that an event names; `status` has them all

log = structlog.get_logger("phantommesh.report")


class Reporter:
    """The node as the API's `NodePort`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._finished = trio.Event()
        self._drops: Counter[str] = Counter()
        self._handshakes: Counter[tuple[Role, str]] = Counter()
        self._gossiped: Counter[tuple[str, str]] = Counter()
        self._told: list[str] = []

    @property
    def metrics(self) -> Metrics:
        """The node's metrics."""
        return self._node.metrics

    @property
    def events(self) -> EventLog:
        """What happened lately."""
        return self._node.events

    def status(self) -> Status:
        """This node at a glance."""
        node, member = self._node, self._node.own.member
        links = self.links()
        return Status(
            mesh=node.state.mesh.name,
            node=member.name,
            node_id=format_node_id(member.node_id),
            version=__version__,
            uptime_s=round(trio.current_time() - node.started, 1),
            backend=node.backend.name,
            role=member.role.value,
            ip4=str(member.ip4),
            ip6=str(member.ip6),
            peers_total=len(links),
            peers_up=sum(_up(link) for link in links),
            members=dict(Counter(self._membership(entry) for entry in node.entries())),
            degraded=list(self._degraded(links)),
            certificate_expires=_rfc3339(member.not_after),
        )

    def _degraded(self, links: list[LinkView]) -> Iterator[str]:
        node = self._node
        if missing := [name for name in node.names if name not in node.actual]:
            yield f"interfaces {', '.join(missing)} are missing: see the log for why they cannot be made"
        standing = {e.member.name: self._membership(e) for e in node.entries()} if links else {}
        paths = self.paths() if links else []
        renewed = Counter(v.peer for v in paths if v.state in ("closed", "proving") and v.since_s < RENEWAL)
        for link in links:
            gone = standing.get(link.peer)
            if gone in ("suspect", "dead"):
                yield (
                    f"peer {link.peer} is {gone}: its node does not answer; check that it runs and that its "
                    f"control port {node.config.control.port} is reachable by UDP from here"
                )
            elif (
                link.state == "fresh" and 0 < DIMENSIONS - link.dimensions <= renewed[link.peer] < DIMENSIONS
            ):
                continue  # a key is being replaced, here or there
            elif gone != "left" and not _up(link):
                why = f": {link.last_error}" if link.last_error else ""
                yield (
                    f"peer {link.peer} is {link.state} and answers on {link.dimensions} of {len(node.names)} "
                    f"dimensions{why}; check that it runs and that its UDP ports are reachable from here"
                )
        for peer, dark in _dark(paths).items():
            yield (
                f"dark: {', '.join(map(str, dark))} of the dimensions of peer {peer}: probes get no answer, "
                "its traffic takes the others; check the uplink, and the UDP ports at both ends"
            )
        if (problem := node.paths.problem) is not None:
            yield f"{problem}; {problem.fix}"
        if (problem := node.scattering.problem) is not None:
            yield f"{_UNSCATTERED}: {problem}" + (f"; {problem.fix}" if problem.fix else "")
        if (revoked := node.keeper.revoked) is not None:
            yield (
                f"this node was revoked on {_rfc3339(revoked.at)}: to come back, move its state directory "
                "away and join again with a new invite"
            )
            return
        if (dispute := node.own.dispute()) is not None:
            winner = node.keeper.roster.get(dispute.winner)
            whose = "another member" if winner is None else winner.member.name
            yield f"this node's {dispute.over} is {whose}'s too: waiting for an authority to give it another"
        for node_id in node.keeper.roster.equivocations:
            if (entry := node.keeper.roster.get(node_id)) is not None:
                yield (
                    f"{entry.member.name} signed two different records with one number: it was copied, or it "
                    "lies; find out which, and revoke it if in doubt"
                )
        if node.own.member.not_after <= time():
            yield "this node's certificate has expired: it must join again with a new invite"
        elif node.own.renewal_error is not None:
            error = node.own.renewal_error
            yield f"the certificate could not be renewed: {error}; {error.fix}"

    def ready(self) -> tuple[bool, list[str]]:
        """Whether this node does its work: its interfaces are there, its certificate holds."""
        bearable = ("could not be renewed", _UNSCATTERED, "paths are not measured")
        reasons = [r for r in self._degraded([]) if not any(text in r for text in bearable)]
        return not reasons, reasons

    def peers(self) -> list[PeerView]:
        """All other members."""
        return [self._peer(entry) for entry in self._node.entries()]

    def links(self) -> list[LinkView]:
        """The link to each of them."""
        return [self._link(entry) for entry in self._node.entries()]

    def _membership(self, entry: Entry) -> MemberState:
        state = self._node.gossip.membership.state(entry.member.node_id)
        return "unknown" if state is None else MEMBER_STATES[state]

    def _state(self, entry: Entry) -> LinkState:
        return self._node.links.state(entry.member.node_id, trio.current_time())

    def _devices(self, entry: Entry) -> Iterator[tuple[int, str, PeerState | None]]:
        for i, name in enumerate(self._node.names):
            device = self._node.actual.get(name)
            yield i, name, None if device is None else device.peers.get(entry.record.wg_keys[i])

    def _link(self, entry: Entry) -> LinkView:
        state = self._state(entry)
        bound = self._node.links.bound(entry.member.node_id)
        psks = self._node.links.psks(entry.member.node_id)
        now = time()
        answering = sum(
            peer is not None
            and bound >> i & 1
            and peer.psk == psks[i]
            and now - peer.last_handshake < REJECT_AFTER
            for i, _, peer in self._devices(entry)
        )
        age = None if state.age is None else round(state.age, 1)
        return LinkView(
            peer=entry.member.name,
            node_id=format_node_id(entry.member.node_id),
            epoch=state.epoch,
            state=state.phase.value,
            role=state.role or "none",
            dimensions=answering,
            handshake_age_s=age,
            psk_age_s=age if bound else None,
            chain_reset=state.chain_reset,
            last_error=state.last_error,
        )

    def _peer(self, entry: Entry) -> PeerView:
        member, state, now = entry.member, self._state(entry), time()
        bound = self._node.links.bound(member.node_id)
        dimensions = []
        for i, name, peer in self._devices(entry):
            handshake = peer.last_handshake if peer is not None else 0.0
            dimensions.append(
                DimensionView(
                    index=i,
                    interface=name,
                    endpoint=str(peer.endpoint) if peer is not None and peer.endpoint is not None else None,
                    last_handshake_s=round(now - handshake, 1) if handshake else None,
                    rx_bytes=peer.rx_bytes if peer is not None else 0,
                    tx_bytes=peer.tx_bytes if peer is not None else 0,
                    psk_age_s=round(state.age, 1) if bound >> i & 1 and state.age is not None else None,
                )
            )
        return PeerView(
            name=member.name,
            node_id=format_node_id(member.node_id),
            role=member.role.value,
            ip4=str(member.ip4),
            ip6=str(member.ip6),
            state=state.phase.value,
            membership=self._membership(entry),
            gossip_rtt_s=self._node.gossip.membership.round_trip(member.node_id),
            endpoint=entry.record.control[0] if entry.record.control else None,
            dimensions=dimensions,
            rx_bytes=sum(d.rx_bytes for d in dimensions),
            tx_bytes=sum(d.tx_bytes for d in dimensions),
        )

    def paths(self) -> list[PathView]:
        """Every dimension of each of them."""
        node, now, views = self._node, trio.current_time(), list[PathView]()
        for entry in node.entries():
            found = node.paths.paths.view(entry.member.node_id, now)
            for (i, name, peer), path in zip(self._devices(entry), found, strict=False):
                endpoint = peer.endpoint if peer is not None else None
                views.append(
                    PathView(
                        peer=entry.member.name,
                        node_id=format_node_id(entry.member.node_id),
                        dimension=i,
                        interface=name,
                        endpoint=None if endpoint is None else str(endpoint),
                        state=path.state.value,
                        since_s=round(path.since, 1),
                        rtt_s=None if path.rtt is None else round(path.rtt, 6),
                        jitter_s=round(path.jitter, 6),
                        loss=round(path.loss, 4),
                        weight=path.weight,
                    )
                )
        return views

    def scatter(self) -> list[ScatterView]:
        """How the traffic to each of those is scattered that have a map."""
        return [view for entry in self._node.entries() if (view := self._scatter(entry)) is not None]

    def _scatter(self, entry: Entry) -> ScatterView | None:
        scattering, node_id = self._node.scattering, entry.member.node_id
        snapshot = scattering.snapshot(node_id)
        if snapshot is None:
            return None
        now, total = snapshot.current, sum(snapshot.current.cards)
        settings = self._node.config.scatter
        return ScatterView(
            peer=entry.member.name,
            node_id=format_node_id(node_id),
            mode=scattering.mode,
            intent=intent_of(entry.member.name, settings.intent, settings.peers),
            scheduler=now.scheduler,
            link_epoch=now.epoch.link,
            epoch=now.epoch.number,
            epoch_age_s=round(max(0.0, time() - now.started), 1),
            entropy_bits=None if (bits := snapshot.entropy_bits) is None else round(bits, 4),
            dimensions=[
                ScatterDimension(
                    index=i,
                    interface=name,
                    score=now.scores[i],
                    weight=round(now.cards[i] / total, 4) if total else 0.0,
                    packets=now.hits.packets[i],
                    bytes=now.hits.bytes[i],
                )
                for i, name in enumerate(self._node.names)
            ],
        )

    def proofs(self) -> list[ProofsView]:
        """What is kept of the scatter proofs of each link, also with nodes that have left."""
        review, roster = self._node.proving.review, self._node.keeper.roster
        views = []
        for peer in review.links():
            entry = roster.get(peer)
            sent, received = (_direction(review.link(peer, direction)) for direction in DIRECTIONS)
            views.append(
                ProofsView(
                    peer=format_node_id(peer) if entry is None else entry.member.name,
                    node_id=format_node_id(peer),
                    sent=sent,
                    received=received,
                )
            )
        return views

    async def export_proofs(self, peer: str | None) -> bytes:
        """A file of all proofs, or of those with one peer, by node id. Raises ProofError or IdentityError."""
        return await self._node.proving.export(None if peer is None else parse_node_id(peer))

    async def rotate(self, peer: str | None) -> RotationResult:
        """Start a new epoch with one peer (by node id or name) or with all, and watch it for some seconds."""
        node = self._node
        entries = [e for e in node.entries() if peer is None or self._is(e, peer)]
        before = {entry.member.node_id: self._state(entry).epoch for entry in entries}
        for node_id in before:
            node.links.rotate(node_id, trio.current_time())
        node.driver.wake()
        with trio.move_on_after(ROTATE_WAIT):
            while not all(self._rotated(entry, before) for entry in self._left(entries)):
                await self._finished.wait()
        rotations = []
        for entry in self._left(entries):
            done, state = self._rotated(entry, before), self._state(entry)
            self.metrics.psk_rotations.labels("requested" if done else "pending").inc()
            rotations.append(
                Rotation(
                    peer=entry.member.name,
                    node_id=format_node_id(entry.member.node_id),
                    result="rotated" if done else "started",
                    epoch=state.epoch if done else None,
                    detail=None if done else state.last_error or "the peer has not finished its part yet",
                )
            )
        return RotationResult(rotations=rotations)

    def _left(self, entries: list[Entry]) -> list[Entry]:
        """Those of them that are still peers: some may have been revoked or have expired meanwhile."""
        peers = {entry.member.node_id for entry in self._node.entries()}
        return [entry for entry in entries if entry.member.node_id in peers]

    def _rotated(self, entry: Entry, before: dict[NodeId, int]) -> bool:
        state = self._state(entry)
        return state.epoch > before[entry.member.node_id] and state.phase is PskPhase.FRESH

    @staticmethod
    def _is(entry: Entry, peer: str) -> bool:
        try:
            return entry.member.node_id == parse_node_id(peer)
        except IdentityError:
            return entry.member.name == peer

    async def revoke(self, wanted: str, *, force: bool, dry_run: bool) -> RevocationResult:
        """Revoke a node by name or node id. Raises TrustError or StateError."""
        desk = self._node.desk
        target = desk.find(wanted)
        desk.check_revoke(target, force=force)
        made = target.revoked if dry_run else await desk.revoke(target, force=force)
        return RevocationResult(
            name=None if target.entry is None else target.entry.member.name,
            node_id=format_node_id(target.node_id),
            revoked_at=None if made is None else _rfc3339(made.at),
            already=target.revoked is not None,
            dry_run=dry_run,
        )

    def opened(self, opened: Opened) -> None:
        """A handshake finished."""
        self._finished.set()
        self._finished = trio.Event()
        self.metrics.link_handshake_seconds.observe(opened.seconds)
        self.metrics.psk_rotations.labels("ok").inc()
        self._publish("link.opened", opened.peer, {"epoch": opened.epoch, "role": opened.role})

    def member_changed(self, change: Changed) -> None:
        """Gossip has news of a member."""
        entry = self._node.keeper.roster.get(NodeId(change.node))
        name = format_node_id(NodeId(change.node)) if entry is None else entry.member.name
        state = "forgotten" if change.new is None else change.new.name.lower()
        self.metrics.membership_changes.labels(state).inc()
        say = log.warning if change.new in (State.SUSPECT, State.DEAD) else log.info
        say("member " + change.event, peer=name, state=state)
        self._publish(f"peer.{change.event}", change.node, {"state": state})

    def alarmed(self, alarm: Alarm) -> None:
        """A link needs attention."""
        self.metrics.psk_rotations.labels(alarm.kind).inc()
        self._publish("link.alarm", alarm.peer, {"kind": alarm.kind, "detail": alarm.detail})

    def turned(self, turned: Turned) -> None:
        """A path changed its state."""
        data: dict[str, object] = {"dimension": turned.dimension, "was": turned.before.value}
        self._publish(f"path.{turned.after.value}", turned.peer, data)

    def _publish(self, kind: str, peer: bytes, data: dict[str, object]) -> None:
        entry = self._node.keeper.roster.get(NodeId(peer))
        name = None if entry is None else entry.member.name
        data = {"peer": name, "node_id": format_node_id(NodeId(peer)), **data}
        self.events.publish(kind, name, data)

    def _tell_health(self) -> None:
        reasons = list(self._degraded(self.links()))
        if reasons and reasons != self._told:
            data = {"reasons": reasons[:TOLD_REASONS], "total": len(reasons)}
            self.events.publish("health.degraded", None, data)
        elif self._told and not reasons:
            self.events.publish("health.well", None, {})
        self._told = reasons

    def measure(self) -> None:
        """Bring the metrics and events up to what the interfaces and the links say now."""
        self._tell_health()
        node = self._node
        entries = node.entries()
        states = {entry.member.name: self._state(entry) for entry in entries}
        self.metrics.set_peers(Counter(state.phase.value for state in states.values()))
        self.metrics.set_psk_ages(
            {name: state.age for name, state in states.items() if state.age is not None}
        )
        self.metrics.set_wireguard(
            WireGuardSample(entry.member.name, i, peer.rx_bytes, peer.tx_bytes, peer.last_handshake)
            for entry in entries
            for i, _, peer in self._devices(entry)
            if peer is not None
        )
        self.metrics.set_paths(
            PathSample(view.peer, view.dimension, view.rtt_s, view.loss)
            for view in self.paths()
            if view.state != "closed"
        )
        self.metrics.set_scatter(
            ScatterSample(view.peer, tuple(d.weight for d in view.dimensions), view.entropy_bits)
            for view in self.scatter()
        )
        drops = node.links.drops + node.tcp.dropped + node.naming.dropped + node.scattering.drops
        drops += node.paths.dropped + node.paths.paths.drops
        drops += node.gossip.drops
        drops["datagram-unsent"] += node.udp.unsent
        for reason, count in (drops - self._drops).items():
            self.metrics.dropped.labels(reason).inc(count)
        self._drops = drops
        gossiped = Counter[tuple[str, str]]()
        for kind, (sent, received) in node.gossip.membership.counts().items():
            gossiped[kind, "out"], gossiped[kind, "in"] = sent, received
        for (kind, direction), count in (gossiped - self._gossiped).items():
            self.metrics.gossip_messages.labels(kind, direction).inc(count)
        self._gossiped = gossiped
        finished = Counter(node.links.handshakes)
        for (role, result), count in (finished - self._handshakes).items():
            self.metrics.link_handshakes.labels(role, result).inc(count)
        self._handshakes = finished


def _dark(paths: list[PathView]) -> dict[str, list[int]]:
    """The dark dimensions of peers that answer on some other, and those that prove themselves for long."""
    dark: dict[str, list[int]] = {}
    answering = {view.peer for view in paths if view.state == "up" and view.rtt_s is not None}
    for view in paths:
        if view.peer in answering and (
            view.state == "dark" or (view.state == "proving" and view.since_s >= RENEWAL)
        ):
            dark.setdefault(view.peer, []).append(view.dimension)
    return dark


def _up(link: LinkView) -> bool:
    return link.state == "fresh" and link.dimensions == DIMENSIONS


def _rfc3339(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


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
        start=_rfc3339(statement.start_ms / 1000),
        end=_rfc3339(statement.end_ms / 1000),
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
