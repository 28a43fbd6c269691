# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node reacts to the news of its parts: one match over all news, and the longer reactions."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import trio

from phantommesh.config.sections import RoutesSection
from phantommesh.endpoint import Address
from phantommesh.gossip import envelope
from phantommesh.link.effects import Alarm, Opened
from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import State
from phantommesh.node.peers import Seen
from phantommesh.node.routes import really_there
from phantommesh.nursery.due import moment
from phantommesh.nursery.news import (
    CarriersChanged,
    CopyFound,
    CopyGone,
    EpochOver,
    Installed,
    KeysReplaced,
    News,
    PeersChanged,
    ReadBack,
    Rerouted,
    RoutesChanged,
    SecretsChanged,
    WayChanged,
)
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting.recording import Recorder
from phantommesh.nursery.reporting.report import Reporter
from phantommesh.paths.effects import Turned
from phantommesh.paths.state import PathState
from phantommesh.rates import Bucket
from phantommesh.routable import parse_prefix
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.desired import OwnSide

# Tuning.
# Readings of the interfaces that the report follows, a second and at once. Any member can have the interfaces
# read several times a second, and the report looks at all members.
MEASURE_RATE, MEASURE_BURST = 1.0, 4


class Weaving:
    """The reactions of one node. ``recorder`` and ``reporter`` are told of anything that an operator may ask
    for."""

    def __init__(self, parts: Parts, reporter: Reporter, recorder: Recorder) -> None:
        self._parts, self._reporter, self._recorder = parts, reporter, recorder
        self._measuring = Bucket(MEASURE_RATE, MEASURE_BURST, trio.current_time())

    def react(self, news: News) -> None:
        """Have the other parts follow the news of one part."""
        parts = self._parts
        match news:
            case PeersChanged():
                self.peers_changed()
            case SecretsChanged():
                parts.links.set_admission(parts.state.admission.current, parts.state.admission.replaced)
            case KeysReplaced():
                self._adopt_keys()
            case Rerouted():
                self._reroute()
            case RoutesChanged():
                self._take_routes()
            case CarriersChanged():
                self._carry()
            case Installed(peers):
                self._install(peers)
            case WayChanged(peer):
                self._install((peer,))
            case ReadBack():
                self._read_back(news)
            case CopyGone():
                parts.driver.anew()
            case CopyFound():
                self._recorder.tell_copies()
            case EpochOver(peer, _) if peer in parts.peers.visitors:
                pass  # scatter proofs are a mesh's own matter
            case EpochOver(peer, ended):
                found = parts.scattering.snapshot(peer)
                parts.proving.epoch(peer, ended, None if found is None else found.current)
            case Opened():
                self._opened(news)
            case Alarm():
                self._alarmed(news)
            case Changed():
                self._changed(news)
            case Turned():
                parts.framed.stir(news.peer)
                if PathState.DARK in (news.before, news.after):
                    parts.calm.stir()
                    parts.borrower.doubt((news.peer,))
                parts.punching.watch(NodeId(news.peer))
                self._recorder.turned(news)
            case _:
                assert_never(news)

    def receive(self, datagram: bytes, source: Address) -> None:
        """Take a datagram of the control port: it is a handshake's, or gossip."""
        if datagram[:1] == bytes([envelope.FORMAT]):
            self._parts.gossip.receive(datagram, source)
        else:
            self._parts.driver.receive(datagram, source)

    def peers_changed(self) -> None:
        """Find out anew who the peers are, and tell links and interfaces."""
        parts = self._parts
        now, wall = moment()
        parts.wiring.look(wall)
        visitors = parts.federating.look()
        parts.peers.visit(visitors, parts.keeper.roster)
        parts.links.set_pacts(parts.federating.gates(visitors))
        parts.links.enrol_by(parts.federating.enrolment(parts.enrolment))
        parts.overlay.join_with(parts.federating.networks)
        parts.tcp.close_channels(parts.state.revocations)
        parts.places.look(parts.peers.entries)
        parts.finding.retain(parts.peers.standing)
        parts.framed.retain(parts.peers.standing)
        auths, effects = parts.wiring.link(now, wall)
        parts.tcp.callable = parts.peers.tcp_ports({peer: auth.endpoints for peer, auth in auths.items()})
        parts.driver.carry_out(effects)
        parts.guarding.kick()
        parts.access.kick()
        parts.naming.update([parts.own.member, *(entry.member for entry in parts.peers.entries)])
        parts.gossip.roster_changed()
        parts.carrying.look()
        parts.overlay.kick()
        parts.taking.kick()
        parts.punching.look()
        self._arrange()
        parts.talk.know({entry.member.node_id: entry.member.ip4 for entry in parts.peers.entries})
        self._take_routes()
        parts.lending.changed()
        parts.borrower.forget(parts.peers.standing)

    async def begin_routes(self) -> None:
        """Close what this node takes for all other ways: before anything else, for an earlier run has left it
        closed. Raises BackendError."""
        self._parts.overlay.join_with(self._parts.federating.former)
        self._parts.wiring.look(moment()[1])
        await self._parts.taking.look()
        self._take_routes()
        await self._parts.beyond.converge()

    def route_by(self, section: RoutesSection) -> None:
        """Follow an edited configuration of prefixes beyond the mesh. What is let go of is opened."""
        parts = self._parts
        parts.own.advertise(map(parse_prefix, section.advertise))
        parts.taking.configure(section)
        parts.gateway.configure(section)
        parts.guarding.kick()
        parts.beyond.spare(really_there(section))
        parts.own.publish()

    def _take_routes(self) -> None:
        """Take the prefixes beyond the mesh that are to be taken now, and no others, and route our own."""
        parts = self._parts
        if parts.beyond.take(parts.taking.taken) and parts.failover.take(
            parts.beyond.taken, trio.current_time()
        ):
            self._carry()
        routed = parts.own.routed()
        parts.talk.want(bool(parts.beyond.taken or routed))
        if parts.gateway.offer(routed):
            parts.guarding.kick()

    def _carry(self) -> None:
        """Have WireGuard, the scatter rules and the kernel's routes follow who carries which prefix."""
        parts = self._parts
        parts.peers.carry(parts.failover.carried)
        parts.scattering.carry(parts.failover.carried)
        parts.reconciler.kick()
        parts.beyond.kick()

    def _reroute(self) -> None:
        parts = self._parts
        parts.places.judge_by(replace(parts.places.reach, overlay=parts.overlay.routed))
        parts.guarding.kick()
        parts.scattering.kick()
        self._arrange()

    def _arrange(self) -> None:
        """Make the interfaces anew: the peers, or our own end, have changed."""
        parts = self._parts
        own = OwnSide(
            parts.own.wg_keys.private,
            parts.own.ports,
            parts.own.member,
            tuple(parts.overlay.routed),
        )
        parts.wgports.open_ports(own.ports)
        scattered = parts.peers.arrange(own)
        parts.scattering.update(scattered)
        parts.paths.set_peers(parts.peers.reached())
        parts.paths.seek_quickest(
            {peer.node_id for peer in scattered if any(one.quickest for one in peer.schedules)}
        )
        parts.peers.refit(parts.paths.fitting.fit)
        parts.reconciler.kick()

    def _install(self, peers: tuple[bytes, ...]) -> None:
        """Have these peers' part of the interfaces follow their PSKs."""
        parts = self._parts
        for peer in peers:
            keyed = parts.peers.keyed(peer)
            if keyed is not None:
                parts.scattering.change(keyed.scatter)
            if keyed is not None and peer not in parts.peers.visitors:
                parts.paths.set_ready(keyed.reached.node_id, keyed.reached.ready)
                parts.framed.stir(peer)
        parts.borrower.doubt([peer for peer in peers if peer not in parts.peers.visitors])
        parts.reconciler.kick()

    def _adopt_keys(self) -> None:
        """Tell links and interfaces of our new WireGuard key, then others."""
        parts = self._parts
        parts.driver.carry_out(parts.links.set_wg_keys(parts.own.wg_keys.public, trio.current_time()))
        parts.guarding.kick()  # the ports have changed
        self._arrange()
        parts.own.publish()

    def _read_back(self, news: ReadBack) -> None:
        """Tell the links which PSKs and handshakes the interfaces hold, and other parts how much traffic
        moved."""
        parts, actual = self._parts, news.actual
        parts.scattering.devices(actual)
        parts.paths.devices(actual)
        (now, wall), shown, settled = moment(), list[Seen](), True
        for entry in parts.peers.entries:
            seen, effects = parts.wiring.read_back(entry, actual, now, wall)
            shown.append(seen)
            settled &= parts.links.settled(seen.peer, seen.handshakes, now)
            parts.paths.read(seen.peer, seen.reading.counters)
            parts.paths.locate(seen.peer, seen.reading.endpoints)
            parts.punching.watch(seen.peer)
            parts.framed.located(seen.peer, seen.reading.endpoints)
            parts.borrower.located(seen.peer, seen.reading.endpoints)
            if (scattered := parts.peers.scattered(seen.peer)) is not None:
                parts.scattering.change(scattered)
            parts.gossip.lives(seen.peer, parts.paths.paths.heard(seen.peer))
            if parts.peers.turn(seen.peer, parts.paths.paths.dark(seen.peer), now):
                self._install((seen.peer,))
            parts.driver.carry_out(effects)
        for visitor in parts.peers.visitors.values():
            seen, effects = parts.wiring.read_back(visitor.entry, actual, now, wall)
            settled &= parts.links.settled(seen.peer, seen.handshakes, now)
            parts.driver.carry_out(effects)
        if not settled:
            parts.calm.stir()
        parts.gossip.read_interfaces({seen.peer: seen.received for seen in shown})
        parts.proving.look({seen.peer: seen.counted for seen in shown})
        parts.paths.set_peers(parts.peers.reached())
        if self._measuring.take(now):
            self._recorder.look()

    def _opened(self, opened: Opened) -> None:
        parts = self._parts
        if not opened.invite and parts.peers.get(opened.peer) is None:
            # No channel is opened on it: members of other meshes, such as have just lost their pact too, ask
            # gateways alone.
            return
        if not parts.wiring.opened(opened, trio.current_time()):
            return
        parts.finding.linked(opened.peer, opened.at)
        parts.punching.opened(opened)
        parts.framed.opened(opened)
        parts.caller.linked(NodeId(opened.peer), opened.at, opened.role)
        parts.carrying.look()
        if opened.at is not None:
            self._heard_from(opened.peer, opened.at.host)
        self._recorder.opened(opened)
        self._reporter.handshake_finished()

    def _heard_from(self, peer: bytes, host: str) -> None:
        """A member finished a handshake from this host: use it from now on, where its record names it."""
        parts = self._parts
        if parts.places.seen(peer, host):
            parts.peers.heard_from(peer)
            self._install((peer,))

    def _changed(self, changed: Changed) -> None:
        self._parts.wiring.changed(changed, trio.current_time())
        self._parts.driver.wake()
        self._parts.carrying.look()
        if changed.new is State.LEFT:
            self._parts.talk.gone(changed.node)
        self._recorder.member_changed(changed)

    def _alarmed(self, alarm: Alarm) -> None:
        if alarm.peer not in self._parts.peers.visitors:
            self._parts.wiring.alarmed(alarm, trio.current_time())
        self._recorder.alarmed(alarm)
        self._recorder.tell_copies()
