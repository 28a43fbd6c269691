# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's own addresses and networks, read from its routing tables."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, ip_network

from phantommesh.nlattr import DUMP, REQUEST, attributes, number, pack_message
from phantommesh.nursery.netlink import NetlinkSocket, failed
from phantommesh.overlay import DEFAULT_PREFIX
from phantommesh.reachable import HostNetworks, Network

_NETLINK_ROUTE = 0
_GET_ROUTE = 26  # RTM_GETROUTE, linux/rtnetlink.h
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18  # linux/rtnetlink.h
_UNICAST, _LOCAL, _BROADCAST, _ANYCAST = 1, 2, 3, 4  # RTN_*, linux/rtnetlink.h


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
        with NetlinkSocket(_NETLINK_ROUTE) as rtnl:
            for family in (socket.AF_INET, socket.AF_INET6):
                asked = pack_message(_GET_ROUTE, REQUEST | DUMP, 1, struct.pack("=B11x", family))
                for _, _, payload in rtnl.exchange(asked):
                    kind = payload[7]
                    fields = dict(attributes(payload[12:]))
                    target = fields.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
                    network = ip_network((target, payload[1]))
                    if kind in (_LOCAL, _ANYCAST):
                        if (
                            network.prefixlen > DEFAULT_PREFIX
                        ):  # a transparent proxy takes marked packets by it
                            own.add(network)
                    elif kind == _BROADCAST and isinstance(network.network_address, IPv4Address):
                        broadcast.add(network.network_address)
                    elif kind == _UNICAST and network.prefixlen == 0:
                        uplinks |= _interfaces(fields)
                    elif kind == _UNICAST and not _gateways(fields):
                        connected |= {(network, index) for index in _interfaces(fields)}
    except OSError as error:
        raise failed("(all)", "reading the routes", error) from error
    return HostNetworks(frozenset(own), frozenset(broadcast), frozenset(connected), frozenset(uplinks))


def _hops(fields: dict[int, bytes]) -> list[tuple[int, dict[int, bytes]]]:
    """The next hops of a route with several: struct rtnexthop, linux/rtnetlink.h, each with attributes."""
    found, rest = list[tuple[int, dict[int, bytes]]](), fields.get(_RTA_MULTIPATH, b"")
    while len(rest) >= 8:
        size, _, _, index = struct.unpack_from("=HBBi", rest)
        if size < 8:
            break
        found.append((index, dict(attributes(rest[8:size]))))
        rest = rest[(size + 3) & ~3 :]
    return found


def _interfaces(fields: dict[int, bytes]) -> set[int]:
    single = {number(fields[_RTA_OIF])} if _RTA_OIF in fields else set[int]()
    return single | {index for index, _ in _hops(fields)}


def _gateways(fields: dict[int, bytes]) -> bool:
    each = (fields, *(hop for _, hop in _hops(fields)))
    return any(_RTA_GATEWAY in one or _RTA_VIA in one for one in each)
