# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths: two real `Paths` under a virtual clock, with seven modelled dimensions between them."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.errors import DecodeError
from phantommesh.paths.effects import Effect, Rescore, Send, Turned
from phantommesh.paths.machine import ANSWERS, FULL, RETURN, SLOW, Paths
from phantommesh.paths.pace import BUSY_RATE, LIGHT, READ
from phantommesh.paths.probe import ON_WIRE, SIZE, Probe, decode_probe_untrusted
from phantommesh.paths.quality import LEAST_PROBES, MEMORY, WINDOW, Counted, Quality
from phantommesh.paths.state import MISSES, PROVE, PathState

A, B = b"a" * 16, b"b" * 16
INTERVAL, RATE = 0.1, 200.0


class End:
    """One node with one peer. Its kernel sends by ``in_force`` a moment after it is told to."""

    def __init__(self, world: World, me: bytes, peer: bytes, seed: int) -> None:
        self.world, self.me, self.peer = world, me, peer
        self.paths = Paths(random=random.Random(seed), interval=INTERVAL)
        self.scores: tuple[float, ...] = FULL
        self.rescored: list[tuple[float, tuple[float, ...]]] = []
        self.turned: list[tuple[float, Turned]] = []
        self.sent = [0] * DIMENSIONS
        self.received = [0] * DIMENSIONS
        self.probes = 0
        self.stalled_until = 0.0

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, dimension, datagram):
                    assert peer == self.peer and len(datagram) == SIZE
                    self.probes += 1
                    self.world.transmit(self, dimension, datagram, ON_WIRE)
                case Rescore(_, scores):
                    assert len(scores) == DIMENSIONS and any(scores)
                    assert all(0.0 <= score <= 1.0 for score in scores)
                    self.rescored.append((self.world.now, scores))
                    self.world.later(0.005, ("applied", self, scores))
                case Turned():
                    self.turned.append((self.world.now, effect))

    def states(self) -> list[PathState]:
        return [view.state for view in self.paths.view(self.peer, self.world.now)]

    def open(self, ready: int = ALL) -> None:
        self.carry_out(self.paths.set_peers({self.peer: ready}, self.world.now))

    def leave(self, dimensions: int) -> None:
        self.carry_out(self.paths.leave(dimensions, self.world.now))


class World:
    """The event loop. Each end reads its counters every 2 s; traffic is ``rate`` packets/s of 1,400 bytes."""

    def __init__(self, seed: int = 0, *, ready: int = ALL) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.cut = 0  # bitmap of dimensions on which nothing passes
        self.loss = [0.0] * DIMENSIONS
        self.delay = [0.01] * DIMENSIONS
        self.rate = 0.0
        self.lost: list[tuple[float, int]] = []
        self.carried = [0] * DIMENSIONS
        self._queue: list[tuple[float, int, tuple[object, ...]]] = []
        self._order = itertools.count()
        self.a, self.b = End(self, A, B, seed), End(self, B, A, seed + 1)
        self.ends = (self.a, self.b)
        for end in self.ends:
            end.open(ready)
            self.later(self.rng.uniform(0, 2), ("read", end))
        self.later(0.0, ("traffic",))

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    def later(self, delay: float, event: tuple[object, ...]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), event))

    def passes(self, dimension: int) -> bool:
        return not self.cut >> dimension & 1 and self.rng.random() >= self.loss[dimension]

    def transmit(self, end: End, dimension: int, datagram: bytes | None, size: int) -> None:
        end.sent[dimension] += size
        if self.passes(dimension):
            self.later(self.delay[dimension], ("arrives", self.other(end), dimension, datagram, size))
        elif datagram is None:
            self.lost.append((self.now, dimension))

    def run(self, seconds: float) -> None:
        end_at = self.now + seconds
        while True:
            moments = [max(end.paths.deadline, end.stalled_until) for end in self.ends]
            if self._queue:
                moments.append(self._queue[0][0])
            moment = max(self.now, min(moments))
            if moment > end_at:
                self.now = end_at
                return
            self.now = moment
            while self._queue and self._queue[0][0] <= self.now:
                self._handle(heapq.heappop(self._queue)[2])
            for end in self.ends:
                if end.paths.deadline <= self.now and end.stalled_until <= self.now:
                    end.carry_out(end.paths.tick(self.now))

    def _handle(self, event: tuple[object, ...]) -> None:
        match event:
            case ("arrives", End() as end, int() as dimension, datagram, int() as size):
                if end.stalled_until > self.now and datagram is not None:
                    self.later(end.stalled_until - self.now, event)
                    return
                end.received[dimension] += size
                if isinstance(datagram, bytes):
                    end.carry_out(end.paths.receive(datagram, end.peer, dimension, self.now))
            case ("applied", End() as end, tuple() as scores):
                end.scores = scores
                end.paths.in_force(end.peer, scores)
            case ("read", End() as end):
                counters = list(zip(end.sent, end.received, strict=True))
                end.paths.read(end.peer, counters, self.now)
                self.later(2.0, event)
            case ("traffic",):
                for end in self.ends if self.rate else ():
                    (dimension,) = self.rng.choices(range(DIMENSIONS), end.scores)
                    self.carried[dimension] += 1
                    self.transmit(end, dimension, None, 1400)
                self.later(1 / self.rate if self.rate else 0.1, event)


