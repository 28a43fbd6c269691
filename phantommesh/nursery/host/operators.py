# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that this one's operators depend on: where they are logged in from, its resolvers and gateways.
Blocks."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.hostroutes import FAMILIES, read_routes
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.reachable import IpAddress

_SSH: Final = 22
_ESTABLISHED: Final = "01"  # linux/tcp_states.h
_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_SSHD: Final = (Path("/etc/ssh/sshd_config"), Path("/etc/ssh/sshd_config.d"))
_RESOLVERS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

# Tuning.
MOST_LINES: Final = 200_000  # of a table of connections that are read


def read_operators(api: Collection[int] = ()) -> Iterator[tuple[IpAddress, str]]:
    """Yield these hosts, each with what it is. ``api``: TCP ports of this node's API. What cannot be read is
    left out."""
    ports = frozenset((*ssh_ports(), *api))
    for path in _TABLES:
        try:
            with path.open(encoding="ascii", errors="replace") as file:
                for number, line in enumerate(file):
                    if number > MOST_LINES:
                        break
                    if (peer := session_of(line, ports)) is not None:
                        yield peer, "the other end of an operator's session"
        except OSError:
            continue
    for path in _RESOLVERS:
        for found in re.findall(r"^\s*nameserver\s+(\S+)", _text(path), re.M):
            try:
                yield ip_address(found.partition("%")[0]), "a resolver of this host"
            except ValueError:
                continue
    try:
        yield from ((gateway, "a gateway of this host") for gateway in _gateways())
    except PhantomMeshError:
        return


def ssh_ports() -> frozenset[int]:
    """The ports that the SSH server has by its configuration, and its usual one."""
    files = [_SSHD[0], *(sorted(_SSHD[1].glob("*.conf")) if _SSHD[1].is_dir() else ())]
    found = (re.findall(r"^\s*Port\s+(\d{1,5})\b", _text(file), re.M | re.I) for file in files)
    return frozenset((_SSH, *(int(port) for ports in found for port in ports)))


def session_of(line: str, ports: Collection[int]) -> IpAddress | None:
    """The other end of a connection to one of these ports, from a line of /proc/net/tcp or tcp6; None of any
    other line."""
    words = line.split()
    if len(words) < 4 or words[3] != _ESTABLISHED:
        return None
    try:
        if int(words[1].rpartition(":")[2], 16) not in ports:
            return None
        raw = bytes.fromhex(words[2].rpartition(":")[0])
        if len(raw) not in (4, 16):
            return None
        # Words of 32 bits, each in the machine's order.
        address = ip_address(b"".join(_swapped(raw[i : i + 4]) for i in range(0, len(raw), 4)))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _swapped(word: bytes) -> bytes:
    return socket.htonl(int.from_bytes(word, "big")).to_bytes(4, "big")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gateways() -> Iterator[IpAddress]:
    """The gateways of all routes that have one."""
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            for family in FAMILIES:
                for route in read_routes(rtnl, family):
                    if route.default:
                        yield from (gateway for _, gateway in route.hops() if gateway is not None)
    except OSError as error:
        raise failed("(all)", "reading the routes", error) from error
