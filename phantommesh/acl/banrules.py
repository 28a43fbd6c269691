# SPDX-License-Identifier: GPL-3.0-or-later
"""The nftables table of bans as text, and what its sets tell. Pure.

The table looks at packets before anything else does: at prerouting, before the raw table and connection
tracking. It drops what banned sources send, counts what unknown sources send to this node's ports, and while
a flood lasts it lets through only so many datagrams a second of unknown sources to the control port.

A set an origin and family has the bans, with timeouts: so they end also where no node runs. A timeout is at
most `MOST_TIMEOUT`, whatever the clock and the file of bans say: the node fills the sets anew before.
Blocks are looked up by hash; the operator's networks may be wider, so their sets are of intervals. Known
sources (members, seeds) are not counted, and each has a pace of its own. What the mesh's own interfaces bring
is inside the tunnels, and passes.

Datagrams at WireGuard's ports that WireGuard could not mean are counted by source and port: a scan. An honest
peer that has moved sends WireGuard's messages, or datagrams of `routing.stamp`'s kinds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from phantommesh.acl.bans import ORIGINS, Ban, Origin, for_kernel
from phantommesh.errors import DecodeError
from phantommesh.nftables.text import add_elements, anonymous, chain_block, set_block
from phantommesh.nlattr import number
from phantommesh.routable import Network, collapse

FAMILY: Final = "inet"
ARRIVED, ODD, SHED = "arrived", "odd", "shed"
NEAR: Final = "near4"
FAR: Final = {4: "far4", 6: "far6"}
"""The sets whose elements count, by port: datagrams of unknown sources that came to the control port, those
to WireGuard's ports that are none of its protocol, and those that were shed."""
HELD: Final = tuple(f"{origin}{version}" for origin in ORIGINS for version in (4, 6))
KNOWN: Final = ("known4", "known6")
"""The sets of bans, and those of known sources."""

# Specification (WireGuard, section 5.4): payload bytes of each message by type, without UDP's header of 8.
_UDP: Final = 8
_MESSAGES: Final = {1: 148, 2: 92, 3: 64}
_DATA, _LEAST_DATA = 4, 32
OWN_SIZE: Final = 64  # bytes of this project's own datagrams there: `routing.knocks.SIZE`

# Tuning.
WINDOW: Final = 10  # s that the kernel remembers a source after its last datagram
MOST_SOURCES: Final = 1024  # of each set of sources; a packet whose source finds no place is not counted
KNOWN_RATE: Final = 500  # datagrams a second of one known address; fifty members behind it need a tenth
MOST_KNOWN: Final = 16_384  # known addresses with a pace of their own
SHED_BURST: Final = 50  # datagrams
MOST_TIMEOUT: Final = 30 * 86_400  # s of an element; nft 1.0.6 refuses a script that has 1158 days
ENDING: Final = 5.0  # s before its end from which a ban may be gone from the kernel, whose clock is another
MOST_BANS: Final = 8192  # elements of a set of bans, twice what there may be: elements end a little late

_FAMILIES: Final = ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr"))
_BLOCK_6: Final = "& ffff:ffff:ffff:ffff::"


def table_name(device: str) -> str:
    """The table of the node whose scattering interface is ``device``."""
    return f"phantommesh_bans_{device}"


@dataclass(frozen=True, slots=True)
class Ports:
    """What is protected, and what is around. ``near``: networks that this host reaches without a gateway,
    ``shed``: datagrams a second of unknown sources that the control port takes; None: all."""

    device: str
    names: tuple[str, ...]
    control: int
    wireguard: tuple[int, ...]
    near: tuple[Network, ...] = ()
    shed: float | None = None


