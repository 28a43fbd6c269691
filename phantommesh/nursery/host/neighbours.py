# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts that this one reaches without a gateway: the kernel's neighbour tables. Blocks.

The MAC address in a table is where a datagram that this host sends to an address goes now.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from phantommesh.nlattr import ACK, DUMP, REQUEST, attribute, attributes, pack_message
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.netlink import NetlinkSocket

# linux/rtnetlink.h, linux/neighbour.h
_NEW_NEIGHBOUR, _GET_NEIGHBOUR = 28, 30
_CREATE: Final = 0x400  # NLM_F_CREATE
_NDA_DST, _NDA_LLADDR = 1, 2
_USE: Final = 0x01  # NTF_USE: resolve it now
_KNOWN: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT
_MESSAGE: Final = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
_MAC: Final = 6  # bytes of Ethernet's

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The MAC addresses by interface (its index) and address."""

    macs: Mapping[tuple[int, str], bytes]

    def sole(self, interface: int, host: str) -> bytes | None:
        """The MAC of a neighbour that no other address on its interface has; None where it is not known, or
        a host answers for several addresses: a router, or one that stands in for others."""
        mac = self.macs.get((interface, host))
        if mac is None or host.startswith("fe80:"):
            return None
        family = ":" in host
        alike = [
            other
            for (index, other), held in self.macs.items()
            if index == interface
            and held == mac
            and (":" in other) == family
            and not other.startswith("fe80:")
        ]
        return mac if alike == [host] else None


def read_neighbours() -> Neighbours:
    """Read the tables of both families. Raises BackendError."""
    found: dict[tuple[int, str], bytes] = {}
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            for family in (socket.AF_INET, socket.AF_INET6):
                asked = pack_message(_GET_NEIGHBOUR, REQUEST | DUMP, 1, _MESSAGE.pack(family, 0, 0, 0, 0))
                for _, _, payload in rtnl.exchange(asked):
                    said, interface, state, _, _ = _MESSAGE.unpack_from(payload)
                    fields = dict(attributes(payload[_MESSAGE.size :]))
                    mac, target = fields.get(_NDA_LLADDR, b""), fields.get(_NDA_DST, b"")
                    if said == family and state & _KNOWN and len(mac) == _MAC and target:
                        found[interface, str(ip_address(target))] = mac
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return Neighbours(found)
        raise failed("(all)", "reading the neighbours", error) from error
    return Neighbours(found)


def look_for(wanted: Iterable[tuple[int, str]]) -> None:
    """Have the kernel find out the MAC addresses of these hosts, by interface and address. What cannot be
    asked is left out."""
    with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
        for sequence, (interface, host) in enumerate(wanted, 1):
            address = ip_address(host)
            family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            body = _MESSAGE.pack(family, interface, 0, _USE, 0) + attribute(_NDA_DST, address.packed)
            try:
                rtnl.exchange(pack_message(_NEW_NEIGHBOUR, REQUEST | ACK | _CREATE, sequence, body))
            except OSError:
                continue
