# SPDX-License-Identifier: GPL-3.0-or-later
"""The bodies that a client sends to the API, and the probes' answer. All other answers are in `views`."""

from ipaddress import ip_network
from typing import Annotated, Final, Literal

import msgspec

from phantommesh.management.views import Life
from phantommesh.routable import MAX_ROUTES


class RotationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/rotations: a peer's name or node id; none or null: every peer."""

    peer: str | None = None


MAX_PINGS = 50  # of one request, in each dimension


class PingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/pings: a peer's name or node id, how many pings in each dimension, and the bytes
    of each as a packet of the overlay; none or null: as small as probes."""

    peer: str
    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_PINGS)] = 4
    size: Annotated[int, msgspec.Meta(ge=40, le=9000)] | None = None


class RevocationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/revocations: a name or node id; ``force`` lets an authority revoke itself.
    ``undo`` takes the node back, ``undo_all`` casts an authority out and takes back the nodes that it
    revoked; both need the root's key."""

    node: str
    force: bool = False
    undo: bool = False
    undo_all: bool = False


class RouteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/routes/approvals and /v1/routes/withdrawals: a member's name or node id, and
    prefixes."""

    node: str
    prefixes: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_ROUTES)]


class FederationOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this mesh puts into a pact: members by name or node id; services as ``MEMBER:PORTS:USERS``, ports
    as ``tcp/443``; gateways, none for this node; how many seconds it holds."""

    members: Annotated[list[str], msgspec.Meta(max_length=1024)] = []
    services: Annotated[list[str], msgspec.Meta(max_length=1024)] = []
    gateways: Annotated[list[str], msgspec.Meta(max_length=4)] = []
    life: Annotated[float, msgspec.Meta(gt=0)] = 365 * 86_400.0


class FederationInviteRequest(FederationOffer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/federation/invites: an offer, and for how many seconds the line is good."""

    ttl: Annotated[float, msgspec.Meta(gt=0, le=30 * 86_400)] = 3600.0


class FederationAcceptRequest(FederationOffer, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/federation/pacts: the other mesh's line, and an offer."""

    line: Annotated[str, msgspec.Meta(max_length=4096)]

    def __repr__(self) -> str:
        return "FederationAcceptRequest(***)"


class PactRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/federation/ends: a pact's id, or the beginning of it."""

    pact: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]


class BanRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/bans: an address or a network, for how many seconds; ``force``: also what is never
    banned."""

    network: Annotated[str, msgspec.Meta(max_length=64)]
    seconds: Annotated[float, msgspec.Meta(gt=0)] = 600.0
    force: bool = False


# Tuning. A ban beyond these is for root: by several, the host would be cut off from everybody.
MOST_SECONDS: Final = 86_400.0  # as long as a node's own evidence bans at most
WIDEST: Final = {4: 24, 6: 48}  # bits of the prefix, by version


def grave(wanted: BanRequest) -> bool:
    """Whether a ban takes more than the right to operate the node."""
    try:
        network = ip_network(wanted.network.strip("[]"), strict=False)
    except ValueError:  # it will be refused
        return wanted.force or wanted.seconds > MOST_SECONDS
    wide = network.prefixlen < WIDEST[network.version]
    return wide or wanted.force or wanted.seconds > MOST_SECONDS


class PauseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/agents/{name}/pause: nothing to choose."""


class ResumeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/agents/{name}/resume. ``dry_run``: the agent only says what it would do."""

    dry_run: bool = False


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/drain: after how many seconds the node is at work again by itself, and whether it
    drains also while another node of its region does."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 3600.0
    force: bool = False


class PolicyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/acl/policy: the mesh's policy in TOML, with `default`, `[[rule]]` and
    `[[test]]`."""

    policy: Annotated[str, msgspec.Meta(max_length=65_536)]


class UndrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/undrain: nothing to choose."""


class NameRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/names: this node's next name."""

    name: str


class IdentityRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/identities: nothing to choose."""


MAX_INVITE_LIFE: Final = 30 * 86_400.0  # s, as trust/invites.py has it


class InviteRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/invites: for how many seconds the invite may be used, by a node of which name
    (null: any), with which role and tags, by how many nodes, and at which endpoints (``HOST[:PORT]``) they
    reach this authority; none: those of the configuration. ``replace``: a lost member, by name or node id,
    whose place it is for; that says name, role and uses."""

    seconds: Annotated[float, msgspec.Meta(ge=1, le=MAX_INVITE_LIFE)] = 3600.0
    name: Annotated[str, msgspec.Meta(max_length=63)] | None = None
    role: Literal["node", "authority"] = "node"
    uses: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1
    replace: Annotated[str, msgspec.Meta(max_length=63)] | None = None
    tags: Annotated[list[Annotated[str, msgspec.Meta(max_length=63)]], msgspec.Meta(max_length=16)] = []
    endpoints: Annotated[list[Annotated[str, msgspec.Meta(max_length=300)]], msgspec.Meta(max_length=3)] = []


class ConfigRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PUT /v1/config: the whole configuration in TOML, as its file has it."""

    config: Annotated[str, msgspec.Meta(max_length=65_536)]


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of /healthz and /readyz when the node is at its work. ``state`` is what the node is at;
    ``faults`` are the codes of what is wrong all the same, of /readyz only."""

    status: Literal["ok", "ready"]
    state: Life | None = None
    faults: list[str] = []
