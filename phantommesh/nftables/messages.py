# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages to nf_tables over netlink, as bytes: linux/netfilter/nf_tables.h, nfnetlink.h.

Packed by hand, because the maps of a scatter epoch are replaced often: one transaction empties a map and
fills it again, and no packet sees it empty. Keys and values are 32-bit words in the machine's byte order, as
marks and numbers are in nf_tables' registers. Nothing here does I/O.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from phantommesh.nlattr import (
    ACK,
    DUMP,
    NESTED,
    REQUEST,
    NetlinkFormatError,
    attribute,
    attributes,
    number,
    pack_message,
    split_messages,
)

NETFILTER = 12
"""The netlink protocol NETLINK_NETFILTER (linux/netlink.h)."""

FAMILIES = {"inet": 1, "arp": 3, "netdev": 5}
"""NFPROTO_* of the table families in use (linux/netfilter.h)."""

ELEMENTS_PER_MESSAGE = 1022
"""Elements put in one message. A list's length is 16 bits wide, and an element takes 28 bytes."""

_CREATE = 0x400  # NLM_F_CREATE, linux/netlink.h
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_GET_TABLE, _DELETE_TABLE, _GET_RULE, _NEW_ELEMENTS, _GET_ELEMENTS, _DELETE_ELEMENTS = 1, 2, 7, 12, 13, 14
_SHAPES = frozenset({0, 2, 3, 5, 6, 8})  # NFT_MSG_NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE
_NAME, _HANDLE = 1, 4  # NFTA_TABLE_NAME, NFTA_TABLE_HANDLE
_RULE_TABLE, _RULE_HANDLE = 1, 3
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3  # NFTA_SET_ELEM_LIST_*
_ITEM, _VALUE = 1, 1  # NFTA_LIST_ELEM, NFTA_DATA_VALUE
_KEY, _DATA, _EXPRESSION, _EXPRESSIONS = 1, 2, 7, 11  # NFTA_SET_ELEM_*
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2


class Change(NamedTuple):
    """One message of a transaction: its type within nf_tables, its flags, its attributes."""

    kind: int
    flags: int
    body: bytes


def _message(kind: int, flags: int, sequence: int, family: int, body: bytes, resource: int = 0) -> bytes:
    head = struct.pack("=BB", family, 0) + struct.pack(">H", resource)
    return pack_message(kind, flags | REQUEST, sequence, head + body)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode("ascii") + b"\0")


def _transaction(
    messages: Sequence[Change] | Sequence[tuple[int, int, bytes]], family: int, sequence: int
) -> bytes:
    """Wrap (type, flags, body) in a batch. Only the last asks for an acknowledgement, so either that comes or
    errors do."""
    packed = [_message(_BATCH_BEGIN, 0, sequence, 0, b"", 10)]
    for i, (kind, flags, body) in enumerate(messages):
        last = i == len(messages) - 1
        packed.append(
            _message(_SUBSYSTEM | kind, flags | (ACK if last else 0), sequence + 1 + i, family, body)
        )
    packed.append(_message(_BATCH_END, 0, sequence + 1 + len(messages), 0, b"", 10))
    return b"".join(packed)


def encode_replace(
    family: int, table: str, sets: Mapping[str, Mapping[int, int]], *, sequence: int
) -> tuple[bytes, int]:
    """One transaction that makes these the elements of these maps. Returns it and the sequence number of the
    message whose acknowledgement says that it is done."""
    messages: list[tuple[int, int, bytes]] = []
    for name, elements in sets.items():
        head = _text(_LIST_TABLE, table) + _text(_LIST_SET, name)
        messages.append((_DELETE_ELEMENTS, 0, head))  # without elements: all of them
        items = [_element(key, value) for key, value in elements.items()]
        for start in range(0, len(items), ELEMENTS_PER_MESSAGE):
            some = b"".join(items[start : start + ELEMENTS_PER_MESSAGE])
            messages.append((_NEW_ELEMENTS, _CREATE, head + attribute(_LIST_ELEMENTS | NESTED, some)))
    return _transaction(messages, family, sequence), sequence + len(messages)


def encode_transaction(changes: Sequence[Change], family: int, *, sequence: int) -> tuple[bytes, int]:
    """All of these or none. Returns the bytes and the number of the message whose acknowledgement says that
    it is done."""
    return _transaction(changes, family, sequence), sequence + len(changes)


def _element(key: int, value: int) -> bytes:
    return attribute(
        _ITEM | NESTED,
        attribute(_KEY | NESTED, attribute(_VALUE, struct.pack("=I", key)))
        + attribute(_DATA | NESTED, attribute(_VALUE, struct.pack("=I", value))),
    )


def encode_delete_table(family: int, table: str, *, sequence: int) -> tuple[bytes, int]:
    """One transaction that removes a table and all that is in it."""
    return _transaction([(_DELETE_TABLE, 0, _text(_NAME, table))], family, sequence), sequence + 1


def encode_get_table(family: int, table: str, *, sequence: int) -> bytes:
    """Ask for one table."""
    return _message(_SUBSYSTEM | _GET_TABLE, ACK, sequence, family, _text(_NAME, table))


