# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer cannot have others search for path MTUs without pause, whatever it does."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.effects import Effect, Send, Turned
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import Probe, decode_probe_untrusted
from phantommesh.paths.restraint import CALM, FIRST, MOST, PROBES, REFILL, WATCHED, Allowance, Restraint
from phantommesh.paths.sized import HEADERS, SizedProbe, decode_sized_untrusted, is_sized
from phantommesh.paths.state import PathState
from tests.unit.paths.test_fitting import A, B, End, World, answer

LARGEST = 1420
OUTSIDE = 60  # bytes that WireGuard, UDP and IPv4 add


class Insider:
    """One node, and a peer that does what it likes: it answers sized and small probes at these ratios, and
    does something unasked every ``pause`` seconds."""

    def __init__(self, seed: int, *, answers: float, small: float, pause: float) -> None:
        self.chance = random.Random(seed)
        self.paths = Paths(random=random.Random(seed), interval=0.1)
        self.fitting = Fitting(self.paths, random=random.Random(seed), largest=LARGEST)
        self.answers, self.small, self.pause, self.now = answers, small, pause, 0.0
        self.sized = self.bytes = self.moves = 0
        self._acts_at = self._reads_at = 0.0
        self.fitting.set_peers([B])
        self._carry_out(self.paths.set_peers({B: ALL}, 0.0))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Turned():
                    self._carry_out(self.fitting.turned(effect, self.now))
                case Send(_, dimension, datagram):
                    self._answer(dimension, datagram)
                case _:
                    pass

    def _answer(self, dimension: int, datagram: bytes) -> None:
        if is_sized(datagram):
            asked = decode_sized_untrusted(datagram)
            if asked.pong:
                return
            self.sized += 1
            self.bytes += len(datagram) + HEADERS + OUTSIDE
            if self.chance.random() < self.answers:
                pong = SizedProbe(True, dimension, asked.number, asked.size, self._ceiling())
                self._carry_out(self.fitting.receive(pong.encode(), B, dimension, self.now))
        else:
            probe = decode_probe_untrusted(datagram)
            if not probe.pong and self.chance.random() < self.small:
                answer = Probe(True, dimension, probe.number)
                self._carry_out(self.paths.receive(answer.encode(), B, dimension, self.now))

    def _ceiling(self) -> int:
        return self.chance.randrange(1200, 1500)

    def act(self) -> None:
        """Move in one dimension, or say of a dimension that its uplink takes another size."""
        dimension = self.chance.randrange(DIMENSIONS)
        if self.chance.random() < 0.5:
            self.moves += 1
            way, own = f"way {self.moves}", self.chance.choice([0, 1376, 1420])
            self._carry_out(self.fitting.way(B, dimension, way, own, self.now))
        else:
            ping = SizedProbe(False, dimension, self.chance.getrandbits(32), 40, self._ceiling())
            self._carry_out(self.fitting.receive(ping.encode(), B, dimension, self.now))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            moment = min(self.paths.deadline, self.fitting.deadline, self._acts_at, self._reads_at)
            if moment > end:
                self.now = end
                return
            self.now = max(self.now, moment)
            for protocol in (self.paths, self.fitting):
                if protocol.deadline <= self.now:
                    self._carry_out(protocol.tick(self.now))
            if self._acts_at <= self.now:
                self._acts_at = self.now + self.pause
                self.act()
            if self._reads_at <= self.now:
                self._reads_at = self.now + 2.0
                self.paths.read(B, [(int(300 * self.now), 0)] * DIMENSIONS, self.now)  # 2.1 kB/s of traffic
                self.fitting.traffic(B, self.now)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([0.05, 0.3, 2.0]),
)
def test_what_an_insider_has_others_send_in_a_minute_is_bounded(
    seed: int, answers: float, small: float, pause: float
) -> None:
    insider = Insider(seed, answers=answers, small=small, pause=pause)
    insider.run(60)
    most = PROBES + 60 * (REFILL + WATCHED) + 1  # a light flow is watched once a second
    assert insider.sized <= most
    assert insider.bytes <= most * (LARGEST + OUTSIDE)


def move(world: World, end: End, way: str) -> None:
    """As the driver does it: small probes go out at once."""
    for dimension in range(DIMENSIONS):
        world.carry_out(end, end.fitting.way(end.peer, dimension, way, 0, world.now))
    end.paths.rouse(end.peer, ALL, world.now)


