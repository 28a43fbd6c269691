# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths that are cut, lose, flap and are left: two real `Paths` under a virtual clock."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.pace import LIGHT
from phantommesh.paths.peer import ANSWERS
from phantommesh.paths.probe import SIZE, Probe
from phantommesh.paths.schedule import RETURN, SLOW
from phantommesh.paths.state import PROVE, PathState
from phantommesh.paths.weights import FULL
from tests.simulation.paths_sim import INTERVAL, RATE, A, B, World, busy


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
    rate, burst = ANSWERS
    assert answers <= rate * 5 + burst + 1
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


@settings(max_examples=15, deadline=None)
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
