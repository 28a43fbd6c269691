# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's routing tables, and its own addresses and networks as they tell of them."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from phantommesh.nlattr import DUMP, REQUEST, attributes, number, pack_message
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL, NetlinkSocket, read_links
from phantommesh.overlay.prefixes import DEFAULT_PREFIX
from phantommesh.reachable import HostNetworks, Network

# linux/rtnetlink.h
_GET_ROUTE = 26  # RTM_GETROUTE
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 1, 4, 5, 6, 9, 15, 18
UNICAST, LOCAL, BROADCAST, ANYCAST, UNREACHABLE = 1, 2, 3, 4, 7  # RTN_*
_CLONED = 0x200  # RTM_F_CLONED

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """One route of the kernel's. ``kind`` is RTN_*; ``cached``: a copy of another, for one destination."""

    family: int
    prefix: int
    table: int
    protocol: int
    kind: int
    cached: bool
    _fields: dict[int, bytes]

    @property
    def network(self) -> Network:
        """The network that the route leads to."""
        target = self._fields.get(_RTA_DST, bytes(4 if self.family == socket.AF_INET else 16))
        return ip_network((target, self.prefix))

    @property
    def metric(self) -> int:
        """Its metric; 0 where it has none."""
        return number(self._fields.get(_RTA_PRIORITY, bytes(4)))

    @property
    def default(self) -> bool:
        """Whether all goes by it that no other route leads to. The route to an exit is none: the mesh itself
        does not go by it."""
        return self.kind == UNICAST and self.prefix == 0 and self.protocol != ROUTE_PROTOCOL

    def hops(self) -> Iterator[tuple[int, IPv4Address | IPv6Address | None]]:
        """The interface (0: none is named) and gateway of each way that it has."""
        yield number(self._fields.get(_RTA_OIF, bytes(4))), _gateway(self._fields)
        rest = self._fields.get(_RTA_MULTIPATH, b"")
        while len(rest) >= 8:  # struct rtnexthop: length, flags, hops, interface; then attributes
            length, _, _, index = struct.unpack_from("=HBBi", rest)
            if length < 8:
                break
            yield index, _gateway(dict(attributes(rest[8:length])))
            rest = rest[(length + 3) & ~3 :]


def _gateway(fields: dict[int, bytes]) -> IPv4Address | IPv6Address | None:
    if _RTA_GATEWAY in fields:
        return ip_address(fields[_RTA_GATEWAY])
    if _RTA_VIA in fields:  # struct rtvia: an address of another family
        return ip_address(fields[_RTA_VIA][2:])
    return None


def read_routes(rtnl: NetlinkSocket, family: int) -> Iterator[KernelRoute]:
    """The routes of all tables; none where this kernel has no such family. Raises OSError."""
    asked = pack_message(_GET_ROUTE, REQUEST | DUMP, 1, struct.pack("=B11x", family))
    try:
        answers = rtnl.exchange(asked)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return
        raise
    for _, _, payload in answers:
        said, prefix, _, _, table, protocol, _, kind, flags = struct.unpack_from("=8BI", payload)
        if said != family:
            continue  # asked for a family that it does not have, the kernel tells of all others
        fields = dict(attributes(payload[12:]))
        table = number(fields[_RTA_TABLE]) if _RTA_TABLE in fields else table
        yield KernelRoute(family, prefix, table, protocol, kind, bool(flags & _CLONED), fields)


def read_gateways() -> list[IPv4Address]:
    """The gateways of the IPv4 default routes, one an interface, that of the least metric first. Raises
    BackendError."""
    found = dict[int, tuple[int, IPv4Address]]()
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            for route in read_routes(rtnl, socket.AF_INET):
                if not route.default:
                    continue
                for index, gateway in route.hops():
                    if index and isinstance(gateway, IPv4Address):
                        way = route.metric, gateway
                        found[index] = min(found.get(index, way), way)
    except OSError as error:
        raise failed("(all)", "reading the routes", error) from error
    return [gateway for _, gateway in sorted(found.values())]


def read_connected(leave_out: Collection[str]) -> tuple[Network, ...]:
    """The networks that interfaces of other names than these reach without a gateway. Raises BackendError."""
    ours = {link.index for link in read_links(leave_out).values()}
    found = {network for network, index in read_host().connected if index not in ours}
    return tuple(network for network in found if network.prefixlen > DEFAULT_PREFIX)


def read_host() -> HostNetworks:
    """Read the routes of every table. Raises BackendError.

    A route of type local is the kernel's own word for "this is me": it covers what `ip address` shows, all of
    127.0.0.0/8, and ranges that were made local without an address.
    """
    own: set[Network] = set()
    broadcast: set[IPv4Address] = set()
    connected: set[tuple[Network, int]] = set()
    uplinks: set[int] = set()
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            for route in (route for family in FAMILIES for route in read_routes(rtnl, family)):
                kind, network = route.kind, route.network
                if kind in (LOCAL, ANYCAST):
                    if network.prefixlen > DEFAULT_PREFIX:  # a transparent proxy takes marked packets by it
                        own.add(network)
                elif kind == BROADCAST and isinstance(network.network_address, IPv4Address):
                    broadcast.add(network.network_address)
                elif route.default:
                    uplinks |= {index for index, _ in route.hops() if index}
                elif kind != UNICAST or not network.prefixlen:
                    continue
                elif all(gateway is None for _, gateway in route.hops()):
                    connected |= {(network, index) for index, _ in route.hops() if index}
    except OSError as error:
        raise failed("(all)", "reading the routes", error) from error
    return HostNetworks(frozenset(own), frozenset(broadcast), frozenset(connected), frozenset(uplinks))
