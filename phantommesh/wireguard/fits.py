# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that keep packets to what their way carries.

One interface has many peers, and a packet's route is looked up by its peer's address. So the limit stands on
routes and not on the interface: one far peer does not make packets to all others small, the limit changes
in place, and IPv6, which an interface below 1280 bytes loses, stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from phantommesh.wireguard.device import Network, Route

IPV6_LEAST: Final = 1280
"""Bytes that each IPv6 link carries (RFC 8200, section 5): Linux refuses to send by a route with less."""
TCP_OVER_IP6: Final = 60
"""Bytes of IPv6's and TCP's headers (RFC 8200, RFC 9293)."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One peer's overlay addresses, and the largest packet in bytes that all of its paths carry."""

    ip4: IPv4Address
    ip6: IPv6Address
    mtu: int


def fitted_routes(
    networks: Iterable[Network], metric: int, largest: int, fits: Iterable[Fitted]
) -> frozenset[Route]:
    """The routes of one interface, whose MTU is ``largest`` bytes: one a network, with the most that any peer
    may be sent, and one for each peer that may be sent less. So a node whose own uplink is the limit has no
    more routes than before."""
    networks, fits = tuple(networks), tuple(fits)
    most = min(largest, max((fit.mtu for fit in fits), default=largest))
    versions = {network.version for network in networks}
    routes = {route_to(network, metric, most, largest) for network in networks}
    for fit in fits:
        if fit.mtu < most:
            hosts: tuple[Network, Network] = (IPv4Network(fit.ip4), IPv6Network(fit.ip6))
            routes |= {
                route_to(host, metric, fit.mtu, largest)
                for host in hosts
                if host.version in versions and any(_holds(network, host) for network in networks)
            }
    return frozenset(routes)


def segment_routes(
    networks: Iterable[Network], metric: int, largest: int, fits: Iterable[Fitted]
) -> frozenset[Route]:
    """The routes for TCP over IPv6 to peers that may be sent less than `IPV6_LEAST`, and to no others. Linux
    refuses other packets by such routes, and forwards none of 1280 bytes, so they belong in a table that only
    this node's own TCP uses."""
    found = fitted_routes((n for n in networks if n.version == 6), metric, largest, fits)
    return frozenset(replace(route, mtu=route.advmss + TCP_OVER_IP6) for route in found if route.advmss)


def short_segments(fits: Iterable[Fitted]) -> tuple[tuple[IPv6Address, int], ...]:
    """The peers, by overlay address, that may be sent less than `IPV6_LEAST`, and how many bytes of TCP over
    IPv6 a segment to each may have: no route says that for packets that are forwarded."""
    return tuple(sorted((fit.ip6, fit.mtu - TCP_OVER_IP6) for fit in fits if fit.mtu < IPV6_LEAST))


def narrowest_routes(
    networks: Iterable[Network], metric: int, largest: int, fits: Iterable[Fitted]
) -> frozenset[Route]:
    """One route a network, with the least that any peer may be sent. For an interface that carries traffic
    where nothing scatters it, and only there: a route for one peer would be longer than the scattered
    network's, and take the peer's traffic from it."""
    least = min((fit.mtu for fit in fits), default=largest)
    return frozenset(route_to(network, metric, least, largest) for network in networks)


def route_to(network: Network, metric: int, mtu: int, largest: int) -> Route:
    """The route to a network to which packets of ``mtu`` bytes may be sent, over an interface with
    ``largest``."""
    if mtu >= largest:
        return Route(network, metric)
    if network.version == 4 or mtu >= IPV6_LEAST:
        return Route(network, metric, mtu)
    # Below that only TCP can be kept to what the way carries: each end asks for segments that fit.
    return Route(network, metric, IPV6_LEAST if largest > IPV6_LEAST else 0, mtu - TCP_OVER_IP6)


def _holds(network: Network, host: Network) -> bool:
    return network.version == host.version and host.network_address in network and network != host
