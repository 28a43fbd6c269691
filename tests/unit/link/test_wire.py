# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import struct
from functools import partial

import pytest

from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.link import wire
from phantommesh.link.wire import (
    Ack,
    Auth,
    CookieReply,
    CookieRequest,
    Fragment,
    Init,
    Kind,
    Mode,
    Proof,
    Resp,
)


def decode_init(body: bytes) -> Init:
    return wire.decode_init_untrusted(body, Mode.MEMBER)


KEY, COOKIE = b"k" * 32, b"c" * 16
INIT = Init(
    Mode.MEMBER, b"sessioni", 7, b"a" * 16 + b"b" * 16, b"n" * 16, b"o" * 32, 0x7F, b"h" * 32, b"e" * 1568,
    b"x" * 32,
)  # fmt: skip
RESP = Resp(
    b"sessioni", b"sessionr", b"o" * 32, b"c" * 16, 8, 0x7F, b"h" * 32, b"t" * 1568, b"x" * 32,
    b"s" * (3357 + 16),
)  # fmt: skip


def test_datagrams_survive_the_wire() -> None:
    request = CookieRequest(Mode.MEMBER, b"12345678", b"n" * 16)
    reply = CookieReply(Mode.ENROL, b"12345678", b"c" * 16)
    assert wire.decode_untrusted(request.encode(KEY)) == request
    assert wire.decode_untrusted(reply.encode(KEY)) == reply
    assert len(request.encode(KEY)) == len(reply.encode(KEY)) == 64  # no amplification
    for kind in (Kind.INIT, Kind.RESP, Kind.AUTH, Kind.ACK, Kind.RESEND):
        body = bytes(i % 251 for i in range(wire.MAX_BODY[kind]))
        cut = wire.fragments(kind, Mode.MEMBER, b"12345678", body)
        back = [wire.decode_untrusted(f.encode(KEY, COOKIE)) for f in cut]
        assert back == cut
        assert b"".join(f.chunk for f in cut) == body
        assert all(len(f.encode(KEY, COOKIE)) <= 1232 for f in cut)


