# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that answers from memory, of a mesh whose names and addresses are as long as they get."""

from collections.abc import Sequence
from typing import Final

import msgspec

from phantommesh.faults import FaultKind
from phantommesh.management.agentview import AgentsGlance, AgentsResult, DecisionView, IncidentView
from phantommesh.management.audit import Write, entry
from phantommesh.management.events import EventLog
from phantommesh.management.netview import (
    ClockView,
    FeatureView,
    NatView,
    NetCheck,
    PortmapView,
    ReachedView,
    RelayView,
    UplinkView,
)
from phantommesh.management.scopes import Scope
from phantommesh.management.tokens import ID_BYTES, RANDOM_BYTES, Made, Token, TokenBook, TokenRequest
from phantommesh.management.topoview import Advice, MeasuredLink, StationView, TopologyView
from phantommesh.management.views import (
    DimensionView,
    LinkView,
    MemberState,
    PathView,
    PeerView,
    ProofDirection,
    ProofsView,
    Rotation,
    RotationResult,
    ScatterView,
    Status,
)
from phantommesh.management.wayview import WayKind
from tests.support.fakenode import FakeAudit, FakeNode, FakeTokens, decision_view, proofs_view, scatter_view

NOW: Final = 1_893_456_000.0  # 2030-01-01T00:00:00Z
LONGEST: Final = "longest-name-that-a-member-may-have-which-is-of-63-characters-x"
NAMES: Final = (
    "berlin-gw-1",
    "warehouse-rotterdam-scanner-07",
    "nas",
    "laptop-of-annemarie-van-der-berg",
    "relay-eu-central-1b.example",
    LONGEST,
)
MEMBERSHIP: Final[tuple[MemberState, ...]] = ("alive", "alive", "suspect", "dead", "alive", "left")
REGIONS: Final = ("eu-north", "", "ap-southeast-with-32-characters1", "", "eu-north", "")
HEX: Final = "abcdefghijklmnopqrstuvwxyz234567"
IPV6: Final = "fd5e:9f3b:1c2d:3e4f:a1b2:c3d4:e5f6:{:04x}"
ENDPOINTS: Final = (
    "203.0.113.17:51820",
    "[2001:db8:4f2a:91c3:7b5e:1234:abcd:ef01]:51820",
    None,
    "198.51.100.200:61234",
    "[2001:db8::1]:51820",
    None,
)
WAYS: Final[tuple[WayKind, ...]] = ("direct", "relayed", "tcp")
WHYS: Final = ("found by NAT traversal", "no direct way answers", "UDP does not pass")
UNREACHABLE: Final = FaultKind("peer-dead", "medium")
UNWRITTEN: Final = FaultKind("state-not-written", "high")


def node_id(number: int) -> str:
    """Text of the length and letters of a node id."""
    return "".join(HEX[(number * 7 + at * 11) % 32] for at in range(26))


_CLIENT: Final = "2001:db8:4f2a:91c3:7b5e:1234:abcd:ef01"
_ASKED: Final = (
    Write(
        who="uid 0", address=None, method="POST", path="/v1/rotations", asked={"peer": LONGEST}, status=200
    ),
    Write(
        who="token 0a1b2c3d4e5f (ci)", address=_CLIENT, method="POST", path="/v1/bans",
        asked={"network": "192.0.2.7", "seconds": 600.0, "force": True}, status=403,
        detail="only root may ban by force, for more than a day, or more than a /24 or /48",
    ),
    Write(
        who="nobody (unknown token)", address="192.0.2.99", method="POST", path="/v1/drain", status=401,
        detail="the token does not count, or not any more",
    ),
)  # fmt: skip


