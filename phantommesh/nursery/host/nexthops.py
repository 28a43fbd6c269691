# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's word on where a packet goes next: neighbour, interface, longest packet. Blocks."""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection
from ipaddress import ip_address
from typing import Final

from phantommesh.nlattr import ACK, DUMP, REQUEST, attribute, attributes, number, pack_message
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.hostroutes import UNICAST
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.routing.fastlane import Hop

# linux/rtnetlink.h, linux/if_link.h, linux/if_arp.h, linux/if.h
_GET_LINK, _GET_ROUTE = 18, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS, _RTA_MARK, _RTA_VIA, _RTA_ENCAP = 1, 4, 5, 8, 16, 18, 22
_RTAX_MTU: Final = 2
_IFLA_NAME, _IFLA_MTU = 3, 4
_ETHERNET: Final = 1  # ARPHRD_ETHER
_UP: Final = 1  # IFF_UP


def read_hops(targets: Collection[str], mark: int) -> tuple[dict[str, Hop], frozenset[str]]:
    """The way of a packet with this mark to each of these addresses, and the interfaces of Ethernet that are
    up. A target has no way here that is this host's own, that no route leads to, or that is reached by
    anything but a neighbour of its own family on an Ethernet. Raises BackendError."""
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            links = _read_links(rtnl)
            found = {target: hop for target in targets if (hop := _hop(rtnl, target, mark, links))}
    except OSError as error:
        raise failed("(all)", "reading the routes", error) from error
    return found, frozenset(name for name, _ in links.values())


def _read_links(rtnl: NetlinkSocket) -> dict[int, tuple[str, int]]:
    """Name and MTU by number, of the interfaces of Ethernet that are up."""
    found = dict[int, tuple[str, int]]()
    for _, _, payload in rtnl.exchange(pack_message(_GET_LINK, REQUEST | DUMP, 1, bytes(16))):
        _, kind, index, flags = struct.unpack_from("=BxHiI", payload)
        if kind == _ETHERNET and flags & _UP:
            fields = dict(attributes(payload[16:]))
            name = fields[_IFLA_NAME].rstrip(b"\0").decode("utf-8", "replace")
            found[index] = name, number(fields[_IFLA_MTU])
    return found


def _hop(rtnl: NetlinkSocket, target: str, mark: int, links: dict[int, tuple[str, int]]) -> Hop | None:
    wanted = ip_address(target).packed
    family = socket.AF_INET if len(wanted) == 4 else socket.AF_INET6
    header = struct.pack("=8BI", family, len(wanted) * 8, 0, 0, 0, 0, 0, 0, 0)
    body = header + attribute(_RTA_DST, wanted) + attribute(_RTA_MARK, struct.pack("=I", mark))
    try:
        answers = rtnl.exchange(pack_message(_GET_ROUTE, REQUEST | ACK, 1, body))
    except OSError:
        return None  # no route leads there
    for _, _, payload in answers:
        fields = dict(attributes(payload[12:]))
        index = number(fields.get(_RTA_OIF, bytes(4)))
        if payload[7] != UNICAST or index not in links or fields.keys() & {_RTA_VIA, _RTA_ENCAP}:
            return None
        metrics = dict(attributes(fields.get(_RTA_METRICS, b"")))
        most = links[index][1]
        route = number(metrics.get(_RTAX_MTU, bytes(4)))
        via = str(ip_address(fields.get(_RTA_GATEWAY, wanted)))
        return Hop(via, index, min(most, route) if route else most)
    return None
