# SPDX-License-Identifier: GPL-3.0-or-later
"""Bursts of pings to one peer, in each dimension."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.burst import INTERVAL, PATIENCE, Burst
from phantommesh.paths.effects import Effect, Send, Turned
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import Probe
from phantommesh.paths.sized import HEADERS, SizedProbe
from phantommesh.paths.state import PathState

A, B = b"a" * 16, b"b" * 16
THERE = 0.01  # s of one way


class End:
    def __init__(self, peer: bytes, ready: int) -> None:
        self.peer = peer
        self.paths = Paths(random=Random(1), interval=0.1)
        self.fitting = Fitting(self.paths, random=Random(1), largest=1420)
        self.fitting.set_peers([peer])
        for effect in self.paths.set_peers({peer: ready}, 0.0):
            if isinstance(effect, Turned):
                self.fitting.turned(effect, 0.0)


def burst(end: End, *, count: int = 3, size: int | None = None) -> Burst:
    return Burst(end.paths, end.fitting, end.peer, count=count, size=size, random=Random(2), now=10.0)


def run(it: Burst, far: End, *, cut: int = 0, carries: int = 1420) -> tuple[float, list[Send]]:
    """Send all that is due and bring the answers back; return when it was over and what was sent."""
    now, sent = 10.0, list[Send]()
    coming: list[tuple[float, int, bytes]] = []
    while not it.done:
        now = min(it.deadline, *(at for at, _, _ in coming)) if coming else it.deadline
        for ping in sends(it.tick(now)):
            sent.append(ping)
            if cut >> ping.dimension & 1 or len(ping.datagram) + HEADERS > carries:
                continue
            protocol = far.fitting if it._size else far.paths
            for pong in sends(protocol.receive(ping.datagram, far.peer, ping.dimension, now + THERE)):
                coming.append((now + 2 * THERE, pong.dimension, pong.datagram))
        for arrived in [one for one in coming if one[0] <= now]:
            coming.remove(arrived)
            assert it.receive(arrived[2], arrived[1], now)
    return now, sent


def sends(effects: list[Effect]) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send)]


def test_each_dimension_is_pinged_and_the_burst_ends_with_the_last_answer() -> None:
    a, b = End(B, ALL), End(A, ALL)
    it = burst(a)
    over, sent = run(it, b)
    assert len(sent) == 3 * DIMENSIONS
    assert [(one.sent, len(one.times), one.loss) for one in it.tallies] == [(3, 3, 0.0)] * DIMENSIONS
    assert all(abs(time - 2 * THERE) < 1e-9 for one in it.tallies for time in one.times)
    assert over < 10.0 + 3 * INTERVAL + 2 * THERE + INTERVAL


def test_a_cut_dimension_is_lost_and_waited_for() -> None:
    a, b = End(B, ALL), End(A, ALL)
    it = burst(a)
    over, _ = run(it, b, cut=0b100)
    assert [one.loss for one in it.tallies] == [float(i == 2) for i in range(DIMENSIONS)]
    assert over == 10.0 + 3 * INTERVAL + PATIENCE
    assert a.paths.dark(B) == 0  # its own probes judge a path


def test_a_dimension_without_keys_is_sent_nothing() -> None:
    a, b = End(B, 0b11), End(A, ALL)
    it = burst(a)
    _, sent = run(it, b)
    assert {ping.dimension for ping in sent} == {0, 1}
    assert [one.sent for one in it.tallies] == [3, 3, 0, 0, 0, 0, 0]
    assert [one.loss for one in it.tallies] == [0.0] * DIMENSIONS


def test_with_no_keys_at_all_or_a_stranger_it_is_over_at_once() -> None:
    for end in (End(B, 0), End(A, ALL)):
        it = Burst(end.paths, end.fitting, B, count=3, size=None, random=Random(2), now=10.0)
        assert it.tick(10.0) == [] and it.done


def test_large_pings_have_their_size_and_their_loss_is_forgiven() -> None:
    a, b = End(B, ALL), End(A, ALL)
    it = burst(a, size=1400)
    _, sent = run(it, b, carries=1380)
    assert {len(ping.datagram) + HEADERS for ping in sent} == {1400}
    assert [one.loss for one in it.tallies] == [1.0] * DIMENSIONS
    path = a.paths.path(B, 0)
    assert path is not None and path.quality.counted._forgiven >= 3 * 1400
    assert path.state is not PathState.DARK
    over, sent = run(burst(a, size=1300), b, carries=1380)
    assert len(sent) == 3 * DIMENSIONS and over < 12.0


def test_the_bytes_of_a_burst_are_no_traffic() -> None:
    a, b = End(B, ALL), End(A, ALL)
    before = [a.paths.path(B, i).probe_bytes for i in range(DIMENSIONS)]  # type: ignore[union-attr]
    run(burst(a), b)
    run(burst(a, size=1000), b)
    after = [a.paths.path(B, i).probe_bytes for i in range(DIMENSIONS)]  # type: ignore[union-attr]
    assert all(late - early == 3 * 80 + 3 * 1032 for early, late in zip(before, after, strict=True))


def test_answers_of_other_probes_are_left_to_them() -> None:
    a = End(B, ALL)
    it = burst(a)
    [ping] = sends(it.tick(it.deadline))[:1]
    number = it._number
    other = (ping.dimension + 1) % DIMENSIONS
    for datagram, dimension in (
        (Probe(True, ping.dimension, number + 1).encode(), ping.dimension),
        (Probe(False, ping.dimension, number).encode(), ping.dimension),  # the peer's own ping
        (Probe(True, other, number).encode(), other),
        (SizedProbe(True, ping.dimension, number, 100).encode(), ping.dimension),
    ):
        assert not it.receive(datagram, dimension, 10.5)
    answer = Probe(True, ping.dimension, number).encode()
    assert it.receive(answer, ping.dimension, 10.5)
    assert not it.receive(answer, ping.dimension, 10.6)  # once


@given(st.binary(max_size=40), st.integers(0, DIMENSIONS - 1), st.booleans())
def test_anything_may_come(datagram: bytes, dimension: int, sized: bool) -> None:
    it = burst(End(B, ALL), size=100 if sized else None)
    it.tick(10.5)
    it.receive(datagram, dimension, 10.6)
