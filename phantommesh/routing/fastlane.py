# SPDX-License-Identifier: GPL-3.0-or-later
"""The short way through a relay: data goes on from the ingress of the interface that it came in by, without
routing, connection tracking and firewall chains. Pure.

`routing.forwarding` can forward all of this and decides on all the rest. A packet takes the short way only
where that changes nothing for it: data of WireGuard in one piece, of a lease in force, not too large for the
way out, with time to live left. All else falls through to the other rules, which forward it, drop it, or hand
it to the node. WireGuard's handshakes do too, so that a firewall that begins to drop what is relayed shows.

One rule a family. One hash look-up finds, by source address, source port, type, tag and interface, where
the packet goes: both addresses and both ports, next hop and interface. Each element has its own rate and
counters.

The ingress comes before what the host checks of an address and of a frame. So the interface is a part of the
key: the one that a route leads to the source by. And a frame that is for another machine, or for a VLAN, is
left alone.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from phantommesh.nftables import expressions as nft
from phantommesh.nftables.expressions import Compare, Header
from phantommesh.nftables.messages import Change
from phantommesh.routing.forwarding import Frame, burst
from phantommesh.routing.leases import MOST, Forward

FAMILY: Final = "netdev"
CHAIN: Final = "arriving"

# Specification: WireGuard's data message has type 4 (whitepaper, section 5.4.6); UDP is 17 (RFC 768).
_DATA: Final = 4
_UDP: Final = 17
_FOR_US: Final = b"\0"  # PACKET_HOST (linux/if_packet.h)
_ETHERTYPES: Final = {4: b"\x08\x00", 6: b"\x86\xdd"}
_HEADER6: Final = 40  # bytes that IPv6's length does not count (RFC 8200)

# Before all that others have at the ingress, as far as they keep to the usual numbers.
_PRIORITY: Final = -500

SLICE: Final = 256
"""Lanes in one message: a message's list has 16 bits for its length."""


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to a target: the neighbour that it goes to, the interface's number, and the longest packet in
    bytes."""

    via: str
    interface: int
    mtu: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One direction of a lease with its way. ``arrives``: the number of the interface that its packets come
    in by."""

    forward: Forward
    hop: Hop
    arrives: int

    @property
    def version(self) -> int:
        """The version of IP."""
        return ip_address(self.forward.source.host).version


def choose(forwards: Iterable[Forward], hops: Mapping[str, Hop]) -> tuple[int, frozenset[Lane]]:
    """Which directions take the short way, and the longest packet that may: what most ways carry. A source or
    a target without a way, or a target with a narrower one, is left to the other rules."""
    found = [
        Lane(forward, hop, back.interface)
        for forward in forwards
        if (hop := hops.get(forward.target.host)) and (back := hops.get(forward.source.host))
    ]
    if not found:
        return 0, frozenset()
    counted = Counter(lane.hop.mtu for lane in found)
    mtu = max(counted, key=lambda size: (counted[size], -size))
    return mtu, frozenset(lane for lane in found if lane.hop.mtu >= mtu)


def whole(frame: Frame, interfaces: Collection[str], mtu: int, lanes: Collection[Lane]) -> list[Change]:
    """The table, in place of what was there. ``interfaces`` are those whose packets are looked at."""
    table = frame.table
    own = [nft.within(frame.rate, burst(frame.rate)), nft.counter()]
    changes = [
        nft.new_table(table),
        nft.delete_table(table),
        nft.new_table(table),
        nft.ingress_chain(table, CHAIN, interfaces, _PRIORITY),
    ]
    for _, here, version in frame.here:
        four = version == 4
        address = nft.IPV4 if four else nft.IPV6
        size = 4 if four else 16
        key = nft.concatenation(address, nft.PORT, nft.MARK, nft.INTERFACE), size + 12
        data = (
            nft.concatenation(address, address, nft.MARK, address, nft.INTERFACE),
            3 * size + 8,
        )
        number = 2 * version
        changes += [
            nft.hash_set(
                table, lanes_of(version), number, key=key, data=data, most=2 * MOST, expressions=own
            ),
            nft.hash_set(
                table, leased(version), number + 1, key=key, most=2 * MOST, expressions=[nft.counter()]
            ),
            nft.rule(table, CHAIN, *_going(version, here.packed, frame.port, mtu)),
            # A packet that has a lane and comes here was beyond the lane's rate.
            nft.rule(table, CHAIN, *_over(version, here.packed, frame.port, mtu)),
        ]
    return changes + alter(frame, (), lanes)


