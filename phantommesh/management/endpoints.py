# SPDX-License-Identifier: GPL-3.0-or-later
"""Every path of the API, in one table. The application makes its routes from it and has no others.

An endpoint's name is that of its handler in `nursery/api/routes`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from phantommesh.management.aclview import AclCheckView, AclView, PolicyResult
from phantommesh.management.agentview import (
    AgentDetail,
    AgentsResult,
    AgentView,
    DecisionView,
    IncidentView,
    MemoryView,
)
from phantommesh.management.audit import AuditEntry
from phantommesh.management.bodies import (
    BanRequest,
    ConfigRequest,
    DrainRequest,
    FederationAcceptRequest,
    FederationInviteRequest,
    IdentityRequest,
    InviteRequest,
    NameRequest,
    PactRequest,
    PauseRequest,
    PingRequest,
    PolicyRequest,
    Probe,
    ResumeRequest,
    RevocationRequest,
    RotationRequest,
    RouteRequest,
    UndrainRequest,
    grave,
)
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.management.drainview import DrainView
from phantommesh.management.explainview import Explanation
from phantommesh.management.federationview import FederationInvited, FederationView, PactResult
from phantommesh.management.inviteview import InviteMade, InvitesView, WithdrawnView
from phantommesh.management.mapview import MapView
from phantommesh.management.netview import NetCheck
from phantommesh.management.pingview import PingResult
from phantommesh.management.routeview import RouteResult, RoutesView
from phantommesh.management.scopes import Scope
from phantommesh.management.threatsview import BanResult, BansView, ThreatsView, UnbanResult
from phantommesh.management.tokens import TokenMade, TokenRequest, TokensView, TokenView
from phantommesh.management.topoview import TopologyView
from phantommesh.management.views import (
    Event,
    IdentityResult,
    LinkView,
    NameResult,
    Page,
    PathView,
    PeerView,
    ProofsView,
    RevocationResult,
    RotationResult,
    ScatterView,
    Status,
)

Body = TypeVar("Body", bound=msgspec.Struct)

JSON = "application/json"
BYTES = "application/octet-stream"
HTML = "text/html"
ANY = "*/*"  # one of several
TEXT = "text/plain"  # Prometheus' text format, or OpenMetrics where the client accepts that

# RFC 9110. Any endpoint may answer these: 400 the request cannot be read, 403 a page of another site makes
# it, 413 its body is above the limit, 500 a bug. Clients by TCP also meet 401 for no or a wrong token, 403
# for one of too small a scope, 421: the host name is not the node's, 429: too many wrong tokens.
COMMON = frozenset({400, 401, 403, 413, 421, 429, 500})


@dataclass(frozen=True, slots=True)
class RootOnly:
    """The refusal of anybody but root, the node's own user and who has a token of scope `admin`."""

    refusal: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(Generic[Body]):
    """One method of one path. ``path`` has parameters in braces, each a whole segment.

    ``scope`` None: open to all. ``root``: the scope is not enough, since there is no way back; ``root_for``
    says for which bodies, None for all. ``local``: open to all on this machine. ``answer`` is the type of the
    200's body, None where that is not JSON but ``content``. ``errors`` are the statuses besides 200 (101 for
    a WebSocket) and `COMMON`. ``example`` is a usable body, to show in errors. ``secret``: fields of the body
    that no record has. ``shown_once``: the answer has a secret, and is not kept for a repeated request.
    """

    name: str
    method: Literal["GET", "POST", "PUT", "DELETE", "WS"]
    path: str
    summary: str
    scope: Scope | None
    answer: Any = None
    content: str = JSON
    query: tuple[str, ...] = ()
    errors: frozenset[int] = frozenset()
    body: type[Body] | None = None
    example: str = ""
    root: RootOnly | None = None
    root_for: Callable[[Body], bool] | None = None
    dry_run: bool = False
    local: bool = False
    secret: frozenset[str] = frozenset()
    shown_once: bool = False

    @property
    def queries(self) -> tuple[str, ...]:
        """The names that its query may have. A write with a body may be asked for a dry run, if only to be
        refused."""
        return (*self.query, "dry_run") if self.dry_run or self.body is not None else self.query

    @property
    def body_optional(self) -> bool:
        """Whether no body at all stands for one in which everything is the default."""
        return self.body is not None and not any(
            field.required for field in msgspec.structs.fields(self.body)
        )


