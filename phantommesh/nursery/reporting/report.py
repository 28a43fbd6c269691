# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's report on itself: the views of the API. It reads. All it does is `ping`, `netcheck`, `rotate`,
`make_invite`, `withdraw_invite`, `set_config`, `pause_agent`, `resume_agent`, `ban`, `unban`, `drain`,
`undrain`, `revoke`, `rename`, `new_identity`, `set_policy`, `approve_routes`, `withdraw_routes`,
`invite_mesh`, `accept_pact` and `end_pact`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from time import time
from typing import Protocol

import structlog
import trio

from phantommesh import __version__
from phantommesh.agents.actions import Rotate
from phantommesh.agents.base import Subject
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault
from phantommesh.link.psk import PskPhase
from phantommesh.management import servercert
from phantommesh.management.aclview import AclCheckView, AclView, PolicyResult
from phantommesh.management.agentview import (
    AgentDetail,
    AgentsResult,
    AgentView,
    DecisionView,
    IncidentView,
    MemoryView,
)
from phantommesh.management.bodies import InviteRequest
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.management.drainview import DrainView
from phantommesh.management.events import EventLog
from phantommesh.management.explainview import Explanation
from phantommesh.management.federationview import FederationInvited, FederationView, PactResult
from phantommesh.management.finding import find
from phantommesh.management.inviteview import InviteMade, InvitesView, WithdrawnView
from phantommesh.management.metrics import Metrics
from phantommesh.management.netview import NetCheck
from phantommesh.management.peerfaults import Here, PeerSeen, judge
from phantommesh.management.pingview import PingResult
from phantommesh.management.routeview import RouteResult, RoutesView
from phantommesh.management.threatsview import BanResult, BansView, ThreatsView, UnbanResult
from phantommesh.management.topoview import TopologyView
from phantommesh.management.views import (
    IdentityResult,
    Life,
    NameResult,
    Readiness,
    RevocationResult,
    Rotation,
    RotationResult,
    Status,
)
from phantommesh.moments import rfc3339
from phantommesh.node.invitations import listed, made, ordered, planned, withdrawn
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.keeping.audit import Audit
from phantommesh.nursery.keeping.decisions import asked
from phantommesh.nursery.keeping.tokens import TokenKeeper
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting import (
    access,
    drain,
    explaining,
    federation,
    health,
    pinging,
    routing,
    threats,
    topology,
)
from phantommesh.nursery.reporting import agents as agentrows
from phantommesh.nursery.reporting.localcauses import LocalCauses
from phantommesh.nursery.reporting.netchecking import NetChecks
from phantommesh.nursery.reporting.rows import Rows
from phantommesh.nursery.reporting.where import whereabouts
from phantommesh.records.roster import Entry
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NodeId, format_node_id, parse_node_id

# Tuning.
ADVICE = 3  # pieces of advice that `status` has
STARTING = 15.0  # s that the interfaces may take to come up before what is missing is a fault
ROTATE_WAIT = 5.0  # s that a rotation is watched before it is reported as merely started

log = structlog.get_logger("phantommesh.reporting")


class Configuring(Protocol):
    """The process, which knows the file that the node was started from."""

    async def view(self) -> ConfigView:
        """The file as it is. Raises PhantomMeshError."""
        ...

    async def put(self, text: str, *, dry_run: bool) -> ConfigResult:
        """Have the file say ``text``, and the node run with it. Raises PhantomMeshError."""
        ...