def busy(seed: int = 0) -> World:
    world = World(seed)
    world.rate = RATE
    world.run(6)
    assert world.a.states() == world.b.states() == [PathState.UP] * 7
    return world


def test_the_paths_of_a_new_link_all_carry_alike_and_are_measured_at_once() -> None:
    world = World()
    world.run(1)
    assert world.a.states() == world.b.states() == [PathState.UP] * 7
    assert world.a.paths.scores(B) == FULL and not world.a.rescored
    view = world.a.paths.view(B, world.now)[3]
    assert view.rtt == pytest.approx(0.02, abs=1e-6) and view.loss == 0.0 and view.weight == 1.0


@pytest.mark.parametrize("dimension", range(7))
def test_a_cut_dimension_is_left_within_half_a_second_and_loses_no_more_than_its_share(
    dimension: int,
) -> None:
    world = busy(dimension)
    world.cut, start = 1 << dimension, world.now
    before = len(world.lost)
    world.run(3)
    assert world.a.states()[dimension] is world.b.states()[dimension] is PathState.DARK
    assert world.a.paths.scores(B) == tuple(float(i != dimension) for i in range(7))
    for end in world.ends:
        moved = next(at for at, scores in end.rescored if at >= start and scores[dimension] == 0.0)
        assert moved - start <= 0.45
    assert {lost for _, lost in world.lost[before:]} == {dimension}
    assert max(at for at, _ in world.lost) - start <= 0.46
    assert len(world.lost) - before <= 2 * RATE * 0.46 / 7 * 1.5


def test_it_comes_back_after_it_has_proved_itself_and_later_each_time_it_flaps() -> None:
    world = busy()
    waits = []
    for _ in range(4):
        world.cut = 1 << 2
        world.run(3)
        assert world.a.states()[2] is PathState.DARK
        world.cut, since = 0, world.now
        while world.a.states()[2] is not PathState.UP:
            world.run(0.05)
        waits.append(world.now - since)
    assert waits[0] <= RETURN + PROVE * INTERVAL * 1.3 + 0.3
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(waits[1:]))
    world.run(70)
    world.cut = 1 << 2
    world.run(1)
    world.cut, since = 0, world.now
    while world.a.states()[2] is not PathState.UP:
        world.run(0.05)
    assert world.now - since <= waits[0] * 1.5  # it was steady for a minute: that is forgiven


def test_one_lost_answer_while_proving_starts_the_proof_again() -> None:
    world = busy()
    world.cut = 1
    world.run(1)
    world.cut, since = 0, world.now
    while world.a.states()[0] is not PathState.PROVING:
        world.run(0.02)
    world.run(0.6)
    world.cut = 1
    world.run(0.12)
    world.cut, since = 0, world.now
    while world.a.states()[0] is not PathState.UP:
        world.run(0.02)
    assert world.now - since >= (PROVE - 2) * INTERVAL * 0.85


