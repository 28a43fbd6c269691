# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagrams as frames of a batch, and the queue before a connection."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control.channel import MAX_REQUEST
from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.routing.frames import (
    AGE,
    BATCH_SENT,
    GOSSIP,
    GOSSIP_AGE,
    GOSSIP_BYTES,
    HEADER,
    MAX_BATCH,
    MAX_WIREGUARD,
    TARGET,
    FrameError,
    Queue,
    frame,
    unpack_untrusted,
)

KINDS = (*range(7), GOSSIP)
DATAGRAMS = st.tuples(st.sampled_from(KINDS), st.binary(max_size=MAX_DATAGRAM))


@given(st.lists(DATAGRAMS, max_size=60).filter(lambda d: sum(k == GOSSIP for k, _ in d) <= 26))
def test_what_is_queued_comes_out_in_its_order_gossip_first(datagrams: list[tuple[int, bytes]]) -> None:
    dropped, found = Counter[str](), list[tuple[int, bytes]]()
    queue = Queue(dropped)
    for kind, datagram in datagrams:
        queue.put(kind, datagram, 0.0)
    while queue:
        batch = queue.take(0.0)
        assert 0 < len(batch) <= BATCH_SENT
        found += unpack_untrusted(batch)
    ordered = sorted(datagrams, key=lambda one: one[0] != GOSSIP)
    assert (found, queue.size, dropped) == (ordered, 0, Counter())
    assert queue.take(0.0) == b"" and list(unpack_untrusted(b"")) == []


@given(
    st.binary(max_size=200) | st.lists(DATAGRAMS, max_size=3).map(lambda d: b"".join(frame(*f) for f in d))
)
def test_any_bytes_are_frames_or_an_error(batch: bytes) -> None:
    read = 0
    try:
        for kind, datagram in unpack_untrusted(batch):
            assert kind in KINDS
            read += HEADER + len(datagram)
    except FrameError:
        assert read < len(batch)
    else:
        assert read == len(batch)


@pytest.mark.parametrize(
    "batch",
    [
        b"\0",
        b"\0\0",
        b"\0\0\1",
        bytes((7, 0, 0)),
        bytes((9, 0, 0)),
        bytes((GOSSIP, *(MAX_DATAGRAM + 1).to_bytes(2))) + bytes(MAX_DATAGRAM + 1),
        bytes((0, *(MAX_WIREGUARD + 1).to_bytes(2))) + bytes(MAX_WIREGUARD + 1),
    ],
)
def test_what_is_no_frame_is_refused(batch: bytes) -> None:
    with pytest.raises(FrameError):
        list(unpack_untrusted(batch))


def test_a_full_queue_drops_the_oldest_and_counts_it() -> None:
    dropped = Counter[str]()
    queue = Queue(dropped, most=10 * (HEADER + 1))
    for i in range(25):
        queue.put(3, bytes([i]), 0.0)
    assert dropped == {"frame-queue": 15}
    assert [datagram[0] for _, datagram in unpack_untrusted(queue.take(0.0))] == list(range(15, 25))


def test_gossip_has_room_of_its_own() -> None:
    dropped = Counter[str]()
    queue = Queue(dropped)
    queue.put(GOSSIP, b"first", 0.0)
    for _ in range(1000):
        queue.put(0, bytes(1452), 0.0)
    assert dropped["frame-queue"] > 800
    assert next(unpack_untrusted(queue.take(0.0))) == (GOSSIP, b"first")
    for _ in range(1000):
        queue.put(GOSSIP, bytes(MAX_DATAGRAM), 0.0)
    left = 0
    while batch := queue.take(0.0):
        left += sum(kind == GOSSIP for kind, _ in unpack_untrusted(batch))
    assert 0 < left * MAX_DATAGRAM <= GOSSIP_BYTES


@given(
    st.lists(
        st.tuples(st.floats(0.0, 0.2), st.integers(0, 40), st.booleans(), st.sampled_from((0, 6, GOSSIP))),
        max_size=60,
    )
)
def test_nothing_is_sent_that_has_waited_for_longer_than_it_may(
    steps: list[tuple[float, int, bool, int]],
) -> None:
    dropped, now, number, put, got = Counter[str](), 0.0, 0, dict[int, float](), 0
    queue = Queue(dropped)
    for pause, count, takes, kind in steps:
        now += pause
        for _ in range(count):
            put[number] = now
            queue.put(kind, number.to_bytes(4) + bytes(1000), now)
            number += 1
        if takes:
            for sent, datagram in unpack_untrusted(queue.take(now)):
                age = now - put[int.from_bytes(datagram[:4])]
                assert age <= (GOSSIP_AGE if sent == GOSSIP else AGE)
                got += 1
    while queue:
        got += len(list(unpack_untrusted(queue.take(now))))
    assert got + dropped["frame-late"] + dropped["frame-queue"] == number  # each is sent or counted


def test_a_queue_that_stays_long_drops_until_it_is_short() -> None:
    """A sender that takes each loss for a reason to slow down, before a connection of 2 MB/s."""
    dropped, rate, waits = Counter[str](), 3000.0, list[float]()
    queue = Queue(dropped)
    owed = room = now = 0.0
    seen, put = 0, dict[int, float]()
    number = 0
    for step in range(20_000):  # of 1 ms
        now = step / 1000
        owed += rate / 1000
        while owed >= 1.0:
            put[number] = now
            queue.put(0, number.to_bytes(4) + bytes(1448), now)
            number, owed = number + 1, owed - 1.0
        room += 2000.0
        while room > 0.0 and queue:
            batch = queue.take(now)
            room -= len(batch)
            waits += [now - put[int.from_bytes(one[:4])] for _, one in unpack_untrusted(batch)]
        room = min(room, 0.0) if not queue else room
        lost, seen = sum(dropped.values()) - seen, sum(dropped.values())
        rate = max(100.0, rate * 0.7**lost) if lost else rate + 2.0
    late = sorted(waits[len(waits) // 2 :])
    assert late[len(late) // 2] < 2 * TARGET  # without dropping early it is near AGE
    assert len(late) > 10_000 * 2000 / 1455 * 0.6  # and most of the connection is in use


def test_what_makes_no_frame_is_dropped_and_counted() -> None:
    dropped = Counter[str]()
    queue = Queue(dropped)
    queue.put(GOSSIP, bytes(MAX_DATAGRAM + 1), 0.0)
    queue.put(7, b"", 0.0)
    assert dropped == {"frame-length": 2} and not queue


def test_a_batch_fits_a_message_of_the_channel() -> None:
    queue = Queue(Counter())
    for _ in range(100):
        queue.put(0, bytes(1452), 0.0)
    assert BATCH_SENT - 1500 < len(queue.take(0.0)) <= BATCH_SENT <= MAX_BATCH < MAX_REQUEST - 64
