# SPDX-License-Identifier: GPL-3.0-or-later
"""What an exit has and what it has not: addresses that stay with each host, and the guard's rules on them.
Pure.

A node whose traffic leaves by an exit keeps three things on its own interfaces: what carries the mesh, what
keeps a link alive, and, if its operator wants that, its own private networks. A node that is an exit leads
members to the internet and not into its own networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Final

from phantommesh.nftables.text import anonymous
from phantommesh.routable import Network, in_order, is_exit, within

LINK: Final[tuple[Network, ...]] = tuple(
    # RFC 1112; RFC 919; RFC 4291, sections 2.5.6 and 2.7
    map(ip_network, ("224.0.0.0/4", "255.255.255.255/32", "fe80::/10", "ff00::/8"))
)
"""Addresses that mean a host's own link, whatever link that is."""

_PRIVATE: Final[tuple[Network, ...]] = tuple(
    # RFC 1918, RFC 3927, RFC 4193
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7"))
)

NOT_THE_INTERNET: Final[tuple[Network, ...]] = tuple(
    map(
        ip_network,
        (
            # The IANA registry of special-purpose addresses (RFC 6890), as far as no host of the internet has
            # one. 169.254.0.0/16 has the clouds' metadata services, but for Azure's 168.63.129.16.
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3", "168.63.129.16/32",
            # All but 2000::/3, and in that the tunnels whose addresses hold one of IPv4 (RFC 4380, RFC 3056).
            "::/3", "4000::/2", "8000::/1", "2001::/32", "2002::/16",
        ),
    )
)  # fmt: skip
"""What no exit leads to."""

MAX_BESIDE: Final = 64  # networks of the host's own that stay beside an exit
MAX_AROUND: Final = 256  # networks of an exit's own; one with more of them forwards nothing

# RFC 4861, RFC 2710, RFC 3810: neighbours, routers and groups of a link. The kernel takes those of neighbours
# and routers with a hop limit of 255 alone, so from the link itself.
_LINK_OUT: Final = (
    "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, "
    "mld-listener-done, mld2-listener-report }"
)
_LINK_IN: Final = (
    "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-query }"
)
# RFC 2131, RFC 8415: the ports of DHCP's clients, and of its servers.
_DHCP: Final = ((68, 67), (546, 547))
_DNS: Final = (53, 853)  # RFC 1035, RFC 7858


def beside(connected: Iterable[Network]) -> tuple[Network, ...]:
    """Those of a host's connected networks that may stay beside an exit. A network of public addresses is
    none of them: whoever runs an access point can say that any address is in its network."""
    found = (one for one in connected if any(within(one, private) for private in _PRIVATE))
    return in_order(found)[:MAX_BESIDE]


def arriving(linked: Sequence[Network], taken: Sequence[Network]) -> list[str]:
    """The guard's rules for what comes to a node with an exit by other interfaces than the mesh's, and is
    taken. ``linked`` is what the node keeps beside the exit. Prefixes that it has ``taken`` of members are no
    part of that, however wide a network the host is told that it is in."""
    return [
        *(f"{match} accept" for match in _matches(linked, "saddr", taken)),
        f"{_LINK_IN} accept",
        *(f"udp sport {server} udp dport {client} accept" for client, server in _DHCP),
    ]


def leaving(linked: Sequence[Network], taken: Sequence[Network], drop: str) -> list[str]:
    """The same for what leaves by other interfaces than the mesh's. Questions for names do not: ``drop`` is
    the end of their rules."""
    names = f"meta l4proto {{ tcp, udp }} th dport {anonymous(_DNS)} {drop}"
    return [
        f"{_LINK_OUT} accept",
        *(f"udp sport {client} udp dport {server} accept" for client, server in _DHCP),
        *(f"{match} {names}" for match in _matches(linked, "daddr")),
        *(f"{match} accept" for match in _matches(linked, "daddr", taken)),
    ]


def led(overlay: Sequence[Network], routes: Iterable[Network], around: Sequence[Network] | None) -> list[str]:
    """Matches of what members may send to an exit's default ``routes``, one a family: from the overlay to the
    internet, but for the networks ``around`` the exit. While those are not known there is nothing."""
    if around is None:
        return []
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        source = [one for one in overlay if one.version == version]
        if source and any(one.version == version and is_exit(one) for one in routes):
            closed = in_order(n for n in (*NOT_THE_INTERNET, *around, *overlay) if n.version == version)
            found.append(f"{header} saddr {anonymous(source)} {header} daddr != {anonymous(closed)}")
    return found


def answered(overlay: Sequence[Network], routes: Iterable[Network]) -> list[str]:
    """Matches of answers from there, one a family."""
    versions = {one.version for one in routes if is_exit(one)}
    return _matches([one for one in overlay if one.version in versions], "daddr")


def _matches(networks: Sequence[Network], end: str, less: Sequence[Network] = ()) -> list[str]:
    """Matches of packets whose ``end`` is in one of the networks and in none that is ``less``, one a
    family."""
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        mine, but = ([one for one in some if one.version == version] for some in (networks, less))
        if mine:
            besides = f" {header} {end} != {anonymous(but)}" if but else ""
            found.append(f"{header} {end} {anonymous(mine)}{besides}")
    return found
