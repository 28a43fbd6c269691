# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to GET /v1/netcheck: this host's network, and how members reach this node.

`phantommesh netcheck` makes the part that needs no node (uplinks, features) by itself where none runs.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from phantommesh.faults import Fault

Family = Literal["ipv4", "ipv6"]
NatKind = Literal["none", "port-preserving", "other-port", "random", "unknown"]
"""What lies between this node and the members that see it. ``none``: they see this host's own address.
``port-preserving``: another address with this node's own ports. ``other-port``: one other port, the same for
all. ``random``: another port for each member."""
PortmapMethod = Literal["pcp", "nat-pmp", "upnp"]
NAT_KINDS: Final[tuple[NatKind, ...]] = ("none", "port-preserving", "other-port", "random", "unknown")


class UplinkView(msgspec.Struct, frozen=True, kw_only=True):
    """An interface by which this host reaches others. ``default_for``: the families that have a default route
    over it; ``mtu`` in bytes, None where it cannot be read."""

    interface: str
    mtu: int | None
    addresses: list[str]
    default_for: list[Family]


class NatView(msgspec.Struct, frozen=True, kw_only=True):
    """What members see of this node in one family of addresses. ``public``: the places of its control port
    that are not this host's own, as they see it; ``witnesses``: how many members say so. ``open``: strangers'
    datagrams come in at WireGuard's ports; ``lives_s``: for how long a mapping surely lives that nobody uses;
    None: not measured. ``keepalive_s``: seconds between keepalives, None where there are none. These are for
    peers elsewhere, or, where nothing was measured with one, for peers in a network of this host's."""

    family: Family
    kind: NatKind
    public: list[str]
    witnesses: int
    why: str
    open: bool | None = None
    lives_s: float | None = None
    keepalive_s: int | None = None


class GatewayView(msgspec.Struct, frozen=True, kw_only=True):
    """A router that is asked to open ports. ``private``: it did, at an address that others do not reach.
    ``method``: the protocol by which it answers; ``ports``: how many it has mapped, TCP's among them."""

    address: str
    state: Literal["mapped", "private", "refused", "silent"]
    method: PortmapMethod | None = None
    endpoint: str | None = None
    ports: int = 0
    why: str
    fix: str = ""


class PortmapView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a router has opened ports for this node. ``endpoint``: the control port as it is mapped.
    ``none``: no router answers, or none is asked."""

    state: Literal["off", "none", "refused", "private", "mapped", "unknown"]
    endpoint: str | None = None
    why: str = ""
    fix: str = ""
    gateways: list[GatewayView] = []


class RelayView(msgspec.Struct, frozen=True, kw_only=True):
    """Relays as this node knows them. ``port``: its own UDP port, None where it relays for nobody; ``leases``
    that it has given; ``offered``: the members that offer to relay, by name."""

    port: int | None = None
    leases: int = 0
    offered: list[str] = []


class ReachedView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the control port is reached by one transport, by members' word; None: nobody knows."""

    transport: Literal["udp", "tcp"]
    reached: bool | None
    by: list[str]
    why: str


class ClockView(msgspec.Struct, frozen=True, kw_only=True):
    """This machine's clock against those of members. ``ahead_s``: by how many seconds it is ahead of most of
    them, less than 0: behind; it is known to about a second. None: too few have said."""

    ahead_s: float | None
    members: int


class FeatureView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the node needs, or works better with, of the kernel or of this machine. ``there`` None:
    not known. ``why`` says what it is for, or what to do."""

    name: str
    there: bool | None
    why: str


class NetCheck(msgspec.Struct, frozen=True, kw_only=True):
    """``node`` is this node's name, None where no node runs and the command line looked by itself.
    ``unknown`` says in words what could not be known, and why."""

    node: str | None
    uplinks: list[UplinkView]
    nat: list[NatView] = []
    portmap: PortmapView = PortmapView(state="unknown")
    hairpin: bool | None = None
    """Whether this node reaches itself at its own public address; None: not tried."""
    overlay_mtu: int | None = None
    """The interfaces' MTU in bytes."""
    least_mtu: int | None = None
    """The largest packet that every peer with a path may be sent."""
    relays: RelayView = RelayView()
    reached: list[ReachedView] = []
    clock: ClockView = ClockView(ahead_s=None, members=0)
    features: list[FeatureView] = []
    faults: list[Fault] = []
    unknown: list[str] = []
