# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh import wire
from phantommesh.link.fragments import (
    IN_ALL,
    LIFE,
    PER_SOURCE,
    RESEND_AFTER,
    RESEND_LIMIT,
    Missing,
    QuotaError,
    Reassembler,
)  # fmt: skip
from phantommesh.wire import CHUNK_SIZE, Address, Fragment, Kind, Mode

SOURCE = Address("192.0.2.1", 51800)
BODY = random.Random(1).randbytes(5079)


def cut(session: int = 1, body: bytes = BODY, kind: Kind = Kind.RESP) -> list[Fragment]:
    return wire.fragments(kind, Mode.MEMBER, session.to_bytes(8), body)


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=5))
def test_any_order_and_any_duplicates_give_the_body_once(order: list[int], again: list[int]) -> None:
    box, pieces = Reassembler(), cut()
    done = []
    for i in [*order[:-1], *[a for a in again if a != order[-1]], order[-1]]:
        body = box.add(SOURCE, pieces[i], 0.0)
        if body is not None:
            done.append(body)
    assert done == [BODY]
    assert box.held == 0


def test_a_message_of_one_fragment_is_never_held() -> None:
    box = Reassembler()
    assert box.add(SOURCE, cut(body=b"short", kind=Kind.ACK)[0], 0.0) == b"short"
    assert box.held == 0


def test_sources_sessions_and_kinds_are_kept_apart() -> None:
    box, pieces = Reassembler(), cut()
    other = cut(body=bytes(5079))
    assert box.add(SOURCE, pieces[0], 0.0) is None
    for i in range(1, 5):
        assert box.add(SOURCE._replace(port=1), pieces[i], 0.0) is None
        assert box.add(SOURCE, cut(2)[i], 0.0) is None
        assert box.add(Address("192.0.2.9", 51800), other[i], 0.0) is None
    body = None
    for i in range(1, 5):
        body = box.add(SOURCE, pieces[i], 0.0)
    assert body == BODY


def test_a_duplicate_never_replaces_what_is_held() -> None:
    box, pieces = Reassembler(), cut()
    box.add(SOURCE, pieces[0], 0.0)
    box.add(SOURCE, cut(body=bytes(5079))[0], 0.0)
    body = None
    for piece in pieces[1:]:
        body = box.add(SOURCE, piece, 0.0)
    assert body == BODY


def test_one_source_holds_at_most_64_kib() -> None:
    box = Reassembler()
    fit = PER_SOURCE // (5 * CHUNK_SIZE)
    for i in range(fit):
        box.add(SOURCE._replace(port=i), cut(i)[0], 0.0)
    with pytest.raises(QuotaError):
        box.add(SOURCE._replace(port=999), cut(fit)[0], 0.0)
    assert box.held == fit * 5 * CHUNK_SIZE <= PER_SOURCE
    assert box.add(SOURCE._replace(port=0), cut(0)[1], 0.0) is None  # what was begun may be finished
    box.add(Address("192.0.2.9", 1), cut()[0], 0.0)  # and another source is not touched


def test_all_sources_hold_at_most_4_mib() -> None:
    box = Reassembler()
    refused = 0
    for i in range(900):
        try:
            box.add(Address(f"10.0.{i >> 8}.{i & 255}", 1), cut(i)[0], 0.0)
        except QuotaError:
            refused += 1
    assert refused and IN_ALL - 5 * CHUNK_SIZE < box.held <= IN_ALL
    box.tick(LIFE)
    assert box.held == 0
    assert box.add(SOURCE, cut()[0], LIFE) is None


def test_a_part_is_forgotten_after_three_seconds() -> None:
    box, pieces = Reassembler(), cut()
    box.add(SOURCE, pieces[0], 0.0)
    assert box.started(SOURCE, pieces[1])
    box.add(SOURCE, pieces[1], LIFE - 0.01)
    box.tick(LIFE - 0.01)
    assert box.held
    box.tick(LIFE)
    assert not box.held and not box.started(SOURCE, pieces[1]) and box.deadline == float("inf")
    for piece in pieces[:-1]:
        box.add(SOURCE, piece, 10.0)
    assert box.add(SOURCE, pieces[-1], 10.0 + LIFE) is None  # too late, also where nobody ticked


def test_what_is_missing_is_asked_for_a_few_times() -> None:
    box, pieces = Reassembler(), cut()
    box.add(SOURCE, pieces[1], 0.0)
    box.add(SOURCE, pieces[4], 0.05)
    assert box.tick(RESEND_AFTER) == []  # something came in between
    asked = []
    while (now := box.deadline) < LIFE:
        asked += box.tick(now)
    assert asked == [Missing(SOURCE, Kind.RESP, Mode.MEMBER, (1).to_bytes(8), 0b01101)] * RESEND_LIMIT
    assert box.deadline == LIFE


def test_fragments_that_disagree_on_the_message_start_it_anew() -> None:
    box = Reassembler()
    box.add(SOURCE, cut()[0], 0.0)
    box.add(SOURCE, cut(body=BODY[:3000])[0], 0.0)
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
            box.add(source, cut(session)[index], now)
        except QuotaError:
            pytest.fail("far below the quota")
        box.tick(now)
        assert box.held == sum(p.reserved for p in box._partials.values()) == sum(box._by_source.values())
        assert all(box._by_source.values())
    box.tick(now + LIFE)
    assert box.held == 0 and not box._by_source
