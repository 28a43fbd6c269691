# SPDX-License-Identifier: GPL-3.0-or-later
"""The ways by which this host sends to prefixes: whether there is a route, and a carrier. Blocks.

One question a prefix, and no dump: a router may have a million routes.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from phantommesh.nlattr import ACK, REQUEST, attribute, attributes, number, pack_message
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.hostroutes import LOCAL, UNICAST
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.overlay.prefixes import DEFAULT_PREFIX
from phantommesh.routable import is_exit
from phantommesh.wireguard.device import Network

# linux/rtnetlink.h, linux/if_link.h, linux/if.h
_GET_LINK, _GET_ROUTE = 18, 26
_RTA_DST, _RTA_OIF, _RTA_MULTIPATH = 1, 4, 9
# For a default route: an address of the internet that stays. a.root-servers.net, from the root zone's hints.
_SOMEWHERE: Final = {4: ip_address("198.41.0.4"), 6: ip_address("2001:503:ba3e::2:30")}
_FIB_MATCH: Final = 0x2000  # RTM_F_FIB_MATCH: the route itself, with its own prefix
_IFLA_NAME: Final = 3
_UP, _LOWER_UP = 0x1, 0x10000  # IFF_UP, IFF_LOWER_UP: there is a carrier
_NONE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class WayOut:
    """The route to a prefix. ``interfaces``: those with a carrier by which it goes; ``default``: it is a
    default route, by which anything goes."""

    interfaces: tuple[str, ...]
    default: bool


def look(prefixes: Iterable[Network], ours: Collection[str]) -> dict[Network, WayOut]:
    """The ways to these prefixes; none for one without a route, or whose route goes by one of our own
    interfaces or has no carrier. Raises BackendError."""
    found = dict[Network, WayOut]()
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            for prefix in prefixes:
                way = _look(rtnl, prefix, ours)
                if way is not None:
                    found[prefix] = way
    except OSError as error:
        raise failed("(all)", "looking a route up", error) from error
    return found


def _look(rtnl: NetlinkSocket, prefix: Network, ours: Collection[str]) -> WayOut | None:
    first = prefix.network_address + (1 if prefix.num_addresses > 2 else 0)  # no subnet's own address
    if is_exit(prefix):
        first = _SOMEWHERE[prefix.version]
    family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
    asked = struct.pack("=8BI", family, prefix.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    try:
        answers = rtnl.exchange(
            pack_message(_GET_ROUTE, REQUEST | ACK, 1, asked + attribute(_RTA_DST, first.packed))
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
        alive = tuple(name for name in dict.fromkeys(names) if name and name not in ours)
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