@pytest.mark.parametrize("carries", [1000, LARGEST])
def test_a_peer_that_moves_without_pause_is_searched_less_and_less_often(carries: int) -> None:
    world = World()
    world.run(5)
    before = world.a.sized
    assert before == DIMENSIONS
    world.carries = [carries] * DIMENSIONS  # small probes always pass
    for step in range(120):
        move(world, world.a, f"way {step}")
        world.run(0.5)
    searches = 7  # in a minute: at once, and after 1, 2, 4, 8, 16 and 32 s
    most = searches * DIMENSIONS * (1 if carries == LARGEST else 6)
    assert before + 3 * DIMENSIONS <= world.a.sized <= before + most
    if carries == LARGEST:
        world.run(MOST + 1)
        assert world.a.fitting.settled(B) == ALL  # by the last way


def test_the_first_move_is_followed_at_once_and_so_is_one_after_a_calm() -> None:
    world = World()
    world.run(5)
    for pause in (1.0, 2.0, 4.0, 8.0, MOST + CALM):
        world.run(pause)
        before = world.a.sized
        move(world, world.a, f"way {pause}")
        world.run(0.5)
        assert world.a.sized == before + DIMENSIONS
        assert world.a.fitting.settled(B) == ALL


def test_where_nobody_has_answered_no_sized_probe_goes() -> None:
    """An address that a peer merely names gets small probes, and they end."""
    world = World()
    world.run(5)
    before, world.cut = world.a.sized, ALL
    for name in ("a way", "another", "a third"):
        move(world, world.a, name)
        world.run(20)
        assert world.a.sized == before
    world.cut = 0
    world.run(20)
    assert before < world.a.sized <= before + 2 * DIMENSIONS


def test_a_peer_that_answers_no_sized_probes_any_more_has_nobody_look_at_once_again_and_again() -> None:
    world = World(carries=1000)
    while not world.a.sized:
        world.run(0.01)  # the first sized probes are under way, and nobody will answer them
    for dimension in range(DIMENSIONS):
        ping = Probe(False, dimension, 7, sizes=False).encode()
        world.carry_out(world.a, world.a.paths.receive(ping, B, dimension, world.now))
    for _ in range(3 * DIMENSIONS):
        world.now = max(world.now, world.a.fitting.deadline)
        world.carry_out(world.a, world.a.fitting.tick(world.now))
        assert world.a.fitting.deadline > world.now


@pytest.mark.parametrize("what", ["keys", "dark"])
def test_a_path_that_comes_back_again_and_again_is_restrained_too(what: str) -> None:
    paths = Paths(random=random.Random(1), interval=0.1)
    fitting = Fitting(paths, random=random.Random(1), largest=LARGEST)
    fitting.set_peers([B])
    paths.set_peers({B: ALL}, 0.0)
    sent, closed = 0, PathState.CLOSED if what == "keys" else PathState.DARK
    for step in range(1200):
        now, there = step / 20, step // 10 % 2 == 0
        if step % 10 == 0:
            paths.rouse(B, ALL, now)
            for i in range(DIMENSIONS):
                before, after = (closed, PathState.UP) if there else (PathState.UP, closed)
                fitting.turned(Turned(B, i, before, after), now)
        answer(paths, now)
        sent += sum(isinstance(effect, Send) for effect in fitting.tick(now))
    assert 3 * DIMENSIONS <= sent <= 6 * DIMENSIONS * 6  # six searches, and none of them is answered


@given(st.lists(st.floats(0.0, 200.0), max_size=40))
def test_searches_begin_no_sooner_than_wanted_and_none_is_forgotten(pauses: list[float]) -> None:
    restraint, now, begun = Restraint(), 0.0, float("-inf")
    for pause in pauses:
        now += pause
        at = restraint.begin(now)
        assert now <= at <= now + MOST
        assert at == begun or at >= begun + FIRST or begun == float("-inf") or at - begun >= CALM
        begun = at


def test_an_allowance_is_larger_where_traffic_has_the_peer_watched() -> None:
    for watch, rate in ((float("inf"), REFILL), (1.0, REFILL + WATCHED), (1 / 7, REFILL + 7 * WATCHED)):
        allowance, taken = Allowance(), 0
        for hundredth in range(100 * 100):
            taken += not allowance.take(hundredth / 100, watch)
        assert abs(taken - PROBES - 100 * rate) <= 2


def test_both_ends_still_find_what_the_way_carries_after_many_changes() -> None:
    world = World()
    for carries in (1380, 1300, 1400, 1216, 1320):
        world.carries = [carries] * DIMENSIONS
        for end in (world.a, world.b):
            move(world, end, f"way {carries}")
        world.run(40)
        assert world.a.fitting.fit(B) == world.b.fitting.fit(A) == carries // 16 * 16
