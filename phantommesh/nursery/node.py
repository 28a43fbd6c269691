# SPDX-License-Identifier: GPL-3.0-or-later
"""The node: every service under one nursery, and how they hang together. Start reading here."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from time import monotonic, time

import structlog
import trio

from phantommesh import __version__, envelope, statedir
from phantommesh.config import Config
from phantommesh.dataplane import OwnSide
from phantommesh.dimensions import interface_names, master_name
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.events import EventLog
from phantommesh.guard import Guard
from phantommesh.identity import NodeId
from phantommesh.kem import provider
from phantommesh.link.context import Timing
from phantommesh.link.copies import Copies
from phantommesh.link.effects import Alarm, Enrolment, Opened
from phantommesh.link.machine import Links
from phantommesh.membership.presets import PRESETS
from phantommesh.metrics import Metrics
from phantommesh.node.peers import Peers, Seen, generation_of
from phantommesh.nodestate import NodeState
from phantommesh.nursery import streams
from phantommesh.nursery.authority import AuthorityDesk
from phantommesh.nursery.backend import Backend
from phantommesh.nursery.calling import Caller, ask_standing
from phantommesh.nursery.drive import LinkDriver
from phantommesh.nursery.gossip import GossipDriver
from phantommesh.nursery.groupkeys import GroupKeys
from phantommesh.nursery.guarding import Guarding
from phantommesh.nursery.holding import Overlay
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.nursery.naming import Naming
from phantommesh.nursery.own import OwnRecord
from phantommesh.nursery.places import Places
from phantommesh.nursery.probes import PathDriver
from phantommesh.nursery.proving import Proving
from phantommesh.nursery.reconciler import Reconciler
from phantommesh.nursery.recording import Recorder
from phantommesh.nursery.rekeying import KeyReplacer
from phantommesh.nursery.report import Reporter
from phantommesh.nursery.resolve import Resolver
from phantommesh.nursery.roster import ControlServer
from phantommesh.nursery.scattering import Scattering
from phantommesh.nursery.succession import Succession
from phantommesh.nursery.supervisor import supervise
from phantommesh.nursery.udp import UdpPort
from phantommesh.paths.machine import Paths
from phantommesh.proofs.shelf import Shelf
from phantommesh.records import Entry
from phantommesh.scatter.epochs import EpochCounts
from phantommesh.scatter.ruleset import table_name as scatter_table
from phantommesh.secret import Secret
from phantommesh.wireguard import DeviceState

# Tuning.
REFRESH = 30.0  # s between looks at the clock (certificates that ran out) and at the host's networks
LAG_PROBE = 1.0  # s
GRACE = 2.0  # s for API requests under way at shutdown
LEAVE = 4.0  # s to say goodbye to the mesh
STOP = 8.0  # s to take the interfaces down; longer than a WireGuard process is waited for before it is killed

log = structlog.get_logger("phantommesh.node")


class Node:
    """One node's live parts, wired. `serve` runs them until cancelled."""

    def __init__(
        self,
        config: Config,
        state: NodeState,
        backend: Backend,
        udp: UdpPort,
        *,
        generation: int,
        overlay: Overlay,
    ) -> None:
        """``generation`` is greater than at any start before: `nodestate.next_generation`. ``overlay`` has
        begun: the overlay's range is closed."""
        self.config, self.state, self.backend, self.udp = config, state, backend, udp
        self.names = interface_names(config.wireguard.prefix)
        self.overlay = overlay
        overlay.on_change = self._rerouted
        self.started = trio.current_time()
        self.metrics = Metrics(version=__version__, clock=monotonic)
        self.events = EventLog(run=os.urandom(4).hex(), clock=time)
        self.sessions = streams.Sessions()
        self.resolver = Resolver(self._peers_changed, lambda address: self.places.forbids(address))
        self.places = Places(config, overlay.routed, self.resolver.lookup)
        udp.forbids = self.places.forbids
        self.keys = GroupKeys(state, self._secrets_changed)
        self.keeper = RosterKeeper(state, self._peers_changed)
        self.own = OwnRecord(config, state, self.keeper)
        self.caller = Caller(state, self.keeper, self.sessions, self._where)
        self.naming = Naming(
            config.dns,
            state.mesh,
            link=self.names[0],
            me=lambda: self.own.member,
            answered=lambda result: self.metrics.dns_queries.labels(result).inc(),
        )
        self.copies = Copies()
        self.links = self._make_links()
        self.peers = Peers(
            state.identity.node_id,
            self.links,
            config.wireguard,
            config.scatter,
            where=lambda entry: self.places.of(entry),
        )
        self.driver = LinkDriver(
            self.links,
            state.identity,
            udp,
            install=self._installed,
            opened=self._opened,
            alarmed=self._alarmed,
        )
        self.desk = AuthorityDesk(state, self.keeper, self.keys)
        self.gossip = GossipDriver(
            state, self.keeper, self.keys, self.caller, udp,
            generation=generation, params=PRESETS[config.gossip.preset], seeds=self._seeds, where=self._where,
            may=self.places.may,
            changed=lambda change: self.recorder.member_changed(change),
            learned=self.metrics.gossip_convergence_seconds.observe,
            look=lambda: self.reconciler.kick(),
            agree=lambda dimension, theirs: self.own.wg_keys.agree(dimension, theirs),
        )  # fmt: skip
        self.proving = Proving(
            state,
            Shelf(state.state.path / statedir.PROOFS, config.proofs.keep),
            self.keeper.roster,
            epoch_seconds=config.scatter.epoch_seconds,
            batch=config.scatter.batch,
            keep=config.proofs.keep,
            call=self.caller.call,
            read=lambda: self.reconciler.converge(),
            scattered=lambda: self.scattering.under_way(),
            delay=lambda peer: self.paths.paths.delay(peer),
            count=lambda result: self.metrics.scatter_proofs.labels(result).inc(),
        )
        self.succession = Succession(
            config,
            state,
            self.caller,
            name=lambda: self.own.member.name,
            revoked=lambda: self.keeper.revoked is not None,
        )
        self.server = ControlServer(
            state, self.keeper, self.keys, self.desk,
            sync_answer=self.gossip.sync_answer, sync_finish=self.gossip.sync_finish, proving=self.proving,
        )  # fmt: skip
        self.tcp = streams.TcpPort(
            config.control.port,
            sessions=self.sessions,
            dispatch=self.driver.receive,
            serve=self.server.serve,
            standing=self.keeper.answer_standing,
            records=self.gossip.answer_records,
        )
        self.reconciler = Reconciler(
            backend,
            interval=config.wireguard.reconcile_seconds,
            on_actual=self._read_back,
            log=log,
            forbids=self.places.forbids,
        )
        self.reconciler.follow(lambda: self.peers.devices)
        self.scattering = Scattering(
            config.scatter,
            device=master_name(config.wireguard.prefix),
            names=self.names,
            kind="wireguard" if backend.name == "kernel" else "tun",
            mtu=config.wireguard.mtu,
            ipv6=backend.ipv6,
            me=state.identity.node_id,
            addresses=lambda: (self.own.member.ip4, self.own.member.ip6),
            routed=lambda: overlay.routed,
            interval=config.wireguard.reconcile_seconds,
            on_epoch=self._epoch_over,
        )
        self.guarding = Guarding(
            lambda: Guard(
                master_name(config.wireguard.prefix),
                self.names,
                (self.own.member.ip4, self.own.member.ip6),
                overlay.routed,
                config.control.port,
                self.own.wg_keys.ports(config.wireguard.base_port, config.wireguard.port_choices),
                config.guard.forward,
            ),
            beside=scatter_table(master_name(config.wireguard.prefix)),
            flushed=self.scattering.kick,
        )
        self.paths = PathDriver(
            Paths(random=Random(os.urandom(16)), interval=config.paths.probe_seconds),  # noqa: S311  # no keys
            self.scattering,
            port=config.paths.port,
            names=self.names,
            address=lambda: self.own.member.ip4,
            turned=lambda turned: self.recorder.turned(turned),
        )
        self.rekeying = KeyReplacer(config.wireguard, self.own, self.paths, self._adopt_keys)
        self.reporter = Reporter(self)
        self.recorder = Recorder(self, self.reporter)
        self.actual: Mapping[str, DeviceState] = {}

    def _make_links(self) -> Links:
        settings, state = self.config.link, self.state
        enrolment = None
        if state.authority is not None:
            enrolment = Enrolment(state.mesh.root_hash, state.identity.spki, self._find_invite)
        links = Links(
            node_id=state.identity.node_id,
            wg_keys=self.own.wg_keys.public,
            admission=state.admission.newest,
            kem=provider(settings.provider),
            random=os.urandom,
            now=trio.current_time(),
            timing=Timing(
                settings.rotate_seconds,
                settings.jitter_seconds,
                settings.stale_alarm_seconds,
                settings.stale_random_seconds,
            ),
            enrolment=enrolment,
            agree=lambda dimension, theirs: self.own.wg_keys.agree(dimension, theirs),
        )
        links.set_admission(state.admission.current, state.admission.replaced)
        return links

    def _secrets_changed(self) -> None:
        """Another group key brought another admission secret, or one is not sent with any more."""
        self.links.set_admission(self.state.admission.current, self.state.admission.replaced)

    def _find_invite(self, invite: bytes, node_id: bytes) -> Secret | None:
        try:
            return self.state.invites.find(invite, time(), NodeId(node_id)).secret
        except PhantomMeshError:
            return None

    def _where(self, node_id: NodeId) -> Sequence[Address]:
        """The addresses of a member's control port, as its record names them and as far as they resolve and
        may be used."""
        entry = self.keeper.roster.get(node_id)
        return () if entry is None else self.places.of(entry)

    def _seeds(self) -> Sequence[Address]:
        """Return where to find the mesh again: what the config says, and the authorities."""
        return (*self.places.seeds(), *self.peers.seeds())

    def entries(self) -> list[Entry]:
        """The other members that were in good standing at the last look: those that `links` knows."""
        return self.peers.entries

    def _peers_changed(self) -> None:
        """The roster, a resolved name or the time changed who the peers are: tell links and interfaces."""
        now, wall, revoked = trio.current_time(), time(), self.keeper.revoked is not None
        self.peers.look(self.keeper.roster, wall, revoked=revoked)
        self.tcp.close_channels(self.state.revocations)
        self.places.look(self.peers.entries)
        auths = self.peers.auths(now, wall)
        if not revoked:  # else the news of it still has to go out to the others
            self.sessions.retain(self.peers.standing)
        self.tcp.callable = frozenset(address for auth in auths.values() for address in auth.endpoints)
        self.copies.retain(auths)
        self.driver.carry_out(self.links.set_peers(auths, now))
        self.guarding.kick()
        self.naming.update([self.own.member, *(entry.member for entry in self.peers.entries)])
        self.gossip.roster_changed()
        self.overlay.kick()
        self._arrange()

    def _rerouted(self) -> None:
        """Other prefixes lead into the overlay than before."""
        self.places.judge_by(replace(self.places.reach, overlay=self.overlay.routed))
        self.guarding.kick()
        self.scattering.kick()
        self._arrange()

    def _arrange(self) -> None:
        """Who the peers are, or our own end, has changed: make the interfaces anew."""
        settings, keys = self.config.wireguard, self.own.wg_keys
        own = OwnSide(
            keys.private,
            keys.ports(settings.base_port, settings.port_choices),
            self.own.member,
            tuple(self.overlay.routed),
        )
        self.scattering.update(self.peers.arrange(own))
        self.paths.set_peers(self.peers.reached())
        self.reconciler.kick()

    def _installed(self, peers: Sequence[bytes]) -> None:
        """The desired PSKs of these peers have changed: have their part of the interfaces follow."""
        for peer in peers:
            keyed = self.peers.keyed(peer)
            if keyed is not None:
                self.scattering.change(keyed.scatter)
                self.paths.set_ready(keyed.reached.node_id, keyed.reached.ready)
        self.reconciler.kick()

    def _adopt_keys(self) -> None:
        """This node has another WireGuard key in some dimension: tell links and interfaces, then others."""
        self.driver.carry_out(self.links.set_wg_keys(self.own.wg_keys.public, trio.current_time()))
        self.guarding.kick()  # the ports have changed
        self._arrange()
        self.own.publish()

    def _read_back(self, actual: Mapping[str, DeviceState]) -> None:
        """The reconciler has read the interfaces: tell the links what PSKs and handshakes they hold."""
        self.actual = actual
        self.scattering.devices(actual)
        self.paths.devices(actual)
        now, wall, shown = trio.current_time(), time(), list[Seen]()
        for entry in self.peers.entries:
            seen = self.peers.read(entry, actual, now, wall)
            shown.append(seen)
            self.paths.paths.read(seen.peer, seen.reading.counters, now)
            self.driver.carry_out(self.links.read_back(seen.peer, seen.reading.bitmap, seen.handshakes, now))
        self.gossip.read_interfaces({seen.peer: seen.received for seen in shown})
        self.proving.look({seen.peer: seen.counted for seen in shown})
        self.paths.set_peers(self.peers.reached())
        self.recorder.measure()

    def _epoch_over(self, peer: bytes, ended: EpochCounts) -> None:
        found = self.scattering.snapshot(peer)
        self.proving.epoch(peer, ended, None if found is None else found.current)

    def _receive(self, datagram: bytes, source: Address) -> None:
        """A datagram that comes to the control port is a handshake's, or gossip's."""
        if datagram[:1] == bytes([envelope.FORMAT]):
            self.gossip.receive(datagram, source)
        else:
            self.driver.receive(datagram, source)

    def _opened(self, opened: Opened) -> None:
        self.sessions.add(streams.Session.of(opened))
        if not opened.invite:
            self.copies.chained(opened.peer, self.generation_of(opened.peer), trio.current_time())
            if opened.at is not None:
                self.places.seen(opened.peer, opened.at.host)
            self.recorder.opened(opened)
            self.reporter.handshake_finished()

    def _alarmed(self, alarm: Alarm) -> None:
        if alarm.kind in ("chain-reset", "chain-forked"):
            self.copies.reset(alarm.peer, alarm.sign, self.generation_of(alarm.peer), trio.current_time())
        self.recorder.alarmed(alarm)

    def generation_of(self, peer: bytes) -> int | None:
        """How often a member has started: see `node.peers.generation_of`."""
        return generation_of(self.gossip.membership, peer)

    async def serve(self, socket_path: Path, leave: trio.Event) -> None:
        """Run every service until ``leave`` is set, or this node has a new identity: `succession.done` tells.
        The API is the first to stop, the interfaces the last."""
        await self.guarding.converge()  # before there is anything to reach
        if self.config.control.tcp:
            await self.tcp.listen()
            self.driver.tcp = self.tcp
        try:
            await self.own.reserve()
            await self.places.refresh()
            self.own.publish()
            self._peers_changed()
            async with trio.open_nursery() as nursery:
                for name, service in self._services().items():
                    nursery.start_soon(partial(supervise, name, service, on_restart=self._restarted))
                stop_api, api_stopped = trio.Event(), trio.Event()
                await nursery.start(self._serve_api, socket_path, stop_api, api_stopped)
                log.info(
                    "node is up",
                    node=self.own.member.name,
                    mesh=self.state.mesh.name,
                    backend=self.backend.name,
                )
                await either(leave, self.succession.done)
                log.info("node is leaving")
                stop_api.set()
                with trio.move_on_after(2 * GRACE):
                    await api_stopped.wait()
                if not self.succession.done.is_set():  # else nobody listens to the old identity any more
                    with trio.move_on_after(LEAVE):
                        await self.gossip.leave()
                with trio.move_on_after(GRACE), suppress(PhantomMeshError):
                    await self.gossip.save()
                    await self.keeper.save()
                nursery.cancel_scope.cancel()
        finally:
            if not self.config.wireguard.keep_interfaces:
                with trio.CancelScope(deadline=trio.current_time() + STOP, shield=True):
                    await self._take_interfaces_down()

    async def _take_interfaces_down(self) -> None:
        """Remove what carries the overlay's traffic. The overlay's range is closed before, is kept closed
        meanwhile and stays so: what is sent to it now must not leave by the default route."""
        with suppress(PhantomMeshError):
            await self.overlay.converge()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.overlay.run)
            nursery.start_soon(self.guarding.run)
            await self.scattering.close()
            await self.backend.close(remove=self.names)
            nursery.cancel_scope.cancel()

    async def _serve_api(
        self, path: Path, stop: trio.Event, stopped: trio.Event, *, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        # Half of the node's imports are the web framework's: peers need not wait for them.
        api = await trio.to_thread.run_sync(import_module, "phantommesh.nursery.api.server")
        await api.serve_api(
            self.reporter,
            socket_path=path,
            listen=self.config.api.listen,
            shutdown=stop,
            grace=GRACE,
            task_status=task_status,
        )
        stopped.set()

    def _services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        services: dict[str, Callable[[], Awaitable[None]]] = {
            "overlay": self.overlay.run,
            "guard": self.guarding.run,
            "reconciler": self.reconciler.run,
            "link": self.driver.run,
            "scatter": self.scattering.run,
            "proofs": self.proving.run,
            "paths": self.paths.run,
            "wireguard-keys": self.rekeying.run,
            "udp": partial(self.udp.receive, self._receive),
            "gossip": self.gossip.run,
            "roster-disk": self.keeper.keep,
            "standing": partial(ask_standing, self.state, self.keeper, self.gossip.quiet, self.places.of),
            "group-keys": self.keys.run,
            "resolver": self.resolver.run,
            "refresh": self._refresh,
            "certificate": partial(self.own.renew, self.caller),
            "succession": self.succession.run,
            "loop-lag": self._watch_lag,
            **self.naming.services(),
        }
        if self.config.control.tcp:
            services["tcp"] = self.tcp.run
        return services

    def _restarted(self, service: str) -> None:
        self.metrics.service_restarts.labels(service).inc()
        self.events.publish("health.restarted", None, {"service": service})

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(REFRESH)
            await self.places.refresh()
            self.own.publish()
            self._peers_changed()

    async def _watch_lag(self) -> None:
        while True:
            due = trio.current_time() + LAG_PROBE
            await trio.sleep_until(due)
            self.metrics.loop_lag_seconds.observe(trio.current_time() - due)


async def either(*events: trio.Event) -> None:
    """Return when one of the events is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)