def test_sizes_are_those_of_the_documentation() -> None:
    assert (len(INIT.encode()), len(RESP.encode())) == (1731 + 17, 1706 + 3357 + 16)
    counts = [-(-n // wire.CHUNK_SIZE) for n in (1748, 1706 + 3373, 8 + 3373, wire.ACK_SIZE)]
    assert counts == [2, 5, 3, 1]
    assert wire.ACK_SIZE + wire.HEADER_SIZE + wire.TRAILER_SIZE == 89


def test_messages_survive_encoding() -> None:
    assert wire.decode_init_untrusted(INIT.encode(), Mode.MEMBER) == INIT
    assert wire.decode_resp_untrusted(RESP.encode()) == RESP
    auth = Auth(b"sessionr", b"s" * 3373)
    assert wire.decode_auth_untrusted(auth.encode()) == auth
    proof = Proof(b"n" * 16, b"s" * 3309, b"c" * 32, b"credential")
    assert wire.decode_proof_untrusted(proof.encode()) == proof
    ack = Ack(2**63 - 1, 0x7F, b"c" * 16)
    assert wire.decode_ack_untrusted(ack.encode()) == ack
    resend = wire.Resend(Kind.RESP, 0b10110)
    assert wire.decode_resend_untrusted(resend.encode()) == resend


def header(**changed: int) -> bytes:
    fields = {"version": 1, "kind": 3, "index": 0, "count": 2, "total": 1748, "mode": 0} | changed
    return struct.pack("!BBBBHH8s", *fields.values(), b"12345678")


FULL = b"z" * wire.CHUNK_SIZE + b"m" * 32


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "length"),
        (header() + b"m" * 31, "length"),
        (header() + b"z" * 1217, "length"),
        (header(version=0) + FULL, "version"),
        (header(version=2) + FULL, "version"),
        (header(kind=0) + FULL, "kind"),
        (header(kind=8) + FULL, "kind"),
        (header(mode=2) + FULL, "kind"),
        (header(mode=65535) + FULL, "kind"),
        (header(total=0, count=0) + bytes(32), "fragment"),
        (header(total=1749) + FULL, "fragment"),
        (header(kind=4, total=7128, count=7) + FULL, "fragment"),
        (header(kind=6, total=42, count=1) + FULL, "fragment"),
        (header(kind=7, total=4, count=1) + FULL, "fragment"),
        (header(count=1) + FULL, "fragment"),
        (header(count=3) + FULL, "fragment"),
        (header(index=2) + FULL, "fragment"),
        (header(index=0) + FULL[1:], "fragment"),
        (header(index=1) + FULL, "fragment"),
        (header(kind=1, count=1, total=0) + bytes(47), "cookie"),
        (header(kind=1, count=1, total=0) + bytes(49), "cookie"),
        (header(kind=1, count=2, total=0) + bytes(48), "cookie"),
        (header(kind=1, count=1, total=1) + bytes(48), "cookie"),
        (header(kind=2, count=1, total=0, index=1) + bytes(48), "cookie"),
        (header(kind=2, count=1, total=0) + bytes(16) + b"\1" + bytes(31), "cookie"),
    ],
)  # fmt: skip
def test_bad_datagrams_give_one_error(datagram: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        wire.decode_untrusted(datagram)
    assert caught.value.args == (reason,)


def test_the_longest_body_of_each_kind_is_still_taken() -> None:
    for kind, size in wire.MAX_BODY.items():
        last = wire.fragments(kind, Mode.ENROL, b"12345678", bytes(size))[-1]
        assert wire.decode_untrusted(last.encode(KEY, COOKIE)) == last


def change(body: bytes, at: int, value: bytes) -> bytes:
    return body[:at] + value + body[at + len(value) :]


@pytest.mark.parametrize(
    ("decode", "body", "reason"),
    [
        (decode_init, INIT.encode()[:-1], "init length"),
        (decode_init, INIT.encode() + b"x", "init length"),
        (decode_init, change(INIT.encode(), 0, b"\2"), "suite"),
        (decode_init, change(INIT.encode(), 1, b"\2"), "suite"),
        (decode_init, change(INIT.encode(), 10, b"\x80"), "init epoch"),
        (decode_init, change(INIT.encode(), 98, b"\xff"), "init bitmap"),
        (decode_init, change(INIT.encode(), 98, b"\x7e"), "init bitmap"),
        (partial(wire.decode_init_untrusted, mode=Mode.ENROL), INIT.encode(), "init bitmap"),
        (decode_init, change(INIT.encode(), 1731, b"\7"), "init dimension"),
        (partial(wire.decode_init_untrusted, mode=Mode.ENROL),
         change(change(change(INIT.encode(), 98, b"\0"), 34, bytes(16)), 1731, b"\1"), "init dimension"),
        (partial(wire.decode_init_untrusted, mode=Mode.ENROL),
         change(change(INIT.encode(), 98, b"\0"), 34, b"\1"), "init credential"),
        (wire.decode_resp_untrusted, RESP.encode()[:-1], "resp length"),
        (wire.decode_resp_untrusted, change(RESP.encode(), 0, b"\2"), "version"),
        (wire.decode_resp_untrusted, change(RESP.encode(), 65, b"\x80"), "resp epoch"),
        (wire.decode_resp_untrusted, change(RESP.encode(), 73, b"\xff"), "resp bitmap"),
        (wire.decode_resp_untrusted, change(RESP.encode(), 73, b"\x7e"), "resp bitmap"),
        (wire.decode_auth_untrusted, b"s" * (8 + 3372), "auth length"),
        (wire.decode_proof_untrusted, b"p" * 3356, "proof length"),
        (wire.decode_proof_untrusted, b"p" * (3357 + 2049), "proof length"),
        (wire.decode_ack_untrusted, bytes(24), "ack length"),
        (wire.decode_ack_untrusted, bytes(26), "ack length"),
        (wire.decode_ack_untrusted, bytes(8) + b"\x80" + bytes(16), "ack bitmap"),
        (wire.decode_resend_untrusted, b"\3\0", "resend length"),
        (wire.decode_resend_untrusted, b"\3\0\0", "resend"),
        (wire.decode_resend_untrusted, b"\6\0\1", "resend"),
        (wire.decode_resend_untrusted, b"\xff\0\1", "resend"),
    ],
)  # fmt: skip
def test_bad_bodies_give_one_error(decode, body: bytes, reason: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DecodeError) as caught:
        decode(body)
    assert caught.value.args == (reason,)


def test_each_mac_covers_every_byte_before_it() -> None:
    datagram = wire.fragments(Kind.ACK, Mode.MEMBER, b"12345678", bytes(41))[0].encode(KEY, COOKIE)
    assert wire.cookie_mac_ok(datagram, COOKIE) and wire.first_mac_ok(datagram, KEY, with_cookie=True)
    assert not wire.cookie_mac_ok(datagram, b"d" * 16)
    assert not wire.first_mac_ok(datagram, b"l" * 32, with_cookie=True)
    for i in range(len(datagram)):
        flipped = bytearray(datagram)
        flipped[i] ^= 1
        assert not wire.cookie_mac_ok(bytes(flipped), COOKIE)
        if i < len(datagram) - 16:
            assert not wire.first_mac_ok(bytes(flipped), KEY, with_cookie=True)
    request = CookieRequest(Mode.MEMBER, b"12345678", b"n" * 16).encode(KEY)
    assert wire.first_mac_ok(request, KEY, with_cookie=False)
    for i in range(len(request)):
        flipped = bytearray(request)
        flipped[i] ^= 0x80
        assert not wire.first_mac_ok(bytes(flipped), KEY, with_cookie=False)


def test_an_address_is_written_as_people_write_it() -> None:
    assert str(Address("192.0.2.1", 51800)) == "192.0.2.1:51800"
    assert str(Address("2001:db8::1", 51800, "tcp")) == "[2001:db8::1]:51800/tcp"


def test_a_fragment_says_its_place() -> None:
    cut = wire.fragments(Kind.RESP, Mode.MEMBER, b"12345678", bytes(5079))
    assert [(f.index, f.count, f.total) for f in cut] == [(i, 5, 5079) for i in range(5)]
    assert isinstance(cut[0], Fragment)
