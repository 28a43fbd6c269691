# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules by which an end of leases writes and clears their tags. Pure.

WireGuard at the end is given the relay's address with a port of its own for each lease that has a tag: an
*alias*. On the way out the alias becomes the relay's port and the tag is written; on the way in the other way
round. So connection tracking and WireGuard see one peer a port, and a NAT sees one flow for all leases.

UDP's checksum stays as it is. It is the ones' complement sum of 16-bit words (RFC 1071), and a WireGuard
message begins with two words, its type << 8 and 0. They become (type << 8) + tag and 0xffff - tag, and their
sum stays the same, since 0xffff counts as 0.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.nftables.text import chain_block
from phantommesh.routing.leases import TAGS

FAMILY: Final = "inet"

_RESERVED: Final = "@th,72,24"  # the three bytes behind a WireGuard message's type
_TAG: Final = "@th,72,8"


def table_name(device: str) -> str:
    """The table of the node whose interface is ``device``."""
    return f"phantommesh_tags_{device}"


@dataclass(frozen=True, slots=True)
class Tagged:
    """A lease with a tag, at one end: in the WireGuard port ``own``, over the relay at ``relay``, with the
    port ``alias`` that WireGuard is given in the relay's port's place."""

    own: int
    relay: Address
    tag: int
    alias: int

    def __post_init__(self) -> None:
        if not 0 < self.tag < TAGS or self.alias == self.relay.port:
            raise ValueError("a tag is 1 to 255, and an alias is another port than the relay's")


def render(device: str, leases: Collection[Tagged]) -> str:
    """The whole table. It takes the place of what was there, in one transaction."""
    table = f"{FAMILY} {table_name(device)}"
    ordered = sorted(leases, key=lambda one: (one.relay, one.own, one.tag))
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        # Before connection tracking on the way in, and behind all that tracks or translates on the way out.
        *chain_block(
            "arriving",
            "type filter hook prerouting priority -310; policy accept;",
            *(_arriving(one) for one in ordered),
        ),
        *chain_block(
            "leaving",
            "type filter hook postrouting priority 300; policy accept;",
            *(_leaving(one) for one in ordered),
        ),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _header(one: Tagged) -> str:
    return "ip" if ip_address(one.relay.host).version == 4 else "ip6"


def _arriving(one: Tagged) -> str:
    return (
        f"{_header(one)} saddr {one.relay.host} udp sport {one.relay.port} udp dport {one.own} "
        f"{_TAG} {one.tag:#x} {_RESERVED} set 0x0 udp sport set {one.alias}"
    )


def _leaving(one: Tagged) -> str:
    written = one.tag << 16 | 0xFFFF - one.tag
    return (
        f"{_header(one)} daddr {one.relay.host} udp dport {one.alias} udp sport {one.own} "
        f"{_RESERVED} set {written:#x} udp dport set {one.relay.port}"
    )
