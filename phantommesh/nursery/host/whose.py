# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks this host what is in the way: the program that has a UDP port, the interface that a packet leaves by.

The functions block, so they are called inside ``trio.to_thread.run_sync``.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from phantommesh.nlattr import REQUEST, attribute, attributes, number, pack_message
from phantommesh.nursery.host.netlink import NetlinkSocket

_ANSWER, _GET_ROUTE = 24, 26  # RTM_NEWROUTE, RTM_GETROUTE: linux/rtnetlink.h
_RTA_DST, _RTA_OIF = 1, 4
_UNICAST = 1  # RTN_UNICAST

MOST_PROCESSES: Final = 4096  # looked through for the owner of a port


def program_of(port: int) -> str:
    """Say what has a UDP port of this network namespace; empty where that cannot be found out."""
    inodes = set(_inodes(port))
    if inodes == {"0"}:
        return "the kernel itself, for another WireGuard interface or tunnel (`wg show`, `ip -d link`)"
    wanted = {f"socket:[{inode}]" for inode in inodes - {"0"}}
    if not wanted:
        return ""
    for process in list(Path("/proc").glob("[0-9]*"))[:MOST_PROCESSES]:
        try:
            if any(str(one.readlink()) in wanted for one in (process / "fd").iterdir()):
                name = (process / "comm").read_text("utf-8", "replace").strip()
                return f"{name} (process {process.name})"
        except OSError:
            continue  # it ended, or is not ours to look at
    return ""


def _inodes(port: int) -> Iterable[str]:
    """The inodes of the sockets that are bound to a UDP port: proc(5), /proc/net/udp."""
    for name in ("udp", "udp6"):
        try:
            lines = Path("/proc/self/net", name).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def ways_to(addresses: Iterable[IPv4Address | IPv6Address]) -> dict[IPv4Address | IPv6Address, str]:
    """Say by which interface the kernel would send to each address. An address that it sends nowhere has no
    entry. Raises OSError."""
    indexes = {}
    with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
        for address in addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            body = struct.pack("=BBBBBBBBI", family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
            body += attribute(_RTA_DST, address.packed)
            rtnl.send(pack_message(_GET_ROUTE, REQUEST, 1, body))
            for kind, _, payload in rtnl.receive():
                if kind == _ANSWER and payload[7] == _UNICAST:
                    fields = dict(attributes(payload[12:]))
                    indexes[address] = number(fields.get(_RTA_OIF, bytes(4)))
    return {address: name for address, index in indexes.items() if (name := _name(index))}


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return ""