def test_when_nothing_answers_it_is_the_peer_and_no_dimension_is_left() -> None:
    world = busy()
    world.cut = ALL
    world.run(0.7)
    assert not world.a.rescored
    world.run(5)
    assert world.a.states() == [PathState.DARK] * 7
    assert world.a.paths.scores(B) == FULL
    world.cut = 0
    world.run(20)
    assert world.a.states() == [PathState.UP] * 7
    # Nor does a path have to prove more for it, however often the peer is away.
    for _ in range(5):
        world.cut = ALL
        world.run(5)
        world.cut, world.rate = 0, RATE
        world.run(12)
        assert world.a.states() == [PathState.UP] * 7
    proving = [at for at, t in world.a.turned if t.before is PathState.DARK]
    proved = [at for at, t in world.a.turned if t.after is PathState.UP]
    assert len(proving) == 6 * DIMENSIONS == len(proved) - DIMENSIONS
    assert proved[-1] - proving[-1] <= 4 * INTERVAL


@pytest.mark.parametrize("stall", [0.3, 1.0, 5.0])
def test_a_node_that_stands_still_does_not_blame_its_paths(stall: float) -> None:
    world = busy()
    before = len(world.a.turned)
    world.a.stalled_until = world.now + stall
    world.run(stall + 3)
    assert world.a.turned[before:] == []
    assert world.a.states() == [PathState.UP] * 7


def test_three_uplinks_of_seven_go_together() -> None:
    world = busy()
    world.cut, start = 0b1001001, world.now
    world.run(1)
    assert world.a.paths.scores(B) == (0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0)
    moved = [at for at, s in world.a.rescored if at > start and s == (0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0)]
    assert moved[0] - start <= 0.45


@pytest.mark.parametrize(("rate", "pause"), [(20.0, INTERVAL), (10.0, 0.143), (2.0, 0.714), (0.6, LIGHT)])
def test_the_less_traffic_the_fewer_probes(rate: float, pause: float) -> None:
    """Packets of 1,400 bytes a second: what is sent in probes is a fraction of what is sent."""
    world = World()
    world.rate = rate
    world.run(10)
    before = world.a.probes + world.b.probes
    world.run(60)
    assert (world.a.probes + world.b.probes - before) / 60 == pytest.approx(2 * 2 * 7 / pause, rel=0.2)


def test_a_light_flow_leaves_a_dark_path_too() -> None:
    world = World()
    world.rate = 2.0
    world.run(10)
    world.cut, start = 1 << 2, world.now
    world.run(LIGHT + 1)
    assert world.a.paths.scores(B)[2] == 0.0
    (at,) = [at for at, t in world.a.turned if at > start and t.after is PathState.DARK]
    assert at - start <= 0.714 * 1.15 + 0.5


def test_an_idle_node_probes_seldom_and_a_busy_one_every_tenth_of_a_second() -> None:
    world = World()
    world.run(5)
    before = world.a.probes + world.b.probes
    world.run(100)
    idle = (world.a.probes + world.b.probes - before) / 100
    assert idle <= 2 * 2 * 7 / SLOW * 1.2  # ping and pong, of both
    world.rate = 20.0
    world.run(5)
    before = world.a.probes + world.b.probes
    world.run(10)
    assert (world.a.probes + world.b.probes - before) / 10 == pytest.approx(2 * 2 * 7 / INTERVAL, rel=0.1)
    world.rate = 0.0
    world.run(15)
    before = world.a.probes + world.b.probes
    world.run(100)
    assert (world.a.probes + world.b.probes - before) / 100 <= 2 * 2 * 7 / SLOW * 1.2


def test_an_idle_path_that_misses_one_answer_is_asked_again_at_once() -> None:
    world = World()
    world.run(5)
    world.cut, start = 1 << 4, world.now
    world.run(SLOW * 1.2 + 0.6)
    assert world.a.states()[4] is PathState.DARK
    (at,) = [at for at, t in world.a.turned if at > start and t.after is PathState.DARK]
    assert at - start <= SLOW * 1.15 + 0.5