class FixedAudit(FakeAudit):
    """What was asked, always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = [entry(one, seq + 1, NOW + seq) for seq, one in enumerate(_ASKED)]

    async def wrote(self, write: Write) -> None:
        pass


class FixedTokens(FakeTokens):
    """One token of each state, always the same: what is made is not kept."""

    async def make(self, request: TokenRequest, *, by: str) -> Made:
        return TokenBook().make(request, bytes(range(ID_BYTES + RANDOM_BYTES)), by=by, now=NOW)[1]


def tokens() -> TokenBook:
    """One of each state."""
    long = "laptop of annemarie van der berg who is away"
    rows = (
        ("0a1b2c3d4e5f", "ci", Scope.OPERATE, 90.0, None),
        ("00ff00ff00ff", "grafana", Scope.READ, 0.0, 1.0),
        ("123456789abc", long, Scope.ADMIN, 365.0, None),
    )
    return TokenBook(
        tuple(
            Token(
                id=token_id, name=name, scope=scope, hash=f"{number:064x}", made=NOW - 60.0 * number,
                expires=NOW + days * 86_400, by="uid 0", revoked=revoked,
            )
            for number, (token_id, name, scope, days, revoked) in enumerate(rows)
        )
    )  # fmt: skip


class LongNames(FakeNode):
    """Six peers, two of them gone; one of them was revoked, and one is reached by way of others."""

    def __init__(self) -> None:
        super().__init__(peers=len(NAMES))
        self.events = EventLog(run="run1", clock=lambda: NOW)
        self.audit = FixedAudit()
        self.tokens = FixedTokens()
        self.tokens.book = tokens()
        self.faults = [
            UNREACHABLE.fault(
                "laptop-of-annemarie-van-der-berg has not answered for 3 h on any of its seven paths, nor do "
                "the other members reach it",
                "see that it runs and is connected; if it is gone for good, `phantommesh revoke "
                "laptop-of-annemarie-van-der-berg` on an authority",
                subject="laptop-of-annemarie-van-der-berg",
            ),
            UNWRITTEN.fault(
                "/var/lib/phantommesh/roster: No space left on device",
                "make room on that file system; the node tries again every 5 s",
            ),
        ]
        self.agent_events()
        self.events.publish("link.opened", NAMES[1], {"peer": NAMES[1], "node_id": node_id(1), "epoch": 3})
        self.events.publish("peer.suspect", NAMES[2], {"peer": NAMES[2], "reason": "no answer for 5 s"})
        self.events.publish("peer.revoked", LONGEST, {"peer": LONGEST, "by": "berlin-gw-1"})
        self.events.publish(
            "health.degraded",
            None,
            {"reasons": ["café: \x1b[2Jsaid the 名前 of a file", "two"], "codes": ["peer-dead"], "total": 2},
        )

    def agent_events(self) -> None:
        """A decision, and what came of that."""
        one = decision_view(1, LONGEST)
        about = {"agent": one.agent, "action": one.action, "subject": one.subject, "trace": one.trace}
        self.events.publish("agent.decided", None, {**about, "result": one.result, "text": one.text})
        self.events.publish(
            "agent.outcome", None, {**about, "met": True, "text": "psk_age_s 0.3, as expected"}
        )

    def status(self) -> Status:
        return Status(
            mesh="example-corporation",
            node="amsterdam-head-office-gateway",
            node_id=node_id(31),
            version="0.1.0",
            uptime_s=273_000.0,
            backend="userspace (wireguard-go)",
            region="eu-north",
            routes={"10.1.0.0/16": "10.1.0.0/16", "10.77.1.0/24": "192.168.1.0/24"},
            role="authority",
            ip4="100.127.201.114",
            ip6=IPV6.format(0xFFFF),
            peers_total=6,
            peers_up=3,
            members={"alive": 3, "suspect": 1, "dead": 1, "left": 1},
            partly_reachable=1,
            degraded=[fault.line for fault in self.faults],
            advice=[f"without {NAMES[0]}, {NAMES[4]} and {NAMES[5]} would be cut off"],
            faults=self.faults,
            certificate_expires="2030-01-13T06:00:00Z",
            agents=AgentsGlance(
                running=6, total=9, paused=["genesis", "nexus"], benched=["stream"], accepted=41, frozen=True
            ),
        )

    def decisions(
        self,
        after: int,
        limit: int,
        *,
        agent: str | None = None,
        accepted: bool = False,
        newest: bool = False,
    ) -> list[DecisionView]:
        found = super().decisions(after, limit, agent=agent, accepted=accepted, newest=newest)
        return [decision_view(one.seq, LONGEST) for one in found]

    def peers(self) -> list[PeerView]:
        return [self._peer(number, name) for number, name in enumerate(NAMES)]

    def _peer(self, number: int, name: str) -> PeerView:
        up = number not in (3, 5)
        handshakes = [0.0, 75.4, 130.0][number % 3] if up else None
        return PeerView(
            name=name,
            node_id=node_id(number),
            role="authority" if number == 0 else "node",
            ip4=f"100.{64 + number}.{201 + number}.{17 * number}",
            ip6=IPV6.format(number),
            state="fresh" if up else "stale",
            membership=MEMBERSHIP[number],
            through=["berlin-gw-1", "nas"] if number == 4 else [],
            endpoint=ENDPOINTS[number],
            dimensions=[
                DimensionView(
                    index=0, interface="pm0", endpoint=None, last_handshake_s=handshakes,
                    rx_bytes=0, tx_bytes=0, psk_age_s=None,
                )
            ],
            region=REGIONS[number],
            rx_bytes=3 ** (6 * number),
            tx_bytes=2 ** (9 * number),
        )  # fmt: skip

    def links(self) -> list[LinkView]:
        return [
            LinkView(
                peer=name,
                node_id=node_id(number),
                epoch=1000 * number,
                state="fresh" if MEMBERSHIP[number] == "alive" else "stale",
                role="initiator" if number % 2 else "responder",
                dimensions=7 if MEMBERSHIP[number] == "alive" else 2,
                handshake_age_s=31.0 * 10**number,
                psk_age_s=None if number == 5 else 30.0 * 10**number,
                chain_reset=False,
                last_error="no answer from [2001:db8:4f2a:91c3:7b5e:1234:abcd:ef01]:51800 within 10 s"
                if number == 3
                else None,
            )
            for number, name in enumerate(NAMES)
        ]

    def paths(self) -> list[PathView]:
        return [self._path(number, i) for number in (0, 1, 5) for i in range(7)]

    def _path(self, number: int, dimension: int) -> PathView:
        up = number != 5
        return PathView(
            peer=NAMES[number],
            node_id=node_id(number),
            dimension=dimension,
            interface=f"pm{dimension}",
            endpoint=ENDPOINTS[number] or ENDPOINTS[0],
            state="up" if up else "dark" if dimension < 5 else "closed",
            since_s=12.5 * 9**dimension,
            rtt_s=0.0123 * (dimension + 1) if up else None,
            jitter_s=0.001,
            loss=0.005 * dimension if up else 1.0,
            weight=1.0 if up else 0.0,
            way=WAYS[dimension % 3] if up else "none",
            via=NAMES[3] if up and dimension % 3 == 1 else None,
            mtu=1420 - 44 * (dimension % 3) if up else None,
            why=WHYS[dimension % 3] if up else "no answer from 3 addresses",
        )

    def surveyed(self) -> TopologyView:
        return TopologyView(
            age_s=0.2, asked=5, heard=4, sweep_s=3.25, analysis_s=0.031,
            members=[
                StationView(
                    name=name, node_id=node_id(number), region=REGIONS[number], relay=number == 0,
                    nat=number > 2, links=number, between=number / 10,
                )
                for number, name in enumerate(NAMES)
            ],
            links=[
                MeasuredLink(
                    one=NAMES[0], two=NAMES[1], way="direct", rtt_s=0.0123, jitter_s=0.001, loss=0.01,
                    capacity=0,
                ),
                MeasuredLink(
                    one=NAMES[1], two=NAMES[4], way="relayed", rtt_s=0.2, jitter_s=0.001, loss=0.0,
                    capacity=0, via=[NAMES[0]],
                ),
            ],
            links_total=2,
            advice=[
                Advice(
                    kind="shared-relay-place", members=list(NAMES[:2]), cut=[],
                    text=f"{NAMES[1]} with {NAMES[4]} use relays that share an address: {NAMES[0]} and "
                    f"{NAMES[3]}",
                    fix="set relay.offer = true on a member elsewhere",
                ),
            ],
        )  # fmt: skip

    async def netcheck(self) -> NetCheck:
        return NetCheck(
            node="amsterdam-head-office-gateway",
            uplinks=[
                UplinkView(
                    interface="enp0s31f6", mtu=1500, addresses=["192.168.178.100", "2001:db8:4f2a:91c3::17"],
                    default_for=["ipv4", "ipv6"],
                ),
                UplinkView(interface="wwan0", mtu=1428, addresses=["10.181.33.7"], default_for=[]),
            ],
            nat=[
                NatView(
                    family="ipv4", kind="random", public=["203.0.113.7:40001", "203.0.113.7:40002"],
                    witnesses=3, why="each member sees another port, so none can tell others where to send",
                ),
                NatView(
                    family="ipv6", kind="unknown", public=[], witnesses=0,
                    why="no member has said where it sees this node",
                ),
            ],
            portmap=PortmapView(state="mapped", endpoint="203.0.113.7:51800"),
            overlay_mtu=1420,
            least_mtu=1280,
            relays=RelayView(port=51810, leases=14, offered=list(NAMES[:5])),
            reached=[
                ReachedView(
                    transport="udp", reached=True, by=list(NAMES), why="members' datagrams come in"
                ),
                ReachedView(
                    transport="tcp", reached=False, by=[LONGEST],
                    why="cannot connect to 203.0.113.7 port 51800: Connection refused",
                ),
            ],
            clock=ClockView(ahead_s=-95.0, members=4),
            features=[
                FeatureView(name="userspace WireGuard", there=True, why="in use"),
                FeatureView(name="netdev egress hook", there=None, why="shown by a node that scatters"),
                FeatureView(
                    name="CAP_NET_RAW", there=False,
                    why="NAT traversal from WireGuard's own ports; run as root to have it",
                ),
            ],
            faults=self.faults,
            unknown=["NAT for ipv6: no member has said where it sees this node", "hairpin: not tried"],
        )  # fmt: skip

    def scatter(self) -> list[ScatterView]:
        return [
            msgspec.structs.replace(scatter_view(number), peer=NAMES[number], node_id=node_id(number))
            for number in (0, 1, 4)
        ]

    def proofs(self) -> list[ProofsView]:
        return [self._proofs(number) for number in (0, 1, 5)]

    def _proofs(self, number: int) -> ProofsView:
        view = proofs_view(number)
        newest = view.sent.newest
        assert newest is not None
        lost = msgspec.structs.replace(
            newest, problem="12.5 % of what was sent on dimension 3 did not arrive, where 5 % may be lost"
        )
        received = ProofDirection(kept=60, countersigned=59, newest=lost if number == 1 else newest)
        return msgspec.structs.replace(view, peer=NAMES[number], node_id=node_id(number), received=received)

    def turn(self, name: str, phase: str, dry_run: bool) -> AgentsResult:
        """Changes nothing: several people ask at one time."""
        before = dict(self.phases)
        try:
            return super().turn(name, phase, dry_run)
        finally:
            self.phases = before

    async def rotate(self, peer: str | None, uid: int | None = None) -> RotationResult:
        chosen = [view for view in self.peers() if peer in (None, view.node_id)]
        return RotationResult(rotations=_rotations(chosen))


def _rotations(peers: Sequence[PeerView]) -> list[Rotation]:
    return [
        Rotation(peer=peer.name, node_id=peer.node_id, result="rotated", epoch=9)
        if peer.membership == "alive"
        else Rotation(
            peer=peer.name,
            node_id=peer.node_id,
            result="failed",
            detail="it did not answer within 30 s: see `phantommesh paths` for which way it can be reached",
        )
        for peer in peers
    ]


class Alone(LongNames):
    """The node of a mesh without other members."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.events = EventLog(run="run1", clock=lambda: NOW)

    def status(self) -> Status:
        now = msgspec.structs.replace(super().status(), peers_total=0, peers_up=0, members={})
        return msgspec.structs.replace(now, partly_reachable=0, degraded=[], faults=[])

    def agent_events(self) -> None:
        pass

    def decisions(
        self,
        after: int,
        limit: int,
        *,
        agent: str | None = None,
        accepted: bool = False,
        newest: bool = False,
    ) -> list[DecisionView]:
        return []

    def incidents(self) -> list[IncidentView]:
        return []

    def peers(self) -> list[PeerView]:
        return []

    def links(self) -> list[LinkView]:
        return []

    def paths(self) -> list[PathView]:
        return []

    def scatter(self) -> list[ScatterView]:
        return []

    def proofs(self) -> list[ProofsView]:
        return []
