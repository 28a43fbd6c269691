# SPDX-License-Identifier: GPL-3.0-or-later
"""Candidates: addresses at which a node may be reached, as its record lists them beside its endpoints. Pure.

An endpoint of a record is the node's word that it is reached there. A candidate is a guess that is good for
some peers only: a private address for those in the same network, a public one for those outside. Whoever
wants to reach the node tries them. docs/decisions/0050-whereabouts.md says how they are found.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from ipaddress import ip_address
from typing import Final, Self

import msgspec

from phantommesh.dimensions import DIMENSIONS
from phantommesh.reachable import IpAddress

MAX_CANDIDATES: Final = 16
UNKNOWN_PORT: Final = 0
_PORTS: Final = 65_536
_KINDS: Final = 256
_UPLINKS: Final = 256


class Kind(IntEnum):
    """How a node knows a candidate. A later version may have more kinds."""

    OWN = 1  # the host has the address
    MAPPED = 2  # its gateway was asked for it (PCP, NAT-PMP, UPnP)
    SEEN = 3  # other members see the node there


class Candidate(msgspec.Struct, frozen=True, array_like=True, order=True):
    """One address at which a node may be reached.

    ``kind`` is a `Kind`; ``address`` has 4 or 16 bytes; ``port`` is that of the control port, UDP and TCP
    where ``kind`` is OWN, else UDP. ``wg_ports`` are the UDP ports of the dimensions, seven, `UNKNOWN_PORT`
    where one is not known; empty: those of the record. ``uplink`` numbers the interfaces of the node from 0:
    candidates of one uplink lead to one interface.
    """

    kind: int
    address: bytes
    port: int
    wg_ports: tuple[int, ...] = ()
    uplink: int = 0

    @classmethod
    def of(
        cls, kind: Kind, address: IpAddress, port: int, wg_ports: tuple[int, ...] = (), uplink: int = 0
    ) -> Self:
        """A candidate from an address as a value."""
        return cls(int(kind), address.packed, port, wg_ports, uplink)

    @property
    def ip(self) -> IpAddress:
        """The address as a value."""
        return ip_address(self.address)

    @property
    def host(self) -> str:
        """The address as text."""
        return str(self.ip)

    def wg_port(self, dimension: int, own: int) -> int:
        """The UDP port of a dimension; ``own`` is the one that the record names, for where no other is
        known."""
        return (self.wg_ports[dimension] if self.wg_ports else UNKNOWN_PORT) or own


def flaw(candidates: Iterable[Candidate]) -> str:
    """Say what no node may publish of these; empty where all is well. A record comes from another member: its
    values are of the types above and nothing more is known of them."""
    found = tuple(candidates)
    if len(found) > MAX_CANDIDATES:
        return f"more than {MAX_CANDIDATES} candidates"
    for one in found:
        if len(one.address) not in (4, 16):
            return "a candidate whose address has neither 4 nor 16 bytes"
        if not 0 < one.port < _PORTS or not all(0 <= port < _PORTS for port in one.wg_ports):
            return "a candidate whose port is out of range"
        if len(one.wg_ports) not in (0, DIMENSIONS):
            return "a candidate without a port for each dimension"
        if not 0 <= one.kind < _KINDS or not 0 <= one.uplink < _UPLINKS:
            return "a candidate whose kind or uplink is out of range"
    return ""