def test_a_planned_absence_is_drained_at_both_ends_before_anything_is_cut() -> None:
    world = busy()
    for dimension in range(7):
        world.a.leave(1 << dimension)
        start = world.now
        while not world.a.paths.drained(dimension):
            world.run(0.01)
        assert world.now - start <= 0.4
        assert world.a.scores[dimension] == world.b.scores[dimension] == 0.0
        world.run(0.05)  # what is on its way arrives
        world.cut = 1 << dimension
        for end in world.ends:
            end.open(ALL & ~(1 << dimension))
        world.run(0.5)
        world.cut = 0
        world.a.leave(0)
        for end in world.ends:
            end.open()
        assert not world.a.paths.restored(dimension)
        world.run(1.0)
        assert world.a.paths.restored(dimension) and world.b.paths.restored(dimension)
        assert world.a.paths.scores(B) == world.b.paths.scores(A) == FULL
    assert world.lost == []


def test_an_absence_that_is_called_off_gives_the_dimension_back() -> None:
    world = busy()
    world.a.leave(1)
    world.run(0.5)
    assert world.b.paths.scores(A)[0] == 0.0
    world.a.leave(0)
    world.run(0.5)
    assert world.b.paths.scores(A) == world.a.paths.scores(B) == FULL
    assert world.lost == []


def test_the_only_dimension_is_not_given_up() -> None:
    world = World(ready=1)
    world.run(2)
    world.a.leave(1)
    world.run(3)
    assert world.a.paths.scores(B)[0] > 0 and not world.a.paths.drained(0)


def test_lossy_paths_are_shed_and_slow_ones_are_not() -> None:
    world = busy()
    world.loss[1], world.loss[4] = 0.01, 0.02
    world.delay[0], world.delay[2] = 0.035, 0.025
    world.run(90)
    assert [world.a.paths.scores(B)[i] for i in (0, 2, 3, 5, 6)] == [1.0] * 5
    assert world.a.paths.scores(B)[4] <= 0.25 and world.a.paths.scores(B)[1] <= 0.5
    world.run(60)
    before = list(world.carried)
    world.run(30)
    carried = [now - then for now, then in zip(world.carried, before, strict=True)]
    assert carried[4] <= 0.02 * sum(carried) and carried[1] <= 0.07 * sum(carried)
    world.loss = [0.0] * 7
    world.run(240)
    assert world.a.paths.scores(B) == FULL


@pytest.mark.parametrize("rate", [0.0, 2.0])
def test_a_share_that_was_shed_comes_back_without_much_traffic(rate: float) -> None:
    world = busy()
    world.loss[4] = 0.1
    world.run(60)
    assert world.a.paths.scores(B)[4] == 0.0
    world.loss[4], world.rate = 0.0, rate
    world.run(600)
    assert world.a.paths.scores(B) == FULL and world.a.paths.deadline > world.now


def test_loss_everywhere_sheds_nothing() -> None:
    world = busy()
    world.loss = [0.02] * 7
    world.run(120)
    assert min(world.a.paths.scores(B)) >= 0.5


def test_an_honest_path_keeps_its_share() -> None:
    world = busy()
    world.run(300)
    assert not world.a.rescored


# --- what strangers can do ---


@given(st.binary(max_size=64))
def test_any_bytes_are_a_probe_or_a_decode_error(data: bytes) -> None:
    try:
        probe = decode_probe_untrusted(data)
    except DecodeError:
        return
    assert len(data) == SIZE and 0 <= probe.dimension < 7
    assert decode_probe_untrusted(probe.encode()) == probe


@given(
    st.booleans(), st.integers(0, 6), st.integers(0, 2**32 - 1), st.booleans(), st.booleans(),
    st.integers(0, 2**64 - 1), st.none() | st.integers(0, 65534).map(lambda ms: ms / 1000),
)  # fmt: skip
def test_a_probe_reads_back(
    pong: bool, dimension: int, number: int, leaving: bool, drained: bool, received: int, age: float | None
) -> None:
    probe = Probe(pong, dimension, number, leaving, drained, received if age is not None else 0, age)
    assert len(probe.encode()) == SIZE
    assert decode_probe_untrusted(probe.encode()) == probe