def decode_table(payload: bytes) -> int:
    """Read a table's handle: a number that no other table ever has, so one that was replaced shows."""
    for kind, value in attributes(payload[4:]):
        if kind == _HANDLE:
            return int.from_bytes(value, "big")
    raise NetlinkFormatError("a table without a handle")


def encode_get_tables(*, sequence: int) -> bytes:
    """Ask for a dump of the tables of every family."""
    return _message(_SUBSYSTEM | _GET_TABLE, DUMP, sequence, 0, b"")


def decode_tables(payloads: Iterable[bytes]) -> list[tuple[str, str]]:
    """Read family and name of the tables of a dump; other families than FAMILIES are left out."""
    families = {value: name for name, value in FAMILIES.items()}
    return [
        (families[payload[0]], value.rstrip(b"\0").decode("ascii", "replace"))
        for payload in payloads
        for kind, value in attributes(payload[4:])
        if kind == _NAME and payload[0] in families
    ]


def encode_get_rules(family: int, table: str, *, sequence: int) -> bytes:
    """Ask for a dump of a table's rules."""
    return _message(_SUBSYSTEM | _GET_RULE, DUMP, sequence, family, _text(_RULE_TABLE, table))


def decode_rules(payloads: Iterable[bytes], table: str) -> frozenset[int]:
    """Read the handles of a table's rules; the rules of others in the dump are left out."""
    handles = set()
    for payload in payloads:
        fields = dict(attributes(payload[4:]))
        if fields.get(_RULE_TABLE, b"").rstrip(b"\0") == table.encode("ascii") and _RULE_HANDLE in fields:
            handles.add(int.from_bytes(fields[_RULE_HANDLE], "big"))
    return frozenset(handles)


def encode_get_elements(family: int, table: str, name: str, *, sequence: int) -> bytes:
    """Ask for a dump of a set's elements."""
    body = _text(_LIST_TABLE, table) + _text(_LIST_SET, name)
    return _message(_SUBSYSTEM | _GET_ELEMENTS, DUMP, sequence, family, body)


def decode_elements(payloads: Iterable[bytes]) -> frozenset[bytes]:
    """Read a set's elements as they are, to be compared with another reading's."""
    return frozenset(
        element
        for payload in payloads
        for kind, value in attributes(payload[4:])
        if kind == _LIST_ELEMENTS
        for _, element in attributes(value)
    )


def _elements(payloads: Iterable[bytes]) -> Iterator[dict[int, bytes]]:
    for payload in payloads:
        for kind, value in attributes(payload[4:]):
            if kind == _LIST_ELEMENTS:
                for _, element in attributes(value):
                    yield dict(attributes(element))


def _word(value: bytes) -> int:
    found = dict(attributes(value)).get(_VALUE, b"")
    if len(found) != 4:
        raise NetlinkFormatError("an element that is no 32-bit word")
    return number(found)


def decode_map(payloads: Iterable[bytes]) -> dict[int, int]:
    """Read the elements of a map of words to words."""
    return {_word(e.get(_KEY, b"")): _word(e.get(_DATA, b"")) for e in _elements(payloads)}


def decode_names(payloads: Iterable[bytes]) -> list[str]:
    """Read the elements of a set of interfaces' names."""
    keys = (dict(attributes(e.get(_KEY, b""))).get(_VALUE, b"") for e in _elements(payloads))
    return [key.rstrip(b"\0").decode("utf-8", "replace") for key in keys]


def decode_counters(payloads: Iterable[bytes]) -> dict[int, tuple[int, int]]:
    """Read the elements of a set of words with counters: (packets, bytes) by word."""
    counters = {}
    for element in _elements(payloads):
        expression = dict(attributes(element.get(_EXPRESSION, b"")))
        if expression.get(_EXPRESSION_NAME) != b"counter\0":
            raise NetlinkFormatError("an element without a counter")
        counters[_word(element.get(_KEY, b""))] = _counter(expression.get(_EXPRESSION_DATA, b""))
    return counters


def decode_counters_by_key(payloads: Iterable[bytes]) -> dict[bytes, tuple[int, int]]:
    """Read the elements of a set of bytes, with counters: (packets, bytes) by key. Other expressions of an
    element are left out."""
    counters = {}
    for element in _elements(payloads):
        key = dict(attributes(element.get(_KEY, b""))).get(_VALUE, b"")
        one = [element[_EXPRESSION]] if _EXPRESSION in element else []
        for expression in [*one, *(value for _, value in attributes(element.get(_EXPRESSIONS, b"")))]:
            parts = dict(attributes(expression))
            if parts.get(_EXPRESSION_NAME) == b"counter\0":
                counters[key] = _counter(parts.get(_EXPRESSION_DATA, b""))
    return counters


def _counter(data: bytes) -> tuple[int, int]:
    fields = dict(attributes(data))
    packets, size = fields.get(_COUNTER_PACKETS, b""), fields.get(_COUNTER_BYTES, b"")
    return int.from_bytes(packets, "big"), int.from_bytes(size, "big")


def changes_rules(messages: bytes, table: bytes) -> bool:
    """Whether notifications tell of a table's own making or removal, or of its chains or rules. ``table`` is
    its name with the final NUL; elements change all the time and do not count."""
    return any(
        kind - _SUBSYSTEM in _SHAPES and table in payload for kind, _, _, payload in split_messages(messages)
    )
