# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways by which this host sends to prefixes: whether there is a route, and a carrier. Blocks.

A question or two a prefix, and no dump of routes: a router may have a million. What is asked about is the
first address, and the host to ping where there is one. A wide prefix may have no route of its own, and be
made up of networks at several interfaces: those that the host has an address in count, too.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from phantommesh.nlattr import ACK, DUMP, REQUEST, attribute, attributes, number, pack_message
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.hostroutes import LOCAL, UNICAST
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.overlay.prefixes import DEFAULT_PREFIX, Address
from phantommesh.routable import is_exit, within
from phantommesh.wireguard.device import Network

# linux/rtnetlink.h, linux/if_link.h, linux/if.h
_GET_LINK, _GET_ADDRESS, _GET_ROUTE = 18, 22, 26
_IFA_ADDRESS: Final = 1  # linux/if_addr.h: of the network, where the other end has one of its own too
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH = 1, 4, 9
# For a default route: an address of the internet that stays. a.root-servers.net, from the root zone's hints.
_SOMEWHERE: Final = {4: ip_address("198.41.0.4"), 6: ip_address("2001:503:ba3e::2:30")}
_FIB_MATCH: Final = 0x2000  # RTM_F_FIB_MATCH: the route itself, with its own prefix
_IFLA_NAME: Final = 3
_UP, _LOWER_UP = 0x1, 0x10000  # IFF_UP, IFF_LOWER_UP: there is a carrier
_NONE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class WayOut:
    """The way to a prefix. ``interfaces``: those with a carrier by which it goes, or a part of it;
    ``default``: all of it goes by a default route, as anything does."""

    interfaces: tuple[str, ...]
    default: bool


def look(
    prefixes: Iterable[Network], ours: Collection[str], targets: Mapping[Network, Address] | None = None
) -> dict[Network, WayOut]:
    """The ways to these prefixes, of which some have a host to ping (``targets``); none for one without a
    route, or whose route goes by one of our own interfaces or has no carrier. Raises BackendError."""
    found = dict[Network, WayOut]()
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            connected = list(_connected(rtnl))
            for prefix in prefixes:
                first = prefix.network_address + (1 if prefix.num_addresses > 2 else 0)  # no subnet's own
                if is_exit(prefix):
                    first = _SOMEWHERE[prefix.version]
                target = (targets or {}).get(prefix)
                asked = [first] if target is None else [first, target]
                ways = [way for address in asked if (way := _look(rtnl, address)) is not None]
                if any(name in ours for way in ways for name in way.interfaces):
                    continue
                # An exit leads into none of the host's own networks.
                own = [] if is_exit(prefix) else connected
                parts = {index for network, index in own if within(network, prefix)}
                ways += [WayOut((name,), False) for index in sorted(parts) if (name := _carrier(rtnl, index))]
                if ways:
                    found[prefix] = _together(ways, pinged=len(asked) > 1)
    except OSError as error:
        raise failed("(all)", "looking a route up", error) from error
    return found


def _together(ways: Sequence[WayOut], *, pinged: bool) -> WayOut:
    """The ways to one prefix as one. Default routes count beside others only where a host is ``pinged``."""
    others = [way for way in ways if not way.default]
    counting = ways if pinged else others or ways
    names = sorted({name for way in counting for name in way.interfaces})
    return WayOut(tuple(names), not others)


def _connected(rtnl: NetlinkSocket) -> Iterator[tuple[Network, int]]:
    """The networks that interfaces have an address in, but for those of the address alone."""
    for _, _, payload in rtnl.exchange(pack_message(_GET_ADDRESS, REQUEST | DUMP, 1, bytes(8))):
        _, length, _, _, index = struct.unpack_from("=BBBBI", payload)
        packed = dict(attributes(payload[8:])).get(_IFA_ADDRESS, b"")
        if packed and length < 8 * len(packed):
            yield ip_network((packed, length), strict=False), index


def _look(rtnl: NetlinkSocket, address: Address) -> WayOut | None:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    asked = struct.pack("=8BI", family, 8 * len(address.packed), 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    try:
        answers = rtnl.exchange(
            pack_message(_GET_ROUTE, REQUEST | ACK, 1, asked + attribute(_RTA_DST, address.packed))
        )
    except OSError as error:
        if error.errno in _NONE or error.errno == errno.EAFNOSUPPORT:
            return None
        raise
    for _, _, payload in answers:
        _, length, _, _, _, _, _, kind, _ = struct.unpack_from("=8BI", payload)
        fields = dict(attributes(payload[12:]))
        if kind not in (UNICAST, LOCAL):
            continue
        names = [_carrier(rtnl, index) for index in _indexes(fields)]
        alive = tuple(name for name in dict.fromkeys(names) if name)
        if alive:
            return WayOut(alive, length <= DEFAULT_PREFIX)
    return None


def _indexes(fields: dict[int, bytes]) -> list[int]:
    found = [number(fields[_RTA_OIF])] if _RTA_OIF in fields else []
    rest = fields.get(_RTA_MULTIPATH, b"")
    while len(rest) >= 8:  # struct rtnexthop: length, flags, hops, interface
        length, _, _, index = struct.unpack_from("=HBBi", rest)
        if length < 8:
            break
        found.append(index)
        rest = rest[(length + 3) & ~3 :]
    return found


def _carrier(rtnl: NetlinkSocket, index: int) -> str:
    """The name of an interface that is up and has a carrier; empty for another."""
    try:
        answers = rtnl.exchange(
            pack_message(_GET_LINK, REQUEST | ACK, 1, struct.pack("=BBHiII", 0, 0, 0, index, 0, 0))
        )
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""
        raise
    for _, _, payload in answers:
        _, _, _, flags = struct.unpack_from("=HHiI", payload)
        if flags & _UP and flags & _LOWER_UP:
            return (
                dict(attributes(payload[16:])).get(_IFLA_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
            )
    return ""