def alter(frame: Frame, before: Collection[Lane], after: Collection[Lane]) -> list[Change]:
    """What turns the lanes ``before`` into those ``after``. It fails as a whole where the table does not hold
    ``before``; then `whole` mends it."""
    table, was, wanted = frame.table, frozenset(before), frozenset(after)
    changes = list[Change]()
    for some, add in ((was - wanted, False), (wanted - was, True)):
        for version in (4, 6):
            ordered = sorted(
                (lane for lane in some if lane.version == version), key=lambda lane: lane.forward.number
            )
            for at in range(0, len(ordered), SLICE):
                part = ordered[at : at + SLICE]
                held = [(key_of(lane), _data(frame, lane)) for lane in part]
                keys = [(key, None) for key, _ in held]
                changes += [
                    nft.elements(table, lanes_of(version), held, add=add),
                    nft.elements(table, leased(version), keys, add=add),
                ]
    return changes


def lanes_of(version: int) -> str:
    """The map of the lanes of a family."""
    return f"lanes{version}"


def leased(version: int) -> str:
    """The set of the keys of a family's lanes, which counts what was beyond a lane's rate."""
    return f"leased{version}"


def key_of(lane: Lane) -> bytes:
    """The key of a direction: source address, source port, type and tag, interface."""
    forward = lane.forward
    source = ip_address(forward.source.host).packed
    own = struct.pack(">HxxBBxx", forward.source.port, _DATA, forward.tag)
    return source + own + struct.pack("=I", lane.arrives)


def _data(frame: Frame, lane: Lane) -> bytes:
    here = next(address for _, address, version in frame.here if version == lane.version)
    target = lane.forward.target
    addresses = here.packed + ip_address(target.host).packed
    ports = struct.pack(">HH", frame.port, target.port)
    return addresses + ports + ip_address(lane.hop.via).packed + struct.pack("=I", lane.hop.interface)


def _matching(version: int, here: bytes, port: int, mtu: int) -> list[bytes]:
    """End the rule for what may not take the short way. What ends it for most packets comes first. A key is
    in the registers after it."""
    loaded, size = 15, len(here)
    if version == 4:
        shape = [
            nft.load(loaded, Header.NETWORK, 0, 1),
            nft.compare(loaded, Compare.EQUAL, b"\x45"),  # IPv4 without options
            nft.load(loaded, Header.NETWORK, 6, 4),  # flags and offset, time to live, protocol
            nft.mask(loaded, b"\x3f\xff\x00\xff"),
            nft.compare(loaded, Compare.EQUAL, bytes((0, 0, 0, _UDP))),  # in one piece
            nft.load(loaded, Header.NETWORK, 8, 1),
            nft.compare(loaded, Compare.MORE, b"\x01"),
            nft.load(loaded, Header.NETWORK, 2, 2),
            nft.compare(loaded, Compare.AT_MOST, struct.pack(">H", min(mtu, 0xFFFF))),
        ]
        source, target = 12, 16
    else:
        shape = [
            nft.load(loaded, Header.NETWORK, 0, 1),
            nft.mask(loaded, b"\xf0"),
            nft.compare(loaded, Compare.EQUAL, b"\x60"),
            nft.load(loaded, Header.NETWORK, 6, 1),  # no extension, so no fragment
            nft.compare(loaded, Compare.EQUAL, bytes((_UDP,))),
            nft.load(loaded, Header.NETWORK, 7, 1),
            nft.compare(loaded, Compare.MORE, b"\x01"),
            nft.load(loaded, Header.NETWORK, 4, 2),
            nft.compare(loaded, Compare.AT_MOST, struct.pack(">H", min(max(mtu - _HEADER6, 0), 0xFFFF))),
        ]
        source, target = 8, 24
    words = size // 4
    return [
        nft.load(loaded, Header.TRANSPORT, 2, 2),
        nft.compare(loaded, Compare.EQUAL, struct.pack(">H", port)),
        *shape,
        nft.meta(loaded, nft.Meta.TO_WHOM),
        nft.compare(loaded, Compare.EQUAL, _FOR_US),
        nft.load(loaded, Header.LINK, 12, 2),
        nft.compare(loaded, Compare.EQUAL, _ETHERTYPES[version]),
        nft.load(0, Header.NETWORK, target, size),
        nft.compare(0, Compare.EQUAL, here),
        nft.load(0, Header.NETWORK, source, size),
        nft.load(words, Header.TRANSPORT, 0, 2),
        nft.load(words + 1, Header.TRANSPORT, 8, 2),
        nft.meta(words + 2, nft.Meta.INTERFACE),
    ]


def _going(version: int, here: bytes, port: int, mtu: int) -> list[bytes]:
    size = len(here)
    words = size // 4
    return [
        *_matching(version, here, port, mtu),
        nft.find(lanes_of(version), 0, 0),
        nft.write(
            0,
            Header.NETWORK,
            12 if version == 4 else 8,
            2 * size,
            checksum=10 if version == 4 else None,
            pseudo=True,
        ),
        nft.write(2 * words, Header.TRANSPORT, 0, 4, checksum=6, pseudo=False),
        nft.forward_to(3 * words + 1, 2 * words + 1, version),
    ]


def _over(version: int, here: bytes, port: int, mtu: int) -> list[bytes]:
    return [
        *_matching(version, here, port, mtu),
        nft.find(leased(version), 0),
        nft.drop(),
    ]
