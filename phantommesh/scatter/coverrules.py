# SPDX-License-Identifier: GPL-3.0-or-later
"""The nftables table that drops and counts the cover traffic of peers, as text.

Cover is UDP to the discard port of this node's own overlay addresses, by an interface of the mesh. It is
dropped before any other table sees it, so no socket has it, no ICMP answers it, and no flow is counted. What
is on its way to another host passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from phantommesh.nftables.text import add_elements, anonymous, chain_block, set_block
from phantommesh.scatter.cover import DISCARD

FAMILY: Final = "inet"
COVER: Final = "cover"
"""The set whose one element, the port, counts what was dropped."""

# Tuning.
PRIORITY: Final = -320  # before the tables of flows and bans, at -310


def table_name(device: str) -> str:
    """The table of the node whose mesh interface is ``device``."""
    return f"phantommesh_cover_{device}"


def render(device: str, names: Sequence[str], own: tuple[IPv4Address, IPv6Address]) -> str:
    """The whole table, which takes the place of what it held before. ``names``: the dimensions' interfaces;
    ``own``: this node's overlay addresses."""
    table = f"{FAMILY} {table_name(device)}"
    lines = [f"add table {table}", f"delete table {table}", f"table {table} {{"]
    lines += set_block(COVER, "type inet_service", "counter")
    # The second rule drops where somebody has emptied the set.
    lines += chain_block("dropping", f"udp dport @{COVER} drop", "drop")
    lines += chain_block(
        "arriving",
        f"type filter hook prerouting priority {PRIORITY}; policy accept;",
        f"udp dport != {DISCARD} return",
        "meta l4proto != udp return",
        f"iifname != {anonymous(f'{chr(34)}{name}{chr(34)}' for name in names)} return",
        f"ip daddr {own[0]} goto dropping",
        f"ip6 daddr {own[1]} goto dropping",
    )
    return "\n".join([*lines, "}", add_elements(table, COVER, [str(DISCARD)])]) + "\n"