def render(ports: Ports, bans: Iterable[Ban], known: Iterable[Network], now: float) -> str:
    """The whole table with all that is in it. It takes the place of what was there, in one transaction."""
    table, mesh = f"{FAMILY} {table_name(ports.device)}", (ports.device, *ports.names)
    lines = [f"add table {table}", f"delete table {table}", f"table {table} {{"]
    for origin in ORIGINS:
        flags = "flags interval, timeout" if origin == "operator" else "flags timeout"
        for version, _, kind in _FAMILIES:
            lines += set_block(f"{origin}{version}", f"type {kind}", f"size {MOST_BANS}", flags, "counter")
    dynamic = (f"size {MOST_SOURCES}", "flags dynamic, timeout", f"timeout {WINDOW}s", "counter")
    for version, _, kind in _FAMILIES:
        lines += set_block(f"known{version}", f"type {kind}", "flags interval")
        paced = (f"size {MOST_KNOWN}", "flags dynamic, timeout", f"timeout {WINDOW}s")
        lines += set_block(f"paced{version}", f"type {kind}", *paced)
        lines += set_block(f"far{version}", f"type {kind} . inet_service", *dynamic)
    lines += set_block(NEAR, "type iface_index . ether_addr . ipv4_addr . inet_service", *dynamic)
    for name in (ARRIVED, ODD, SHED):
        lines += set_block(name, "type inet_service", "counter")
    # The second rule drops where somebody has emptied the set.
    lines += chain_block("shedding", f"udp dport @{SHED} drop", "drop")
    lines += chain_block("counting", *_counting(ports.near))
    lines += chain_block("known", *_known_rules(ports.control))
    lines += chain_block("control", *_control(ports))
    lines += chain_block("wireguard", *_wireguard())
    lines += chain_block(
        "arriving",
        "type filter hook prerouting priority raw - 10; policy accept;",
        f"iifname {anonymous(f'{chr(34)}{name}{chr(34)}' for name in ('lo', *mesh))} return",
        *(
            f"{header} saddr {_BLOCK_6 + ' ' if version == 6 and origin != 'operator' else ''}"
            f"@{origin}{version} drop"
            for origin in ORIGINS
            for version, header, _ in _FAMILIES
        ),
        f"udp dport != {anonymous(sorted({ports.control, *ports.wireguard}))} return",
        "meta l4proto != udp return",
        *(f"{header} saddr @known{version} goto known" for version, header, _ in _FAMILIES),
        f"udp dport {ports.control} goto control",
        "goto wireguard",
    )
    lines.append("}")
    lines += [add_elements(table, name, [str(ports.control)]) for name in (ARRIVED, SHED)]
    lines.append(add_elements(table, ODD, [str(port) for port in sorted(ports.wireguard)]))
    lines += _fill(table, bans, now)
    lines += _known(table, known)
    return "\n".join(lines) + "\n"


def refill(device: str, bans: Iterable[Ban], now: float) -> str:
    """Make these the bans, in one transaction."""
    table = f"{FAMILY} {table_name(device)}"
    flush = [f"flush set {table} {name}" for name in HELD]
    return "\n".join([*flush, *_fill(table, bans, now)]) + "\n"


def insert(device: str, bans: Iterable[Ban], now: float) -> str:
    """Add bans to those that are there, in one transaction. None of them may be there in its set."""
    return "\n".join(_fill(f"{FAMILY} {table_name(device)}", bans, now)) + "\n"


def reknow(device: str, known: Iterable[Network]) -> str:
    """Make these the known sources, in one transaction."""
    table = f"{FAMILY} {table_name(device)}"
    flush = [f"flush set {table} {name}" for name in KNOWN]
    return "\n".join([*flush, *_known(table, known)]) + "\n"


def reshed(ports: Ports) -> str:
    """Have the control port take so many datagrams a second of unknown sources, in one transaction."""
    table = f"{FAMILY} {table_name(ports.device)}"
    rules = [f"add rule {table} control {rule}" for rule in _control(ports)]
    return "\n".join([f"flush chain {table} control", *rules]) + "\n"


def _known_rules(control: int) -> list[str]:
    """Whoever forges members' addresses takes up what such an address may send, and no more of the node."""
    limit = f"limit rate over {KNOWN_RATE}/second burst {KNOWN_RATE} packets"
    return [
        f"udp dport {control} update @paced{version} {{ {header} saddr {limit} }} goto shedding"
        for version, header, _ in _FAMILIES
    ]


def _control(ports: Ports) -> list[str]:
    rules = [f"udp dport @{ARRIVED} jump counting"]
    if ports.shed is not None:
        rules.append(
            f"limit rate over {max(1, round(ports.shed))}/second burst {SHED_BURST} packets goto shedding"
        )
    return rules