PAGE = ("limit", "cursor")
EVENTS = ("types", "since", "run")

# Any write may answer these: 409 it cannot be done as things are, 415 the body is not JSON, 422 the
# Idempotency-Key was used for another request, 503 too many writes are under way.
_WRITE = frozenset({409, 415, 422, 503})

ROTATIONS = Endpoint(
    name="rotations",
    method="POST",
    path="/v1/rotations",
    summary="Rotate the PSKs shared with one peer or with all.",
    scope=Scope.OPERATE,
    body=RotationRequest,
    example='{} or {"peer": "NAME"}',
    dry_run=True,
    answer=RotationResult,
    errors=_WRITE | {404},
)
PINGS = Endpoint(
    name="pings",
    method="POST",
    path="/v1/pings",
    summary="Ping a peer inside each dimension.",
    scope=Scope.OPERATE,
    body=PingRequest,
    example='{"peer": "NAME"}',
    answer=PingResult,
    errors=_WRITE | {404},
)
DRAINS = Endpoint(
    name="begin_drain",
    method="POST",
    path="/v1/drain",
    summary="Have members use other routers, exits and relays than this node.",
    scope=Scope.OPERATE,
    root=RootOnly("only root may drain while another node does", fix="wait for it, or run this with sudo"),
    root_for=lambda wanted: wanted.force,
    body=DrainRequest,
    example='{} or {"seconds": 3600, "force": false}',
    answer=DrainView,
    errors=_WRITE,
    dry_run=True,
)
POLICIES = Endpoint(
    name="set_policy",
    method="POST",
    path="/v1/acl/policy",
    summary="Sign an access policy for the whole mesh, which passes its own tests.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may sign the mesh's policy", fix="run this with sudo on an authority"),
    body=PolicyRequest,
    example='{"policy": "default = \\"deny\\""}',
    dry_run=True,
    answer=PolicyResult,
    errors=_WRITE,
)
UNDRAINS = Endpoint(
    name="end_drain",
    method="POST",
    path="/v1/undrain",
    summary="Have members use this node again.",
    scope=Scope.OPERATE,
    body=UndrainRequest,
    example="{}",
    dry_run=True,
    answer=DrainView,
    errors=_WRITE,
)
IDENTITIES = Endpoint(
    name="identities",
    method="POST",
    path="/v1/identities",
    summary="Give this node a new identity under its name; the old one is revoked.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may give this node a new identity", fix="run this with sudo"),
    body=IdentityRequest,
    example="{}",
    answer=IdentityResult,
    errors=_WRITE,
)
NAMES = Endpoint(
    name="names",
    method="POST",
    path="/v1/names",
    summary="Give this node another name; its node id and addresses stay.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may rename this node", fix="run this with sudo"),
    body=NameRequest,
    example='{"name": "NAME"}',
    answer=NameResult,
    errors=_WRITE,
)
APPROVALS = Endpoint(
    name="approve_routes",
    method="POST",
    path="/v1/routes/approvals",
    summary="Approve that a member routes prefixes beyond the mesh.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may approve routes", fix="run this with sudo on an authority"),
    body=RouteRequest,
    example='{"node": "NAME", "prefixes": ["10.1.0.0/16"]}',
    answer=RouteResult,
    errors=_WRITE | {404},
)
WITHDRAWALS = Endpoint(
    name="withdraw_routes",
    method="POST",
    path="/v1/routes/withdrawals",
    summary="Withdraw prefixes from a member, which stays one.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may withdraw routes", fix="run this with sudo on an authority"),
    body=RouteRequest,
    example='{"node": "NAME", "prefixes": ["10.1.0.0/16"]}',
    answer=RouteResult,
    errors=_WRITE | {404},
)
_PACTS = RootOnly("only root may make and end pacts", fix="run this with sudo on an authority")
FEDERATION_INVITES = Endpoint(
    name="invite_mesh",
    method="POST",
    path="/v1/federation/invites",
    summary="Make a line by which another mesh makes a pact with this one.",
    scope=Scope.ADMIN,
    root=_PACTS,
    body=FederationInviteRequest,
    shown_once=True,
    example='{"services": ["db:tcp/5432:web"]}',
    answer=FederationInvited,
    errors=_WRITE | {404},
)
FEDERATION_PACTS = Endpoint(
    name="accept_pact",
    method="POST",
    path="/v1/federation/pacts",
    summary="Make a pact with the mesh that gave out a line.",
    scope=Scope.ADMIN,
    root=_PACTS,
    body=FederationAcceptRequest,
    secret=frozenset({"line"}),
    example='{"line": "pmf1_...", "members": ["web"]}',
    answer=PactResult,
    errors=_WRITE | {404},
)
FEDERATION_ENDS = Endpoint(
    name="end_pact",
    method="POST",
    path="/v1/federation/ends",
    summary="End a pact with another mesh, for both.",
    scope=Scope.ADMIN,
    root=_PACTS,
    body=PactRequest,
    example='{"pact": "ID"}',
    answer=PactResult,
    errors=_WRITE,
)
BANS = Endpoint(
    name="ban",
    method="POST",
    path="/v1/bans",
    summary="Drop all that comes from an address or a network, outside the tunnels.",
    scope=Scope.OPERATE,
    root=RootOnly(
        "only root may ban by force, for more than a day, or more than a /24 or /48",
        fix="run this with sudo",
    ),
    root_for=grave,
    body=BanRequest,
    example='{"network": "192.0.2.7", "seconds": 600}',
    dry_run=True,
    answer=BanResult,
    errors=_WRITE,
)
REVOCATIONS = Endpoint(
    name="revocations",
    method="POST",
    path="/v1/revocations",
    summary="Put a node out of the mesh, or take it back.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may revoke a node", fix="run this with sudo on an authority"),
    body=RevocationRequest,
    example='{"node": "NAME"}',
    dry_run=True,
    answer=RevocationResult,
    errors=_WRITE | {404},
)
TOKENS = Endpoint(
    name="make_token",
    method="POST",
    path="/v1/tokens",
    summary="Make a token for the API over TCP. The answer has the only copy of it.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may make tokens", fix="run this with sudo"),
    body=TokenRequest,
    example='{"scope": "read", "seconds": 86400, "name": "grafana"}',
    dry_run=True,
    answer=TokenMade,
    errors=_WRITE,
    shown_once=True,
)
INVITES = Endpoint(
    name="make_invite",
    method="POST",
    path="/v1/invites",
    summary="Make an invite, by which a machine joins. The answer has the only copy of it.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may invite", fix="run this with sudo on an authority"),
    body=InviteRequest,
    example='{} or {"name": "nas", "seconds": 3600}',
    dry_run=True,
    answer=InviteMade,
    errors=_WRITE | {404},
    shown_once=True,
)
CONFIG = Endpoint(
    name="set_config",
    method="PUT",
    path="/v1/config",
    summary="Check a configuration, write it to the node's file and take over what a running node can.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may change the configuration", fix="run this with sudo"),
    body=ConfigRequest,
    example='{"config": "[node]\\nname = ..."}',
    dry_run=True,
    answer=ConfigResult,
    errors=_WRITE,
)
WITHDRAWN_INVITES: Endpoint[Any] = Endpoint(
    name="withdraw_invite",
    method="DELETE",
    path="/v1/invites/{invite}",
    summary="Take an invite back, by its id or the beginning of it.",
    scope=Scope.ADMIN,
    root=RootOnly("only root may take an invite back", fix="run this with sudo on the authority"),
    answer=WithdrawnView,
    errors=frozenset({404, 409}),
)
PAUSES = Endpoint(
    name="pause_agent",
    method="POST",
    path="/v1/agents/{name}/pause",
    summary="Stop an agent, or `all`, and lift what stands for it; `apex`: accept nothing new.",
    scope=Scope.OPERATE,
    body=PauseRequest,
    example="{}",
    dry_run=True,
    answer=AgentsResult,
    errors=_WRITE | {404},
)
RESUMES = Endpoint(
    name="resume_agent",
    method="POST",
    path="/v1/agents/{name}/resume",
    summary="Let an agent, or `all`, go on, or only say what it would do.",
    scope=Scope.OPERATE,
    body=ResumeRequest,
    example='{} or {"dry_run": true}',
    dry_run=True,
    answer=AgentsResult,
    errors=_WRITE | {404},
)


