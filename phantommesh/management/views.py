# SPDX-License-Identifier: GPL-3.0-or-later
"""Views: the values that the API serialises and the command line decodes.

Field names and meanings are the public interface: add freely, change or drop nothing silently. Readers
ignore fields they do not know, so an older command line reads a newer node. Durations are seconds, sizes
bytes, dates RFC 3339 text in UTC. No value here may hold a secret.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import msgspec

from phantommesh.faults import Fault
from phantommesh.management.aclview import AclCheckView, AclView, PolicyResult
from phantommesh.management.agentview import (
    AgentDetail,
    AgentsGlance,
    AgentsResult,
    AgentView,
    DecisionView,
    IncidentView,
    MemoryView,
)
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.management.drainview import DrainView
from phantommesh.management.explainview import Explanation
from phantommesh.management.federationview import FederationInvited, FederationView, PactResult
from phantommesh.management.inviteview import InviteMade, InvitesView, WithdrawnView
from phantommesh.management.netview import NetCheck
from phantommesh.management.pingview import PingResult
from phantommesh.management.routeview import RouteResult, RoutesView
from phantommesh.management.threatsview import BanResult, BansView, ThreatsView, UnbanResult
from phantommesh.management.topoview import TopologyView
from phantommesh.management.wayview import WayKind
from phantommesh.management.whereview import Whereabouts

if TYPE_CHECKING:  # prometheus-client would double what a command line verb takes to start
    from phantommesh.management.audit import AuditTrail
    from phantommesh.management.bodies import InviteRequest
    from phantommesh.management.events import EventLog
    from phantommesh.management.metrics import Metrics
    from phantommesh.management.tokens import TokenDesk

LinkState = Literal["fresh", "unsure", "stale", "random", "none"]
LINK_STATES: tuple[LinkState, ...] = ("fresh", "unsure", "stale", "random", "none")

Life = Literal["starting", "running", "draining", "leaving", "revoked", "aside"]
LIVES: tuple[Life, ...] = ("starting", "running", "draining", "leaving", "revoked", "aside")

Flow = Literal["up", "joining", "dark", "unkeyed", "left"]
FLOWS: tuple[Flow, ...] = ("up", "joining", "dark", "unkeyed", "left")

MemberState = Literal["alive", "suspect", "dead", "left", "unknown"]

Reached = Literal["direct", "elsewhere", "helpers", "traffic"]

Item = TypeVar("Item")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """This node at a glance. ``faults`` is empty when all is well; ``degraded`` has each as one line."""

    mesh: str
    node: str
    node_id: str
    version: str
    uptime_s: float
    backend: str
    role: str
    ip4: str
    ip6: str
    peers_total: int
    peers_up: int
    """Peers with whom traffic flows: some dimension brought a probe back of late."""
    members: dict[MemberState, int] = {}
    """The other members by what gossip says of them."""
    partly_reachable: int = 0
    """How many of them gossip reaches only by way of others."""
    degraded: list[str]
    faults: list[Fault] = []
    certificate_expires: str
    state: Life = "running"
    """``starting``: its interfaces are being made. ``draining``: others are to use it no more. ``leaving``:
    it says goodbye. None is a fault; a start that does not come to its end is one. ``aside``: a later run of
    this node is there, which is a fault."""
    ready: bool = True
    """As /readyz says."""
    whereabouts: Whereabouts = Whereabouts()
    region: str = ""
    """Where this node stands, by `node.region`; empty: it does not say."""
    routes: dict[str, str] = {}
    """The prefixes beyond the mesh that this node routes for others now, each with what is really there: a
    site, or the same."""
    advice: list[str] = []
    """What is weak about the mesh, the worst first: see `topology`."""
    exit: list[str] = []
    """How all that is for the internet leaves, one line a family, where `routes.exit` names exits."""
    agents: AgentsGlance | None = None
    """None: a node of a version without agents."""


class DimensionView(msgspec.Struct, frozen=True, kw_only=True):
    """One peer on one WireGuard interface, as last read from the device."""

    index: int
    interface: str
    endpoint: str | None
    last_handshake_s: float | None
    """Seconds since the last WireGuard handshake; None: never."""
    rx_bytes: int
    tx_bytes: int
    psk_age_s: float | None
    """Seconds since a post-quantum PSK was installed; None: the peer holds a random one."""


class PeerView(msgspec.Struct, frozen=True, kw_only=True):
    """One other member of the mesh."""

    name: str
    node_id: str
    role: str
    ip4: str
    ip6: str
    state: LinkState
    """The link's state."""
    traffic: Flow = "up"
    """``up``: a probe came back of late. ``joining``: it is new here, or has new keys, and has not answered
    yet. ``dark``: probes are lost on all its dimensions. ``unkeyed``: no keys are agreed. ``left``: it said
    goodbye."""
    membership: MemberState = "unknown"
    """Gossip's word on the node."""
    reached: Reached = "direct"
    """How this node reaches a member that is not down. ``elsewhere``: only where it was last heard, which its
    record does not name, so only from its side (it is behind a NAT, or has moved). ``helpers``: by way of
    others, see ``through``. ``traffic``: its control port does not answer, and what comes by other ways
    shows that it lives."""
    through: list[str] = []
    """Not empty: the node is partly reachable. Gossip reaches it only by way of these members, the one that
    carried its last answer first."""
    gossip_rtt_s: float | None = None
    endpoint: str | None
    """Where packets are sent in the first dimension that answers; ``/tcp`` follows for a connection that
    carries them. While WireGuard has no endpoint: the first control endpoint of the node's record."""
    dimensions: list[DimensionView]
    rx_bytes: int
    tx_bytes: int
    region: str = ""
    """Where it stands, by its own word; empty: it does not say."""


