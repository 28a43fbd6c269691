# SPDX-License-Identifier: GPL-3.0-or-later
"""The name servers that a host asks, and which of them an exit does not lead to. Pure.

Questions for names never leave beside an exit. So a resolver on the host's own network is out of reach, and
names that only such a resolver is asked for do not resolve: an operator has to be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from phantommesh.routable import Network

Address = IPv4Address | IPv6Address

MAX_SERVERS: Final = 3  # that the C library asks: MAXNS, resolv.conf(5)
MAX_BYTES: Final = 65536  # of a file that are read


def name_servers(text: str) -> tuple[Address, ...]:
    """The name servers of a resolv.conf, as far as they are addresses; the zone of one is left out."""
    found = list[Address]()
    for line in text[:MAX_BYTES].splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            found.append(ip_address(words[1].partition("%")[0]))
        except ValueError:
            continue
    return tuple(found[:MAX_SERVERS])


def out_of_reach(
    servers: Iterable[Address], led: Sequence[Network], closed: Sequence[Network]
) -> list[Address]:
    """Those of some name servers that are ``closed`` to an exit, and that none of the networks reaches that
    are ``led`` into the mesh without it. A server of this host itself is no matter of the exit's."""
    return [
        one
        for one in servers
        if not one.is_loopback and any(one in n for n in closed) and not any(one in n for n in led)
    ]
