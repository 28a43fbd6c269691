# SPDX-License-Identifier: GPL-3.0-or-later
"""A NodePort that answers from memory."""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from phantommesh.acl import policy
from phantommesh.acl.rules import protocol_name
from phantommesh.faults import Fault
from phantommesh.management.aclview import (
    AclCheckView,
    AclMemberView,
    AclRuleView,
    AclView,
    MeshPolicyView,
    PolicyResult,
    Whose,
)
from phantommesh.management.agentview import (
    AgentDetail,
    AgentsGlance,
    AgentsResult,
    AgentView,
    DecisionView,
    EvidenceView,
    ExpectedView,
    HinterRow,
    IncidentView,
    MemoryView,
    OutcomeView,
    PatternView,
    StandingView,
)
from phantommesh.management.audit import AuditEntry, Write, entry
from phantommesh.management.bodies import InviteRequest
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.management.drainview import DrainView
from phantommesh.management.events import EventLog
from phantommesh.management.explainview import (
    ExplainedChoice,
    ExplainedClass,
    ExplainedRelay,
    ExplainedRouter,
    ExplainedWay,
    Explanation,
    Refused,
)
from phantommesh.management.federationview import (
    FederationInvited,
    FederationView,
    PactResult,
    PactView,
    ServiceView,
    VisitorView,
)
from phantommesh.management.finding import UnknownMemberError, find
from phantommesh.management.inviteview import InviteMade, InvitesView, InviteView, WithdrawnView
from phantommesh.management.metrics import Metrics
from phantommesh.management.netview import (
    ClockView,
    FeatureView,
    NatView,
    NetCheck,
    ReachedView,
    UplinkView,
)
from phantommesh.management.pingview import PingDimension, PingResult
from phantommesh.management.routeview import RouteResult, RoutesView, RouteView
from phantommesh.management.scopes import Scope
from phantommesh.management.threatsview import (
    BanResult,
    BansView,
    BanView,
    By,
    ThreatsView,
    ThreatView,
    UnbanResult,
)
from phantommesh.management.tokens import (
    ID_BYTES,
    RANDOM_BYTES,
    Made,
    Token,
    TokenBook,
    TokenRequest,
)
from phantommesh.management.topoview import Advice, MeasuredLink, StationView, TopologyView
from phantommesh.management.views import (
    DimensionView,
    IdentityResult,
    Life,
    LinkView,
    NameResult,
    PathView,
    PeerView,
    ProofDirection,
    ProofEpoch,
    ProofsView,
    Readiness,
    RevocationResult,
    Rotation,
    RotationOutcome,
    RotationResult,
    ScatterClass,
    ScatterDimension,
    ScatterView,
    Status,
)


def ban_view(network: str, by: By, seconds: float) -> BanView:
    return BanView(
        network=network,
        by=by,
        since="2026-07-01T12:00:00Z",
        until="2026-07-01T12:10:00Z",
        left_s=seconds,
        why="an operator's word" if by == "operator" else f"flood from {network}",
        kinds=[] if by == "operator" else ["flood"],
        times=1,
        packets=None if by == "operator" else 1271,
    )


def peer_view(number: int) -> PeerView:
    return PeerView(
        name=f"pm-{number}",
        node_id=f"id{number:03}",
        role="node",
        ip4=f"100.64.0.{number}",
        ip6=f"fd00::{number}",
        state="fresh",
        through=["pm-1"] if number == 2 else [],
        endpoint=f"192.0.2.{number}:51820",
        dimensions=[
            DimensionView(
                index=index,
                interface=f"pm{index}",
                endpoint=None,
                last_handshake_s=1.5 if index else None,
                rx_bytes=1,
                tx_bytes=2,
                psk_age_s=3.0,
            )
            for index in range(7)
        ],
        rx_bytes=7,
        tx_bytes=14,
    )


def link_view(number: int) -> LinkView:
    return LinkView(
        peer=f"pm-{number}",
        node_id=f"id{number:03}",
        epoch=number,
        state="fresh",
        role="initiator",
        dimensions=7,
        handshake_age_s=12.0,
        psk_age_s=11.0,
        rotates_in_s=79.0,
        chain_reset=False,
        last_error=None,
    )


