# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's nftables rules: the kernel forwards ciphertext between the two legs of each lease. Pure.

Stateless: connection tracking sees no packet of the relay's port, and no lease has an entry there. NAT by
connection tracking is decided once a flow, so a lease could not be withdrawn while packets flow. Here each
packet is looked up: a lease that is not in the maps forwards nothing, from the next packet on.

One hash look-up finds the direction's number by source address, source port and tag; the rest are look-ups by
number. So 1,000 leases cost a packet no more than one. The tag goes through as it is: both legs of a lease
have the same. The mark between prerouting and postrouting is one byte, as everywhere.

nft 1.0.6 takes the tag as a raw payload expression in a concatenation of a `typeof` map, and nowhere beside
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from phantommesh.nftables.text import add_elements, anonymous, chain_block, map_block, set_block
from phantommesh.routing.binding import MAGIC
from phantommesh.routing.leases import Forward
from phantommesh.wireguard.device import OUTER_MASK

FAMILY: Final = "inet"
RELAY_MARK: Final = 0x52000000
"""The mark of a packet that is being relayed, under `OUTER_MASK`."""

COUNTED: Final = "counted"
DROPS: Final = "drops"
PASSED: Final = "passed"
"""The set that counts what leaves. Its one element is `RELAY_MARK`."""

OPENED: Final = "opened"
"""The set of the interfaces whose forwarding is on for the relay alone: to give it back after a crash."""

# Specification. UDP's header has 64 bits (RFC 768). A WireGuard message begins with its type, 1 to 4, and
# three bytes that are 0 (WireGuard's whitepaper, section 5.4); the first of the three is the tag.
_FIRST_WORD: Final = "@th,64,32"
_TYPE: Final = "@th,64,8"
_TAG: Final = "@th,72,8"

# Before `raw` (-300), so before connection tracking (-200); after the defragmentation that goes with it
# (-400).
_EARLY: Final = -310

# Tuning.
_BURST: Final = 0.1  # s of the rate that may come at once
_LEAST_BURST: Final = 65_536  # bytes: one GSO burst
_MOST_BURST: Final = 1 << 30  # bytes: nf_tables has 32 bits for it


class Drop(IntEnum):
    """Why the relay dropped a packet; the number is the element that counts it."""

    STRANGER = 1  # from an address, port and tag that no lease in force has
    RATE = 2  # beyond the lease's rate
    FORM = 3  # a fragment, or no WireGuard message
    STRANDED = 4  # found, and without a target: somebody has edited the maps
    UNMARKED = 5  # to be forwarded by an interface whose forwarding is on for the relay alone


_REASONS: Final = {
    Drop.STRANGER: "relay-stranger",
    Drop.RATE: "relay-rate",
    Drop.FORM: "relay-form",
    Drop.STRANDED: "relay-stranded",
    Drop.UNMARKED: "relay-unmarked",
}


def table_name(device: str) -> str:
    """The table of the node whose interface is ``device``."""
    return f"phantommesh_relay_{device}"


@dataclass(frozen=True, slots=True)
class Frame:
    """The relay's own part. ``here4`` and ``here6`` are the host's addresses at which it relays, as its own
    interfaces have them (None: not in this family); ``port`` is the one UDP port; ``rate`` in bytes a second
    for each direction of a lease; ``opened`` are interfaces whose forwarding the node has turned on for the
    relay, so that they forward nothing else, but to the interfaces of the ``mesh``."""

    device: str
    port: int
    here4: IPv4Address | None
    here6: IPv6Address | None
    rate: int
    opened: tuple[str, ...] = ()
    mesh: tuple[str, ...] = ()

    @property
    def table(self) -> str:
        """The table's name."""
        return table_name(self.device)

    @property
    def here(self) -> tuple[tuple[str, IPv4Address | IPv6Address, int], ...]:
        """Its addresses: nft's word for the family's header, the address, the family's number."""
        both = (("ip", self.here4, 4), ("ip6", self.here6, 6))
        return tuple((header, address, number) for header, address, number in both if address is not None)


def reason(drop: Drop) -> str:
    """The word of a reason to drop."""
    return _REASONS[drop]


def burst(rate: int) -> int:
    """The bytes that may come at once, of a rate in bytes a second."""
    return min(_MOST_BURST, max(_LEAST_BURST, int(rate * _BURST)))


