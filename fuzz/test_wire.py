# SPDX-License-Identifier: GPL-3.0-or-later
"""The decoders of `wire`: any bytes give a value or DecodeError, and a value gives the same bytes again."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.errors import DecodeError
from phantommesh.link import wire
from phantommesh.link.wire import Fragment, Kind, Mode

KEY, COOKIE = b"k" * 32, b"c" * 16

sizes = st.sampled_from([0, 1, 15, 16, 47, 48, 49, 63, 64, 65, 100, 1231, 1232, 1233]) | st.integers(0, 1400)
junk = st.binary(max_size=200) | sizes.map(bytes)
small = st.integers(0, 9) | st.integers(0, 255)
headers = st.builds(
    struct.pack,
    st.just("!BBBBHH8s"),
    st.sampled_from([1, 1, 1, 1, 0, 2, 255]),
    small,
    small,
    small,
    st.sampled_from([1, 3, 41, 1184, 1185, 1748, 3381, 5079, 7127, 7128, 65535]) | st.integers(0, 65535),
    st.sampled_from([0, 1, 2, 65535]),
    st.binary(min_size=8, max_size=8),
)
near = st.builds(lambda head, size, fill: head + bytes([fill]) * size, headers, sizes, st.integers(0, 255))


@given(junk | near)
@example(b"")
@example(bytes(1232))
def test_any_bytes_give_a_datagram_or_decode_error(datagram: bytes) -> None:
    try:
        parsed = wire.decode_untrusted(datagram)
    except DecodeError:
        return
    if isinstance(parsed, Fragment):
        assert parsed.index < parsed.count <= wire.MAX_FRAGMENTS
        assert parsed.encode(KEY, COOKIE)[:-32] == datagram[:-32]
    else:
        assert parsed.encode(KEY)[:-16] == datagram[:-16]


messages = st.sampled_from(
    [
        (lambda b: wire.decode_init_untrusted(b, Mode.MEMBER), wire.INIT_SIZE),
        (wire.decode_resp_untrusted, wire.RESP_FIXED_SIZE + wire.PROOF_SIZE + 16),
        (wire.decode_auth_untrusted, 8 + wire.PROOF_SIZE + 16),
        (wire.decode_proof_untrusted, wire.PROOF_SIZE),
        (wire.decode_ack_untrusted, 25),
        (wire.decode_resend_untrusted, 3),
    ]
)


@given(
    messages,
    st.integers(-3, 3),
    st.binary(max_size=120),
    st.sampled_from([b"\0", b"\x7f"]),
    st.binary(max_size=3),
)
def test_any_body_gives_a_message_or_decode_error(
    message: tuple[Callable[[bytes], Any], int], more: int, start: bytes, fill: bytes, end: bytes
) -> None:
    decode, size = message
    body = (b"\1\1" + start).ljust(size + more, fill)[: size + more - len(end)] + end
    try:
        parsed = decode(body)
    except DecodeError:
        return
    assert parsed.encode() == body


@given(
    st.sampled_from([Kind.INIT, Kind.RESP, Kind.AUTH, Kind.ACK, Kind.RESEND]),
    st.data(),
    st.sampled_from(Mode),
)
def test_every_message_survives_its_fragments(kind: Kind, data: st.DataObject, mode: Mode) -> None:
    size = data.draw(st.integers(1, wire.MAX_BODY[kind]))
    body = bytes(i * 7 % 256 for i in range(size))
    cut = wire.fragments(kind, mode, b"12345678", body)
    assert [wire.decode_untrusted(f.encode(KEY, COOKIE)) for f in cut] == cut
    assert b"".join(f.chunk for f in cut) == body


@given(st.integers(1, MAX_DATAGRAM * 8))
def test_no_single_bit_of_a_datagram_is_outside_its_macs(bit: int) -> None:
    datagram = bytearray(
        wire.fragments(Kind.AUTH, Mode.MEMBER, b"12345678", bytes(3381))[0].encode(KEY, COOKIE)
    )
    bit %= len(datagram) * 8
    datagram[bit // 8] ^= 1 << bit % 8
    assert not wire.cookie_mac_ok(bytes(datagram), COOKIE)


def test_the_error_is_one() -> None:
    for decode in (wire.decode_resend_untrusted, wire.decode_ack_untrusted, wire.decode_untrusted):
        with pytest.raises(DecodeError):
            decode(b"\xff" * 47)