def path_view(number: int, dimension: int) -> PathView:
    return PathView(
        peer=f"pm-{number}",
        node_id=f"id{number:03}",
        dimension=dimension,
        interface=f"pm{dimension}",
        endpoint="192.0.2.1:51820" if dimension else None,
        state="up" if dimension else "dark",
        since_s=12.5,
        rtt_s=0.0123 if dimension else None,
        jitter_s=0.001,
        loss=0.005,
        weight=1.0 if dimension else 0.0,
        answers=bool(dimension),
        answered_s=0.5 if dimension else 9.5,
        heard_s=0.5,
        opened_s=60.0,
        way="direct" if dimension else "none",
        mtu=1420 if dimension else None,
        why="address of its record" if dimension else "no answer from 3 addresses",
    )


def ping_dimension(path: PathView, count: int) -> PingDimension:
    """As many answers as were sent where the path is up, else none."""
    up = path.state == "up"
    return PingDimension(
        dimension=path.dimension,
        interface=path.interface,
        sent=0 if path.state == "closed" else count,
        received=count if up else 0,
        loss=0.0 if up else 1.0,
        rtt_min_s=path.rtt_s if up else None,
        rtt_avg_s=path.rtt_s if up else None,
        rtt_max_s=path.rtt_s if up else None,
        way=path.way,
        via=path.via,
        endpoint=path.endpoint,
        mtu=path.mtu,
        why=path.why,
    )


def scatter_view(number: int) -> ScatterView:
    return ScatterView(
        peer=f"pm-{number}",
        node_id=f"id{number:03}",
        hook="egress",
        goal="throughput",
        scheduler="deck",
        link_epoch=number,
        epoch=4,
        epoch_age_s=12.0,
        entropy_bits=2.8,
        dimensions=[
            ScatterDimension(
                index=index, interface=f"pm{index}", score=1.0, weight=0.143, packets=10, bytes=800
            )
            for index in range(7)
        ],
        classes=[
            ScatterClass(
                name=name,
                goal=goal,
                scheduler="flow",
                entropy_bits=bits,
                weights=[0.143] * 7,
                packets=packets,
                bytes=[80 * count for count in packets],
            )
            for name, goal, bits, packets in (
                ("ssh", "order", 0.0, [0, 0, 10, 0, 0, 0, 0]),
                ("rest", "throughput", None, [0] * 7),
            )
            if number == 3
        ],
    )


def proofs_view(number: int) -> ProofsView:
    newest = ProofEpoch(
        number=5,
        link_epoch=3,
        epoch=4,
        start="2030-01-01T00:00:00Z",
        end="2030-01-01T00:01:00Z",
        scheduler="deck",
        cards=[146] * 7,
        packets=[10] * 7,
        bytes=[800] * 7,
        wire_bytes=[1200] * 7,
        received_bytes=[1200] * 7,
        entropy_bits=2.807355,
        min_entropy_bits=2.807355,
        p_value=1.0,
        problem=None,
    )
    return ProofsView(
        peer=f"pm-{number}",
        node_id=f"id{number:03}",
        sent=ProofDirection(kept=6, countersigned=5, newest=newest),
        received=ProofDirection(kept=0, countersigned=0, newest=None),
    )


def explained_way(path: PathView) -> ExplainedWay:
    return ExplainedWay(
        dimension=path.dimension, interface=path.interface, state=path.state, way=path.way, via=path.via,
        endpoint=path.endpoint, rtt_s=path.rtt_s, jitter_s=path.jitter_s, loss=path.loss, weight=path.weight,
        cost_s=path.rtt_s, smoothed_s=path.rtt_s, why=path.why,
    )  # fmt: skip


def decision_view(number: int, peer: str = "pm-1") -> DecisionView:
    """Every second is accepted, and has its outcome."""
    accepted = number % 2 == 1
    did = "rotated" if accepted else "would rotate"
    ending = "" if accepted else ": refused, the agent has acted there just now"
    return DecisionView(
        seq=number,
        run="run1",
        time=f"2030-01-01T10:02:{number:02}.000Z",
        trace=f"t{number}",
        agent="cipher",
        action="rotate",
        what={"do": "rotate", "peer": "id001"},
        subject="peer id001",
        result="accepted" if accepted else "cooling-down",
        accepted=accepted,
        by=None,
        why="its PSK is old",
        evidence=[EvidenceView(what="psk_age_s", value=190.0, bound=150.0)],
        expects=ExpectedView(what="psk_age_s", relation="at_most", value=120.0, within_s=5.0),
        incident="id001",
        seconds=0.002,
        times=1 if accepted else 60,
        outcome=OutcomeView(
            time=f"2030-01-01T10:02:{number:02}.400Z",
            after_s=0.4,
            measured=0.3,
            met=True,
            error="",
            text="psk_age_s 0.3, as expected",
        )
        if accepted
        else None,
        text=f"cipher {did} the PSK with {peer}: psk_age_s 190 over 150{ending}",
    )


