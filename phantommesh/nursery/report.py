# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node says of itself: the views of the API, and the metrics. It reads; `rotate` is all it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from time import time
from typing import TYPE_CHECKING

import trio

from phantommesh import __version__
from phantommesh.identity import IdentityError, NodeId, format_node_id, parse_node_id
from phantommesh.link.effects import Alarm, LinkState, Opened, Role
from phantommesh.link.psk import PskPhase
from phantommesh.metrics import Metrics, ScatterSample, WireGuardSample
from phantommesh.records import Entry
from phantommesh.views import (
    DimensionView,
    LinkView,
    PeerView,
    RevocationResult,
    Rotation,
    RotationResult,
    ScatterDimension,
    ScatterView,
    Status,
)
from phantommesh.wire import DIMENSIONS
from phantommesh.wireguard import PeerState

if TYPE_CHECKING:
    from phantommesh.nursery.node import Node

REJECT_AFTER = 180.0  # s; WireGuard's REJECT_AFTER_TIME: an older session carries nothing

# Tuning.
_UNSCATTERED = "traffic takes dimension 0 alone"

ROTATE_WAIT = 5.0  # s that a rotation is watched before it is reported as merely started


class Reporter:
    """The node as the API's `NodePort`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._finished = trio.Event()
        self._drops: Counter[str] = Counter()
        self._handshakes: Counter[tuple[Role, str]] = Counter()

    @property
    def metrics(self) -> Metrics:
        """The node's metrics."""
        return self._node.metrics

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
            degraded=list(self._degraded(links)),
            certificate_expires=_rfc3339(member.not_after),
        )

    def _degraded(self, links: list[LinkView]) -> Iterator[str]:
        node = self._node
        if missing := [name for name in node.names if name not in node.actual]:
            yield f"interfaces {', '.join(missing)} are missing: see the log for why they cannot be made"
        for link in links:
            if not _up(link):
                why = f": {link.last_error}" if link.last_error else ""
                yield (
                    f"peer {link.peer} is {link.state} and answers on {link.dimensions} of {len(node.names)} "
                    f"dimensions{why}; check that it runs and that its UDP ports are reachable from here"
                )
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
        bearable = ("could not be renewed", _UNSCATTERED)
        reasons = [r for r in self._degraded([]) if not any(text in r for text in bearable)]
        return not reasons, reasons

    def peers(self) -> list[PeerView]:
        """All other members."""
        return [self._peer(entry) for entry in self._node.entries()]

    def links(self) -> list[LinkView]:
        """The link to each of them."""
        return [self._link(entry) for entry in self._node.entries()]

    def _state(self, entry: Entry) -> LinkState:
        return self._node.links.state(entry.member.node_id, trio.current_time())

    def _devices(self, entry: Entry) -> Iterator[tuple[int, str, PeerState | None]]:
        for i, name in enumerate(self._node.names):
            device = self._node.actual.get(name)
            yield i, name, None if device is None else device.peers.get(entry.record.wg_keys[i])

    def _link(self, entry: Entry) -> LinkView:
        state = self._state(entry)
        keyed = self._node.links.keyed(entry.member.node_id)
        psks = self._node.links.psks(entry.member.node_id)
        now = time()
        answering = sum(
            peer is not None and keyed and peer.psk == psks[i] and now - peer.last_handshake < REJECT_AFTER
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
            psk_age_s=age if keyed else None,
            chain_reset=state.chain_reset,
            last_error=state.last_error,
        )

    def _peer(self, entry: Entry) -> PeerView:
        member, state, now = entry.member, self._state(entry), time()
        keyed = self._node.links.keyed(member.node_id)
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
                    psk_age_s=round(state.age, 1) if keyed and state.age is not None else None,
                )
            )
        return PeerView(
            name=member.name,
            node_id=format_node_id(member.node_id),
            role=member.role.value,
            ip4=str(member.ip4),
            ip6=str(member.ip6),
            state=state.phase.value,
            endpoint=entry.record.control[0] if entry.record.control else None,
            dimensions=dimensions,
            rx_bytes=sum(d.rx_bytes for d in dimensions),
            tx_bytes=sum(d.tx_bytes for d in dimensions),
        )

    def scatter(self) -> list[ScatterView]:
        """How the traffic to each of those is scattered that have a map."""
        return [view for entry in self._node.entries() if (view := self._scatter(entry)) is not None]

    def _scatter(self, entry: Entry) -> ScatterView | None:
        scattering, node_id = self._node.scattering, entry.member.node_id
        snapshot = scattering.snapshot(node_id)
        if snapshot is None:
            return None
        now, total = snapshot.current, sum(snapshot.current.cards)
        return ScatterView(
            peer=entry.member.name,
            node_id=format_node_id(node_id),
            mode=scattering.mode,
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

    def alarmed(self, alarm: Alarm) -> None:
        """A link needs attention."""
        self.metrics.psk_rotations.labels(alarm.kind).inc()

    def measure(self) -> None:
        """Bring the metrics up to what the interfaces and the links say now."""
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
        self.metrics.set_scatter(
            ScatterSample(view.peer, tuple(d.weight for d in view.dimensions), view.entropy_bits)
            for view in self.scatter()
        )
        drops = node.links.drops + node.tcp.dropped + node.naming.dropped + node.scattering.drops
        drops["datagram-unsent"] += node.udp.unsent
        for reason, count in (drops - self._drops).items():
            self.metrics.dropped.labels(reason).inc(count)
        self._drops = drops
        finished = Counter(node.links.handshakes)
        for (role, result), count in (finished - self._handshakes).items():
            self.metrics.link_handshakes.labels(role, result).inc(count)
        self._handshakes = finished


def _up(link: LinkView) -> bool:
    return link.state == "fresh" and link.dimensions == DIMENSIONS


def _rfc3339(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
