# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.routing import binding
from phantommesh.routing.knocks import MAGIC, SIZE, Keys, Kind, Knock, decode_untrusted, encode, genuine
from phantommesh.secret import Secret

ONE, TWO = Secret(b"1" * 32), Secret(b"2" * 32)
HERE, THERE = Keys.of(ONE, TWO), Keys.of(TWO, ONE)
NONCE = bytes(range(16))
dimensions = st.integers(0, DIMENSIONS - 1)
addresses = st.tuples(st.sampled_from(["192.0.2.7", "2001:db8::7"]), st.integers(1, 65535)).map(
    lambda at: Address(*at)
)


@given(dimensions, st.binary(min_size=16, max_size=16), addresses)
def test_what_one_end_writes_the_other_reads(dimension: int, nonce: bytes, seen: Address) -> None:
    knock = encode(Kind.KNOCK, dimension, nonce, HERE)
    answer = encode(Kind.ANSWER, dimension, nonce, THERE, seen)
    assert len(knock) == len(answer) == SIZE == binding.SIZE
    assert decode_untrusted(knock) == Knock(Kind.KNOCK, dimension, THERE.names_in[dimension], nonce)
    assert decode_untrusted(answer) == Knock(Kind.ANSWER, dimension, HERE.names_in[dimension], nonce, seen)
    assert genuine(knock, THERE) and genuine(answer, HERE)
    assert not genuine(knock, HERE) and not genuine(answer, THERE)  # sent back to whoever made it


@given(st.integers(0, SIZE * 8 - 1))
def test_each_bit_counts(bit: int) -> None:
    data = bytearray(encode(Kind.ANSWER, 3, NONCE, HERE, Address("192.0.2.7", 51823)))
    data[bit // 8] ^= 1 << bit % 8
    try:
        decode_untrusted(bytes(data))
    except DecodeError:
        return
    assert not genuine(bytes(data), THERE)


@given(
    st.one_of(
        st.binary(max_size=80), st.binary(min_size=60, max_size=60).map(MAGIC.to_bytes(4, "big").__add__)
    )
)
def test_anything_else_is_refused_by_its_one_error(data: bytes) -> None:
    try:
        decode_untrusted(data)
    except DecodeError:
        pass


def test_dimensions_cannot_be_told_to_belong_together_by_their_names() -> None:
    assert len({*HERE.names_out, *HERE.names_in}) == 2 * DIMENSIONS


def test_it_is_no_message_of_wireguard_and_no_relays() -> None:
    first = encode(Kind.KNOCK, 0, NONCE, HERE)[:4]
    assert int.from_bytes(first, "little") not in (1, 2, 3, 4)
    assert len({MAGIC, binding.MAGIC}) == 2


def test_keys_are_not_shown() -> None:
    assert "1111" not in repr(HERE) and ONE.reveal().hex() not in repr(HERE)


@pytest.mark.parametrize("wrong", [{"seen": None}, {"seen": Address("192.0.2.7", 0)}])
def test_an_answer_says_where_the_knock_came_from(wrong: dict[str, Address | None]) -> None:
    with pytest.raises(DecodeError):
        decode_untrusted(encode(Kind.ANSWER, 0, NONCE, HERE, **wrong))