def acl_rule(
    name: str, source: list[str], protocol: str, ports: list[str], packets: int, *, builtin: bool = False,
    action: Literal["allow", "deny"] = "allow", nobody: Sequence[str] = (), whose: Whose = "node",
) -> AclRuleView:  # fmt: skip
    return AclRuleView(
        name=name, whose=whose, action=action, source=source, target=["any"], protocol=protocol,
        ports=ports, builtin=builtin, packets=packets, nobody=list(nobody),
    )  # fmt: skip


class FakeTokens:
    """Tokens in memory."""

    def __init__(self) -> None:
        self.book = TokenBook()
        self.used: dict[str, float] = {}

    def grant(self, scope: Scope, seconds: float = 3600.0, *, now: float | None = None) -> str:
        """Make a token and return its text."""
        at = time.time() if now is None else now
        random = os.urandom(ID_BYTES + RANDOM_BYTES)
        self.book, made = self.book.make(TokenRequest(scope, seconds, "test"), random, by="uid 0", now=at)
        return made.text.reveal().decode()

    async def make(self, request: TokenRequest, *, by: str) -> Made:
        random = os.urandom(ID_BYTES + RANDOM_BYTES)
        self.book, made = self.book.make(request, random, by=by, now=time.time())
        return made

    async def revoke(self, token_id: str) -> Token:
        self.book, token = self.book.revoke(token_id, time.time())
        return token


