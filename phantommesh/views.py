# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node tells the outside: the values the API serialises and the command line decodes.

Field names and meanings are the public interface: add freely, change or drop nothing silently. Readers
ignore fields they do not know, so an older command line reads a newer node. Durations are seconds, sizes
bytes, dates RFC 3339 text in UTC. No value here may hold a secret.
"""

from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:  # prometheus-client would double what a command line verb takes to start
    from phantommesh.metrics import Metrics

LinkState = Literal["fresh", "unsure", "stale", "random", "none"]
LINK_STATES: tuple[LinkState, ...] = ("fresh", "unsure", "stale", "random", "none")

Item = TypeVar("Item")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """This node at a glance. ``degraded`` is empty when all is well; each entry says what to do."""

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
    """Peers whose every dimension has a post-quantum PSK and answers."""
    degraded: list[str]
    certificate_expires: str


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
    endpoint: str | None
    dimensions: list[DimensionView]
    rx_bytes: int
    tx_bytes: int


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
    chain_reset: bool
    """True when the last handshake could not build on the chain of the one before it."""
    last_error: str | None


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


class ScatterView(msgspec.Struct, frozen=True, kw_only=True):
    """How traffic to one peer is scattered. A peer that has no keys, or whose traffic takes dimension 0
    alone, has none."""

    peer: str
    node_id: str
    mode: Literal["egress", "mark"]
    scheduler: str
    link_epoch: int
    epoch: int
    """The number of the map within the link's epoch."""
    epoch_age_s: float
    entropy_bits: float | None
    """Of the packets of this epoch and the one before; None while there are none. 2.807 at equal shares."""
    dimensions: list[ScatterDimension]


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one peer's rotation; ``detail`` says why one failed and what to do."""

    peer: str
    node_id: str
    result: Literal["rotated", "started", "failed", "planned"]
    epoch: int | None = None
    detail: str | None = None


class RotationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/rotations, one entry a peer. A dry run plans and changes nothing."""

    rotations: list[Rotation]
    dry_run: bool = False


class RevocationResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/revocations. ``already``: it was revoked before, and nothing changed."""

    node_id: str
    name: str | None
    """None for a node that is not, or no longer, a member as far as this node knows."""
    revoked_at: str | None
    """None in a dry run."""
    already: bool = False
    dry_run: bool = False


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """One page of a list. Pass ``next_cursor`` as ``cursor`` for the next page; None: this was the last."""

    items: list[Item]
    next_cursor: str | None


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as RFC 9457 problem details, with ``fix`` and ``reasons`` as extension members."""

    status: int
    title: str
    type: str = "about:blank"
    detail: str = ""
    fix: str = ""
    reasons: list[str] = []


class NodePort(Protocol):
    """All that the API knows of a node."""

    @property
    def metrics(self) -> "Metrics": ...

    def status(self) -> Status: ...

    def peers(self) -> list[PeerView]: ...

    def links(self) -> list[LinkView]: ...

    def scatter(self) -> list[ScatterView]: ...

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the node does its work, and when not, the reasons."""
        ...

    async def rotate(self, peer: str | None) -> RotationResult:
        """Rotate the PSKs of one peer, by node id, or of all (None)."""
        ...

    async def revoke(self, wanted: str, *, force: bool, dry_run: bool) -> RevocationResult:
        """Put a node, by name or node id, out of the mesh for ever. ``force`` allows this node itself."""
        ...