def _wireguard() -> list[str]:
    shapes = [f"@th,64,8 {kind} udp length {_UDP + size} return" for kind, size in _MESSAGES.items()]
    return [
        f"@th,64,8 {_DATA} udp length >= {_UDP + _LEAST_DATA} return",
        *shapes,
        f"udp length {_UDP + OWN_SIZE} return",
        f"udp dport @{ODD} jump counting",
    ]


def _counting(near: Collection[Network]) -> list[str]:
    """A host of IPv4 that is reached without a gateway is counted with its MAC address. A neighbour of IPv6
    is not: its /64 is everybody's on the link, so it would not be banned anyhow."""
    rules = []
    if connected := [network for network in collapse(near) if network.version == 4]:
        rules.append(
            f"ip saddr {anonymous(connected)} update @{NEAR} "
            "{ iif . ether saddr . ip saddr . udp dport } return"
        )
    for version, header, _ in _FAMILIES:
        rules.append(f"update @{FAR[version]} {{ {header} saddr . udp dport }} return")
    return rules


def _fill(table: str, bans: Iterable[Ban], now: float) -> list[str]:
    listed = list(bans)
    commands = []
    for origin in ORIGINS:
        mine = [ban for ban in listed if ban.origin == origin]
        for version, _, _ in _FAMILIES:
            elements = [
                f"{_element(ban.parsed, origin)} timeout {_timeout(ban, now)}s"
                for ban in for_kernel(mine).values()
                if ban.parsed.version == version
            ]
            if elements:
                commands.append(add_elements(table, f"{origin}{version}", elements))
    return commands


def _timeout(ban: Ban, now: float) -> int:
    return round(min(max(1.0, ban.until - now), MOST_TIMEOUT))


def _element(network: Network, origin: Origin) -> str:
    return _plain(network) if origin == "operator" else _plain(network).partition("/")[0]


def _plain(network: Network) -> str:
    """A network in numbers alone: Python puts out the scope of an IPv6 address, which may be any text."""
    return str(ip_network((network.network_address.packed, network.prefixlen)))


def _known(table: str, known: Iterable[Network]) -> list[str]:
    commands, found = [], collapse(known)
    for version, _, _ in _FAMILIES:
        if elements := [_plain(network) for network in found if network.version == version]:
            commands.append(add_elements(table, f"known{version}", elements))
    return commands


def holds(held: Mapping[str, Mapping[bytes, object]], bans: Iterable[Ban], now: float) -> bool:
    """Whether the sets `HELD`, as read by key, have these bans. One that ends soon may be gone."""
    listed = list(bans)
    return all(
        ban.parsed.network_address.packed in held[f"{origin}{ban.parsed.version}"]
        for origin in ORIGINS
        for ban in for_kernel(one for one in listed if one.origin == origin).values()
        if ban.until > now + ENDING
    )


@dataclass(frozen=True, slots=True, order=True)
class Sender:
    """A source and how it came: on an interface, by its index, from a MAC address; both empty where the
    source is not one that is reached without a gateway."""

    host: str
    interface: int = 0
    mac: bytes = b""


def read_senders(name: str, counters: Mapping[bytes, tuple[int, int]]) -> dict[tuple[Sender, int], int]:
    """Packets by sender and port, from the set `NEAR` or one of `FAR`. Raises DecodeError. The kernel pads
    each field of a key to 4 bytes."""
    found: dict[tuple[Sender, int], int] = {}
    start, size = (12 if name == NEAR else 0), (16 if name == FAR[6] else 4)
    for key, (packets, _) in counters.items():
        if len(key) < start + size + 2:
            raise DecodeError("a key of a set is too short")
        host = str(ip_address(key[start : start + size]))
        sender = Sender(host, number(key[:4]), key[4:10]) if start else Sender(host)
        found[sender, int.from_bytes(key[start + size : start + size + 2], "big")] = packets
    return found


def total(counters: Mapping[bytes, tuple[int, int]]) -> int:
    """The packets that a set has counted in all."""
    return sum(packets for packets, _ in counters.values())
