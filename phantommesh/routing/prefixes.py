# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes beyond the mesh this node sends to members that route them, and to whom first. Pure.

A member routes a prefix if its certificate names the prefix and its record offers the prefix now. Taking one
is this node's own choice (``accept``): none is taken by default. Where prefixes overlap, the kernel's longest
match decides between them. A default route is another choice: it is taken of members by name alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.overlay.prefixes import HostRange
from phantommesh.routable import EXITS, Network, Places, is_exit, order, overlap, within

EVERYTHING: Final = EXITS


@dataclass(frozen=True, slots=True)
class Offer:
    """One prefix that a member's certificate says it may route, and that it offers now. ``router`` is a node
    id; ``leaving``: the router is about to go."""

    prefix: Network
    router: bytes
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A prefix that this node takes, with the node ids of its routers in order of preference. ``leaving`` are
    those of them that are about to go: they come last."""

    prefix: Network
    routers: tuple[bytes, ...]
    leaving: frozenset[bytes] = frozenset()


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

    The routers of a prefix are in the order of the offers, but for those that are about to go, which come
    last: the first is the one to use while it works.
    ``host`` is what this host has that is not ours, without default routes. A prefix within a range of the
    host's own is a conflict: it would take that network from the host. A range of the host's within a prefix
    is none: the host's route is longer, and stays.
    """
    routers: dict[Network, dict[bytes, None]] = {}
    leaving = set[bytes]()
    for offer in sorted(offers, key=lambda one: one.leaving):
        if accepted(offer.prefix, accept):
            routers.setdefault(offer.prefix, {})[offer.router] = None
            if offer.leaving:
                leaving.add(offer.router)
    if not routers:
        return (), ()
    meshes, ranges = list(overlay), Places((own.network, own) for own in host)
    found, conflicts = list[Taken](), list[Conflict]()
    for prefix in sorted(routers, key=order):
        by = tuple(routers[prefix])
        why = _conflict(prefix, meshes, ranges)
        if why:
            conflicts.append(Conflict(prefix, by, why))
        else:
            found.append(Taken(prefix, by, frozenset(leaving.intersection(by))))
    return tuple(found), tuple(conflicts)


def exits(offers: Sequence[Offer], liked: Mapping[bytes, int]) -> tuple[Taken, ...]:
    """Say which default routes are taken of the ``offers``: those of the members that ``liked`` has, by the
    place of each, the least first."""
    found = list[Taken]()
    for prefix in EXITS:
        by = {o.router: o.leaving for o in offers if o.prefix == prefix and o.router in liked}
        if by:
            routers = tuple(sorted(by, key=lambda router: (by[router], liked[router], router)))
            found.append(Taken(prefix, routers, frozenset(one for one in by if by[one])))
    return tuple(found)


def accepted(prefix: Network, accept: Iterable[Network]) -> bool:
    """Whether the operator allows that this prefix is taken, whatever the host has. No list of prefixes
    allows a default route."""
    return not is_exit(prefix) and any(within(prefix, network) for network in accept)


def _conflict(prefix: Network, overlay: Iterable[Network], host: Places[HostRange]) -> str:
    """Why a prefix cannot be taken here; empty where it can."""
    for network in overlay:
        if overlap(prefix, network):
            return f"it overlaps the overlay {network}"
    holding = host.holding(prefix)
    # The widest, and of several for one network the same each time.
    own = min(holding, key=lambda one: (one.network.prefixlen, str(one)), default=None)
    return "" if own is None else f"this host's {own} has these addresses already"
