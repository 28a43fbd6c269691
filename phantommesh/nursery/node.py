# SPDX-License-Identifier: GPL-3.0-or-later
"""The node: every service under one nursery, and how they hang together. Start reading here.

Above the line in `run` nothing outside the process has changed: configuration and state are read and checked.
Below it sockets are bound, interfaces made and peers spoken to.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from time import monotonic, time

import structlog
import trio
import trio.lowlevel

from phantommesh import __version__
from phantommesh import config as config_file
from phantommesh.config import Config
from phantommesh.dataplane import MeshPeer, desired_devices, interface_names, read_peer
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId
from phantommesh.kem import provider
from phantommesh.link.context import Timing
from phantommesh.link.effects import Alarm, Enrolment, Opened, PeerAuth
from phantommesh.link.machine import Links
from phantommesh.metrics import Metrics
from phantommesh.nodestate import NodeState, load_node
from phantommesh.nursery import streams
from phantommesh.nursery.backend import Backend, choose
from phantommesh.nursery.drive import LinkDriver
from phantommesh.nursery.own import OwnRecord
from phantommesh.nursery.reconciler import Reconciler
from phantommesh.nursery.report import Reporter
from phantommesh.nursery.resolve import Resolver
from phantommesh.nursery.roster import ControlServer, RosterClient, RosterKeeper
from phantommesh.nursery.supervisor import supervise
from phantommesh.nursery.udp import UdpPort
from phantommesh.records import Entry
from phantommesh.secret import Secret
from phantommesh.wire import Address
from phantommesh.wireguard import DeviceState

# Tuning.
REFRESH = 30.0  # s between looks at the clock: certificates that ran out, names that resolve elsewhere
LAG_PROBE = 1.0  # s
GRACE = 2.0  # s for API requests under way at shutdown
STOP = 5.0  # s to take the interfaces down

log = structlog.get_logger("phantommesh.node")


class Node:
    """One node's live parts, wired. `serve` runs them until cancelled."""

    def __init__(self, config: Config, state: NodeState, backend: Backend, udp: UdpPort) -> None:
        self.config, self.state, self.backend = config, state, backend
        self.names = interface_names(config.wireguard.prefix)
        self.started = trio.current_time()
        self.metrics = Metrics(version=__version__, clock=monotonic)
        self.sessions = streams.Sessions()
        self.resolver = Resolver(self._peers_changed)
        self.keeper = RosterKeeper(state, self._peers_changed)
        self.own = OwnRecord(config, state, self.keeper)
        self.links = self._make_links()
        self.driver = LinkDriver(
            self.links, state.identity, udp, install=self._install, opened=self._opened, alarmed=self._alarmed
        )
        self.server = ControlServer(state, self.keeper)
        self.tcp = streams.TcpPort(
            config.control.port, sessions=self.sessions, dispatch=self.driver.receive, serve=self.server.serve
        )
        self.client = RosterClient(state, self.keeper, self.sessions)
        self.reconciler = Reconciler(
            backend, interval=config.wireguard.reconcile_seconds, on_actual=self._read_back, log=log
        )
        self.reporter = Reporter(self)
        self.actual: Mapping[str, DeviceState] = {}
        self._udp = udp

    def _make_links(self) -> Links:
        settings, state = self.config.link, self.state
        enrolment = None
        if state.authority is not None:
            enrolment = Enrolment(state.mesh.root_hash, state.identity.spki, self._find_invite)
        return Links(
            node_id=state.identity.node_id,
            wg_keys=self.own.wg_public_keys,
            admission=state.admission_key,
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
        )

    def _find_invite(self, invite: bytes, node_id: bytes) -> Secret | None:
        try:
            return self.state.invites.find(invite, time(), NodeId(node_id)).secret
        except PhantomMeshError:
            return None

    def entries(self) -> list[Entry]:
        """The other members in good standing."""
        mine, now = self.state.identity.node_id, time()
        return [
            entry
            for entry in self.keeper.roster
            if entry.member.node_id != mine and entry.member.not_before <= now <= entry.member.not_after
        ]

    def _peers_changed(self) -> None:
        """The roster, a resolved name or the time changed who the peers are: tell links and interfaces."""
        now, wall = trio.current_time(), time()
        peers: dict[bytes, PeerAuth] = {}
        for entry in self.entries():
            hosts = [
                (ip, port)
                for host, port in map(parse_endpoint, entry.record.control)
                if (ip := self.resolver.lookup(host))
            ]
            peers[entry.member.node_id] = PeerAuth(
                entry.member.node_id,
                entry.member.public_key,
                now + entry.member.not_after - wall,
                entry.record.wg_keys,
                tuple(Address(ip, port, transport) for transport in ("udp", "tcp") for ip, port in hosts),
            )
        self.tcp.callable = frozenset(address for auth in peers.values() for address in auth.endpoints)
        self.driver.carry_out(self.links.set_peers(peers, now))
        self._install()

    def _install(self) -> None:
        """Some desired PSK or peer has changed: recompute what the interfaces should be."""
        peers = []
        for entry in self.entries():
            member, record = entry.member, entry.record
            hosts = (self.resolver.lookup(parse_endpoint(text)[0]) for text in record.control)
            peers.append(
                MeshPeer(
                    member.node_id,
                    IPv4Network(member.ip4),
                    IPv6Network(member.ip6),
                    record.wg_keys,
                    record.wg_ports,
                    tuple(host for host in hosts if host),
                    self.links.psks(member.node_id),
                    self.links.dials(member.node_id),
                )
            )
        mesh = self.state.mesh
        self.reconciler.set_desired(
            desired_devices(
                self.config.wireguard,
                self.state.wg_keys,
                self.own.member,
                (mesh.network4, mesh.network6),
                peers,
            )
        )

    def _read_back(self, actual: Mapping[str, DeviceState]) -> None:
        """The reconciler has read the interfaces: tell the links what PSKs and handshakes they hold."""
        self.actual = actual
        now, wall = trio.current_time(), time()
        for entry in self.entries():
            peer = entry.member.node_id
            reading = read_peer(actual, self.names, entry.record.wg_keys, self.links.psks(peer))
            seen = [None if moment is None else now - (wall - moment) for moment in reading.handshakes]
            self.driver.carry_out(self.links.read_back(peer, reading.bitmap, seen, now))
        self.reporter.measure()

    def _opened(self, opened: Opened) -> None:
        self.sessions.add(streams.Session.of(opened))
        if not opened.invite:
            self.reporter.opened(opened)

    def _alarmed(self, alarm: Alarm) -> None:
        self.reporter.alarmed(alarm)

    async def serve(self, socket_path: Path, *, task_status: trio.TaskStatus[None]) -> None:
        """Run every service until cancelled; the API first to stop, the interfaces last."""
        stop_api = trio.Event()
        async with trio.open_nursery() as nursery:
            self.driver.tcp = self.tcp if self.config.control.tcp else None
            self._peers_changed()
            services: dict[str, Callable[[], Awaitable[None]]] = {
                "reconciler": self.reconciler.run,
                "link": self.driver.run,
                "udp": partial(self._udp.receive, self.driver.receive),
                "roster-disk": self.keeper.keep,
                "roster": self.client.run,
                "resolver": self.resolver.run,
                "refresh": self._refresh,
                "certificate": partial(self.own.renew, self.client),
                "loop-lag": self._watch_lag,
            }
            if self.config.control.tcp:
                services["tcp"] = self.tcp.run
            for name, service in services.items():
                nursery.start_soon(partial(supervise, name, service, on_restart=self._restarted))
            # Half of the node's imports are the web framework's: peers need not wait for them.
            api = await trio.to_thread.run_sync(import_module, "phantommesh.nursery.api.server")
            await nursery.start(
                partial(
                    api.serve_api,
                    self.reporter,
                    socket_path=socket_path,
                    listen=self.config.api.listen,
                    shutdown=stop_api,
                    grace=GRACE,
                )
            )
            task_status.started()
            log.info(
                "node is up", node=self.own.member.name, mesh=self.state.mesh.name, backend=self.backend.name
            )
            await wait_for_signal()
            log.info("node is leaving")
            stop_api.set()
            with trio.move_on_after(GRACE):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    def _restarted(self, service: str) -> None:
        self.metrics.service_restarts.labels(service).inc()

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(REFRESH)
            self._peers_changed()

    async def _watch_lag(self) -> None:
        while True:
            due = trio.current_time() + LAG_PROBE
            await trio.sleep_until(due)
            self.metrics.loop_lag_seconds.observe(trio.current_time() - due)


async def wait_for_signal() -> None:
    """Return when the process is asked to stop."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


async def run(state_dir: Path, config_path: Path, *, socket_path: Path | None = None) -> None:
    """Run the node until SIGTERM or SIGINT. Raises `PhantomMeshError` for what an operator can mend."""
    config = config_file.load(config_path)
    state = await trio.to_thread.run_sync(load_node, state_dir, time())
    backend = await choose(config.wireguard.backend)
    # ---- above this line nothing outside this process has changed ----
    with ExitStack() as stack:
        stack.enter_context(state.state.lock())
        udp = stack.enter_context(UdpPort(config.control.port))
        node = Node(config, state, backend, udp)
        try:
            await node.serve(socket_path or Path(config.api.socket), task_status=trio.TASK_STATUS_IGNORED)
        finally:
            if not config.wireguard.keep_interfaces:
                with trio.CancelScope(deadline=trio.current_time() + STOP, shield=True):
                    await backend.close(remove=node.names)
