# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables, sets and rules of nf_tables as netlink attributes: linux/netfilter/nf_tables.h.

The language of the ``nft`` program writes each field of a header by itself, with its own update of the
checksums, and takes no address from a map for `forward_to`. The kernel can do both, so a rule that is met by
each packet is packed here. Registers are 4 bytes wide and numbered 0 to 15; a value of several registers
begins at the first. Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from enum import IntEnum
from typing import Final

from phantommesh.nftables.messages import Change
from phantommesh.nlattr import NESTED, attribute

# Specification: linux/netfilter/nf_tables.h.
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE, _NEW_SET, _NEW_ELEMENTS, _DELETE_ELEMENTS = (
    0,
    2,
    3,
    6,
    9,
    12,
    14,
)
_CREATE, _APPEND = 0x400, 0x800  # NLM_F_CREATE, NLM_F_APPEND (linux/netlink.h)
_REGISTER: Final = 8  # NFT_REG32_00
_MAP, _WITH_EXPRESSIONS = 0x08, 0x100  # NFT_SET_MAP, NFT_SET_EXPR
_INGRESS: Final = 0  # NF_NETDEV_INGRESS
_ITEM, _EXPRESSION, _VALUE, _KEY, _DATA = 1, 1, 1, 1, 2


class Header(IntEnum):
    """Where an offset counts from: NFT_PAYLOAD_*_HEADER. A VLAN's tag is there in the link's, also where the
    card has taken it out."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2


class Meta(IntEnum):
    """What is known of a packet beside its bytes: NFT_META_*."""

    INTERFACE = 4  # that it came in by, in the machine's order of bytes
    TO_WHOM = 19  # one byte, PACKET_* of linux/if_packet.h


class Compare(IntEnum):
    """NFT_CMP_*; bytes are compared as a big-endian number."""

    EQUAL = 0
    AT_MOST = 3
    MORE = 4


def _word(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _long(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">Q", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nest(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def _expression(name: str, *parts: bytes) -> bytes:
    return _text(1, name) + _nest(2, *parts)


def load(register: int, header: Header, offset: int, size: int) -> bytes:
    """Take bytes of a header. The rule ends for a packet that has no such header, and for the transport
    header of a fragment that is not the first."""
    parts = (register + _REGISTER, header, offset, size)
    return _expression("payload", *(_word(1 + i, part) for i, part in enumerate(parts)))


def meta(register: int, what: Meta) -> bytes:
    """Take what is known of the packet."""
    return _expression("meta", _word(1, register + _REGISTER), _word(2, what))


def mask(register: int, value: bytes) -> bytes:
    """Keep these bits."""
    size = len(value)
    return _expression(
        "bitwise",
        _word(1, register + _REGISTER),
        _word(2, register + _REGISTER),
        _word(3, size),
        _nest(4, attribute(_VALUE, value)),
        _nest(5, attribute(_VALUE, bytes(size))),
    )


def compare(register: int, how: Compare, value: bytes) -> bytes:
    """End the rule where the register's bytes are not so."""
    return _expression(
        "cmp", _word(1, register + _REGISTER), _word(2, how), _nest(3, attribute(_VALUE, value))
    )


def find(name: str, key: int, data: int | None = None) -> bytes:
    """Look a key up in a set; of a map, take its data. The rule ends where the key is not there, and where an
    expression of the element says so."""
    target = b"" if data is None else _word(3, data + _REGISTER)
    return _expression("lookup", _text(1, name), _word(2, key + _REGISTER), target)


def write(
    register: int, header: Header, offset: int, size: int, *, checksum: int | None, pseudo: bool
) -> bytes:
    """Write bytes of a header. The Internet checksum at the offset ``checksum`` of the same header follows;
    so does the transport's where ``pseudo`` says that its pseudo-header has these bytes."""
    parts = (register + _REGISTER, header, offset, size)
    return _expression(
        "payload",
        _word(5, parts[0]),
        *(_word(2 + i, part) for i, part in enumerate(parts[1:])),
        _word(6, 0 if checksum is None else 1),  # NFT_PAYLOAD_CSUM_NONE, _INET
        _word(7, checksum or 0),
        _word(8, int(pseudo)),  # NFT_PAYLOAD_L4CSUM_PSEUDOHDR
    )


