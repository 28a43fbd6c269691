# SPDX-License-Identifier: GPL-3.0-or-later
"""A record of what happened in the node, as events and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import structlog
import trio

from phantommesh.faults import Fault
from phantommesh.link.effects import Alarm, Opened, Role
from phantommesh.management.metrics import PathSample, ScatterSample, WireGuardSample
from phantommesh.management.views import PathView
from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import State
from phantommesh.node.peers import generation_of
from phantommesh.node.routes import Change
from phantommesh.nursery.due import alive
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting import federation, health, routing
from phantommesh.nursery.reporting.netchecking import nats_of, said
from phantommesh.nursery.reporting.pathnews import Moved, PathNews
from phantommesh.nursery.reporting.report import Reporter
from phantommesh.nursery.reporting.threats import ThreatNews
from phantommesh.paths.effects import Turned
from phantommesh.rates import MOST, Bucket, Rates
from phantommesh.records.roster import name_of
from phantommesh.routing.graph import Weakness
from phantommesh.trust.identity import NodeId, format_node_id, parse_node_id

# Tuning.
TOLD_REASONS = 8  # that an event names; `status` has them all
ONE_RATE, ONE_BURST = 1.0, 5  # changes told of one member a second, and at once, of those that can be made up
ALL_RATE, ALL_BURST = 4.0, 256  # and of all members together: the events kept are for more than that
# Events of one kind about one member, a second and at once: it can make its links and paths turn.
EVENT_RATE, EVENT_BURST = 0.2, 32
JUDGE = 3.0  # s between two looks at what is wrong at most

log = structlog.get_logger("phantommesh.report")


class Telling:
    """Which changes of members are told, in the log and as events.

    One insider can make up updates, restarts and suspicions as fast as it sends: only so many of those are
    told. The end of a suspicion is told where its beginning was. All else takes more than one member's word.
    """

    def __init__(self, now: float) -> None:
        self.untold = 0  # left out since something was told last
        self._all = Bucket(ALL_RATE, ALL_BURST, now)
        self._each: dict[bytes, Bucket] = {}
        self._suspected: set[bytes] = set()

    def wants(self, change: Changed, now: float) -> bool:
        """Whether to tell this one."""
        node, event = change.node, change.event
        if event in ("updated", "restarted", "suspected", "partly", "direct"):
            each = self._each.setdefault(node, Bucket(ONE_RATE, ONE_BURST, now))
            told = each.take(now) and self._all.take(now)
            if told and event == "suspected":
                self._suspected.add(node)
        else:
            told = node in self._suspected or event not in ("refuted", "vetoed")
            self._suspected.discard(node)
        if change.new is None:
            self._each.pop(node, None)
        self.untold += not told
        return told


class Recorder:
    """Publishes the node's events and keeps its metrics. It reads the node's views by ``reporter``."""

    def __init__(self, parts: Parts, reporter: Reporter) -> None:
        self._parts, self._reporter, self._metrics = parts, reporter, parts.metrics
        self._drops: Counter[str] = Counter()
        self._covered = 0, 0
        self._taken: Counter[str] = Counter()  # packets by class of traffic
        self._handshakes: Counter[tuple[Role, str]] = Counter()
        self._gossiped: Counter[tuple[str, str]] = Counter()
        self._told: list[str] = []
        self._judged = trio.current_time()
        self._suspected: set[bytes | None] = set()
        self._telling = Telling(trio.current_time())
        self._events = Rates[tuple[str, bytes]](EVENT_RATE, EVENT_BURST)
        self._unsaid: Counter[tuple[str, bytes]] = Counter()
        self._ways, self._relayed = PathNews(), 0
        self._advised = frozenset[tuple[Weakness, tuple[NodeId, ...]]]()
        self._pacts = dict[str, str]()
        self._nat = Bucket(EVENT_RATE, EVENT_BURST, trio.current_time())
        self._asked = trio.Event()
        self._faults: list[Fault] = []
        self._judging = (self._judge, self._tell_traffic, self._tell_health)
        self._pieces = (
            self.tell_copies, *self._judging, self._tell_advice, self._measure_links, self._measure_paths,
            self._count,
        )  # fmt: skip
        parts.taking.told = self.routed
        ThreatNews(parts)

    def opened(self, opened: Opened) -> None:
        """A handshake finished."""
        self._metrics.link_handshake_seconds.observe(opened.seconds)
        self._metrics.psk_rotations.labels("ok").inc()
        self._publish_paced("link.opened", opened.peer, {"epoch": opened.epoch, "role": opened.role})

    def member_changed(self, change: Changed) -> None:
        """Gossip has news of a member. All is counted; ``untold`` in an event says how many were not told."""
        state = "forgotten" if change.new is None else change.new.name.lower()
        self._metrics.membership_changes.labels(state).inc()
        unheard = self._parts.gossip.membership.silence(change.node, trio.current_time()) is None
        if unheard and change.event in ("suspected", "dead"):
            return  # it was not there before either: it has joined and not started yet, or `status` tells
        if not self._telling.wants(change, trio.current_time()):
            return
        data: dict[str, object] = {"state": state}
        if change.event == "partly":
            data["through"] = self._reporter.names_of(self._parts.gossip.membership.through(change.node))
        if self._telling.untold:
            data["untold"], self._telling.untold = self._telling.untold, 0
        say = log.warning if change.new in (State.SUSPECT, State.DEAD) else log.info
        say("member " + change.event, **self._named(change.node), **data)
        self._publish(f"peer.{change.event}", change.node, data)

    def alarmed(self, alarm: Alarm) -> None:
        """A link needs attention."""
        self._metrics.psk_rotations.labels(alarm.kind).inc()
        log.warning("link alarm", **self._named(alarm.peer), kind=alarm.kind, detail=alarm.detail)
        self._publish_paced("link.alarm", alarm.peer, {"kind": alarm.kind, "detail": alarm.detail})

    def turned(self, turned: Turned) -> None:
        """A path changed its state."""
        data: dict[str, object] = {"dimension": turned.dimension, "was": turned.before.value}
        self._publish_paced(f"path.{turned.after.value}", turned.peer, data)

    def routed(self, change: Change) -> None:
        """This node takes a route, has lost one, or sends it to another member first."""
        now, was = self._routers(change.routers), self._routers(change.before)
        log.info("route " + change.kind, prefix=str(change.prefix), routers=now, before=was)
        data: dict[str, object] = {"prefix": str(change.prefix), "routers": now, "before": was}
        self._publish_paced(f"route.{change.kind}", (change.routers or change.before)[0], data)

    def _routers(self, routers: Sequence[bytes]) -> list[str]:
        return [name_of(self._parts.keeper.roster.get(NodeId(router)), router) for router in routers]

    def _publish_paced(self, kind: str, peer: bytes, data: dict[str, object]) -> None:
        """Publish what a member's own doing can repeat; ``untold`` says how many like it were left out."""
        which = kind, peer
        if not self._events.allow(which, trio.current_time()):
            if which in self._unsaid or len(self._unsaid) < MOST:
                self._unsaid[which] += 1
            return
        if unsaid := self._unsaid.pop(which, 0):
            data = data | {"untold": unsaid}
        self._publish(kind, peer, data)

    def _publish(self, kind: str, peer: bytes, data: dict[str, object]) -> None:
        named = self._named(peer)
        self._parts.events.publish(kind, named["peer"], {**named, **data})

    def _named(self, peer: bytes) -> dict[str, str | None]:
        """Both names of a member, for the log and for events: its name, if its record is known, and its node
        id."""
        entry = self._parts.keeper.roster.get(NodeId(peer))
        name = None if entry is None else entry.member.name
        return {"peer": name, "node_id": format_node_id(NodeId(peer))}

    def _tell_pacts(self) -> None:
        """Say which pacts with other meshes have come into force, rest or were ended since the last time."""
        shown = federation.states(self._parts)
        for pact, one in shown.items():
            if one.state != self._pacts.get(pact):
                data = {"pact": pact, "mesh": one.mesh}
                self._parts.events.publish(f"pact.{federation.STATES[one.state]}", None, data)
        self._pacts = {pact: one.state for pact, one in shown.items()}
        counts = Counter(self._pacts.values())
        self._metrics.set_pacts({state: counts[state] for state in federation.STATES})

    def tell_copies(self) -> None:
        """Say at once which identities seem to be in use on two machines."""
        parts = self._parts
        parts.copies.look(partial(generation_of, parts.gossip.membership), trio.current_time())
        found = {suspicion.node: suspicion for suspicion in parts.copies.suspicions}
        for peer, suspicion in found.items():
            if peer in self._suspected:
                continue
            self._metrics.identity_alarms.labels("self" if peer is None else "peer").inc()
            text, why = health.copied(parts, suspicion).line, suspicion.why.value
            about = self._named(parts.state.identity.node_id if peer is None else peer)
            log.critical("an identity key may be in use on two machines", **about, text=text, why=why)
            data: dict[str, object] = {"severity": "critical", "why": why, "text": text}
            if peer is None:
                parts.events.publish("health.copied", None, data)
            else:
                self._publish("peer.copied", peer, data)
        self._suspected = set(found)
        self._metrics.identity_suspects.set(len(found))

    def _tell_advice(self) -> None:
        """Say what has become weak about the mesh, and what no longer is."""
        findings = self._parts.surveying.findings
        self._metrics.set_advice(Counter(finding.kind.text for finding in findings))
        now = frozenset((finding.kind, finding.members) for finding in findings)
        if now == self._advised:
            return
        fresh = [f.text for f in findings if (f.kind, f.members) not in self._advised]
        data = {"new": fresh[:TOLD_REASONS], "mended": len(self._advised - now), "total": len(now)}
        self._advised = now
        self._parts.events.publish("topology.advice", None, data)

    def _tell_ways(self, paths: Sequence[PathView]) -> None:
        """Say which dimensions take another way, which peers another size of packets, and where members see
        this node otherwise than before."""
        parts = self._parts
        self._metrics.set_ways(Counter(path.way for path in paths))
        leases = parts.lending.leases
        self._metrics.relay_leases.set(len(leases))
        self._metrics.memory_patterns.set(len(parts.memory.memory))
        self._metrics.relayed_bytes.inc(leases.relayed - self._relayed)
        self._relayed = leases.relayed
        for moved in self._ways.moved(paths):
            self._metrics.path_moves.labels(moved.after[0]).inc()
            self._publish_paced("path.moved", parse_node_id(moved.node_id), self._move(moved))
        fitting, peers = parts.paths.fitting, [peer.node_id for peer in parts.peers.reached()]
        for fits in self._ways.fitted(peers, fitting.fit, fitting.largest):
            self._publish_paced("path.mtu", fits.node_id, {"from": fits.before, "to": fits.after})
        for nat in self._ways.seen(dict(nats_of(parts))):
            if not self._nat.take(trio.current_time()):
                continue
            places = [str(place.address) for place in nat.after.public]
            log.info("members see this node otherwise", family=nat.family, nat=nat.after.kind, public=places)
            data: dict[str, object] = {
                "family": nat.family, "from": nat.before, "to": nat.after.kind,
                "public": sorted(set(places)), "why": said(nat.after.kind),
            }  # fmt: skip
            parts.events.publish("nat.changed", None, data)

    def _move(self, moved: Moved) -> dict[str, object]:
        """The data of an event, and a line in the log."""
        entry = self._parts.peers.get(parse_node_id(moved.node_id))
        paths = [] if entry is None else self._reporter.paths_to(entry)
        why = next((path.why for path in paths if path.dimension == moved.dimension), "")
        (before, left), (after, via) = moved.before, moved.after
        log.info(
            "path moved", peer=moved.peer, dimension=moved.dimension, was=before, now=after, by=via, why=why
        )
        data = {"dimension": moved.dimension, "from": before, "to": after, "left": left, "via": via}
        return {key: value for key, value in (data | {"why": why}).items() if value is not None}

    async def watch(self) -> None:
        """Measure what was asked for (`look`), and see what is wrong also while the interfaces cannot be
        read, until cancelled."""
        while True:
            alive(max(0.0, self._judged + JUDGE - trio.current_time()))
            with trio.move_on_at(self._judged + JUDGE):
                await self._asked.wait()
            if self._asked.is_set():
                self._asked = trio.Event()
                await self._go_through(self._pieces)
            else:
                await self._go_through(self._judging)

    async def _go_through(self, pieces: Iterable[Callable[[], None]]) -> None:
        for piece in pieces:
            piece()
            await trio.lowlevel.checkpoint()  # with 100 peers each takes milliseconds

    def look(self) -> None:
        """The interfaces have been read: have `watch` measure."""
        self._asked.set()

    def _judge(self) -> None:
        self._judged = trio.current_time()
        self._faults = self._reporter.faults()

    def _tell_traffic(self) -> None:
        self._metrics.set_traffic(self._reporter.flows(self._reporter.seen()))

    def _tell_health(self) -> None:
        reporter, metrics, faults = self._reporter, self._metrics, self._faults
        metrics.set_faults(Counter((fault.code, fault.severity) for fault in faults))
        parts = self._parts
        parts.drainer.able = reporter.life() != "starting" and not any(
            f.code in health.UNREADY for f in faults
        )
        metrics.set_state(reporter.life(), ready=reporter.readiness(faults).ready)
        reasons = [fault.line for fault in faults]
        if reasons and reasons != self._told:
            codes = sorted({fault.code for fault in faults})
            data = {"reasons": reasons[:TOLD_REASONS], "codes": codes, "total": len(reasons)}
            self._parts.events.publish("health.degraded", None, data)
        elif self._told and not reasons:
            self._parts.events.publish("health.well", None, {})
        self._told = reasons

    def measure(self) -> None:
        """Bring the metrics and events up to what the interfaces and the links say now."""
        for piece in self._pieces:
            piece()

    def _measure_links(self) -> None:
        parts = self._parts
        entries, now = parts.peers.entries, trio.current_time()
        states = {entry.member.name: parts.links.state(entry.member.node_id, now) for entry in entries}
        self._metrics.set_peers(Counter(state.phase.value for state in states.values()))
        self._metrics.set_psk_ages(
            {name: state.age for name, state in states.items() if state.age is not None}
        )
        self._metrics.set_wireguard(
            WireGuardSample(entry.member.name, i, peer.rx_bytes, peer.tx_bytes, peer.last_handshake)
            for entry in entries
            for i, _, peer in self._reporter.devices(entry)
            if peer is not None
        )
        regions = {entry.member.name: entry.record.region for entry in entries}
        regions[parts.own.name()] = parts.config.node.region
        self._metrics.set_regions({name: region for name, region in regions.items() if region})

    def _measure_paths(self) -> None:
        parts, paths = self._parts, self._reporter.measured()
        self._metrics.set_paths(
            PathSample(view.peer, view.dimension, view.rtt_s, view.loss, view.mtu)
            for view in paths
            if view.state != "closed"
        )
        self._tell_ways(paths)
        self._metrics.set_routes(routing.counts(parts))
        self._tell_pacts()
        self._metrics.set_scatter(
            ScatterSample(view.peer, tuple(d.weight for d in view.dimensions), view.entropy_bits)
            for view in self._reporter.scatter()
        )

    def _count(self) -> None:
        parts = self._parts
        taken = parts.scattering.taken()
        for name, count in (taken - self._taken).items():
            self._metrics.class_packets.labels(name).inc(count)
        self._taken = taken
        drops = parts.dropped()
        for reason, count in (drops - self._drops).items():
            self._metrics.dropped.labels(reason).inc(count)
        self._drops = drops
        packets, size = parts.cover.packets, parts.cover.bytes
        self._metrics.cover_packets.inc(packets - self._covered[0])
        self._metrics.cover_bytes.inc(size - self._covered[1])
        self._covered = packets, size
        gossiped = Counter[tuple[str, str]]()
        for kind, (sent, received) in parts.gossip.membership.counts().items():
            gossiped[kind, "out"], gossiped[kind, "in"] = sent, received
        for (kind, direction), count in (gossiped - self._gossiped).items():
            self._metrics.gossip_messages.labels(kind, direction).inc(count)
        self._gossiped = gossiped
        finished = Counter(parts.links.handshakes)
        for (role, result), count in (finished - self._handshakes).items():
            self._metrics.link_handshakes.labels(role, result).inc(count)
        self._handshakes = finished
