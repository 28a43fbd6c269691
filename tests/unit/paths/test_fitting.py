# SPDX-License-Identifier: GPL-3.0-or-later
"""The path MTUs of two nodes to each other, with seven modelled dimensions between them."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.effects import AskHops, Effect, Fit, Rescore, Send, Turned
from phantommesh.paths.fitting import (
    ALL_ANSWERS,
    ANSWERS,
    BUDGET,
    RESERVE,
    RESERVE_BURST,
    Fitting,
)
from phantommesh.paths.machine import Paths
from phantommesh.paths.pmtu import BASE, OVER_IP4, OVER_IP6, ceiling
from phantommesh.paths.probe import ON_WIRE, OVER, SIZE, Probe, decode_probe_untrusted
from phantommesh.paths.sized import HEADERS, SizedProbe, is_sized
from phantommesh.paths.weights import FULL

A, B = b"a" * 16, b"b" * 16
LARGEST = 1420


class End:
    """One node with one peer."""

    def __init__(self, me: bytes, peer: bytes, seed: int, *, old: bool) -> None:
        self.me, self.peer, self.old = me, peer, old
        chance = random.Random(seed)
        self.paths = Paths(random=chance, interval=0.1)
        self.fitting = Fitting(self.paths, random=chance, largest=LARGEST)
        self.fits: list[tuple[float, int]] = []
        self.hops: list[tuple[int, int]] = []
        self.scores: tuple[float, ...] = FULL
        self.sized = 0
        self.sent = [0] * DIMENSIONS
        self.received = [0] * DIMENSIONS

    @property
    def fit(self) -> int:
        return self.fitting.fit(self.peer)


class World:
    """``carries``: what each dimension carries of overlay packets; ``rate``: bytes a second of traffic each
    way, in whole packets. ``old``: the second node's version knows no sized probes."""

    def __init__(self, seed: int = 0, *, carries: int = LARGEST, own: int = 0, old: bool = False) -> None:
        self.now, self.rate, self.cut, self.loss = 100.0, 0.0, 0, 0.0
        self.carries = [carries] * DIMENSIONS
        self.rng = random.Random(seed)
        self.a, self.b = End(A, B, seed, old=False), End(B, A, seed + 1, old=old)
        self._order, self._queue = itertools.count(), list[tuple[float, int, End, int, bytes]]()
        self._read_at = self.now
        for end in (self.a, self.b):
            end.fitting.set_peers([end.peer])
            for dimension in range(DIMENSIONS):
                end.fitting.way(end.peer, dimension, "way", own, self.now)
            self.carry_out(end, end.paths.set_peers({end.peer: ALL}, self.now))

    def carry_out(self, end: End, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(_, dimension, datagram):
                    self._transmit(end, dimension, datagram)
                case Rescore(peer, scores):
                    end.scores = scores
                    end.paths.in_force(peer, scores)
                    self.carry_out(end, end.fitting.rescored(peer, scores))
                case Fit(_, mtu):
                    end.fits.append((self.now, mtu))
                case AskHops(_, dimension, size):
                    end.hops.append((dimension, size))
                case Turned():
                    self.carry_out(end, end.fitting.turned(effect, self.now))

    def _transmit(self, end: End, dimension: int, datagram: bytes) -> None:
        if end.old and not is_sized(datagram):
            probe = decode_probe_untrusted(datagram)
            datagram = Probe(
                probe.pong, probe.dimension, probe.number, received=probe.received, age=probe.age, sizes=False
            ).encode()
        size = len(datagram) + HEADERS
        end.sized += len(datagram) > SIZE
        end.sent[dimension] += size + OVER if len(datagram) > SIZE else ON_WIRE
        whole = size <= self.carries[dimension] and not self.cut >> dimension & 1
        if whole and self.rng.random() >= self.loss:
            other = self.b if end is self.a else self.a
            entry = self.now + 0.01, next(self._order), other, dimension, datagram
            heapq.heappush(self._queue, entry)

    def run(self, seconds: float) -> None:
        end_at = self.now + seconds
        ends = (self.a, self.b)
        while True:
            moments = [self._read_at, *(e.paths.deadline for e in ends), *(e.fitting.deadline for e in ends)]
            moments += [self._queue[0][0]] if self._queue else []
            if (moment := max(self.now, min(moments))) > end_at:
                self.now = end_at
                return
            self.now = moment
            while self._queue and self._queue[0][0] <= self.now:
                _, _, end, dimension, datagram = heapq.heappop(self._queue)
                end.received[dimension] += len(datagram) + HEADERS + OVER
                protocol = end.fitting if is_sized(datagram) else end.paths
                if not (end.old and is_sized(datagram)):
                    self.carry_out(end, protocol.receive(datagram, end.peer, dimension, self.now))
            for end in ends:
                for each in (end.paths, end.fitting):
                    if each.deadline <= self.now:
                        self.carry_out(end, each.tick(self.now))
            if self._read_at <= self.now:
                self._read_at += 2.0
                for end in ends:
                    used = [i for i in range(DIMENSIONS) if end.scores[i] > 0.0]
                    for i in used:
                        end.sent[i] += int(2 * self.rate / len(used))
                    end.paths.read(end.peer, list(zip(end.sent, end.received, strict=True)), self.now)
                    end.fitting.traffic(end.peer, self.now)


def busy(seed: int = 0, carries: int = LARGEST) -> World:
    world = World(seed, carries=carries)
    world.rate = 200_000.0
    world.run(8)
    return world


def answer(paths: Paths, now: float) -> None:
    """Have the small probes that are due come back at once."""
    for effect in paths.tick(now):
        if isinstance(effect, Send):
            pong = Probe(True, effect.dimension, decode_probe_untrusted(effect.datagram).number)
            paths.receive(pong.encode(), effect.peer, effect.dimension, now)


def test_where_all_pass_each_path_is_asked_once_and_nothing_is_changed() -> None:
    world = World()
    world.run(5)
    for end in (world.a, world.b):
        assert (end.fits, end.fit, end.sized) == ([], LARGEST, DIMENSIONS)
        assert list(end.fitting.holes()) == []


def test_what_the_uplinks_take_is_told_to_the_other_end() -> None:
    own = ceiling(1450, ipv6=False, largest=LARGEST)
    world = World(own=own)
    assert world.a.fit == own == 1376
    world = World()
    for dimension in range(DIMENSIONS):
        world.carry_out(world.a, world.a.fitting.way(B, dimension, "way", own, world.now))
    world.run(5)
    assert world.a.fit == world.b.fit == own
    for known, fit in ((1360, 1360), (0, LARGEST)):
        for dimension in range(DIMENSIONS):
            world.carry_out(world.a, world.a.fitting.way(B, dimension, "way", known, world.now))
        world.run(0.5)
        assert world.a.fit == world.b.fit == fit
    assert list(world.b.fitting.holes()) == []


@pytest.mark.parametrize("carries", [1380, 1328, 1280, 1216, BASE])
def test_a_silent_hop_is_found_by_both_ends_within_seconds(carries: int) -> None:
    world = World(carries=carries)
    world.run(8)
    for end in (world.a, world.b):
        assert end.fit == carries // 16 * 16
        (hole,) = end.fitting.holes()
        assert (hole.dimensions, hole.size, hole.top, hole.narrow) == (ALL, end.fit, LARGEST, False)
        assert str(end.fit) in hole.fault("bee").text and str(end.fit + 60) in hole.fault("bee").fix


@pytest.mark.parametrize("ipv6", [False, True])
def test_what_the_fault_says_to_do_ends_it(ipv6: bool) -> None:
    world = busy(carries=1300)
    (hole,) = world.a.fitting.holes()
    fix = hole.fault("bee").fix
    mtu = hole.size + (OVER_IP6 if ipv6 else OVER_IP4)
    assert f"{mtu} " in fix
    own = ceiling(mtu, ipv6=ipv6, largest=LARGEST)
    for end in (world.a, world.b):
        for dimension in range(DIMENSIONS):
            world.carry_out(end, end.fitting.way(end.peer, dimension, "way", own, world.now))
    world.run(5)
    assert list(world.a.fitting.holes()) == list(world.b.fitting.holes()) == []
    assert world.a.fit == world.b.fit == 1296  # as before, and now known to both kernels


def test_a_way_that_shrinks_under_traffic_is_left_in_a_second_and_a_half() -> None:
    for seed in range(5):
        world = busy(seed=seed)
        world.carries = [1320] * DIMENSIONS
        start = world.now
        world.run(12)
        for end in (world.a, world.b):
            first = next(at for at, mtu in end.fits if at > start and mtu <= 1320)
            assert first - start <= 1.5
            assert end.fit == 1312


def test_one_dimension_that_shrinks_decides_for_all_unless_it_carries_nothing_useful() -> None:
    world = busy()
    world.carries[4] = 1300
    world.run(20)
    assert world.a.fit == 1296 and world.a.scores == FULL
    world.carries[4] = 600
    world.run(20)
    assert world.a.scores == tuple(float(i != 4) for i in range(DIMENSIONS))
    assert world.a.fit == LARGEST
    (hole,) = world.a.fitting.holes()
    assert hole.narrow and hole.dimensions == 1 << 4
    world.carries[4] = LARGEST
    world.rate = 0.0
    world.run(700)
    assert world.a.scores == FULL and world.a.fit == LARGEST and list(world.a.fitting.holes()) == []


def test_a_way_that_grows_is_taken_within_ten_minutes_and_at_once_where_the_endpoint_moves() -> None:
    world = busy(carries=1300)
    assert world.a.fit == 1296
    world.carries = [LARGEST] * DIMENSIONS
    for dimension in range(DIMENSIONS):
        world.carry_out(world.a, world.a.fitting.way(B, dimension, "another", 0, world.now))
    world.run(5)
    assert (world.a.fit, world.b.fit) == (LARGEST, 1296)
    world.rate = 0.0
    world.run(700)
    assert world.b.fit == LARGEST


def test_a_cut_path_is_no_small_one() -> None:
    world = busy()
    world.cut = ALL
    world.run(30)
    world.cut = 0
    world.run(30)
    assert world.a.fits == world.b.fits == []
    world.cut = 0b101
    world.run(30)
    assert world.a.fits == [] and world.a.fit == LARGEST


def test_a_peer_of_another_version_is_asked_nothing() -> None:
    world = World(old=True)
    world.run(60)
    assert world.a.sized == 0 and world.a.fit == LARGEST and list(world.a.fitting.holes()) == []


def test_hops_are_asked_at_the_end_of_each_search_and_every_ten_minutes() -> None:
    world = World(carries=1300)
    world.run(8)
    assert sorted(world.a.hops) == [(dimension, LARGEST) for dimension in range(DIMENSIONS)]
    for dimension in range(DIMENSIONS):
        world.carry_out(world.a, world.a.fitting.way(B, dimension, "way", 1296, world.now))
    world.run(1)
    assert sorted(world.a.hops[DIMENSIONS:]) == [(dimension, 1296) for dimension in range(DIMENSIONS)]
    del world.a.hops[DIMENSIONS:]
    world.run(300)
    assert len(world.a.hops) == DIMENSIONS
    world.run(400)
    assert len(world.a.hops) == 2 * DIMENSIONS
    world.cut = ALL
    for dimension in range(DIMENSIONS):
        world.carry_out(world.a, world.a.fitting.way(B, dimension, "another", 0, world.now))
    world.run(100)
    assert len(world.a.hops) == 2 * DIMENSIONS  # nobody answers there


def test_sized_probes_are_no_traffic_and_few() -> None:
    world = World()
    world.run(300)
    assert world.a.sized == DIMENSIONS and world.a.paths.rate(B, world.now) == 0.0
    world.rate = 20_000.0
    world.run(10)
    before = world.a.sized
    world.run(100)
    assert 80 <= world.a.sized - before <= 130  # one a second
    world.rate = 0.0
    world.run(20)
    before = world.a.sized
    world.run(100)
    assert world.a.sized - before <= DIMENSIONS


def test_many_peers_share_a_budget() -> None:
    chance = random.Random(1)
    paths = Paths(random=chance, interval=0.1)
    fitting = Fitting(paths, random=chance, largest=LARGEST)
    peers = {bytes([i]) * 16: ALL for i in range(100)}
    fitting.set_peers(peers)
    for effect in paths.set_peers(peers, 0.0):
        if isinstance(effect, Turned):
            fitting.turned(effect, 0.0)
    answer(paths, 0.0)
    sent, now = 0, 0.0
    while now < 30.0:
        now = max(now, fitting.deadline)
        sent += sum(isinstance(effect, Send) for effect in fitting.tick(now))
        assert sent <= BUDGET * (now + 1) + 1
    assert sent >= BUDGET * 7


def test_a_reflector_is_not_to_be_had_and_strangers_are_counted() -> None:
    world = World()
    world.run(1)
    ping = SizedProbe(False, 2, 7, 1400).encode()
    (answer,) = world.a.fitting.receive(ping, B, 2, world.now)
    assert isinstance(answer, Send) and len(answer.datagram) == 12
    for _ in range(300):
        world.a.fitting.receive(ping, B, 2, world.now)
    for datagram, peer, dimension in (
        (ping, b"c" * 16, 2), (ping, B, 3), (ping[:-1], B, 2), (SizedProbe(True, 2, 9, 1400).encode(), B, 2),
    ):  # fmt: skip
        assert world.a.fitting.receive(datagram, peer, dimension, world.now) == []
    drops = world.a.fitting.drops
    assert drops["probe-rate"] > 150
    assert (drops["probe-peer"], drops["probe-dimension"], drops["probe-malformed"], drops["probe-late"]) == (
        1, 1, 1, 1,
    )  # fmt: skip


def test_what_all_members_are_answered_together_is_bounded_and_who_asks_little_is_answered() -> None:
    chance = random.Random(1)
    paths = Paths(random=chance, interval=0.1)
    fitting = Fitting(paths, random=chance, largest=LARGEST)
    loud = [bytes([i]) * 16 for i in range(1, 51)]
    quiet = bytes(16)
    fitting.set_peers([quiet, *loud])

    def answered(peer: bytes, now: float) -> int:
        return len(fitting.receive(SizedProbe(False, 0, 1, 1400).encode(), peer, 0, now))

    among_all, seconds = 0, 20
    for tenth in range(10 * seconds):
        for peer in loud:
            among_all += sum(answered(peer, tenth / 10) for _ in range(10))
        if tenth % 10 < 7:
            assert answered(quiet, tenth / 10) == 1
    bound = ALL_ANSWERS * (seconds + 1) + len(loud) * (RESERVE * seconds + RESERVE_BURST)
    assert bound / 2 < among_all <= bound < len(loud) * ANSWERS * seconds


def test_a_way_that_takes_all_is_asked_nothing_and_the_next_one_is_searched_anew() -> None:
    world = busy(carries=1300)
    assert world.a.fit == 1296
    for end in (world.a, world.b):
        for dimension in range(DIMENSIONS):
            effects = end.fitting.way(end.peer, dimension, "frames", 0, world.now, whole=True)
            world.carry_out(end, effects)
    assert (world.a.fit, world.b.fit) == (LARGEST, LARGEST)
    before = world.a.sized
    world.run(30)
    assert world.a.sized == before and list(world.a.fitting.holes()) == []
    world.cut = ALL
    world.run(30)
    for end in (world.a, world.b):
        for dimension in range(DIMENSIONS):
            world.carry_out(end, end.fitting.way(end.peer, dimension, "direct", 0, world.now))
    world.cut = 0
    world.run(15)
    assert (world.a.fit, world.b.fit) == (1296, 1296)


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.lists(st.integers(BASE, LARGEST), min_size=7, max_size=7), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.02]),
)
def test_whatever_the_ways_become_what_is_sent_passes(seed: int, ways: list[list[int]], loss: float) -> None:
    world = World(seed)
    world.rate, world.loss = 100_000.0, loss
    for carries in ways:
        world.carries = carries
        world.run(25)
        for end in (world.a, world.b):
            used = [carries[i] for i in range(DIMENSIONS) if end.scores[i] > 0.0]
            assert end.fit <= min(used)
    world.rate = 0.0
    world.run(1300)
    for end in (world.a, world.b):
        used = [world.carries[i] for i in range(DIMENSIONS) if end.scores[i] > 0.0]
        assert end.fit == min(size if size == LARGEST else size // 16 * 16 for size in used)
