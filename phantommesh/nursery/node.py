# SPDX-License-Identifier: GPL-3.0-or-later
"""The node: how it starts, what runs in it, how it ends. Start reading here.

`parts` has what a node consists of, `making` makes that, and `weaving` says how the parts act on each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from time import time

import structlog
import trio

from phantommesh.config.changes import change
from phantommesh.config.sections import Config
from phantommesh.errors import PhantomMeshError
from phantommesh.management.servercert import TlsFiles, fingerprint
from phantommesh.nursery.agents.running import Agents
from phantommesh.nursery.due import alive
from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.hostaddresses import read_addresses
from phantommesh.nursery.making import make_parts
from phantommesh.nursery.members.calling import ask_standing
from phantommesh.nursery.news import Teller
from phantommesh.nursery.overlay.holding import Overlay
from phantommesh.nursery.reporting.drain import NODE
from phantommesh.nursery.reporting.health import health_of
from phantommesh.nursery.reporting.recording import Recorder
from phantommesh.nursery.reporting.report import Reporter
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.nursery.supervisor import supervise
from phantommesh.nursery.weaving import Weaving
from phantommesh.records.record import SOUND
from phantommesh.records.runs import NOBODY, Run
from phantommesh.scatter.intents import Intents
from phantommesh.state import apicert
from phantommesh.state.start import NodeState

# Tuning.
REFRESH = 30.0  # s between looks at the clock (certificates that ran out) and at the host's networks
GRACE = 2.0  # s for API requests under way at shutdown
LEAVE = 4.0  # s to say goodbye to the mesh
STOP = 8.0  # s to take the interfaces down; longer than a WireGuard process is waited for before it is killed

log = structlog.get_logger("phantommesh.node")


class Node:
    """One node. `serve` runs its parts until cancelled."""

    def __init__(
        self,
        config: Config,
        state: NodeState,
        backend: Backend,
        udp: UdpPort,
        *,
        generation: int,
        overlay: Overlay,
        above: Run = NOBODY,
    ) -> None:
        """For the parameters see `make_parts`."""
        teller = Teller()
        self.parts = make_parts(
            config, state, backend, udp, overlay, generation=generation, tell=teller, above=above
        )
        self.reporter = Reporter(self.parts)
        self.recorder = Recorder(self.parts, self.reporter)
        self._weaving = Weaving(self.parts, self.reporter, self.recorder)
        teller.listen(self._weaving.react)
        self.agents = Agents(self.parts)
        self.up = trio.Event()
        """Set once what has to come first is done, and the API answers."""
        self._health = SOUND
        self.parts.drainer.told = self._draining

    def reload(self, wanted: Config, uids: Mapping[str, int]) -> None:
        """Take over what can be of a configuration that holds; the rest waits for a restart. ``uids`` are the
        numbers of the users whom its intents name."""
        parts = self.parts
        done, before = change(parts.config, wanted), parts.config.agents
        parts.settings.config, parts.settings.refused = done.config, None
        parts.settings.intents = Intents(done.config.intent, uids)
        parts.settings.waiting = done.waiting
        parts.places.seek(done.config.gossip.seeds)
        parts.peers.scatter_by(done.config.scatter, parts.settings.intents)
        parts.naming.reload(done.config.dns)
        self.agents.reload(before, done.config.agents)
        if not parts.runs.aside.is_set():
            if any(key.startswith("routes.") for key in done.taken):
                self._weaving.route_by(done.config.routes)
            self._weaving.peers_changed()
        log.info("configuration taken over", changed=list(done.taken))
        parts.events.publish("config.taken", None, {"keys": list(done.taken), "restart": list(done.waiting)})
        if done.waiting:
            log.warning("the node has to be restarted for the rest", settings=list(done.waiting))

    def keep_config(self, error: PhantomMeshError) -> None:
        """The configuration in the file does not hold: the node runs on with the one that it has."""
        self.parts.settings.refused = error
        self.parts.events.publish("config.refused", None, {"why": str(error), "fix": error.fix})
        log.error(
            "the configuration is not taken over, the node goes on as before", error=str(error), fix=error.fix
        )

    async def serve(self, socket_path: Path, leave: trio.Event, hurry: trio.Event | None = None) -> None:
        """Run every service until ``leave`` is set, or this node is to start again: it has a new identity
        (`succession.done`), or the run that it stepped aside for has gone (`runs.over`). The API is the first
        to stop, the interfaces the last. When ``hurry`` is set, nobody is told and nothing is waited for."""
        parts = self.parts
        # Before there is anything to reach, what is taken is closed.
        await self._weaving.begin_routes()
        await parts.guarding.converge()
        await parts.banning.begin()
        await parts.access.begin()
        if parts.config.control.tcp:
            await parts.tcp.listen()
            parts.driver.tcp = parts.tcp
        try:
            await parts.own.reserve()
            await parts.places.refresh()
            await parts.finding.begin()
            parts.own.publish()
            self._weaving.peers_changed()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work)
                stop_api, api_stopped = trio.Event(), trio.Event()
                await nursery.start(self._serve_api, socket_path, stop_api, api_stopped)
                self.up.set()
                log.info(
                    "node is up",
                    node=parts.own.member.name,
                    mesh=parts.state.mesh.name,
                    backend=parts.backend.name,
                )
                await either(leave, parts.succession.done, parts.runs.over)
                log.info("node is leaving")
                self.reporter.leaving = True
                parts.talk.leave()
                stop_api.set()
                async with trio.open_nursery() as ending:
                    if hurry is not None:
                        ending.start_soon(_cancel_when, hurry, ending.cancel_scope)
                    await self.agents.close()
                    await self._say_goodbye(api_stopped)
                    ending.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
        finally:
            if not parts.config.wireguard.keep_interfaces:
                with trio.CancelScope(deadline=trio.current_time() + STOP, shield=True):
                    await self._take_interfaces_down()

    async def _say_goodbye(self, api_stopped: trio.Event) -> None:
        parts = self.parts
        with trio.move_on_after(2 * GRACE):
            await api_stopped.wait()
        # A replaced identity has nobody left that listens; another run speaks for itself.
        if not parts.succession.done.is_set() and not parts.runs.aside.is_set():
            with trio.move_on_after(LEAVE):
                await parts.gossip.leave()
        with trio.move_on_after(GRACE), suppress(PhantomMeshError):
            await parts.gossip.save()
            await parts.keeper.save()
            await parts.banning.save()
            await parts.memory.save()

    async def _work(self) -> None:
        """Run every service until cancelled, or until a later run of this node is there: then hold the
        overlay's range closed, and wait for that one to go."""
        parts = self.parts
        async with trio.open_nursery() as nursery:
            for name, service in self._services().items():
                nursery.start_soon(
                    partial(supervise, name, service, on_restart=self._restarted, among=parts.services)
                )
            await parts.runs.aside.wait()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.runs.push, parts.runs.runs.question())
            await self._take_interfaces_down()
            parts.reconciler.actual = {}
            self.recorder.measure()
            for service in (parts.overlay.run, parts.guarding.run, parts.runs.run):
                nursery.start_soon(service)

    async def _take_interfaces_down(self) -> None:
        """Remove the interfaces that carry the overlay's traffic. The overlay's range is closed before, and
        stays closed: packets to it must not leave by the default route."""
        parts = self.parts
        with suppress(PhantomMeshError):
            await parts.overlay.converge()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.overlay.run)
            nursery.start_soon(parts.guarding.run)
            await parts.scattering.close()
            await parts.backend.close(remove=parts.names)
            await parts.access.close()
            nursery.cancel_scope.cancel()

    async def _serve_api(
        self, path: Path, stop: trio.Event, stopped: trio.Event, *, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        # Half of the node's imports are the web framework's: peers need not wait for them.
        await self.parts.tokens.begin()
        await self.parts.audit.begin()
        api = await trio.to_thread.run_sync(import_module, "phantommesh.nursery.api.server")
        tls, hosts = await trio.to_thread.run_sync(self._api_files)
        await api.serve_api(
            self.reporter,
            socket_path=path,
            listen=self.parts.config.api.listen,
            tls=tls,
            hosts=hosts,
            shutdown=stop,
            grace=GRACE,
            certified=self.reporter.certified,
            task_status=task_status,
        )
        stopped.set()

    def _api_files(self) -> tuple[TlsFiles | None, list[str]]:
        """The files of the API's certificate, and the names and addresses by which clients may call the API
        over TCP: what the one is for, the other lets in. Blocks. Raises StateError."""
        config, member, state = self.parts.config, self.parts.own.member, self.parts.state
        own = [member.name, f"{member.name}.{state.mesh.name}.internal", str(member.ip4), str(member.ip6)]
        interfaces: list[str] = []
        with suppress(BackendError):  # then api.hosts has to name them
            found = (one.address for one in read_addresses())
            interfaces = [str(one) for one in found if not (one.is_link_local or one.is_loopback)]
        hosts = apicert.names_of(config, own, interfaces)
        files = apicert.files_of(config.api, state.state)
        if files is not None and not config.api.certificate:
            certified = [*dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])]
            if why := apicert.ensure(state.state, member.name, certified, time()):
                digest = fingerprint(files.certificate.read_bytes())
                log.info("the API's own certificate is made", why=why, sha256=digest, hosts=certified)
        return files, hosts

    def _services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        parts = self.parts
        services: dict[str, Callable[[], Awaitable[None]]] = {
            "overlay": parts.overlay.run,
            "guard": parts.guarding.run,
            "bans": parts.banning.run,
            "access-rules": parts.access.run,
            "policies": parts.policing.run,
            "changes": parts.changes.run,
            "whereabouts": parts.finding.run,
            "port-mapping": parts.mapping.run,
            "reconciler": parts.reconciler.run,
            "link": parts.driver.run,
            "scatter": parts.scattering.run,
            "cgroups": parts.cgroups.run,
            "routes-taken": parts.beyond.run,
            "routes-asked": parts.talk.run,
            "routes-offered": parts.gateway.run,
            "splitting": parts.splitter.run,
            "cover": parts.cover.run,
            "draining": parts.drainer.run,
            "proofs": parts.proving.run,
            "paths": parts.paths.run,
            "frames": parts.framed.run,
            "wireguard-keys": parts.rekeying.run,
            "udp": partial(parts.udp.receive, self._weaving.receive),
            "gossip": parts.gossip.run,
            "federation": parts.federating.run,
            "roster-disk": parts.keeper.keep,
            "decisions-disk": parts.decisions.keep,
            "audit-disk": parts.audit.keep,
            "standing": partial(ask_standing, parts.state, parts.keeper, parts.gossip.quiet, parts.places.of),
            "group-keys": parts.keys.run,
            "runs": parts.runs.run,
            "resolver": parts.resolver.run,
            "refresh": self._refresh,
            "certificate": partial(parts.own.renew, parts.caller),
            "route-requests": partial(parts.own.ask_routes, parts.caller, parts.desk),
            "routes": parts.taking.run,
            "topology": parts.surveying.run,
            "memory": parts.memory.run,
            "hints": parts.hinting.run,
            "succession": parts.succession.run,
            "carrying": parts.carrying.run,
            "attending": partial(parts.attending.run, parts.tcp.attend),
            "health": self.recorder.watch,
            "local-causes": self.reporter.local.run,
            "vitals": parts.vitals.run,
            **parts.naming.services(),
            **self.agents.services(),
        }
        if parts.finding.on:
            services["wireguard-ports"] = parts.wgports.run
            services["relay"] = parts.lending.run
            services["relays"] = parts.borrower.run
            services["punching"] = parts.punching.run
            services["nat-lifetimes"] = parts.lifetimes.run
        if parts.config.control.tcp:
            services["tcp"] = parts.tcp.run
        return services

    def _restarted(self, service: str) -> None:
        self.parts.metrics.service_restarts.labels(service).inc()
        self.parts.events.publish("health.restarted", None, {"service": service})

    def _draining(self, what: str, why: str) -> None:
        """Tell of the draining. When it ends, the operator's word on record does, too."""
        parts, now = self.parts, trio.current_time()
        parts.events.publish(f"health.drain-{what}", None, {"why": why})
        if what == "ended":
            parts.decisions.order(parts.council.withdraw("operator", NODE, now), now)

    async def _refresh(self) -> None:
        while True:
            alive(REFRESH)
            await trio.sleep(REFRESH)
            await self.parts.places.refresh()
            self._say_health()
            self.parts.own.publish()
            self._weaving.peers_changed()

    def _say_health(self) -> None:
        """Have the record say how this node itself stands, once two looks in a row have come to the same: a
        record is signed and goes to all members."""
        now = health_of(self.reporter.faults())
        if now == self._health:
            self.parts.drainer.health = now
        self._health = now


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def either(*events: trio.Event) -> None:
    """Return when one of the events is set."""

    async def wait(event: trio.Event) -> None:
        await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(wait, event)
