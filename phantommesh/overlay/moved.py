# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard's rules for TCP connections that move from one router of a prefix to another. Pure.

A router lets the network behind it answer members and begin nothing. It knows answers by the kernel's
connection tracking, which sees a connection only while it goes by this router:

- A connection that was here, went on by another router and comes back has numbers that the kernel has not
  seen: each end acknowledges what the other one sent meanwhile. The kernel calls both directions invalid,
  and does so for good (nf_conntrack_proto_tcp.c, "ACK is over the upper bound"). So members' segments that
  are invalid are noted, and what answers them passes.
- A connection that is new here, or noted no more, and in which only the network speaks (a download) would
  wait for the member, which waits for the network. So a few segments that begin nothing pass unasked, and
  the member's acknowledgement does the rest. A host of the network that sends such segments of no connection
  gets RSTs, and learns which members' addresses are in use: hence so few of them.

None of this is for connections that this host translates: the other router knows nothing of the translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from phantommesh.nftables.text import set_block

# Tuning.
MOST: Final = 65_536  # connections that came back, of each family: it bounds the kernel's memory
NOTED_FOR: Final = 300  # s since the member's last segment; later the next one notes it again
UNASKED: Final = 100  # segments a second from the networks to members: one a download that moved
BURST: Final = 200  # of them at once: all move at the same moment

_FAMILIES: Final = (("ip", "ipv4_addr", "moved4"), ("ip6", "ipv6_addr", "moved6"))


def sets() -> list[str]:
    """The sets of the connections that came back, as members see them."""
    return [
        line
        for _, address, name in _FAMILIES
        for line in set_block(
            name, f"type {address} . inet_service . {address} . inet_service", f"size {MOST}",
            "flags dynamic, timeout", f"timeout {NOTED_FOR}s",
        )
    ]  # fmt: skip


def noting(out: Sequence[str]) -> list[str]:
    """Rules that note members' segments, which the matches ``out`` are of, and decide nothing."""
    return [
        f"{match} meta l4proto tcp ct state invalid "
        f"update @{name} {{ {header} saddr . tcp sport . {header} daddr . tcp dport }}"
        for match in out
        for header, name in _of(match)
    ]


def passing(back: Sequence[str]) -> list[str]:
    """Rules that let pass what answers such segments, and a few others. ``back`` are matches of what goes
    from the networks to members and is no answer by the kernel's word."""
    return [
        f"{match} tcp flags & syn == 0 {header} daddr . tcp dport . {header} saddr . tcp sport @{name} accept"
        for match in back
        for header, name in _of(match)
    ] + [
        f"{match} tcp flags & (syn | rst | ack) == ack "
        f"limit rate {UNASKED}/second burst {BURST} packets accept"
        for match in back
    ]


def _of(match: str) -> list[tuple[str, str]]:
    """The header and the set of a match's family."""
    return [(header, name) for header, _, name in _FAMILIES if f"{header} saddr" in match]