def test_a_count_that_is_too_old_is_left_out() -> None:
    for age in (65.535, 1e9):
        probe = decode_probe_untrusted(Probe(False, 0, 1, received=7, age=age).encode())
        assert (probe.received, probe.age) == (0, None)


def test_what_cannot_be_used_is_counted_and_answered_with_nothing() -> None:
    world = World()
    world.run(2)
    ping = Probe(False, 3, 1).encode()
    for datagram, peer, dimension, reason in (
        (ping, b"x" * 16, 3, "probe-peer"), (ping, B, 4, "probe-dimension"), (b"", B, 3, "probe-malformed"),
        (bytes([2]) + ping[1:], B, 3, "probe-malformed"), (ping + b"x", B, 3, "probe-malformed"),
        (Probe(True, 3, 99).encode(), B, 3, "probe-late"),
    ):  # fmt: skip
        before = world.a.paths.drops[reason]
        assert world.a.paths.receive(datagram, peer, dimension, world.now) == []
        assert world.a.paths.drops[reason] == before + 1


def test_a_flood_of_pings_is_answered_at_a_bounded_rate() -> None:
    world = World()
    world.run(2)
    answers = 0
    for i in range(5000):
        now = world.now + i / 1000
        answers += len(world.a.paths.receive(Probe(False, 0, i).encode(), B, 0, now))
    assert answers <= ANSWERS * (5 + 1) + 1
    assert world.a.paths.drops["probe-rate"] == 5000 - answers


def test_a_peer_is_as_far_away_as_by_its_slowest_path() -> None:
    world = World()
    assert world.a.paths.delay(bytes(16)) == 0.0
    world.delay[5] = 0.2
    world.run(20)
    assert 0.4 <= world.a.paths.delay(B) < 0.6


def test_a_peer_that_is_gone_leaves_nothing() -> None:
    world = World()
    world.run(2)
    world.a.carry_out(world.a.paths.set_peers({}, world.now))
    assert world.a.paths.view(B, world.now) == []
    assert world.a.paths.deadline == float("inf")
    assert world.a.paths.receive(Probe(False, 0, 1).encode(), B, 0, world.now) == []


@settings(max_examples=15)
@given(st.data())
def test_whatever_happens_there_is_a_way_and_all_is_well_in_the_end(data: st.DataObject) -> None:
    world = World(data.draw(st.integers(0, 1000)))
    world.rate = data.draw(st.sampled_from([0.0, 20.0]))
    dimension = st.integers(0, 6)
    for _ in range(data.draw(st.integers(1, 12))):
        end = world.ends[data.draw(st.integers(0, 1))]
        match data.draw(st.sampled_from(["cut", "loss", "leave", "keys", "stall", "reset", "junk"])):
            case "cut":
                world.cut = data.draw(st.integers(0, ALL))
            case "loss":
                world.loss[data.draw(dimension)] = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
            case "leave":
                end.leave(data.draw(st.sampled_from([0, 1, 4])))
            case "keys":
                end.open(data.draw(st.integers(0, ALL)))
            case "stall":
                end.stalled_until = world.now + data.draw(st.floats(0, 3))
            case "reset":
                end.sent, end.received = [0] * 7, [0] * 7
            case "junk":
                junk = data.draw(st.binary(min_size=SIZE, max_size=SIZE))
                end.carry_out(end.paths.receive(junk, end.peer, data.draw(dimension), world.now))
        world.run(data.draw(st.sampled_from([0.0, 0.05, 1.0, 5.0])))
        for each in world.ends:
            scores, states = each.paths.scores(each.peer), each.states()
            assert any(scores)
            if any(state is not PathState.CLOSED for state in states):
                assert not any(
                    s for s, state in zip(scores, states, strict=True) if state is PathState.CLOSED
                )
    world.cut, world.loss = 0, [0.0] * 7
    for end in world.ends:
        end.open()
        end.leave(0)
    world.run(120)
    assert world.a.states() == world.b.states() == [PathState.UP] * 7
    world.run(60)
    assert min(world.a.paths.scores(B)) >= 0.5


