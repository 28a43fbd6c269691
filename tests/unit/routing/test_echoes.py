# SPDX-License-Identifier: GPL-3.0-or-later
"""Echoes: what they look like, and what a witness lets a member have."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.routing import echoes
from phantommesh.routing.echoes import MAX_ANSWERS, MAX_GRANTS, SPARE, TRIALS, Keys, Kind, Send, Witness
from phantommesh.routing.knocks import SIZE

TOKEN = bytes(range(16))
KEYS = Keys.of(TOKEN)
THERE = Address("203.0.113.7", 40_000)


def witness(may: bool = True) -> Witness:
    return Witness(lambda peer, host: may, 0.0)


def ask(number: int = 0, keys: Keys = KEYS) -> bytes:
    return echoes.encode(Kind.ASK, number, keys)


@given(st.integers(0, TRIALS - 1), st.ip_addresses(), st.integers(1, 65535))
def test_what_is_encoded_is_decoded(number: int, host: object, port: int) -> None:
    place = Address(str(host), port)
    data = echoes.encode(Kind.NOW, number, KEYS, place)
    assert len(data) == SIZE and echoes.genuine(data, KEYS)
    found = echoes.decode_untrusted(data)
    assert (found.kind, found.number) == (Kind.NOW, number) and found.seen is not None
    assert found.seen.port == port


@given(st.binary(max_size=2 * SIZE))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(DecodeError):
        echoes.decode_untrusted(data)


@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_no_byte_can_be_another(at: int, by: int) -> None:
    data = bytearray(ask())
    data[at] ^= by
    with suppress(DecodeError):
        found = echoes.decode_untrusted(bytes(data))
        assert found.number < TRIALS + DIMENSIONS and not echoes.genuine(bytes(data), KEYS)


def test_each_number_has_a_name_of_its_own() -> None:
    assert len(set(KEYS.names)) == TRIALS + DIMENSIONS


def test_a_witness_answers_at_once_and_twice_more_when_the_idle_time_is_over() -> None:
    one = witness()
    assert one.grant(b"a", TOKEN, (20.0,), 0.0) == "" and one.busy
    (now,) = one.receive(THERE, ask(), 1.0)
    assert now.destination == THERE and echoes.decode_untrusted(now.datagram).seen == THERE
    (later,) = one.receive(THERE, ask(), 3.0)  # the last one counts
    assert echoes.decode_untrusted(later.datagram).kind is Kind.NOW
    assert one.deadline == 23.0 and one.tick(22.9) == []
    found = [*one.tick(23.0), *one.tick(24.0), *one.tick(25.0)]
    assert [echoes.decode_untrusted(sent.datagram).kind for sent in found] == [Kind.LATER] * 2
    assert one.tick(20.0 + SPARE) == []
    assert one.receive(THERE, ask(), 60.0) == [] and one.dropped["echo-stranger"] == 1


def test_a_witness_sends_to_one_address_for_each_socket_and_not_often() -> None:
    """A member may have it send to somebody else's address: to eight, a few datagrams of 64 bytes each."""
    one = witness()
    one.grant(b"a", TOKEN, (20.0,) * TRIALS, 0.0)
    sent: list[Send] = []
    for second in range(100):
        for number in range(TRIALS):
            for port in (1, 2):
                sent += one.receive(Address("198.51.100.1", port + 2 * number), ask(number), second * 0.01)
    for second in range(300):
        sent += one.tick(float(second))
    assert len({effect.destination for effect in sent}) == TRIALS
    assert len(sent) == TRIALS * (MAX_ANSWERS + 2)


def test_an_address_that_may_not_be_sent_to_gets_nothing() -> None:
    one = witness(may=False)
    one.grant(b"a", TOKEN, (20.0,), 0.0)
    assert one.receive(THERE, ask(), 1.0) == [] and one.tick(100.0) == []
    assert one.dropped["echo-address"] == 1


def test_a_member_measures_a_few_times_and_all_together_no_more_than_so_many() -> None:
    one = witness()
    tokens = [number.to_bytes(16) for number in range(1, 200)]
    granted = [one.grant(b"a", token, (140.0,), 0.0) == "" for token in tokens[:8]]
    assert granted == [True] * 4 + [False] * 4
    many = [one.grant(token, token, (140.0,), 0.0) == "" for token in tokens]
    assert sum(many) == MAX_GRANTS - 4
    assert one.grant(b"z", TOKEN, (), 0.0) != ""
    one.tick(1000.0)
    assert one.grant(b"z", TOKEN, (), 1000.0) == ""


def test_a_token_is_used_once_at_a_time() -> None:
    one = witness()
    assert one.grant(b"a", TOKEN, (20.0,), 0.0) == ""
    assert one.grant(b"b", TOKEN, (20.0,), 0.0) != ""


@pytest.mark.parametrize("kind", [Kind.NOW, Kind.LATER, Kind.LOOP])
def test_the_key_says_who_made_a_datagram(kind: Kind) -> None:
    place = THERE if kind is Kind.NOW else None
    assert not echoes.genuine(echoes.encode(kind, 1, Keys.of(bytes(16)), place), KEYS)
