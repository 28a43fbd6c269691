# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nftables.messages import (
    ELEMENTS_PER_MESSAGE,
    FAMILIES,
    decode_counters,
    decode_counters_by_key,
    decode_map,
    decode_rules,
    decode_table,
    decode_tables,
    encode_delete_table,
    encode_get_elements,
    encode_get_rules,
    encode_get_table,
    encode_get_tables,
    encode_replace,
)
from phantommesh.nlattr import NetlinkFormatError, attribute, attributes, split_messages

NETDEV = FAMILIES["netdev"]
ACK = 4
words = st.integers(0, 2**32 - 1)


def test_a_small_replacement_is_these_bytes() -> None:
    """Written down from linux/netfilter/nf_tables.h and nfnetlink.h, on a little-endian machine."""
    if struct.pack("=H", 1) != b"\1\0":
        pytest.skip("a big-endian machine packs other bytes")
    batch, last = encode_replace(NETDEV, "t", {"m": {1: 0x102}}, sequence=7)
    head = bytes.fromhex("0600010074000000060002006d000000")  # fmt: skip
    begin = bytes.fromhex("140000001000010007000000000000000000000a")  # fmt: skip
    flush = bytes.fromhex("240000000e0a0100080000000000000005000000") + head  # fmt: skip
    element = bytes.fromhex("1c0001800c00018008000100010000000c0002800800010002010000")
    listed = bytes.fromhex("20000380") + element
    fill = bytes.fromhex("440000000c0a0504090000000000000005000000") + head + listed  # fmt: skip
    end = bytes.fromhex("14000000110001000a000000000000000000000a")  # fmt: skip
    assert batch == begin + flush + fill + end
    assert last == 9


@given(st.dictionaries(words, words, max_size=2500))
def test_a_replacement_holds_every_element_once(elements: dict[int, int]) -> None:
    batch, last = encode_replace(NETDEV, "table", {"deck_1": elements}, sequence=1)
    messages = list(split_messages(batch))
    assert [sequence for _, _, sequence, _ in messages] == list(range(1, len(messages) + 1))
    assert [sequence for _, flags, sequence, _ in messages if flags & ACK] == [last]
    assert messages[0][0] == 0x10 and messages[-1][0] == 0x11
    assert messages[1][0] == 0xA0E and last == len(messages) - 1
    fills = [payload for kind, _, _, payload in messages if kind == 0xA0C]
    assert len(fills) == -(-len(elements) // ELEMENTS_PER_MESSAGE)
    assert decode_map(fills) == elements
    for payload in fills:
        fields = dict(attributes(payload[4:]))
        assert (fields[1], fields[2]) == (b"table\0", b"deck_1\0")


def test_two_maps_are_replaced_in_one_transaction() -> None:
    batch, last = encode_replace(NETDEV, "t", {"deck_1": {1: 2}, "flowlets": {}}, sequence=1)
    kinds = [kind for kind, _, _, _ in split_messages(batch)]
    assert kinds == [0x10, 0xA0E, 0xA0C, 0xA0E, 0x11]
    assert last == 4


def test_requests_name_the_family_and_the_table() -> None:
    batch, last = encode_delete_table(NETDEV, "t", sequence=1)
    assert [kind for kind, _, _, _ in split_messages(batch)] == [0x10, 0xA02, 0x11] and last == 2
    for request, kind in (
        (encode_get_table(NETDEV, "t", sequence=3), 0xA01),
        (encode_get_rules(NETDEV, "t", sequence=3), 0xA07),
        (encode_get_elements(NETDEV, "t", "s", sequence=3), 0xA0D),
    ):
        ((found, _, sequence, payload),) = split_messages(request)
        assert (found, sequence, payload[0]) == (kind, 3, NETDEV)
        assert dict(attributes(payload[4:]))[1] == b"t\0"


def test_tables_are_listed_with_their_family() -> None:
    ((kind, flags, _, payload),) = split_messages(encode_get_tables(sequence=1))
    assert (kind, flags, payload) == (0xA01, 0x301, bytes(4))

    def table(family: int, name: bytes) -> bytes:
        return bytes([family, 0, 0, 0]) + attribute(1, name) + attribute(4, struct.pack(">Q", 1))

    dumped = [table(1, b"one\0"), table(2, b"of-ip\0"), table(3, b"two\0")]
    assert decode_tables(dumped) == [("inet", "one"), ("arp", "two")]


def counter(key: int, packets: int, size: int) -> bytes:
    data = attribute(1, struct.pack(">Q", size)) + attribute(2, struct.pack(">Q", packets))
    expression = attribute(1, b"counter\0") + attribute(2, data)
    return attribute(1, attribute(1, attribute(1, struct.pack("=I", key))) + attribute(7, expression))


@given(st.dictionaries(words, st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=40))
def test_counters_are_read(counters: dict[int, tuple[int, int]]) -> None:
    listed = b"".join(counter(key, packets, size) for key, (packets, size) in counters.items())
    payload = bytes(4) + attribute(1, b"t\0") + attribute(3, listed)
    assert decode_counters([payload]) == counters


@pytest.mark.parametrize("beside", [False, True])
@given(st.dictionaries(st.binary(min_size=1, max_size=40), st.tuples(words, words), max_size=40))
def test_counters_of_longer_keys_are_read_beside_other_expressions(
    beside: bool, counters: dict[bytes, tuple[int, int]]
) -> None:
    def element(key: bytes, packets: int, size: int) -> bytes:
        fields = attribute(1, struct.pack(">Q", size)) + attribute(2, struct.pack(">Q", packets))
        own = attribute(1, b"counter\0") + attribute(2, fields)
        limit = attribute(1, b"limit\0") + attribute(2, attribute(1, bytes(8)))
        held = attribute(11, attribute(1, limit) + attribute(1, own)) if beside else attribute(7, own)
        return attribute(1, attribute(1, attribute(1, key)) + held)

    listed = b"".join(element(key, *counted) for key, counted in counters.items())
    payload = bytes(4) + attribute(1, b"t\0") + attribute(3, listed)
    assert decode_counters_by_key([payload]) == counters


def test_an_element_without_a_counter_is_refused() -> None:
    element = attribute(1, attribute(1, attribute(1, bytes(4))))
    with pytest.raises(NetlinkFormatError):
        decode_counters([bytes(4) + attribute(3, element)])
    with pytest.raises(NetlinkFormatError):
        decode_map([bytes(4) + attribute(3, element)])


def test_rules_of_other_tables_are_left_out() -> None:
    def rule(table: bytes, handle: int) -> bytes:
        return bytes(4) + attribute(1, table) + attribute(3, struct.pack(">Q", handle))

    assert decode_rules([rule(b"t\0", 4), rule(b"other\0", 5), rule(b"t\0", 6)], "t") == {4, 6}
    assert decode_table(bytes(4) + attribute(4, struct.pack(">Q", 77))) == 77
    with pytest.raises(NetlinkFormatError):
        decode_table(bytes(4))


@given(st.binary(max_size=200))
def test_nonsense_is_one_kind_of_error(junk: bytes) -> None:
    for read in (decode_map, decode_counters):
        try:
            read([junk])
        except NetlinkFormatError:
            pass
    for payload in (junk, bytes(4) + attribute(3, junk)):
        try:
            decode_map([payload])
            decode_counters([payload])
        except NetlinkFormatError:
            pass
        try:
            decode_counters_by_key([payload])
            decode_rules([payload], "t")
            decode_table(payload)
            decode_tables([payload])
        except NetlinkFormatError:
            pass