# --- measurements ---


def test_round_trips_are_smoothed_as_rfc_6298_has_it() -> None:
    quality = Quality()
    quality.answered(0.1, 1.0)
    assert (quality.rtt, quality.variation) == (0.1, 0.05)
    assert quality.timeout == pytest.approx(0.3)
    quality.answered(0.2, 1.1)
    assert quality.rtt == pytest.approx(0.1125) and quality.variation == pytest.approx(0.0625)
    assert quality.jitter == pytest.approx(0.1 / 16)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_probe_loss_is_estimated_and_its_lower_bound_lower(seed: int, loss: float) -> None:
    rng, quality = random.Random(seed), Quality()
    for number in range(10 * WINDOW):
        if rng.random() < loss:
            quality.missed(number * INTERVAL)
        else:
            quality.answered(0.01, number * INTERVAL)
    assert abs(quality.probe_loss - loss) <= 6 * (loss / WINDOW) ** 0.5
    low, high = quality.bounds
    assert 0.0 <= low <= quality.probe_loss <= high and (loss > 0 or low == 0.0)
    assert low - 0.02 <= loss <= high + 0.02


@pytest.mark.parametrize("pause", [INTERVAL, 2.0, 10.0, 3600.0])
def test_what_was_lost_long_ago_weighs_little(pause: float) -> None:
    quality, now = Quality(), 0.0
    for number in range(WINDOW):
        now += INTERVAL
        if number % 2:
            quality.missed(now)
        else:
            quality.answered(0.01, now)
    probes = min(WINDOW, LEAST_PROBES + MEMORY / pause)
    for _ in range(round(3 * probes)):
        now += pause
        quality.answered(0.01, now)
    assert quality.probe_loss < 0.08
    for _ in range(LEAST_PROBES):
        now += pause
        quality.missed(now)
    assert quality.probe_loss < 0.7  # nor is what came before forgotten at once


def test_a_late_answer_takes_the_loss_back() -> None:
    quality = Quality()
    quality.missed(1.0)
    quality.came_late()
    quality.answered(0.3, 1.1)
    assert quality.probe_loss == 0.0


@given(
    st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.02, 0.1]), st.floats(0, 2), st.floats(0.0, 0.2),
)  # fmt: skip
def test_counters_that_are_read_at_different_times_tell_the_loss(
    seed: int, loss: float, skew: float, delay: float
) -> None:
    rng, counted = random.Random(seed), Counted()
    rate = rng.uniform(50_000, 5_000_000)
    for second in range(0, 90, 2):
        counted.sent(int(rate * second), float(second))
        at = second - skew
        if second >= 2:
            counted.arrived(int(rate * at * (1 - loss)), at + rng.uniform(-0.001, 0.001))
    found = counted.loss
    assert found is not None and found == pytest.approx(loss, abs=0.002)
    low, high = counted.bounds
    assert 0.0 <= low <= found <= high and high - low <= 0.002 + 3 * (loss * 1500 / (rate * 60)) ** 0.5


def lost(counted: Counted) -> float | None:
    """A call, so that a type checker does not think it constant."""
    return counted.loss


def test_counters_of_another_key_start_over_and_little_traffic_says_nothing() -> None:
    counted = Counted()
    for second in range(0, 20, 2):
        counted.sent(second * 10, float(second))
        counted.arrived(0, second - 1.0)
    assert lost(counted) is None
    for second in range(20, 60, 2):
        counted.sent(second * 100_000, float(second))
        counted.arrived(second * 50_000, second - 1.0)
    assert (lost(counted) or 0.0) > 0.4
    counted.sent(0, 60.0)
    assert lost(counted) is None and counted.bounds == (0.0, 1.0)


def test_the_constants_fit_together() -> None:
    assert MISSES * INTERVAL < 0.5
    assert BUSY_RATE * READ > 7 * ON_WIRE  # one probe a path that was not counted yet is no traffic