class LinkView(msgspec.Struct, frozen=True, kw_only=True):
    """The post-quantum link to one peer. ``role`` is this node's: initiator or responder."""

    peer: str
    node_id: str
    epoch: int
    state: LinkState
    role: str
    dimensions: int
    """Dimensions keyed and answering, 0 to 7."""
    handshake_age_s: float | None
    psk_age_s: float | None
    rotates_in_s: float | None = None
    """Seconds until the keys are due to be replaced by this node's `link.rotate_seconds`; None: there are
    none. An agent, an operator or the other end may do it sooner."""
    chain_reset: bool
    """True when the last handshake could not build on the chain of the one before it."""
    last_error: str | None


class PathView(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension of one peer, as the probes inside it measure it."""

    peer: str
    node_id: str
    dimension: int
    interface: str
    endpoint: str | None
    """Where its packets are sent; ``/tcp`` follows for a connection that carries them."""
    state: Literal["closed", "proving", "up", "dark"]
    """``closed``: it has no keys yet. ``dark``: probes get no answer. ``proving``: they do again, and it
    carries traffic once they have for a while."""
    since_s: float
    rtt_s: float | None
    jitter_s: float
    loss: float
    """The ratio lost of late, 0 to 1: of probes on both ways, or of traffic on the way there if worse."""
    weight: float
    """The share that it may carry: 1 is a full one, 0 none."""
    answers: bool = False
    """Whether probes come back, of late and until now."""
    answered_s: float | None = None
    """Seconds since one did; None: none has since the dimension got its keys."""
    heard_s: float | None = None
    """Seconds since a probe of the peer's came in."""
    opened_s: float | None = None
    """Seconds since the dimension got its keys; None: it has none."""
    way: WayKind = "none"
    via: str | None = None
    """The member that relays."""
    mtu: int | None = None
    """The largest packet in bytes, as it is inside the overlay, that this way carries as far as is known."""
    why: str = ""
    """Why it is this way, or why there is none: words for a person."""


class ScatterDimension(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension's part in what goes to one peer."""

    index: int
    interface: str
    score: float
    """Its capacity as set, in any unit; 0: drained."""
    weight: float
    """Its share by this epoch's secret map, 0 to 1."""
    packets: int
    """Sent since the epoch began; a GSO burst counts as one."""
    bytes: int


class ScatterClass(msgspec.Struct, frozen=True, kw_only=True):
    """A class of the traffic to one peer (`[[intent]]`), in this epoch."""

    name: str
    """That of its intent; "rest" for what matches none."""
    goal: str
    scheduler: str
    entropy_bits: float | None
    """The entropy of the packets of this epoch; None while there are none."""
    weights: list[float]
    """The share of each dimension by this epoch's secret map, 0 to 1."""
    packets: list[int]
    """Sent since the epoch began, a dimension; a GSO burst counts as one."""
    bytes: list[int]
    closed: bool = False
    """Its packets are dropped: it may take none of the dimensions that carry traffic."""


class ScatterView(msgspec.Struct, frozen=True, kw_only=True):
    """How traffic to one peer is scattered. A peer that has no keys, or whose traffic takes dimension 0
    alone, has no such view."""

    peer: str
    node_id: str
    hook: Literal["egress", "mark"]
    goal: str
    scheduler: str
    link_epoch: int
    epoch: int
    """The number of the map within the link's epoch."""
    epoch_age_s: float
    entropy_bits: float | None
    """The entropy of the packets of this epoch and the one before; None while there are none. 2.807 at equal
    shares."""
    dimensions: list[ScatterDimension]
    """Of all classes together. The weights are those of what matches no intent."""
    classes: list[ScatterClass] = []
    """The classes of the traffic in order, the rest last; none where no intent is for this peer."""


class ProofEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """One scatter proof. Lists have an entry a dimension; ``packets`` and ``bytes`` are what the scheduler
    gave to each, ``wire_bytes`` what WireGuard sent there."""

    number: int
    link_epoch: int
    epoch: int
    start: str
    end: str
    scheduler: str
    cards: list[int]
    packets: list[int]
    bytes: list[int]
    wire_bytes: list[int]
    received_bytes: list[int] | None
    """None until the receiver has countersigned."""
    entropy_bits: float
    min_entropy_bits: float
    p_value: float | None
    """The p-value of the G-test against the cards; None for a scheduler whose packets do not tell."""
    problem: str | None
    """The fault, in words."""


class ProofDirection(msgspec.Struct, frozen=True, kw_only=True):
    """The proofs that are kept of one direction of one link."""

    kept: int
    countersigned: int
    newest: ProofEpoch | None
    """One that both ends have signed, if there is such a proof: the newest."""


class ProofsView(msgspec.Struct, frozen=True, kw_only=True):
    """The scatter proofs of one link, by direction as this node sees it."""

    peer: str
    node_id: str
    sent: ProofDirection
    received: ProofDirection


RotationOutcome = Literal["rotated", "started", "failed", "planned"]


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one peer's rotation; ``detail`` says why one failed and what to do. ``epoch`` is the new
    one, or of a planned rotation the one that it would bring at least."""

    peer: str
    node_id: str
    result: RotationOutcome
    epoch: int | None = None
    detail: str | None = None


class RotationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/rotations, one entry a peer. A dry run plans and changes nothing."""

    rotations: list[Rotation]
    dry_run: bool = False


class RevocationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/revocations. ``already``: the node was revoked before, and nothing changed."""

    node_id: str
    name: str | None
    """None for a node that is not, or no longer, a member as far as this node knows."""
    revoked_at: str | None
    """None in a dry run, and for a node that the root took back."""
    already: bool = False
    dry_run: bool = False
    taken_back: int = 0
    """How many nodes the root's word takes back, or would in a dry run."""


class IdentityResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/identities: this node's new identity. The node then starts again with it."""

    name: str
    node_id: str
    old_node_id: str
    """Revoked."""
    ip4: str
    ip6: str
    """Another one than before: it is derived from the node id."""


class NameResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/names: this node has another name. Its node id and addresses are what they
    were."""

    name: str
    old_name: str
    node_id: str
    ip4: str
    ip6: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. ``seq`` counts from 1 in each run of the node; ``run`` names the run.

    A type is ``FAMILY.name``, or ``gap``: then ``data.missed`` events (of any type) up to ``seq`` are lost to
    this reader, which was too slow, or asked for events that are no longer kept.
    """

    seq: int
    time: str
    type: str
    node: str | None
    """The name of the member it is about; None: this node."""
    data: dict[str, object]
    run: str


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """One page of a list. Pass ``next_cursor`` as ``cursor`` for the next page; None: this was the last."""

    items: list[Item]
    next_cursor: str | None


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as RFC 9457 problem details; ``fix``, ``reasons`` and ``candidates`` are extension members."""

    status: int
    title: str
    type: str = "about:blank"
    detail: str = ""
    fix: str = ""
    reasons: list[str] = []
    candidates: list[str] = []
    """The node ids of the members that have the ambiguous name."""
    state: str = ""
    """The node's state, of a node that is not ready."""
    codes: list[str] = []
    """The codes of all its faults."""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """What /readyz says. ``reasons`` are why the node is not ready, ``codes`` those of all faults."""

    ready: bool
    state: Life
    reasons: list[str] = []
    codes: list[str] = []


class NodePort(Protocol):
    """All that the API knows of a node."""

    @property
    def metrics(self) -> "Metrics": ...

    @property
    def events(self) -> "EventLog": ...

    @property
    def tokens(self) -> "TokenDesk": ...

    @property
    def audit(self) -> "AuditTrail": ...

    def status(self) -> Status: ...

    def peers(self) -> list[PeerView]: ...

    def links(self) -> list[LinkView]: ...

    def scatter(self) -> list[ScatterView]: ...

    def proofs(self) -> list[ProofsView]: ...

    async def export_proofs(self, peer: str | None) -> bytes:
        """A file of all scatter proofs, or of those of one peer, by node id."""
        ...

    def paths(self) -> list[PathView]: ...

    def measured(self) -> list[PathView]:
        """The same without reasons (``why``), for what is read all the time."""
        ...

    async def ping(self, peer: str, *, count: int, size: int | None) -> PingResult:
        """Ping one peer, by node id, inside each dimension; ``size`` is that of each ping in bytes."""
        ...

    async def topology(self) -> TopologyView:
        """The mesh as its members measure it, and what is weak about it."""
        ...

    def surveyed(self) -> TopologyView:
        """The same as it was found last; nobody is asked."""
        ...

    def routes(self) -> RoutesView:
        """Prefixes beyond the mesh: who may route them, and what this node takes."""
        ...

    def explain(self, dest: str) -> Explanation:
        """Which way traffic to a member, by name, node id or address, or to any other address goes."""
        ...

    async def approve_routes(self, wanted: str, prefixes: Sequence[str]) -> RouteResult:
        """Approve that a member, by name or node id, routes these prefixes."""
        ...

    async def withdraw_routes(self, wanted: str, prefixes: Sequence[str]) -> RouteResult:
        """Withdraw these prefixes from a member, which stays one."""
        ...

    def federation(self) -> FederationView:
        """Pacts with other meshes, and their members that this node links with."""
        ...

    async def invite_mesh(
        self,
        members: Sequence[str],
        services: Sequence[str],
        gateways: Sequence[str],
        *,
        life: float,
        ttl: float,
    ) -> FederationInvited:
        """Make a line for another mesh, good for ``ttl`` seconds; the pact holds for ``life``."""
        ...

    async def accept_pact(
        self,
        line: str,
        members: Sequence[str],
        services: Sequence[str],
        gateways: Sequence[str],
        *,
        life: float,
    ) -> PactResult:
        """Make a pact with the mesh that gave out a line."""
        ...

    async def end_pact(self, pact: str) -> PactResult:
        """End a pact, by its id or the beginning of it, for both meshes."""
        ...

    async def acl(self) -> AclView:
        """The access rules, and what came by each."""
        ...

    def acl_check(self, source: str, target: str, protocol: int, port: int, *, family: int) -> AclCheckView:
        """Whether a new connection passes, by which rule."""
        ...

    async def threats(self) -> ThreatsView:
        """Attacks that this node has seen, and what it does against them."""
        ...

    async def bans(self) -> BansView:
        """The bans that stand."""
        ...

    async def ban(self, wanted: str, seconds: float, *, force: bool, dry_run: bool) -> BanResult:
        """Ban an address or a network. ``force``: also what is never banned."""
        ...

    async def unban(self, network: str | None, by: str | None, *, dry_run: bool = False) -> UnbanResult:
        """Lift the bans of a network, or all of one origin. A dry run only says which."""
        ...

    async def invites(self) -> InvitesView:
        """The invites of this authority until they run out. Raises TrustError where this node is none."""
        ...

    async def make_invite(self, wanted: "InviteRequest", *, dry_run: bool) -> InviteMade:
        """Make an invite. A dry run only says whether that would be refused."""
        ...

    async def withdraw_invite(self, wanted: str) -> WithdrawnView:
        """Take an invite back, by its id or the beginning of it. Raises UnknownMemberError."""
        ...

    async def netcheck(self) -> NetCheck:
        """This host's network, and how members reach this node."""
        ...

    def life(self) -> Life:
        """What the node is at."""
        ...

    def ready(self) -> Readiness:
        """Whether the node does its work, and what is wrong."""
        ...

    def agents(self) -> list[AgentView]:
        """All agents in the order of precedence, APEX first."""
        ...

    def agent(self, name: str) -> AgentDetail:
        """One agent. Raises UnknownMemberError."""
        ...

    def decisions(
        self,
        after: int,
        limit: int,
        *,
        agent: str | None = None,
        accepted: bool = False,
        newest: bool = False,
    ) -> list[DecisionView]:
        """At most so many decisions of this run with a number above ``after``: the oldest of these, or the
        newest. Oldest first."""
        ...

    def incidents(self) -> list[IncidentView]:
        """What several agents did about one thing, by when that began."""
        ...

    async def memory(self) -> MemoryView:
        """The memory of threats."""
        ...

    def pause_agent(self, name: str, *, dry_run: bool = False) -> AgentsResult:
        """Stop an agent, or ``all``. A dry run changes nothing."""
        ...

    def resume_agent(self, name: str, *, trying: bool, dry_run: bool = False) -> AgentsResult:
        """Let an agent, or ``all``, go on, or only say what it would do (``trying``). A dry run changes
        nothing."""
        ...

    async def rotate(self, peer: str | None, uid: int | None = None) -> RotationResult:
        """Rotate the PSKs of one peer, by node id, or of all (None)."""
        ...

    def drain_state(self) -> DrainView:
        """Whether this node drains."""
        ...

    async def drain(self, seconds: float, *, force: bool, dry_run: bool) -> DrainView:
        """Have members use other routers, exits and relays for so long at most; ``force``: also while another
        node of the region drains. A dry run only says whether that would be refused."""
        ...

    async def set_policy(self, text: str, *, dry_run: bool) -> PolicyResult:
        """Sign an access policy in TOML for the whole mesh. A dry run only says whether it passes its
        tests."""
        ...

    async def undrain(self, *, dry_run: bool = False) -> DrainView:
        """Have members use this node again. A dry run only says how it stands."""
        ...

    async def config_text(self) -> ConfigView:
        """The configuration's file, and what the node does not run with of it."""
        ...

    async def set_config(self, text: str, *, dry_run: bool) -> ConfigResult:
        """Check a configuration, write it to the file and take over what can be: all of it or nothing. A dry
        run only checks."""
        ...

    async def rename(self, name: str) -> NameResult:
        """Give this node another name, by a certificate of the same identity."""
        ...

    async def new_identity(self) -> IdentityResult:
        """Give this node a new identity under its name; the old one is revoked."""
        ...

    async def revoke(
        self, wanted: str, *, force: bool, dry_run: bool, undo: bool = False, undo_all: bool = False
    ) -> RevocationResult:
        """Put a node, by name or node id, out of the mesh. ``force`` allows this node itself. With ``undo``
        the root takes the node back, with ``undo_all`` it casts an authority out and takes back the nodes
        that the authority revoked."""
        ...
