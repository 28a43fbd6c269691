# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic that takes the quickest path: it leaves a path that became worse, and noise does not move it."""

from __future__ import annotations

import statistics

import pytest

from phantommesh.paths.effects import Rescore
from phantommesh.paths.weights import FULL
from tests.simulation.latency_scenarios import leaves, moves, settled
from tests.simulation.latency_sim import PEER, Model, Noise
from tests.simulation.paths_sim import B, busy

CALM = Noise(spikes=0.0, stalls=0.0, loss=0.0)


def test_a_path_that_takes_80_ms_longer_is_left_within_2_s() -> None:
    assert max(leaves(seed, late=0.080) for seed in range(10)) <= 2.0


def test_a_path_that_loses_one_packet_in_twenty_each_way_is_left_within_2_s() -> None:
    took = [leaves(seed, loss=1 - 0.95**2) for seed in range(12)]
    assert statistics.median(took) <= 2.0 and sum(t <= 2.0 for t in took) >= 11


def test_a_path_that_loses_one_packet_in_twenty_one_way_is_left_within_2_s() -> None:
    took = [leaves(seed, loss=0.05) for seed in range(12)]
    assert statistics.median(took) <= 1.2 and sum(t <= 2.0 for t in took) >= 11


def test_noise_moves_nothing() -> None:
    assert [moves(seed, 200.0) for seed in (0, 1)] == [[], []]


def test_the_quickest_path_is_watched_closely_and_all_paths_cost_what_they_did() -> None:
    model = Model(3, CALM)
    model.run(60.0)
    before, taken = list(model.probes), model.taken
    assert taken is not None
    model.run(60.0)
    sent = [(now - then) / 60.0 for now, then in zip(model.probes, before, strict=True)]
    assert sent[taken] == pytest.approx(75.0, rel=0.1)
    assert sum(sent) == pytest.approx(105.0, rel=0.1)
    assert len([s for s in sent if s == pytest.approx(5.0, rel=0.1)]) == 6


def test_without_traffic_nothing_is_watched_closely() -> None:
    model = Model(5, rate=0.0)
    model.run(60.0)
    before = sum(model.probes)
    model.run(300.0)
    assert sum(model.probes) - before <= 7 * 300 / 10 * 1.2
    assert model.taken is not None


def test_a_light_flow_is_watched_as_closely() -> None:
    model = Model(5, CALM, rate=1_000.0)
    model.run(60.0)
    before, taken = list(model.probes), model.taken
    assert taken is not None
    model.run(30.0)
    sent = [(now - then) / 30.0 for now, then in zip(model.probes, before, strict=True)]
    assert sent[taken] == pytest.approx(75.0, rel=0.1) and sum(sent) < 95.0


def test_a_cut_of_the_quickest_path_is_left_as_soon_as_any_other_and_never_sooner_by_a_stall() -> None:
    world = busy(1)
    world.a.carry_out(world.a.paths.seek_quickest({B}, world.now))
    world.run(5)
    found = world.a.paths.quickest(B)
    assert found is not None and found.chosen is not None
    world.cut, start = 1 << found.chosen, world.now
    world.run(2)
    assert found.reason == "unusable" and found.since - start <= 0.6
    world.cut, seen = 0, found.changes
    world.run(60)
    for _ in range(10):
        world.b.stalled_until = world.now + 0.25
        world.run(5)
    assert found.changes == seen


def test_traffic_for_throughput_stays_where_the_path_takes_80_ms_longer() -> None:
    world = busy(2)
    for dimension in range(7):
        world.delay[dimension] = 0.01 + 0.04 * (dimension == 3)
    before = len(world.a.rescored)
    world.run(30)
    assert world.a.paths.scores(B) == FULL and len(world.a.rescored) == before


def test_whoever_takes_the_quickest_path_is_told_again_when_the_goal_changes() -> None:
    model, taken = settled(4)
    assert model.paths.seek_quickest(set(), model.now) == [Rescore(PEER, FULL, None)]
    assert model.paths.quickest(PEER) is None
    assert model.paths.seek_quickest({b"nobody"}, model.now) == []
    assert taken in range(7)
