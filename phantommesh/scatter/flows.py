# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel counts of flows: a table of its own with four dynamic sets, and what their keys say.

Two sets (one for each IP version) have the flows into the overlay by 5-tuple, from one packet in `SAMPLE`
at random, so that a thousand short flows leave a hundred entries and a heavy one is there within a few
packets. Two sets have who calls whom: each TCP connection's first packet, and UDP, into the overlay and out
of it, by both addresses, protocol and port. Every entry goes by itself after a time without packets, and a
full set takes no more: the memory is bounded, and what does not fit is not seen.

The table only counts. It has hooks of its own, so that the scatter rules and its verdicts stay as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from phantommesh.nftables.text import anonymous, chain_block, set_block

FAMILY: Final = "inet"
SENT: Final = {4: "sent4", 6: "sent6"}
CALLS: Final = {4: "calls4", 6: "calls6"}

# Tuning.
SAMPLE: Final = 8  # packets, or bursts of TCP's, of which one is looked at
SENT_FOR: Final = 5  # s that a flow is remembered without a sampled packet
CALLS_FOR: Final = 900  # s that a call is remembered: slower beacons are not found
PRIORITY: Final = 310  # after all of NAT, and after whoever changes packets on their way out

_HEADERS: Final = {4: "ip", 6: "ip6"}
_WIDTHS: Final = {4: 4, 6: 16}
_MASK: Final = 0xFFFFFFFF


def table_name(device: str) -> str:
    """The table of the node whose mesh interface is ``device``."""
    return f"phantommesh_flows_{device}"


def render(device: str, names: Sequence[str], own_ports: Sequence[int], most: int) -> str:
    """The whole table, which takes the place of what it held before. ``names``: the dimensions' interfaces;
    ``own_ports``: UDP ports of the node's own probes, which are no flows; ``most``: entries of each set."""
    table = f"{FAMILY} {table_name(device)}"
    carried = f"meta l4proto {{ tcp, udp }} th dport != {anonymous(own_ports)}"
    size = f"size {most}"
    lines = [f"add table {table}", f"delete table {table}", f"table {table} {{"]
    for version, header in _HEADERS.items():
        pair = f"{header} saddr . {header} daddr . meta l4proto"
        lines += set_block(
            SENT[version], f"typeof {pair} . th sport . th dport", size, "flags dynamic, timeout",
            f"timeout {SENT_FOR}s", "counter",
        )  # fmt: skip
        lines += set_block(
            CALLS[version], f"typeof {pair} . th dport", size, "flags dynamic, timeout",
            f"timeout {CALLS_FOR}s", "counter",
        )  # fmt: skip
    begins = ("meta l4proto udp", "tcp flags & (syn | ack) == syn")
    lines += chain_block(
        "sent",
        f"type filter hook postrouting priority {PRIORITY}; policy accept;",
        f"oifname != {anonymous([device, *names])} return",
        f"{carried} goto called",
    )
    lines += chain_block(
        "came",
        f"type filter hook prerouting priority -{PRIORITY}; policy accept;",
        f"iifname != {anonymous(names)} return",
        f"{carried} goto calls",
    )
    lines += chain_block("called", "jump calls", *(_update(version) for version in _HEADERS))
    lines += chain_block(
        "calls", *(f"{begin} {_update_calls(version)}" for begin in begins for version in _HEADERS)
    )
    return "\n".join([*lines, "}"]) + "\n"


def _update(version: int) -> str:
    header = _HEADERS[version]
    whole = "ip frag-off & 0x3fff == 0" if version == 4 else "ip6 nexthdr != 44"
    key = f"{header} saddr . {header} daddr . meta l4proto . th sport . th dport"
    return f"{whole} numgen random mod {SAMPLE} == 0 update @{SENT[version]} {{ {key} }}"


def _update_calls(version: int) -> str:
    header = _HEADERS[version]
    return f"update @{CALLS[version]} {{ {header} saddr . {header} daddr . meta l4proto . th dport }}"


Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, order=True)
class FlowKey:
    """One flow, or with the source port 0 who calls whom. ``protocol`` by its number."""

    source: Address
    destination: Address
    protocol: int
    source_port: int
    destination_port: int

    def __str__(self) -> str:
        name = {6: "tcp", 17: "udp"}.get(self.protocol, str(self.protocol))
        return f"{name} {self.source}:{self.source_port} > {self.destination}:{self.destination_port}"


def decode_key(key: bytes, version: int) -> FlowKey | None:
    """Read the key of an element of one of the sets; None for another length. Each part of a concatenation
    has whole 32-bit words (linux/netfilter/nf_tables.h)."""
    width = _WIDTHS[version]
    ports = (len(key) - 2 * width - 4) // 4
    if ports not in (1, 2) or len(key) != 2 * width + 4 + 4 * ports:
        return None
    make = IPv4Address if version == 4 else IPv6Address
    source, destination = make(key[:width]), make(key[width : 2 * width])
    found = [
        struct.unpack_from(">H", key, 2 * width + 4 + 4 * i)[0] for i in range(ports)
    ]  # in the network's order, at the start of the word
    return FlowKey(source, destination, key[2 * width], found[0] if ports == 2 else 0, found[-1])


def bucket_of(key: bytes, seed: int, buckets: int = 256) -> int:
    """Return the number that the scatter rules' hash gives to the flow of this key: nft's ``jhash ... mod
    buckets seed ...``, Bob Jenkins's lookup3 as in linux/jhash.h, scaled as linux/kernel.h's
    ``reciprocal_scale`` does. The machine is little-endian, or the number is wrong."""
    a = b = c = (0xDEADBEEF + len(key) + seed) & _MASK
    words = list(struct.unpack(f"<{len(key) // 4}I", key))
    while len(words) > 3:
        a, b, c = _mix((a + words[0]) & _MASK, (b + words[1]) & _MASK, (c + words[2]) & _MASK)
        words = words[3:]
    for i, word in enumerate(words):
        if i == 0:
            a = (a + word) & _MASK
        elif i == 1:
            b = (b + word) & _MASK
        else:
            c = (c + word) & _MASK
    return (_final(a, b, c) * buckets) >> 32


def _turn(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _MASK


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - c & _MASK) ^ _turn(c, 4)
    c = c + b & _MASK
    b = (b - a & _MASK) ^ _turn(a, 6)
    a = a + c & _MASK
    c = (c - b & _MASK) ^ _turn(b, 8)
    b = b + a & _MASK
    a = (a - c & _MASK) ^ _turn(c, 16)
    c = c + b & _MASK
    b = (b - a & _MASK) ^ _turn(a, 19)
    a = a + c & _MASK
    c = (c - b & _MASK) ^ _turn(b, 4)
    return a, b + a & _MASK, c


def _final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - _turn(b, 14) & _MASK
    a = (a ^ c) - _turn(c, 11) & _MASK
    b = (b ^ a) - _turn(a, 25) & _MASK
    c = (c ^ b) - _turn(b, 16) & _MASK
    a = (a ^ c) - _turn(c, 4) & _MASK
    b = (b ^ a) - _turn(a, 14) & _MASK
    return (c ^ b) - _turn(b, 24) & _MASK
