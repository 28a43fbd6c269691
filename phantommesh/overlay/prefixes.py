# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes mean the overlay on this host: the one place that says so.

Normally they are the mesh's two networks. A host may live in a part of them itself (a provider's CGNAT has
100.64.0.0/10, too): its own ranges are then left out, so that its gateway stays where it is. A member's
address is never left out. docs/decisions/0002-overlay-range.md has the rule and its reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network
from typing import Final, Literal, NamedTuple

from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.routable import collapse, less, overlap
from phantommesh.wireguard.device import Network

OVERLAY_CONFLICT = FaultKind("overlay-conflict", "high")

Address = IPv4Address | IPv6Address

CLOSED_METRIC: Final = 0xFFFFFFFF
"""The metric of the routes that close the overlay where nothing carries it: the worst there is."""

DEFAULT_PREFIX: Final = 1
"""A route as short as this is a default route: some VPNs install two halves (0.0.0.0/1, 128.0.0.0/1)."""

# Tuning.
MAX_PIECES: Final = 256  # of one network; a host whose ranges would cut it up further is refused
MAX_SPARED: Final = (
    16  # of one network; the kernel goes through rules one by one, for every packet of the host
)
_NAMED: Final = 3  # members named in one sentence


Kind = Literal["address", "gateway", "route"]


class OverlapError(PhantomMeshError):
    """The overlay's range and the host's own cannot both work. Names both."""


@dataclass(frozen=True, slots=True, order=True)
class HostRange:
    """Addresses that mean something on the host already: an ``address`` of its own, a ``route`` that is not
    ours, or a ``gateway`` of one. ``interface`` is empty where there is none to name."""

    kind: Kind
    network: Network
    interface: str

    def __str__(self) -> str:
        where = f" ({self.interface})" if self.interface else ""
        if self.kind == "route":
            return f"route {self.network}{where}"
        return f"{self.kind} {self.network.network_address}{where}"


class Closing(NamedTuple):
    """One thing that closes the overlay's range, as the kernel has it. A ``route`` is unreachable, of the
    worst metric. The others are policy rules, in the order in which they are asked: ``spare`` sends a range
    of the host's own to the main table, ``overlay`` does so for the overlay but takes no default route, and
    ``fence`` ends what is left."""

    kind: Literal["route", "spare", "overlay", "fence"]
    network: Network


@dataclass(frozen=True, slots=True)
class Plan:
    """``routed``: the prefixes that lead into the overlay. ``closed``: what closes them where nothing carries
    them. ``avoided``: the host's ranges that they leave out. ``conflicts``: a sentence for each range of the
    host's that holds an address of a member's."""

    routed: tuple[Network, ...]
    closed: frozenset[Closing]
    avoided: tuple[HostRange, ...] = ()
    conflicts: tuple[str, ...] = ()


def plan(networks: Iterable[Network], members: Mapping[Address, str], host: Iterable[HostRange]) -> Plan:
    """Say what to route, given the mesh's ``networks``, the ``members``' names by overlay address (this
    node's among them) and what the ``host`` has that is not ours; default routes are not to be among it."""
    listed = list(host)
    plans = [_plan(network, members, listed) for network in networks]
    return Plan(
        tuple(prefix for one in plans for prefix in one.routed),
        frozenset(closing for one in plans for closing in one.closed),
        tuple(own for one in plans for own in one.avoided),
        tuple(sentence for one in plans for sentence in one.conflicts),
    )


def _plan(network: Network, members: Mapping[Address, str], host: Iterable[HostRange]) -> Plan:
    """The plan for one network of the mesh's."""
    met = sorted({own for own in host if overlap(own.network, network)})
    here = {address: name for address, name in members.items() if address in network} if met else {}
    avoided, conflicts = list[HostRange](), list[str]()
    for own in met:
        held = [(a, n) for a, n in sorted(here.items(), key=_by_address) if a in own.network]
        if held:
            conflicts.append(_conflict(own, network, held))
        elif network.prefixlen >= own.network.prefixlen:
            conflicts.append(f"this host's {own} holds all of the overlay {network}")
        else:
            avoided.append(own)
    holes = collapse(own.network for own in met)
    pieces = less(network, holes, MAX_PIECES)
    if pieces is None:
        conflicts.append(f"this host has more ranges in the overlay {network} than can be gone round")
    outside = [a for a in here if not any(a in piece for piece in pieces or ())]
    routed = collapse([*(pieces or ()), *(ip_network(address) for address in outside)])
    closed = {Closing("route", prefix) for prefix in routed}
    if pieces and len(holes) <= MAX_SPARED:
        closed |= {Closing("spare", hole) for hole in holes}
        closed |= {Closing("overlay", network), Closing("fence", network)}
    return Plan(tuple(routed), frozenset(closed), tuple(avoided), tuple(conflicts))


def refusal(found: Plan) -> OverlapError | None:
    """Return the error to raise if a plan has conflicts; None if it has none."""
    if not found.conflicts:
        return None
    more = f" (and {len(found.conflicts) - _NAMED} more)" if len(found.conflicts) > _NAMED else ""
    return OverlapError(
        "; ".join(found.conflicts[:_NAMED]) + more,
        fix="remove that address or route, or renumber the host's network; a mesh's range cannot change, "
        "another (as a second mesh on one host needs) is chosen with `phantommesh init --cidr NETWORK`",
    )


def check_range(configured: str, network4: IPv4Network) -> None:
    """Raise OverlapError where the configuration's ``overlay.cidr4`` is not the mesh's network: its root
    certificate decides."""
    if IPv4Network(configured) != network4:
        raise OverlapError(
            f"overlay.cidr4 = {configured} is not this mesh's network: its certificate says {network4}",
            fix=f'set overlay.cidr4 = "{network4}" again; another range needs another mesh: `phantommesh '
            f"--state-dir NEW --config NEW init --mesh NAME --cidr {configured}`, which the others then join",
        )


def _by_address(item: tuple[Address, str]) -> int:
    return int(item[0])


def _conflict(met: HostRange, network: Network, held: Sequence[tuple[Address, str]]) -> str:
    if met.network.num_addresses == 1:
        does = "takes" if met.kind == "route" else "is"
        return f"this host's {met} {does} the overlay address of {held[0][1]}"
    named = ", ".join(f"{name} ({address})" for address, name in held[:_NAMED])
    more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    return f"this host's {met} overlaps the overlay {network} where it has {named}{more}"