class Reporter(Rows):
    """The node as the API's `NodePort`."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.leaving = False
        """Whether the node says goodbye: then its peers' silence is no fault."""
        self.configuring: Configuring | None = None
        """None: the node was not started from a file."""
        self.local = LocalCauses(parts)
        self._certificate: PhantomMeshError | None = None
        self._checks = NetChecks(parts)
        agentrows.synthesise(parts)
        self._finished = Bell()
        self._stood = False  # whether all interfaces have been as desired

    @property
    def metrics(self) -> Metrics:
        """The node's metrics."""
        return self._parts.metrics

    @property
    def events(self) -> EventLog:
        """The latest events."""
        return self._parts.events

    @property
    def tokens(self) -> TokenKeeper:
        """The API's tokens."""
        return self._parts.tokens

    @property
    def audit(self) -> Audit:
        """What was asked of the API, and by whom."""
        return self._parts.audit

    def certified(self, problem: PhantomMeshError | None) -> None:
        """Take note of why the API goes on with an older certificate; None: it has that of the files."""
        self._certificate = problem

    def status(self) -> Status:
        """This node at a glance."""
        parts, member = self._parts, self._parts.own.member
        seen = self.seen()
        faults = self._faults(seen)
        return Status(
            mesh=parts.state.mesh.name,
            node=member.name,
            node_id=format_node_id(member.node_id),
            version=__version__,
            uptime_s=round(trio.current_time() - parts.started, 1),
            backend=parts.backend.name,
            role=member.role.value,
            ip4=str(member.ip4),
            ip6=str(member.ip6),
            peers_total=len(seen),
            peers_up=self.flows(seen)["up"],
            members=dict(Counter(self._membership(entry) for entry in parts.peers.entries)),
            partly_reachable=sum(bool(self._through(entry)) for entry in parts.peers.entries),
            degraded=[fault.line for fault in faults],
            faults=faults,
            certificate_expires=rfc3339(member.not_after),
            state=self.life(),
            ready=self.readiness(faults).ready,
            whereabouts=whereabouts(parts),
            region=parts.config.node.region,
            routes=routing.routed(parts),
            exit=routing.exits(parts),
            agents=agentrows.glance(parts),
            advice=[finding.text for finding in parts.surveying.findings[:ADVICE]],
        )

    def life(self) -> Life:
        """What the node is at. A start ends when all interfaces have been as desired once, or when its time
        is over: what is missing then is a fault."""
        parts = self._parts
        if self.leaving:
            return "leaving"
        if parts.runs.aside.is_set():
            return "aside"
        if parts.keeper.revoked is not None:
            return "revoked"
        if not self._stood:
            there = all(name in parts.reconciler.actual for name in parts.names)
            over = trio.current_time() - parts.started > STARTING
            self._stood = over or (there and not parts.reconciler.problems)
        if not self._stood:
            return "starting"
        return "draining" if parts.drainer.on else "running"

    def faults(self) -> list[Fault]:
        """All that is wrong: `status` has it too."""
        return self._faults(self.seen())

    def _faults(self, seen: Sequence[PeerSeen]) -> list[Fault]:
        parts, life = self._parts, self.life()
        if life == "leaving":
            return []
        if life == "aside":  # its interfaces are down: that no peer answers is no fault of theirs
            return list(health.own_faults(parts, self.local))
        ports = parts.own.ports
        here = Here(
            parts.config.control.port,
            f"{min(ports)} to {max(ports)}",
            measured=parts.paths.problem is None,
        )
        own = [*health.own_faults(parts, self.local, starting=life == "starting")]
        if (problem := self._certificate) is not None:
            text = f"the API goes on with the certificate that it had: {problem}"
            own.append(servercert.NOT_TAKEN.fault(text, problem.fix))
        return [*own, *judge(here, seen)]

    def degraded(self) -> list[str]:
        """The same as lines."""
        return [fault.line for fault in self.faults()]

    def ready(self) -> Readiness:
        """Whether this node does its work: its interfaces are there, its certificate holds, and traffic with
        some peer flows where there is a peer that lives."""
        return self.readiness(self.faults())

    def readiness(self, faults: Iterable[Fault]) -> Readiness:
        """The same, of faults that are known already."""
        faults, life = list(faults), self.life()
        reasons = [fault.line for fault in faults if fault.code in health.UNREADY]
        return Readiness(
            ready=not reasons and life == "running",
            state=life,
            reasons=reasons or ([] if life == "running" else [f"the node is {life}"]),
            codes=sorted({fault.code for fault in faults}),
        )

    async def ping(self, peer: str, *, count: int, size: int | None) -> PingResult:
        """Ping one peer (by node id or name) inside each dimension. Raises PhantomMeshError."""
        entry = find(self._parts.peers.entries, peer, lambda entry: entry.called)
        tallies = await self._parts.paths.ping(entry.member.node_id, count=count, size=size)
        return pinging.result(entry, tallies, self.paths_to(entry), count=count, size=size)

    async def invites(self) -> InvitesView:
        """The invites of this authority until they run out. Raises TrustError where this node is none."""
        return await trio.to_thread.run_sync(listed, self._parts.state, time())

    async def make_invite(self, wanted: InviteRequest, *, dry_run: bool) -> InviteMade:
        """Make an invite. Raises PhantomMeshError."""
        state, now = self._parts.state, time()
        order = ordered(state, self._parts.config, wanted, now)
        if dry_run:
            return planned(order)
        done = await trio.to_thread.run_sync(made, state, order, now)
        log.warning("invite made", invite=done.id[:8], role=done.role, uses=done.uses, expires=done.expires)
        return done

    async def withdraw_invite(self, wanted: str) -> WithdrawnView:
        """Take an invite back. Raises UnknownMemberError, TrustError or StateError."""
        gone = await trio.to_thread.run_sync(withdrawn, self._parts.state, wanted)
        log.warning("invite withdrawn", invite=gone.id[:8])
        return gone

    async def topology(self) -> TopologyView:
        """The mesh as its members measure it; they are asked now, unless that was just done."""
        await self._parts.surveying.ask(topology.PATIENCE)
        return topology.view(self._parts.surveying)

    def surveyed(self) -> TopologyView:
        """The same as it was found last; nobody is asked."""
        return topology.view(self._parts.surveying)

    def routes(self) -> RoutesView:
        """Prefixes beyond the mesh: who may route them, and what this node takes."""
        return routing.view(self._parts)

    def explain(self, dest: str) -> Explanation:
        """Which way traffic to a member, by name, node id or address, or to any other address goes. Raises
        UnknownMemberError or AmbiguousNameError."""
        return explaining.explain(self._parts, self, dest)

    async def approve_routes(self, wanted: str, prefixes: Sequence[str]) -> RouteResult:
        """Approve that a member routes these prefixes. Raises PhantomMeshError."""
        return await routing.approve(self._parts, wanted, prefixes)

    async def withdraw_routes(self, wanted: str, prefixes: Sequence[str]) -> RouteResult:
        """Withdraw these prefixes from a member. Raises PhantomMeshError."""
        return await routing.withdraw(self._parts, wanted, prefixes)

    def federation(self) -> FederationView:
        """Pacts with other meshes, and their members that this node links with."""
        return federation.view(self._parts)

    async def invite_mesh(
        self, members: Sequence[str], services: Sequence[str], gateways: Sequence[str], *, life: float,
        ttl: float,
    ) -> FederationInvited:  # fmt: skip
        """Make a line for another mesh. Raises PhantomMeshError."""
        return await federation.invite(self._parts, members, services, gateways, life, ttl)

    async def accept_pact(
        self, line: str, members: Sequence[str], services: Sequence[str], gateways: Sequence[str], *,
        life: float,
    ) -> PactResult:  # fmt: skip
        """Make a pact with the mesh that gave out a line. Raises PhantomMeshError."""
        return await federation.accept(self._parts, line, members, services, gateways, life)

    async def end_pact(self, pact: str) -> PactResult:
        """End a pact for both meshes. Raises PhantomMeshError."""
        return await federation.end(self._parts, pact)

    async def acl(self) -> AclView:
        """The access rules, and what came by each."""
        return await access.view(self._parts)

    async def set_policy(self, text: str, *, dry_run: bool) -> PolicyResult:
        """Sign an access policy for the whole mesh. Raises PolicyError or TrustError."""
        return await access.set_policy(self._parts, text, dry_run=dry_run)

    def acl_check(self, source: str, target: str, protocol: int, port: int, *, family: int) -> AclCheckView:
        """Whether a new connection passes, by which rule. Raises PhantomMeshError."""
        return access.check(self._parts, source, target, protocol, port, family)

    async def threats(self) -> ThreatsView:
        """Attacks that this node has seen, and what it does against them."""
        return await threats.view(self._parts)

    async def bans(self) -> BansView:
        """The bans that stand."""
        return await threats.bans(self._parts)

    async def ban(self, wanted: str, seconds: float, *, force: bool, dry_run: bool) -> BanResult:
        """Ban an address or a network. Raises PhantomMeshError."""
        return await threats.ban(self._parts, wanted, seconds, force=force, dry_run=dry_run)

    async def unban(self, network: str | None, by: str | None, *, dry_run: bool = False) -> UnbanResult:
        """Lift the bans of a network, or all of one origin. Raises PhantomMeshError."""
        return await threats.unban(self._parts, network, by, dry_run=dry_run)

    async def netcheck(self) -> NetCheck:
        """This host's network, and how members reach this node."""
        return await self._checks.look(self._parts.own.member.name, self.faults())

    async def export_proofs(self, peer: str | None) -> bytes:
        """A file of all proofs, or of those with one peer, by node id. Raises ProofError or IdentityError."""
        return await self._parts.proving.export(None if peer is None else parse_node_id(peer))

    def agents(self) -> list[AgentView]:
        """All agents in the order of precedence, APEX first."""
        return agentrows.agents(self._parts)

    def agent(self, name: str) -> AgentDetail:
        """One agent. Raises UnknownMemberError."""
        return agentrows.agent(self._parts, name)

    def decisions(
        self,
        after: int,
        limit: int,
        *,
        agent: str | None = None,
        accepted: bool = False,
        newest: bool = False,
    ) -> list[DecisionView]:
        """At most so many decisions with a number above ``after``. Raises UnknownMemberError."""
        return agentrows.decisions(self._parts, after, limit, agent=agent, accepted=accepted, newest=newest)

    def incidents(self) -> list[IncidentView]:
        """What several agents did about one thing."""
        return agentrows.incidents(self._parts)

    async def memory(self) -> MemoryView:
        """The memory of threats."""
        return await agentrows.memory(self._parts)

    def pause_agent(self, name: str, *, dry_run: bool = False) -> AgentsResult:
        """Stop an agent, or ``all``. Raises UnknownMemberError."""
        return agentrows.pause(self._parts, name, dry_run=dry_run)

    def resume_agent(self, name: str, *, trying: bool, dry_run: bool = False) -> AgentsResult:
        """Let an agent, or ``all``, go on, or only say what it would do. Raises UnknownMemberError."""
        return agentrows.resume(self._parts, name, trying=trying, dry_run=dry_run)

    async def rotate(self, peer: str | None, uid: int | None = None) -> RotationResult:
        """Start a new epoch with one peer (by node id or name) or with all, and watch it for some seconds.
        ``uid``: the user who asks, as far as that is known. It is on record."""
        parts = self._parts
        entries = (
            parts.peers.entries
            if peer is None
            else [find(parts.peers.entries, peer, lambda entry: entry.called)]
        )
        before = {entry.member.node_id: self._state(entry).epoch for entry in entries}
        parts.decisions.operate(
            asked(Subject("peer", name), Rotate(name), f"a rotation with {name} was asked for", uid)
            for name in map(format_node_id, before)
        )
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
        peers = {entry.member.node_id for entry in self._parts.peers.entries}
        return [entry for entry in entries if entry.member.node_id in peers]

    def _rotated(self, entry: Entry, before: dict[NodeId, int]) -> bool:
        state = self._state(entry)
        return state.epoch > before[entry.member.node_id] and state.phase is PskPhase.FRESH

    async def revoke(
        self, wanted: str, *, force: bool, dry_run: bool, undo: bool = False, undo_all: bool = False
    ) -> RevocationResult:
        """Revoke a node by name or node id, or have the root take it back (``undo``), or have the root cast
        an authority out with all that it revoked (``undo_all``). Raises TrustError or StateError."""
        desk = self._parts.desk
        target = desk.find(wanted)
        if undo or undo_all:
            if undo and undo_all:
                raise TrustError("a node is either taken back or cast out", fix="give one of the two options")
            back = await desk.undo(target, cast_out=undo_all, dry_run=dry_run)
            now_out = self._parts.state.revocations.get(target.node_id)
            return RevocationResult(
                name=None if target.entry is None else target.entry.member.name,
                node_id=format_node_id(target.node_id),
                revoked_at=None if now_out is None or dry_run else rfc3339(now_out.at),
                already=back == 0 and undo,
                dry_run=dry_run,
                taken_back=back,
            )
        if dry_run:
            await desk.check_room(target, force=force)
        made = target.revoked if dry_run else await desk.revoke(target, force=force)
        return RevocationResult(
            name=None if target.entry is None else target.entry.member.name,
            node_id=format_node_id(target.node_id),
            revoked_at=None if made is None else rfc3339(made.at),
            already=target.revoked is not None,
            dry_run=dry_run,
        )

    async def new_identity(self) -> IdentityResult:
        """Get a new identity, after which the node stops and starts again. Raises PhantomMeshError."""
        parts = self._parts
        old = format_node_id(parts.state.identity.node_id)
        made = await parts.succession.begin()
        return IdentityResult(
            name=made.name,
            node_id=format_node_id(made.node_id),
            old_node_id=old,
            ip4=str(made.ip4),
            ip6=str(made.ip6),
        )

    def drain_state(self) -> DrainView:
        """Whether this node drains."""
        return drain.view(self._parts)

    async def drain(self, seconds: float, *, force: bool, dry_run: bool) -> DrainView:
        """Have members use other routers, exits and relays. Raises DrainRefusedError."""
        drainer = self._parts.drainer
        if dry_run:
            drainer.check(force=force)
        else:
            await drainer.begin(seconds, force=force)
            self._parts.decisions.operate([drain.asked(seconds, force=force)])
        return self.drain_state()

    async def undrain(self, *, dry_run: bool = False) -> DrainView:
        """Have members use this node again, whoever had it drain."""
        parts = self._parts
        if dry_run:
            return self.drain_state()
        await parts.drainer.take_back()
        now = trio.current_time()
        parts.decisions.order(parts.council.withdraw("nexus", drain.NODE, now), now)
        return self.drain_state()

    async def config_text(self) -> ConfigView:
        """The configuration's file. Raises PhantomMeshError."""
        return await self._configuring().view()

    async def set_config(self, text: str, *, dry_run: bool) -> ConfigResult:
        """Check a configuration, write it to the file and take it over. Raises PhantomMeshError."""
        return await self._configuring().put(text, dry_run=dry_run)

    def _configuring(self) -> Configuring:
        if self.configuring is None:
            raise PhantomMeshError(
                "this node was not started from a file", fix="start it by `phantommesh run --config FILE`"
            )
        return self.configuring

    async def rename(self, name: str) -> NameResult:
        """Get another name. Raises PhantomMeshError."""
        parts = self._parts
        old = parts.own.name()
        await parts.own.rename(name, parts.caller, parts.desk)
        member = parts.own.member
        return NameResult(
            name=member.name,
            old_name=old,
            node_id=format_node_id(member.node_id),
            ip4=str(member.ip4),
            ip6=str(member.ip6),
        )

    def handshake_finished(self) -> None:
        """Tell `rotate`, which waits for some."""
        self._finished.ring()