def render(frame: Frame, forwards: Collection[Forward]) -> str:
    """The whole ruleset. It takes the place of what the table held before, in one transaction."""
    table = f"{FAMILY} {frame.table}"
    marked = f"meta mark & {OUTER_MASK:#x} == {RELAY_MARK:#x}"
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *map_block("legs4", f"typeof ip saddr . udp sport . {_TAG} : meta mark"),
        *map_block("legs6", f"typeof ip6 saddr . udp sport . {_TAG} : meta mark"),
        *map_block("to4", "type mark : ipv4_addr"),
        *map_block("to6", "type mark : ipv6_addr"),
        *map_block("ports", "type mark : inet_service"),
        *set_block(COUNTED, "type mark", "counter"),
        *set_block("rates", "type mark", "size 65536", "flags dynamic, timeout", "timeout 60s"),
        *set_block(DROPS, "type mark", "counter"),
        *set_block(PASSED, "type mark", "counter"),
        *set_block(OPENED, "type ifname", *([f"elements = {_names(frame.opened)}"] if frame.opened else [])),
        *(line for drop in Drop for line in _end(drop)),
        *(line for here in frame.here for line in chain_block(f"relay{here[2]}", *_relay(frame, *here))),
        *chain_block(
            "arriving",
            f"type filter hook prerouting priority {_EARLY}; policy accept;",
            *(
                f"{header} daddr {here} udp dport {frame.port} goto relay{v}"
                for header, here, v in frame.here
            ),
        ),
        # What the node itself says from the port is not tracked either.
        *chain_block(
            "answering",
            "type filter hook output priority raw; policy accept;",
            *(f"{header} saddr {here} udp sport {frame.port} notrack" for header, here, _ in frame.here),
        ),
        *chain_block(
            "passing",
            "type filter hook forward priority filter - 5; policy accept;",
            *([f"iifname {_names(frame.opened)} {marked} accept"] if frame.opened else []),
            # The guard judges what is for the mesh: answers from networks that this node routes.
            *(
                [f"iifname {_names(frame.opened)} oifname {_names(frame.mesh)} accept"]
                if frame.opened and frame.mesh
                else []
            ),
            *([f"iifname {_names(frame.opened)} {_drop(Drop.UNMARKED)}"] if frame.opened else []),
        ),
        *chain_block(
            "leaving",
            "type filter hook postrouting priority 300; policy accept;",
            # Other programs may have put bits of their own into the mark by now.
            *(
                f"{marked} {header} saddr set {here} meta mark set {RELAY_MARK:#x} meta mark @{PASSED}"
                for header, here, _ in frame.here
            ),
        ),
        "}",
        add_elements(table, PASSED, [f"{RELAY_MARK:#x}"]),
        add_elements(table, DROPS, [str(int(drop)) for drop in Drop]),
    ]
    return "\n".join(lines) + "\n" + _elements(frame, "add", forwards)


def change(frame: Frame, before: Collection[Forward], after: Collection[Forward]) -> str:
    """What turns the elements of ``before`` into those of ``after``, in one transaction; empty where they are
    the same. It fails as a whole where the table does not hold ``before``; then `render` mends it."""
    was, is_now = frozenset(before), frozenset(after)
    return _elements(frame, "delete", was - is_now) + _elements(frame, "add", is_now - was)


def read_counted(counters: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Bytes forwarded by number of `Forward`, from the set `COUNTED`. IP's and UDP's headers count."""
    return {number: size for number, (_, size) in counters.items()}


def read_drops(counters: Mapping[int, tuple[int, int]]) -> dict[str, int]:
    """Packets dropped by reason, from the set `DROPS`."""
    return {_REASONS[drop]: counters[drop][0] for drop in Drop if drop in counters}


def _relay(frame: Frame, header: str, here: IPv4Address | IPv6Address, version: int) -> list[str]:
    """The rules for a packet to the relay's port, in one family."""
    limit = f"limit rate over {frame.rate} bytes/second burst {burst(frame.rate)} bytes"
    fragment = "ip frag-off & 0x3fff != 0" if version == 4 else "exthdr frag exists"
    return [
        "notrack",
        f"{fragment} {_drop(Drop.FORM)}",
        f"{_FIRST_WORD} {MAGIC:#x} accept",  # for the node's own socket: a leg wants to be bound
        f"{_TYPE} != 1-4 {_drop(Drop.FORM)}",
        # The mark is the direction's number until the packet has its target. No number is 0.
        "meta mark set 0",
        f"meta mark set {header} saddr . udp sport . {_TAG} map @legs{version}",
        f"meta mark 0 {_drop(Drop.STRANGER)}",
        f"update @rates {{ meta mark {limit} }} {_drop(Drop.RATE)}",
        f"meta mark @{COUNTED}",
        f"{header} daddr set meta mark map @to{version}",
        f"{header} daddr {here} {_drop(Drop.STRANDED)}",
        f"udp sport set {frame.port}",
        "udp dport set meta mark map @ports",
        f"meta mark set {RELAY_MARK:#x}",
    ]


def _elements(frame: Frame, verb: str, forwards: Iterable[Forward]) -> str:
    table, lines = f"{FAMILY} {frame.table}", list[str]()
    ordered = sorted(forwards, key=lambda one: one.number)
    for version in (4, 6):
        some = [one for one in ordered if ip_address(one.source.host).version == version]
        if some:
            lines += [
                _edit(verb, table, f"legs{version}", (f"{_leg(one)} : {one.number}" for one in some)),
                _edit(verb, table, f"to{version}", (f"{one.number} : {one.target.host}" for one in some)),
            ]
    if ordered:
        lines += [
            _edit(verb, table, "ports", (f"{one.number} : {one.target.port}" for one in ordered)),
            _edit(verb, table, COUNTED, (str(one.number) for one in ordered)),
        ]
    return "".join(f"{line}\n" for line in lines)


def _edit(verb: str, table: str, name: str, elements: Iterable[str]) -> str:
    return f"{verb} element {table} {name} {{ {', '.join(elements)} }}"


def _leg(one: Forward) -> str:
    return f"{one.source.host} . {one.source.port} . {one.tag:#x}"


def _names(names: Iterable[str]) -> str:
    return anonymous(f'"{name}"' for name in names)


def _drop(why: Drop) -> str:
    return f"goto drop_{why.name.lower()}"


def _end(why: Drop) -> list[str]:
    """The chain that counts and drops; the second rule drops where somebody has emptied the set."""
    return chain_block(
        f"drop_{why.name.lower()}", f"meta mark set {int(why)} meta mark @{DROPS} drop", "drop"
    )
