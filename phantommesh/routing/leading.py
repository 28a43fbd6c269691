# SPDX-License-Identifier: GPL-3.0-or-later
"""To whom an address that is no member's leads: into which prefix beyond the mesh, or into none. Pure.

The rules are those of `routing/prefixes.py` and `overlay/beyond.py`: of the prefixes that this node takes the
longest decides, whether somebody carries it or not, and a part that the host has itself stays the host's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeVar

from phantommesh.management.explainview import Leads
from phantommesh.overlay.beyond import Beyond
from phantommesh.routable import Network, is_exit, within
from phantommesh.routing.prefixes import Conflict, Offer, Taken

T = TypeVar("T")

Address = IPv4Address | IPv6Address

NOTHING: Final = Beyond()


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What a node knows of prefixes: the mesh's own networks; those that this node routes itself (``own``),
    for some of which another network is really there (``sites``); those that it takes, cannot take and has
    carried by which member; what this host's kernel was told (``plan``); what members offer by their
    certificates, ask an authority for, and only claim."""

    overlay: Sequence[Network]
    own: Iterable[Network] = ()
    taken: Sequence[Taken] = ()
    conflicts: Sequence[Conflict] = ()
    carried: Mapping[Network, bytes] = field(default_factory=dict)
    plan: Beyond = NOTHING
    offers: Sequence[Offer] = ()
    asked: Sequence[Offer] = ()
    claims: Sequence[Offer] = ()
    sites: Mapping[Network, Network] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lead:
    """``routers`` are those of the prefix, ``carrier`` the one that carries it or nothing (node ids). ``why``
    says what is in the way. ``stale``: the prefix was taken once, and nobody offers it any more."""

    leads: Leads
    prefix: Network | None = None
    routers: tuple[bytes, ...] = ()
    carrier: bytes = b""
    why: str = ""
    stale: bool = False


def read_address(text: str) -> Address | None:
    """Read an address without a zone; an IPv4 address in IPv6's clothes is that IPv4 address. None for
    anything else."""
    if "%" in text:
        return None
    try:
        found = ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


def lead(address: Address, known: Prefixes) -> Lead:
    """Say where packets for this address go; it is no member's."""
    if any(address in network for network in known.overlay):
        return Lead("unclaimed")
    taken = _longest(address, ((one.prefix, one) for one in known.taken))
    conflict = _longest(address, ((one.prefix, one) for one in known.conflicts))
    own = _longest(address, ((prefix, prefix) for prefix in known.own))
    if taken is not None and not any(
        other is not None and other.prefixlen >= taken.prefix.prefixlen
        for other in (own, None if conflict is None else conflict.prefix)
    ):
        return _into(address, taken, known)
    if own is not None and (conflict is None or own.prefixlen >= conflict.prefix.prefixlen):
        return Lead("own", own, why=_translated(address, own, known.sites))
    if conflict is not None:
        return Lead("conflict", conflict.prefix, conflict.routers, why=conflict.why)
    if (closed := _longest(address, ((piece, piece) for piece in known.plan.closed))) is not None:
        return Lead("refused", closed, stale=True)
    ways: tuple[tuple[Leads, Sequence[Offer]], ...] = (
        ("offered", known.offers),
        ("asked", known.asked),
        ("uncertified", known.claims),
    )
    for leads, listed in ways:
        found = _longest(address, ((one.prefix, one.prefix) for one in listed))
        if found is not None:
            by = tuple(one.router for one in listed if one.prefix == found)
            return Lead(leads, found, by)
    return Lead("elsewhere")


def _into(address: Address, taken: Taken, known: Prefixes) -> Lead:
    """Where an address in a prefix that this node takes leads."""
    held = [piece for piece in known.plan.closed if address in piece]
    if is_exit(taken.prefix) and any(address in network for network in known.plan.beside):
        return Lead("host", taken.prefix, taken.routers)
    if not held and any(within(piece, taken.prefix) for piece in known.plan.closed):
        return Lead("host", taken.prefix, taken.routers)
    carrier = known.carried.get(taken.prefix, b"")
    if not carrier:
        return Lead("refused", taken.prefix, taken.routers)
    routed = _longest(address, ((network, network) for network, _ in known.plan.routed))
    closed = _longest(address, ((piece, piece) for piece in held))
    more = len(held) > sum(address in one.prefix for one in known.taken)  # a prefix that nobody offers now
    if more and closed is not None and (routed is None or routed.prefixlen < closed.prefixlen):
        return Lead("refused", closed, stale=True)
    return Lead("carried", taken.prefix, taken.routers, carrier)


def _translated(address: Address, prefix: Network, sites: Mapping[Network, Network]) -> str:
    """What becomes of members' packets for an address of a prefix whose site has other addresses."""
    if (site := sites.get(prefix)) is None:
        return ""
    there = site[int(address) - int(prefix.network_address)]
    return f"what members send to {address} goes to {there} of {site} here"


def _longest(address: Address, found: Iterable[tuple[Network, T]]) -> T | None:
    """What belongs to the longest prefix that holds an address; the first of several."""
    holding = [(prefix.prefixlen, value) for prefix, value in found if address in prefix]
    return max(holding, key=lambda one: one[0])[1] if holding else None