def _list(name: str, item: Any, summary: str) -> Endpoint[Any]:
    """A list in pages, by order of node id, of all peers or of one by name or node id."""
    return Endpoint(
        name=name, method="GET", path=f"/v1/{name}", summary=summary, scope=Scope.READ,
        answer=Page[item], query=(*PAGE, "peer"), errors=frozenset({404, 409}),
    )  # fmt: skip


ENDPOINTS: tuple[Endpoint[Any], ...] = (
    Endpoint(
        name="healthz", method="GET", path="/healthz", summary="Whether the process answers.",
        scope=None, answer=Probe,
    ),
    Endpoint(
        name="readyz", method="GET", path="/readyz", summary="Whether the node does its work.",
        scope=None, answer=Probe, errors=frozenset({503}),
    ),
    Endpoint(
        name="metrics", method="GET", path="/metrics", summary="The metrics, for Prometheus.",
        scope=Scope.READ, local=True, content=TEXT,
    ),
    Endpoint(
        name="openapi", method="GET", path="/openapi.json", summary="This description.", scope=None,
    ),
    Endpoint(
        name="docs", method="GET", path="/docs", summary="This description, for people.", scope=None,
        content=HTML,
    ),
    Endpoint(
        name="status", method="GET", path="/v1/status", summary="This node at a glance.",
        scope=Scope.READ, answer=Status,
    ),
    Endpoint(
        name="dashboard", method="GET", path="/", summary="The dashboard, a page for a browser.",
        scope=None, content=HTML,
    ),
    Endpoint(
        name="dashboard_file", method="GET", path="/dashboard/{file}", summary="What the page consists of.",
        scope=None, content=ANY, errors=frozenset({404}),
    ),
    _list("peers", PeerView, "The other members of the mesh."),
    Endpoint(
        name="peer", method="GET", path="/v1/peers/{peer}", summary="One of them, by name or node id.",
        scope=Scope.READ, answer=PeerView, errors=frozenset({404, 409}),
    ),
    _list("links", LinkView, "The post-quantum links."),
    _list("paths", PathView, "Every dimension of every peer, as measured."),
    Endpoint(
        name="drain", method="GET", path="/v1/drain", summary="Whether this node drains.",
        scope=Scope.READ, answer=DrainView,
    ),
    Endpoint(
        name="topology", method="GET", path="/v1/topology",
        summary="The mesh as its members measure it, which they are asked, and what is weak about it.",
        scope=Scope.READ, answer=TopologyView,
    ),
    Endpoint(
        name="map", method="GET", path="/v1/map",
        summary="The members and links of the mesh with places to draw them at; members are not asked.",
        scope=Scope.READ, answer=MapView,
    ),
    Endpoint(
        name="routes", method="GET", path="/v1/routes",
        summary="Prefixes beyond the mesh: who may route them, what this node takes, what carries packets.",
        scope=Scope.READ, answer=RoutesView,
    ),
    Endpoint(
        name="federation", method="GET", path="/v1/federation",
        summary="Pacts with other meshes, and their members that this node links with.",
        scope=Scope.READ, answer=FederationView,
    ),
    Endpoint(
        name="explain_route", method="GET", path="/v1/routes/explain",
        summary="Which way traffic to a member or an address goes, why, and what would change it.",
        scope=Scope.READ, answer=Explanation, query=("dest",), errors=frozenset({404, 409}),
    ),
    Endpoint(
        name="acl", method="GET", path="/v1/acl",
        summary="The access rules: what may come to this node out of the mesh, and what came by each.",
        scope=Scope.READ, answer=AclView,
    ),
    Endpoint(
        name="acl_check", method="GET", path="/v1/acl/check",
        summary="Whether one member may reach another at a port, and by which rule.",
        scope=Scope.READ, answer=AclCheckView, query=("from", "to", "port", "family"),
        errors=frozenset({404, 409}),
    ),
    Endpoint(
        name="threats", method="GET", path="/v1/threats",
        summary="Attacks that this node has seen, what it sheds, and who is banned.",
        scope=Scope.READ, answer=ThreatsView,
    ),
    Endpoint(
        name="bans", method="GET", path="/v1/bans", summary="The bans that stand.",
        scope=Scope.READ, answer=BansView,
    ),
    Endpoint(
        name="unban", method="DELETE", path="/v1/bans",
        summary="Lift the bans of a network, or all by this node, by an operator or with hints (by).",
        scope=Scope.OPERATE, answer=UnbanResult, query=("network", "by"), errors=frozenset({409}),
        dry_run=True,
    ),
    Endpoint(
        name="invites", method="GET", path="/v1/invites",
        summary="The invites of this authority until they run out, and who joined. Never their secrets.",
        scope=Scope.READ, answer=InvitesView, errors=frozenset({409}),
    ),
    INVITES,
    WITHDRAWN_INVITES,
    Endpoint(
        name="config", method="GET", path="/v1/config",
        summary="The text of the configuration's file, and what the node does not run with of it.",
        scope=Scope.ADMIN, answer=ConfigView, errors=frozenset({409}),
    ),
    CONFIG,
    Endpoint(
        name="netcheck", method="GET", path="/v1/netcheck",
        summary="This host's network, and how members reach it, which they are asked.",
        scope=Scope.READ, answer=NetCheck,
    ),
    _list("scatter", ScatterView, "How traffic to each peer is scattered over the dimensions."),
    _list("proofs", ProofsView, "What is kept of the scatter proofs of each link."),
    Endpoint(
        name="export_proofs", method="GET", path="/v1/proofs/export",
        summary="A file for `phantommesh proofs --verify`, of all links or of one peer's.",
        scope=Scope.READ, content=BYTES, query=("peer",), errors=frozenset({404, 409}),
    ),
    Endpoint(
        name="agents", method="GET", path="/v1/agents", scope=Scope.READ, answer=Page[AgentView], query=PAGE,
        summary="The agents, and APEX which judges what they propose.",
    ),
    Endpoint(
        name="agent", method="GET", path="/v1/agents/{name}", scope=Scope.READ, answer=AgentDetail,
        summary="One agent: its policy, what stands for it, its latest decisions.",
        errors=frozenset({404}),
    ),
    Endpoint(
        name="decisions", method="GET", path="/v1/decisions", scope=Scope.READ, answer=Page[DecisionView],
        summary="The latest decisions on what agents proposed, by number, with what came of them.",
        query=(*PAGE, "agent", "accepted", "newest"), errors=frozenset({404}),
    ),
    Endpoint(
        name="incidents", method="GET", path="/v1/incidents", scope=Scope.READ, answer=Page[IncidentView],
        summary="What several agents did about one peer or address at about one time.", query=PAGE,
    ),
    Endpoint(
        name="memory", method="GET", path="/v1/memory", scope=Scope.READ, answer=MemoryView,
        summary="The memory of threats, and what other members hint.",
    ),
    Endpoint(
        name="events", method="GET", path="/v1/events",
        summary="What happened in the node lately; `audit.*` to scope `admin` alone.", scope=Scope.READ,
        answer=Page[Event], query=(*PAGE, *EVENTS),
    ),
    Endpoint(
        name="follow_events", method="WS", path="/v1/events",
        summary="Each new event as it happens; `audit.*` to scope `admin` alone.", scope=Scope.READ,
        query=EVENTS, errors=frozenset({503}),
    ),
    Endpoint(
        name="tokens", method="GET", path="/v1/tokens", summary="The tokens of the API, without their text.",
        scope=Scope.ADMIN, answer=TokensView,
    ),
    Endpoint(
        name="revoke_token", method="DELETE", path="/v1/tokens/{id}",
        summary="Revoke a token, from now on.", scope=Scope.ADMIN, answer=TokenView,
        errors=frozenset({404, 409}),
    ),
    Endpoint(
        name="audit", method="GET", path="/v1/audit", scope=Scope.ADMIN, answer=Page[AuditEntry], query=PAGE,
        summary="Who asked for which change, and what came of it: the latest 1024.",
    ),
    TOKENS,
    ROTATIONS,
    BANS,
    PAUSES,
    RESUMES,
    PINGS,
    DRAINS,
    UNDRAINS,
    POLICIES,
    IDENTITIES,
    NAMES,
    REVOCATIONS,
    APPROVALS,
    WITHDRAWALS,
    FEDERATION_INVITES,
    FEDERATION_PACTS,
    FEDERATION_ENDS,
)  # fmt: skip
