# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.link import wire
from phantommesh.link.fragments import (
    IN_ALL,
    LIFE,
    PER_SOURCE,
    RESEND_AFTER,
    RESEND_LIMIT,
    ROOM,
    Missing,
    Pool,
    QuotaError,
    Reassembler,
)  # fmt: skip
from phantommesh.link.wire import CHUNK_SIZE, Fragment, Kind, Mode

SOURCE = Address("192.0.2.1", 51800)
SESSIONS = Pool.SESSIONS
BODY = random.Random(1).randbytes(5079)


def cut(session: int = 1, body: bytes = BODY, kind: Kind = Kind.RESP) -> list[Fragment]:
    return wire.fragments(kind, Mode.MEMBER, session.to_bytes(8), body)


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=5))
def test_any_order_and_any_duplicates_give_the_body_once(order: list[int], again: list[int]) -> None:
    box, pieces = Reassembler(), cut()
    done = []
    for i in [*order[:-1], *[a for a in again if a != order[-1]], order[-1]]:
        body = box.add(SOURCE, pieces[i], 0.0, SESSIONS)
        if body is not None:
            done.append(body)
    assert done == [BODY]
    assert box.held == 0


def test_a_message_of_one_fragment_is_never_held() -> None:
    box = Reassembler()
    assert box.add(SOURCE, cut(body=b"short", kind=Kind.ACK)[0], 0.0, SESSIONS) == b"short"
    assert box.held == 0


def test_sources_sessions_and_kinds_are_kept_apart() -> None:
    box, pieces = Reassembler(), cut()
    other = cut(body=bytes(5079))
    assert box.add(SOURCE, pieces[0], 0.0, SESSIONS) is None
    for i in range(1, 5):
        assert box.add(SOURCE._replace(port=1), pieces[i], 0.0, SESSIONS) is None
        assert box.add(SOURCE, cut(2)[i], 0.0, SESSIONS) is None
        assert box.add(Address("192.0.2.9", 51800), other[i], 0.0, SESSIONS) is None
    body = None
    for i in range(1, 5):
        body = box.add(SOURCE, pieces[i], 0.0, SESSIONS)
    assert body == BODY


def test_a_duplicate_never_replaces_what_is_held() -> None:
    box, pieces = Reassembler(), cut()
    box.add(SOURCE, pieces[0], 0.0, SESSIONS)
    box.add(SOURCE, cut(body=bytes(5079))[0], 0.0, SESSIONS)
    body = None
    for piece in pieces[1:]:
        body = box.add(SOURCE, piece, 0.0, SESSIONS)
    assert body == BODY


def test_one_source_holds_at_most_64_kib() -> None:
    box = Reassembler()
    fit = PER_SOURCE // (5 * CHUNK_SIZE)
    for i in range(fit):
        box.add(SOURCE._replace(port=i), cut(i)[0], 0.0, SESSIONS)
    with pytest.raises(QuotaError):
        box.add(SOURCE._replace(port=999), cut(fit)[0], 0.0, SESSIONS)
    assert box.held == fit * 5 * CHUNK_SIZE <= PER_SOURCE
    assert box.add(SOURCE._replace(port=0), cut(0)[1], 0.0, SESSIONS) is None  # it may be finished
    box.add(Address("192.0.2.9", 1), cut()[0], 0.0, SESSIONS)  # and another source is not touched


def test_all_sources_hold_at_most_their_pools_room() -> None:
    assert sum(ROOM.values()) == IN_ALL
    box = Reassembler()
    refused = 0
    for i in range(900):
        try:
            box.add(Address(f"10.0.{i >> 8}.{i & 255}", 1), cut(i)[0], 0.0, SESSIONS)
        except QuotaError:
            refused += 1
    assert refused and ROOM[SESSIONS] - 5 * CHUNK_SIZE < box.held <= ROOM[SESSIONS]
    box.tick(LIFE)
    assert box.held == 0
    assert box.add(SOURCE, cut()[0], LIFE, SESSIONS) is None


def init(session: int) -> list[Fragment]:
    return wire.fragments(Kind.INIT, Mode.MEMBER, session.to_bytes(8), BODY[: wire.INIT_SIZE])


