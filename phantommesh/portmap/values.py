# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a gateway and what it grants, whatever the protocol."""

from __future__ import annotations

from enum import Enum, IntEnum
from ipaddress import IPv4Address
from typing import NamedTuple

SERVER_PORT = 5351  # of PCP (RFC 6887, section 19.1) and NAT-PMP (RFC 6886, section 3)
CLIENT_PORT = 5350  # where hosts hear announcements (RFC 6887, section 14.1; RFC 6886, section 3.2.1)
NO_ADDRESS = "it has no address outside"  # a refusal
ALL_HOSTS = IPv4Address("224.0.0.1")  # to which they are sent


class Method(Enum):
    """The protocols, in the order in which they are tried."""

    PCP = "pcp"
    NAT_PMP = "nat-pmp"
    UPNP = "upnp"


class Protocol(IntEnum):
    """Numbers of transport protocols (IANA)."""

    TCP = 6
    UDP = 17


class Wanted(NamedTuple):
    """A port of this host that others are to reach."""

    protocol: Protocol
    port: int


class Granted(NamedTuple):
    """The gateway forwards from this address and port for ``lifetime`` seconds."""

    address: IPv4Address
    port: int
    lifetime: float


class Refusal(NamedTuple):
    """The gateway does not map a port. ``code`` is of the protocol's own list; ``text`` is what UPnP says in
    its place."""

    method: Method
    code: int = 0
    text: str = ""


class PortMapError(Exception):
    """The bytes are no answer of a gateway."""
