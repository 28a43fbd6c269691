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
    GOSSIP,
    HEADER,
    MAX_BATCH,
    MAX_WIREGUARD,
    FrameError,
    Queue,
    frame,
    unpack_untrusted,
)

KINDS = (*range(7), GOSSIP)
DATAGRAMS = st.tuples(st.sampled_from(KINDS), st.binary(max_size=MAX_DATAGRAM))


@given(st.lists(DATAGRAMS, max_size=60))
def test_what_is_queued_comes_out_in_its_order(datagrams: list[tuple[int, bytes]]) -> None:
    dropped, found = Counter[str](), list[tuple[int, bytes]]()
    queue = Queue(dropped)
    for kind, datagram in datagrams:
        queue.put(kind, datagram)
    while queue:
        batch = queue.take()
        assert 0 < len(batch) <= MAX_BATCH
        found += unpack_untrusted(batch)
    assert (found, queue.size, dropped) == (datagrams, 0, Counter())
    assert queue.take() == b"" and list(unpack_untrusted(b"")) == []


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
        queue.put(3, bytes([i]))
    assert dropped == {"frame-queue": 15}
    assert [datagram[0] for _, datagram in unpack_untrusted(queue.take())] == list(range(15, 25))


def test_what_makes_no_frame_is_dropped_and_counted() -> None:
    dropped = Counter[str]()
    queue = Queue(dropped)
    queue.put(GOSSIP, bytes(MAX_DATAGRAM + 1))
    queue.put(7, b"")
    assert dropped == {"frame-length": 2} and not queue


def test_a_batch_fits_a_message_of_the_channel() -> None:
    queue = Queue(Counter())
    for _ in range(100):
        queue.put(0, bytes(1452))
    assert MAX_BATCH - 1500 < len(queue.take()) <= MAX_BATCH < MAX_REQUEST - 64
