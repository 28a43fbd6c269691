# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes beyond the mesh this node sends to members that route them, and to whom first. Pure.

A member routes a prefix if its certificate names the prefix and its record offers the prefix now. Taking one
is this node's own choice (``accept``): none is taken by default. Where prefixes overlap, the kernel's longest
match decides between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from phantommesh.overlay.prefixes import HostRange
from phantommesh.routable import Network, order, overlap

EVERYTHING: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


@dataclass(frozen=True, slots=True)
class Offer:
    """One prefix that a member's certificate says it may route, and that it offers now. ``router`` is a node
    id."""

    prefix: Network
    router: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """A prefix that this node takes, with the node ids of its routers in order of preference."""

    prefix: Network
    routers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Conflict:
    """A prefix that this node would take and does not: ``why`` is the end of the sentence "PREFIX is not
    taken: ". ``routers`` are those that offer it."""

    prefix: Network
    routers: tuple[bytes, ...]
    why: str


def taken(
    offers: Iterable[Offer], accept: Sequence[Network], overlay: Iterable[Network], host: Iterable[HostRange]
) -> tuple[tuple[Taken, ...], tuple[Conflict, ...]]:
    """Say which of the ``offers`` this node takes, sorted by prefix, and which it cannot.

    The routers of a prefix are in the order of the offers: the first is the one to use while it works.
    ``host`` is what this host has that is not ours, without default routes. A prefix within a range of the
    host's own is a conflict: it would take that network from the host. A range of the host's within a prefix
    is none: the host's route is longer, and stays.
    """
    routers: dict[Network, dict[bytes, None]] = {}
    for offer in offers:
        if accepted(offer.prefix, accept):
            routers.setdefault(offer.prefix, {})[offer.router] = None
    if not routers:
        return (), ()
    meshes, ranges = list(overlay), _Ranges(host)
    found, conflicts = list[Taken](), list[Conflict]()
    for prefix in sorted(routers, key=order):
        by = tuple(routers[prefix])
        why = _conflict(prefix, meshes, ranges)
        if why:
            conflicts.append(Conflict(prefix, by, why))
        else:
            found.append(Taken(prefix, by))
    return tuple(found), tuple(conflicts)


def accepted(prefix: Network, accept: Iterable[Network]) -> bool:
    """Whether the operator allows that this prefix is taken, whatever the host has."""
    return any(_within(prefix, network) for network in accept)


class _Ranges:
    """The host's own ranges, to be asked which holds a prefix: a router of the internet has a million."""

    def __init__(self, host: Iterable[HostRange]) -> None:
        self._by_place: dict[tuple[int, int, int], HostRange] = {}
        for own in host:
            network = own.network
            place = _place(network, network.prefixlen)
            held = self._by_place.get(place)
            if held is None or str(own) < str(held):  # the same one is named each time
                self._by_place[place] = own
        self._lengths = sorted({(version, length) for version, length, _ in self._by_place})

    def holding(self, prefix: Network) -> HostRange | None:
        """The widest range that holds all of a prefix."""
        for version, length in self._lengths:
            if version != prefix.version or length > prefix.prefixlen:
                continue
            if (own := self._by_place.get(_place(prefix, length))) is not None:
                return own
        return None


def _place(network: Network, length: int) -> tuple[int, int, int]:
    """The prefix of this length that holds a network's first address."""
    return network.version, length, int(network.network_address) >> (network.max_prefixlen - length)


def _conflict(prefix: Network, overlay: Iterable[Network], host: _Ranges) -> str:
    """Why a prefix cannot be taken here; empty where it can."""
    for network in overlay:
        if overlap(prefix, network):
            return f"it overlaps the overlay {network}"
    own = host.holding(prefix)
    return "" if own is None else f"this host's {own} has these addresses already"


def _within(prefix: Network, network: Network) -> bool:
    if isinstance(prefix, IPv4Network) and isinstance(network, IPv4Network):
        return prefix.subnet_of(network)
    return isinstance(prefix, IPv6Network) and isinstance(network, IPv6Network) and prefix.subnet_of(network)