def forward_to(interface: int, address: int, version: int) -> bytes:
    """Send the packet to the neighbour at an address of an interface, both in registers, without routing:
    the time to live counts down, and the kernel finds the neighbour. Only at the ingress of an interface."""
    family = 2 if version == 4 else 10  # NFPROTO_IPV4, _IPV6
    return _expression(
        "fwd", _word(1, interface + _REGISTER), _word(2, address + _REGISTER), _word(3, family)
    )


def counter() -> bytes:
    """Count packets and bytes."""
    return _expression("counter")


def within(rate: int, burst: int) -> bytes:
    """End the rule beyond so many bytes a second, and bytes at once."""
    return _expression("limit", _long(1, rate), _long(2, 1), _word(3, burst), _word(4, 1), _word(5, 0))


def drop() -> bytes:
    """Drop the packet: the verdict NF_DROP, 0."""
    return _expression("immediate", _word(1, 0), _nest(2, _nest(2, _word(1, 0))))


def new_table(table: str) -> Change:
    """Make a table, where there is none."""
    return Change(_NEW_TABLE, _CREATE, _text(1, table) + _word(2, 0))


def delete_table(table: str) -> Change:
    """Delete a table that is there."""
    return Change(_DELETE_TABLE, 0, _text(1, table))


def ingress_chain(table: str, name: str, interfaces: Collection[str], priority: int) -> Change:
    """A chain that packets meet as they come in by these interfaces."""
    devices = _nest(4, *(_text(1, each) for each in interfaces))
    hook = _nest(4, _word(1, _INGRESS), attribute(2, struct.pack(">i", priority)), devices)
    body = _text(1, table) + _text(3, name) + hook + _word(5, 1) + _text(7, "filter")  # policy accept
    return Change(_NEW_CHAIN, _CREATE, body)


def rule(table: str, chain: str, *expressions: bytes) -> Change:
    """A rule at the end of a chain."""
    listed = _nest(4, *(attribute(_EXPRESSION | NESTED, each) for each in expressions))
    return Change(_NEW_RULE, _CREATE | _APPEND, _text(1, table) + _text(2, chain) + listed)


def hash_set(
    table: str,
    name: str,
    number: int,
    *,
    key: tuple[int, int],
    data: tuple[int, int] | None = None,
    most: int,
    expressions: Collection[bytes] = (),
) -> Change:
    """A set, or a map where it has data. ``key`` and ``data`` are what ``nft list`` shows them as (see
    `concatenation`) and the size in bytes; ``most`` elements fit; ``number`` names the set within this
    transaction. Each element has these expressions for itself."""
    flags = (_MAP if data else 0) | (_WITH_EXPRESSIONS if expressions else 0)
    shown = b"" if data is None else _word(6, data[0]) + _word(7, data[1])
    own = tuple(expressions)
    each = b""
    if len(own) == 1:
        each = attribute(17 | NESTED, own[0])  # NFTA_SET_EXPR
    elif own:
        each = _nest(18, *(attribute(_ITEM | NESTED, one) for one in own))  # NFTA_SET_EXPRESSIONS
    body = (
        _text(1, table)
        + _text(2, name)
        + _word(3, flags)
        + _word(4, key[0])
        + _word(5, key[1])
        + shown
        + _nest(9, _word(1, most))
        + _word(10, number)
        + each
    )
    return Change(_NEW_SET, _CREATE, body)


def elements(table: str, name: str, held: Collection[tuple[bytes, bytes | None]], *, add: bool) -> Change:
    """Add elements, keys with their data, or take them out: fails as a whole where one is not there."""
    items = (
        _nest(
            _ITEM,
            _nest(_KEY, attribute(_VALUE, key)),
            b"" if data is None or not add else _nest(_DATA, attribute(_VALUE, data)),
        )
        for key, data in held
    )
    body = _text(1, table) + _text(2, name) + _nest(3, *items)
    return Change(_NEW_ELEMENTS if add else _DELETE_ELEMENTS, _CREATE if add else 0, body)


IPV4, IPV6, PORT, MARK, INTERFACE = 7, 8, 13, 19, 20
"""Types of ``nft`` (include/datatype.h, enum datatypes)."""


def concatenation(*types: int) -> int:
    """The type of values that stand one behind the other, each in whole registers."""
    found = 0
    for each in types:
        found = found << 6 | each
    return found