class FakeAudit:
    """An audit trail in memory."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def wrote(self, write: Write) -> None:
        self.entries.append(entry(write, len(self.entries) + 1, time.time()))

    def read(self, after: int, limit: int) -> list[AuditEntry]:
        return self.entries[after : after + limit]


class FakeNode:
    """Counts its rotations; ``reasons`` make it unready; ``on_rotate`` replaces what a rotation does."""

    def __init__(self, peers: int = 2) -> None:
        self.metrics = Metrics(version="0.0.1", clock=time.monotonic)
        self.events = EventLog(run="run1", clock=time.time)
        self.tokens = FakeTokens()
        self.audit = FakeAudit()
        self.count = peers
        self.name = "pm-1"
        self.result: RotationOutcome = "rotated"
        self.twins = False  # whether all peers are named pm-1
        self.faults: list[Fault] = []
        self.reasons: list[str] = []
        self.state: Life = "running"
        self.rotated: list[str | None] = []
        self.policies: list[str] = []
        self.invited: list[InviteRequest] = []
        self.config = '[node]\nname = "pm-0"\n'
        self.pinged: list[tuple[str, int, int | None]] = []
        self.replaced = 0
        self.revoked: list[tuple[str, bool]] = []
        self.decided: list[tuple[str, str, tuple[str, ...]]] = []
        self.undone: list[str] = []
        self.draining: DrainView = DrainView(state="working", region="eu")
        self.on_rotate: Callable[[], Awaitable[None]] | None = None
        self.failure: Exception | None = None
        self.phases = {"apex": "running", "fortress": "running", "cipher": "running", "stream": "benched"}
        self.decided_on = 5  # decisions
        self.exported = b"proofs"
        self.asked: list[tuple[str, float, bool]] = []
        self.lifted: list[tuple[str | None, str | None]] = []
        self.banned = {"192.0.2.250/32": ban_view("192.0.2.250/32", "own", 597.0)}

    def status(self) -> Status:
        if self.failure is not None:
            raise self.failure
        return Status(
            mesh="lab",
            node="pm-0",
            node_id="id000",
            version="0.0.1",
            uptime_s=5.0,
            backend="userspace",
            role="authority",
            ip4="100.64.0.9",
            ip6="fd00::9",
            peers_total=self.count,
            peers_up=self.count,
            partly_reachable=1,
            degraded=[fault.line for fault in self.faults],
            faults=self.faults,
            certificate_expires="2030-01-01T00:00:00Z",
            state=self.state,
            ready=not self.reasons,
            agents=AgentsGlance(running=2, total=3, benched=["stream"], accepted=41),
        )

    def agents(self) -> list[AgentView]:
        return [
            AgentView(
                name=name,
                phase=phase,  # type: ignore[arg-type]
                since_s=61.0,
                why="it raised ValueError" if phase == "benched" else "",
                back_in_s=9.0 if phase == "benched" else None,
                about=f"What {name} does.",
                every_s=None if name == "apex" else 1.0,
                wakes=["link.*"] if name == "cipher" else [],
                looks=60,
                look_s=0.0004,
                slowest_s=0.0021,
                benched=int(phase == "benched"),
                proposals=9,
                accepted=3,
                refused=2,
                failed=1,
                met=2,
                unmet=1,
                standing=int(name == "cipher"),
            )
            for name, phase in self.phases.items()
        ]

    def agent(self, name: str) -> AgentDetail:
        for one in self.agents():
            if one.name == name:
                return AgentDetail(
                    agent=one,
                    policy=f"What {name} does.\n\nIt never does anything else.",
                    standing=[
                        StandingView(
                            subject="peer id001", action="quarantine", since_s=12.0, left_s=48.0,
                            text=f"{name} quarantined the link with pm-1 for 1 min", why="it is stale",
                        )
                    ],
                    decisions=self.decisions(0, 3),
                )  # fmt: skip
        raise UnknownMemberError(f"no such agent: {name!r}", fix=f"give one of {', '.join(self.phases)}")

    def decisions(
        self,
        after: int,
        limit: int,
        *,
        agent: str | None = None,
        accepted: bool = False,
        newest: bool = False,
    ) -> list[DecisionView]:
        found = [decision_view(n) for n in range(after + 1, self.decided_on + 1) if n % 2 or not accepted]
        found = [one for one in found if agent in (None, one.agent)]
        return found[-limit:] if newest else found[:limit]

    def incidents(self) -> list[IncidentView]:
        story = [
            "fortress banned 192.0.2.7 for 10 min: packets_s 900 over 50",
            "cipher quarantined the link with pm-1 for 1 min: psk_age_s 190 over 150 -> psk_age_s 0.3",
        ]
        about, who = ["192.0.2.7", "pm-1"], ["fortress", "cipher"]
        return [
            IncidentView(
                id=f"t{number}",
                state="open" if number else "closed",
                opened=f"2030-01-01T10:0{number}:00Z",
                updated=f"2030-01-01T10:0{number}:30Z",
                closed=None if number else "2030-01-01T10:05:30Z",
                about=about,
                agents=who,
                decisions=["t1", "t2"],
                more=0,
                title="fortress and cipher acted on 192.0.2.7, pm-1 (over after 5 min)",
                story=story,
            )
            for number in (1, 0)
        ]

    async def memory(self) -> MemoryView:
        pattern = PatternView(
            kind="ban", source="192.0.2.7", target="control", signature="junk", strength=2.5, times=3,
            useful=2, false=0,
            first="2030-01-01T00:00:00Z", last="2030-01-01T10:00:00Z", priority=1,
        )  # fmt: skip
        hinter = HinterRow(
            name="pm-1",
            node_id="id001",
            weight=0.75,
            confirmed=3.0,
            refuted=1.0,
            hints=4,
            hops=1,
            liar_until="2030-01-02T00:00:00Z",
        )
        return MemoryView(
            patterns=1, most_patterns=65_536, bytes=8_388_608, most_bytes=16_777_216, evicted=0,
            strongest=[pattern], hinted=4, own_hints=2, hints_taken=5, hints_dropped={"rate": 2},
            hinters=[hinter],
        )  # fmt: skip

    def turn(self, name: str, phase: str, dry_run: bool) -> AgentsResult:
        if name not in (*self.phases, "all"):
            self.agent(name)
        for one in () if dry_run else self.phases:
            if name == one or (name == "all" and one != "apex"):
                self.phases[one] = phase
        shown = [one for one in self.agents() if name in ("all", one.name)]
        return AgentsResult(agents=shown, lifted=1, dry_run=dry_run)

    def pause_agent(self, name: str, *, dry_run: bool = False) -> AgentsResult:
        return self.turn(name, "paused", dry_run)

    def resume_agent(self, name: str, *, trying: bool, dry_run: bool = False) -> AgentsResult:
        return self.turn(name, "dry-run" if trying else "running", dry_run)

    def peers(self) -> list[PeerView]:
        views = [peer_view(number) for number in range(self.count, 0, -1)]
        return [msgspec.structs.replace(view, name="pm-1") for view in views] if self.twins else views

    def links(self) -> list[LinkView]:
        return [link_view(number) for number in range(1, self.count + 1)]

    def paths(self) -> list[PathView]:
        return [path_view(number, i) for number in range(1, self.count + 1) for i in range(7)]

    def measured(self) -> list[PathView]:
        return [msgspec.structs.replace(path, why="") for path in self.paths()]

    async def ping(self, peer: str, *, count: int, size: int | None) -> PingResult:
        if self.failure is not None:
            raise self.failure
        self.pinged.append((peer, count, size))
        (one,) = [view for view in self.peers() if view.node_id == peer]
        found = [ping_dimension(path, count) for path in self.paths() if path.node_id == peer]
        return PingResult(peer=one.name, node_id=peer, ip4=one.ip4, count=count, size=size, dimensions=found)

    async def netcheck(self) -> NetCheck:
        return NetCheck(
            node=self.name,
            uplinks=[
                UplinkView(interface="eth0", mtu=1500, addresses=["192.0.2.9"], default_for=["ipv4"])
            ],
            nat=[
                NatView(
                    family="ipv4", kind="none", public=[], witnesses=2,
                    why="members see this host's own address",
                )
            ],
            overlay_mtu=1420,
            least_mtu=1376,
            reached=[ReachedView(transport="udp", reached=True, by=["pm-1"], why="datagrams come in")],
            clock=ClockView(ahead_s=0.2, members=2),
            features=[FeatureView(name="nft", there=True, why="guards and scatters")],
            faults=self.faults,
            unknown=["hairpin: not tried"],
        )  # fmt: skip

    async def threats(self) -> ThreatsView:
        return ThreatsView(
            unknown_s=1830.0,
            shed_s=1630.0,
            odd_s=92.3,
            shed_above=200.0,
            threats=[
                ThreatView(
                    kind="scan", severity="low", source="198.51.100.7/32", proved=[], count=3.6,
                    first="2026-07-01T12:00:00Z", last="2026-07-01T12:00:03Z", banned=False,
                ),
                ThreatView(
                    kind="flood", severity="medium", source="192.0.2.250/32", proved=["neighbour"],
                    count=419.0, first="2026-07-01T12:00:00Z", last="2026-07-01T12:00:01Z", banned=True,
                ),
            ],
            bans=(await self.bans()).bans,
        )  # fmt: skip

    async def set_policy(self, text: str, *, dry_run: bool) -> PolicyResult:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.policies.append(text)
        found = policy.parse(text)
        return PolicyResult(
            number=4, signed_by="id001", rules=len(found.rule), tests=len(found.test), dry_run=dry_run
        )

    async def acl(self) -> AclView:
        signers = [peer.node_id for peer in self.peers()][:1]
        return AclView(
            default="deny", held=True, filtered=True, denied=7,
            policy=MeshPolicyView(number=3, signed_by=signers[0], rules=1, tests=0) if signers else None,
            rules=[
                acl_rule("no-telnet", ["any"], "tcp", ["23"], 2, action="deny", whose="mesh"),
                acl_rule("ssh", ["tag:ops"], "tcp", ["22"], 12, nobody=["tag:ops"]),
                acl_rule("web", ["pm-1", "10.1.0.0/16"], "tcp", ["80", "8000-8010"], 419),
                acl_rule("(icmp)", ["any"], "icmp", [], 3, builtin=True),
                acl_rule("(default)", ["any"], "", [], 7, builtin=True, action="deny"),
            ],
            members=[
                AclMemberView(name=one.name, node_id=one.node_id, tags=["web"], ip4=one.ip4, ip6=one.ip6)
                for one in self.peers()
            ],
        )  # fmt: skip

    def acl_check(self, source: str, target: str, protocol: int, port: int, *, family: int) -> AclCheckView:
        peers = self.peers()
        come, gone = (find(peers, one, lambda peer: (peer.name, peer.node_id)) for one in (source, target))
        allowed = port in (22, 80)
        return AclCheckView(
            source=come.name, target=gone.name, family=6 if family == 6 else 4,
            source_address=come.ip6 if family == 6 else come.ip4,
            target_address=gone.ip6 if family == 6 else gone.ip4,
            protocol=protocol_name(protocol), port=port or None, allowed=allowed,
            rule="web" if allowed else "(default)", whose="node",
            why=f"the rule web of this node's configuration {'allows' if allowed else 'denies'} it",
            here=target != "pm-1",
        )  # fmt: skip

    async def bans(self) -> BansView:
        return BansView(bans=list(self.banned.values()))

    async def ban(self, wanted: str, seconds: float, *, force: bool, dry_run: bool) -> BanResult:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.asked.append((wanted, seconds, force))
        return BanResult(ban=ban_view(wanted, "operator", seconds), dry_run=dry_run)

    async def unban(self, network: str | None, by: str | None, *, dry_run: bool = False) -> UnbanResult:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.lifted.append((network, by))
        found = [one for key, one in self.banned.items() if network == key or by == one.by]
        return UnbanResult(lifted=found, dry_run=dry_run)

    async def topology(self) -> TopologyView:
        return self.surveyed()

    def surveyed(self) -> TopologyView:
        members = [
            StationView(
                name=view.name,
                node_id=view.node_id,
                region=view.region,
                relay=not n,
                nat=bool(n),
                links=2,
                between=0.25,
            )
            for n, view in enumerate(self.peers())
        ]
        link = MeasuredLink(
            one="pm-1", two="pm-2", way="direct", rtt_s=0.01, jitter_s=0.001, loss=0.0, capacity=0
        )
        cut = Advice(
            kind="cut-member",
            members=["pm-1"],
            text="without pm-1, pm-2 would be cut off",
            fix="have another member be reached from there",
            cut=["pm-2"],
        )
        return TopologyView(
            age_s=1.0, asked=2, heard=2, members=members, links=[link], links_total=1, advice=[cut]
        )  # fmt: skip

    def scatter(self) -> list[ScatterView]:
        return [scatter_view(number) for number in range(1, self.count + 1)]

    def proofs(self) -> list[ProofsView]:
        views = [proofs_view(number) for number in range(1, self.count + 1)]
        return [msgspec.structs.replace(view, peer="pm-1") for view in views] if self.twins else views

    async def export_proofs(self, peer: str | None) -> bytes:
        if self.failure is not None:
            raise self.failure
        return self.exported if peer is None else peer.encode()

    def life(self) -> Life:
        return self.state

    def drain_state(self) -> DrainView:
        return self.draining

    async def drain(self, seconds: float, *, force: bool, dry_run: bool) -> DrainView:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.draining = DrainView(
                state="drained", since="2030-01-01T00:00:00Z", until="2030-01-01T01:00:00Z", by="operator",
                forced=force, packets=1200, region="eu",
            )  # fmt: skip
        return self.draining

    async def undrain(self, *, dry_run: bool = False) -> DrainView:
        if not dry_run:
            self.draining = DrainView(state="working", region="eu")
        return self.draining

    def ready(self) -> Readiness:
        return Readiness(
            ready=not self.reasons,
            state=self.state,
            reasons=self.reasons,
            codes=[fault.code for fault in self.faults],
        )

    async def revoke(
        self, wanted: str, *, force: bool, dry_run: bool, undo: bool = False, undo_all: bool = False
    ) -> RevocationResult:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.revoked.append((wanted, force))
            self.undone += [wanted] * (undo or undo_all)
        return RevocationResult(
            node_id="id002",
            name=wanted,
            revoked_at=None if dry_run or undo else "2030-01-01T00:00:00Z",
            dry_run=dry_run,
            taken_back=1 if undo else 20 if undo_all else 0,
        )

    def routes(self) -> RoutesView:
        peers = [(view.name, view.node_id) for view in self.peers()[:2]]
        rows = [
            RouteView(
                prefix="10.1.0.0/16", router=name, node_id=node_id, asked=False, approved=True,
                certified=True, claimed=True, accepted=True, rank=rank, carried=rank == 0,
            )
            for rank, (name, node_id) in enumerate(peers)
        ]  # fmt: skip
        for name, node_id in peers[:1]:
            rows += [
                RouteView(
                    prefix="192.168.178.0/24", router=name, node_id=node_id, asked=False, approved=True,
                    certified=True, claimed=True, accepted=False, rank=None, carried=False,
                    conflict="this host's route 192.168.178.0/24 (eth0) has these addresses already",
                ),
                RouteView(
                    prefix="2001:db8:1234:5678::/64", router=name, node_id=node_id, asked=True,
                    approved=False, certified=False, claimed=False, accepted=False, rank=None, carried=False,
                ),
                RouteView(
                    prefix="172.16.0.0/12", router=name, node_id=node_id, asked=False, approved=True,
                    certified=True, claimed=True, accepted=False, rank=None, carried=False,
                ),
                RouteView(
                    prefix="0.0.0.0/0", router=name, node_id=node_id, asked=False,
                    approved=True, certified=True, claimed=True, accepted=False, rank=None, carried=False,
                ),
            ]  # fmt: skip
        return RoutesView(
            node=self.name, authority=True, accept=["10.0.0.0/8", "192.168.0.0/16"], routes=rows,
            advertise=["10.77.1.0/24"], sites={"10.77.1.0/24": "192.168.1.0/24"},
            exit=["gate-a", "gate-b"], lan=True,
        )  # fmt: skip

    def explain(self, dest: str) -> Explanation:
        peers = self.peers()
        if dest == "10.1.2.3" and peers:
            return self._carried(dest, peers[0], peers[1])
        if dest == "192.0.2.1":
            return Explanation(
                dest=dest, leads="offered", address=dest, prefix="192.0.2.0/24",
                answer="no route of the mesh leads there: pm-1 routes 192.0.2.0/24, and it is not taken here",
                would_change=["accept it: put 192.0.2.0/24 into routes.accept, and send the node SIGHUP"],
            )  # fmt: skip
        return self._explained(find(peers, dest, lambda peer: (peer.name, peer.node_id)), dest)

    def _carried(self, dest: str, first: PeerView, second: PeerView) -> Explanation:
        routers = [
            ExplainedRouter(
                name=one.name, node_id=one.node_id, answers=True, works=True, carries=one is second,
                back_in_s=7.5 if one is first else None,
            )
            for one in (first, second)
        ]  # fmt: skip
        return msgspec.structs.replace(
            self._explained(second, dest),
            leads="carried",
            answer=f"{second.name} carries it, a router of 10.1.0.0/16 (no. 2 of 2: none before it is ready)",
            address=dest,
            prefix="10.1.0.0/16",
            routers=routers,
            would_change=[f"{first.name} takes it back in 8 s if it works until then"],
        )

    def _explained(self, peer: PeerView, dest: str) -> Explanation:
        shares = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
        paths = [path for path in self.paths() if path.node_id == peer.node_id]
        return Explanation(
            dest=dest,
            leads="member",
            answer="7 dimensions direct",
            peer=peer.name,
            node_id=peer.node_id,
            address=peer.ip4,
            classes=[
                ExplainedClass(
                    name="ssh", matches="ports 22", goal="latency", key="intent ssh", scheduler="flow",
                    dimension=3, shares=shares, choice="all of it takes dimension 3, the quickest",
                    constraints=["intent.ssh.never_relays = pm-8"], allowed=[0, 1, 3],
                    refused=[Refused(name="pm-8", key="intent.ssh.never_relays")], refused_total=1,
                ),
                ExplainedClass(
                    name="rest", matches="all other traffic", goal="throughput", key="scatter.goal",
                    scheduler="deck", dimension=None, shares=[0.14] * 7,
                    choice="packets are dealt over the dimensions by capacity and loss",
                ),
            ],
            quickest=ExplainedChoice(
                dimension=3, reason="the one before became slower", since_s=61.0, changes=2
            ),
            ways=[explained_way(path) for path in paths],
            relays=[
                ExplainedRelay(
                    name="pm-7", node_id="id007", near_s=0.004, far_s=0.005, cost_s=0.009,
                    dimensions=[4, 5, 6], aside_s=0.0,
                ),
                ExplainedRelay(
                    name="pm-8", node_id="id008", near_s=0.014, far_s=0.005, cost_s=0.019,
                    dimensions=[], aside_s=12.0,
                ),
            ],
            constraints=["relay.never = pm-9"],
            refused=[Refused(name="pm-9", key="relay.never")],
            refused_total=3,
            would_change=[
                "another dimension is taken once it costs less than 10.0 ms for 10 s, as it is measured",
            ],
        )  # fmt: skip

    async def approve_routes(self, wanted: str, prefixes: Sequence[str]) -> RouteResult:
        if self.failure is not None:
            raise self.failure
        self.decided.append(("approve", wanted, tuple(prefixes)))
        return RouteResult(
            name=wanted, node_id="id002", prefixes=list(prefixes), certified=[], waiting=list(prefixes)
        )

    async def withdraw_routes(self, wanted: str, prefixes: Sequence[str]) -> RouteResult:
        if self.failure is not None:
            raise self.failure
        self.decided.append(("withdraw", wanted, tuple(prefixes)))
        return RouteResult(name=wanted, node_id="id002", prefixes=list(prefixes), certified=[], waiting=[])

    async def invites(self) -> InvitesView:
        one = InviteView(
            id="3f9a10c2" * 4, name="nas", role="node", expires="2030-01-01T01:00:00Z", uses_left=1,
            replaces="", joined=[],
        )  # fmt: skip
        many = msgspec.structs.replace(one, id="00ff" * 8, name="", uses_left=7, joined=["pm-1", "pm-2"])
        used = msgspec.structs.replace(one, id="77aa" * 8, name="pm-3", uses_left=0, joined=["pm-3"])
        return InvitesView(invites=[one, many, used], damaged=[])

    async def make_invite(self, wanted: InviteRequest, *, dry_run: bool) -> InviteMade:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.invited.append(wanted)
        return InviteMade(
            invite=None if dry_run else "pm1_line", id="" if dry_run else "00ff" * 8,
            expires="2030-01-01T01:00:00Z", role=wanted.role, name=wanted.name, uses=wanted.uses,
            dry_run=dry_run,
        )  # fmt: skip

    async def config_text(self) -> ConfigView:
        return ConfigView(
            file="/etc/phantommesh/phantommesh.toml", config=self.config, restart=["api.listen"]
        )

    async def set_config(self, text: str, *, dry_run: bool) -> ConfigResult:
        if self.failure is not None:
            raise self.failure
        if not dry_run:
            self.config = text
        return ConfigResult(taken=["log.level"], restart=["api.listen"], dry_run=dry_run)

    async def withdraw_invite(self, wanted: str) -> WithdrawnView:
        for one in (await self.invites()).invites:
            if one.id.startswith(wanted):
                return WithdrawnView(id=one.id, joined=one.joined)
        raise UnknownMemberError(f"there is no invite {wanted!r}", fix="see `phantommesh invite list`")

    def federation(self) -> FederationView:
        service = ServiceView(member="pm-0", ports=["tcp/5432"], users=["web"])
        return FederationView(
            node=self.name, authority=True,
            pacts=[
                PactView(
                    pact="00" * 16, mesh="other", state="in force", part=True, expires="2027-01-01T00:00:00Z",
                    members=["pm-0"], services=[service], their_services=[], gateways=["id900"], silent=[],
                )
            ],
            visitors=[
                VisitorView(
                    name="web", mesh="other", node_id="id901", ip6="fd99::1", linked=True,
                    inbound=["tcp/5432"], outbound=[],
                )
            ],
        )  # fmt: skip

    async def invite_mesh(
        self, members: Sequence[str], services: Sequence[str], gateways: Sequence[str], *, life: float,
        ttl: float,
    ) -> FederationInvited:  # fmt: skip
        if self.failure is not None:
            raise self.failure
        self.decided.append(("invite-mesh", ",".join(members), tuple(services)))
        return FederationInvited(invite="pmf1_line", pact="00" * 16, expires="2026-01-01T00:00:00Z")

    async def accept_pact(
        self, line: str, members: Sequence[str], services: Sequence[str], gateways: Sequence[str], *,
        life: float,
    ) -> PactResult:  # fmt: skip
        if self.failure is not None:
            raise self.failure
        self.decided.append(("accept-pact", line, tuple(services)))
        return PactResult(pact="00" * 16, mesh="other")

    async def end_pact(self, pact: str) -> PactResult:
        if self.failure is not None:
            raise self.failure
        self.decided.append(("end-pact", pact, ()))
        return PactResult(pact="00" * 16, mesh="other")

    async def rename(self, name: str) -> NameResult:
        old, self.name = self.name, name
        return NameResult(name=name, old_name=old, node_id="id001", ip4="100.64.0.1", ip6="fd00::1")

    async def new_identity(self) -> IdentityResult:
        if self.failure is not None:
            raise self.failure
        self.replaced += 1
        return IdentityResult(
            name="pm-0", node_id="id777", old_node_id="id000", ip4="100.64.0.9", ip6="fd00::777"
        )

    async def rotate(self, peer: str | None, uid: int | None = None) -> RotationResult:
        self.rotated.append(peer)
        if self.on_rotate is not None:
            await self.on_rotate()
        if self.failure is not None:
            raise self.failure
        chosen = [view for view in self.peers() if peer in (None, view.node_id)]
        return RotationResult(
            rotations=[
                Rotation(peer=view.name, node_id=view.node_id, result=self.result, epoch=9) for view in chosen
            ]
        )