@pytest.mark.parametrize("pool", [Pool.CURRENT, Pool.OUTDATED])
def test_a_flood_of_first_fragments_keeps_no_init_out_and_takes_nothing_from_sessions(pool: Pool) -> None:
    """Four thousand sources begin INITs and never end them, while half of a RESP is held."""
    box, resp, honest = Reassembler(), cut(), init(77)
    box.add(SOURCE, resp[0], 0.0, SESSIONS)
    for i in range(4000):
        box.add(Address(f"10.0.{i >> 8}.{i & 255}", 1), init(i)[0], 0.0, pool)
        assert box.held <= ROOM[pool] + 5 * CHUNK_SIZE
        if i == 3990:
            assert box.add(SOURCE, honest[0], 0.0, pool) is None
    assert box.add(SOURCE, honest[1], 0.0, pool) == BODY[: wire.INIT_SIZE]
    assert [box.add(SOURCE, piece, 0.0, SESSIONS) for piece in resp[1:]][-1] == BODY


def test_one_address_that_begins_many_inits_loses_its_own_oldest() -> None:
    box = Reassembler()
    box.add(Address("192.0.2.9", 1), init(1)[0], 0.0, Pool.CURRENT)
    for i in range(2, 200):
        box.add(SOURCE._replace(port=i), init(i)[0], 0.0, Pool.CURRENT)
        assert box.of_source(SOURCE.host) <= PER_SOURCE
    assert box.add(SOURCE._replace(port=2), init(2)[1], 0.0, Pool.CURRENT) is None  # it is a first one again
    assert box.add(SOURCE._replace(port=199), init(199)[1], 0.0, Pool.CURRENT) is not None
    assert box.add(Address("192.0.2.9", 1), init(1)[1], 0.0, Pool.CURRENT) is not None


def test_nobody_is_asked_for_the_rest_of_an_init() -> None:
    box = Reassembler()
    box.add(SOURCE, init(1)[0], 0.0, Pool.CURRENT)
    assert box.deadline == LIFE and box.tick(LIFE) == [] and box.held == 0


def test_a_part_is_forgotten_after_three_seconds() -> None:
    box, pieces = Reassembler(), cut()
    box.add(SOURCE, pieces[0], 0.0, SESSIONS)
    assert box.started(SOURCE, pieces[1])
    box.add(SOURCE, pieces[1], LIFE - 0.01, SESSIONS)
    box.tick(LIFE - 0.01)
    assert box.held
    box.tick(LIFE)
    assert not box.held and not box.started(SOURCE, pieces[1]) and box.deadline == float("inf")
    for piece in pieces[:-1]:
        box.add(SOURCE, piece, 10.0, SESSIONS)
    assert box.add(SOURCE, pieces[-1], 10.0 + LIFE, SESSIONS) is None  # too late, also where nobody ticked


def test_what_is_missing_is_asked_for_a_few_times() -> None:
    box, pieces = Reassembler(), cut()
    box.add(SOURCE, pieces[1], 0.0, SESSIONS)
    box.add(SOURCE, pieces[4], 0.05, SESSIONS)
    assert box.tick(RESEND_AFTER) == []  # something came in between
    asked = []
    while (now := box.deadline) < LIFE:
        asked += box.tick(now)
    assert asked == [Missing(SOURCE, Kind.RESP, Mode.MEMBER, (1).to_bytes(8), 0b01101)] * RESEND_LIMIT
    assert box.deadline == LIFE


def test_fragments_that_disagree_on_the_message_start_it_anew() -> None:
    box = Reassembler()
    box.add(SOURCE, cut()[0], 0.0, SESSIONS)
    box.add(SOURCE, cut(body=BODY[:3000])[0], 0.0, SESSIONS)
    assert box.held == 3 * CHUNK_SIZE


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 7), st.floats(0, 2)), max_size=80)
)
def test_the_books_always_balance(steps: list[tuple[int, int, int, float]]) -> None:
    box, now = Reassembler(), 0.0
    for session, index, host, wait in steps:
        now += wait
        source = Address(f"192.0.2.{host}", 1)
        try:
            box.add(source, cut(session)[index], now, SESSIONS)
        except QuotaError:
            pytest.fail("far below the quota")
        box.tick(now)
        assert box.held == sum(p.reserved for p in box._partials.values())
        assert box._partials.keys() == {key for keys in box._by_source.values() for key in keys}
        assert all(box._by_source.values())
    box.tick(now + LIFE)
    assert box.held == 0 and not box._by_source
