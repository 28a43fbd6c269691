# SPDX-License-Identifier: GPL-3.0-or-later
"""The question for a router's routes, and its answer, as bytes."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.errors import DecodeError
from phantommesh.routing.asking import (
    MAX_BYTES,
    MAX_PREFIXES,
    NONCE_BYTES,
    Answer,
    Question,
    decode_untrusted,
)

NONCES = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
PREFIXES = st.one_of(
    st.builds(lambda a, n: IPv4Network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(
        lambda a, n: IPv6Network((a, n), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
    ),
)
LAN = IPv4Network("192.168.50.0/24")


@given(NONCES)
def test_a_question_comes_back(nonce: bytes) -> None:
    assert decode_untrusted(Question(nonce).encode()) == Question(nonce)


@given(NONCES, st.frozensets(PREFIXES, max_size=MAX_PREFIXES))
def test_an_answer_comes_back(nonce: bytes, works: frozenset[IPv4Network | IPv6Network]) -> None:
    encoded = Answer(nonce, works).encode()
    assert len(encoded) <= MAX_BYTES
    assert decode_untrusted(encoded) == Answer(nonce, works)


@given(st.binary(max_size=MAX_BYTES + 8))
def test_any_other_bytes_raise_one_error(datagram: bytes) -> None:
    try:
        found = decode_untrusted(datagram)
    except DecodeError:
        return
    assert isinstance(found, Question) or len(found.works) <= MAX_PREFIXES


@given(st.binary(max_size=MAX_BYTES))
def test_any_bytes_after_a_header_raise_one_error(rest: bytes) -> None:
    for kind in (1, 2):
        try:
            decode_untrusted(bytes([1, kind]) + bytes(NONCE_BYTES) + rest)
        except DecodeError:
            continue


def test_an_answer_tells_no_more_prefixes_than_fit() -> None:
    many = frozenset(IPv6Network((n << 64, 64)) for n in range(MAX_PREFIXES + 3))
    found = decode_untrusted(Answer(bytes(NONCE_BYTES), many).encode())
    assert isinstance(found, Answer) and len(found.works) == MAX_PREFIXES


@pytest.mark.parametrize(
    "rest",
    [
        b"\x04\x18\xc0\xa8\x32\x01",  # a bit beyond the length
        b"\x04\x21\xc0\xa8\x32\x00",  # longer than an address
        b"\x04\x18\xc0\xa8\x32",  # cut off
        b"\x05\x18\xc0\xa8\x32\x00",  # no such family
        b"\x04\x18\xc0\xa8\x32\x00" * 2,  # twice
        b"\x04",
    ],
)
def test_prefixes_that_are_none_are_refused(rest: bytes) -> None:
    good = Answer(bytes(NONCE_BYTES), frozenset({LAN})).encode()
    with pytest.raises(DecodeError):
        decode_untrusted(good[: 2 + NONCE_BYTES] + rest)
