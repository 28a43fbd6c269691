# SPDX-License-Identifier: GPL-3.0-or-later
"""Meshes in which not everybody reaches everybody. Times are virtual.

A run that fails prints the command that replays it.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import PING_REQ, State
from tests.simulation import gossip_scenarios as scenarios
from tests.simulation.gossip_sim import Simulation

MINUTE = 60.0


@pytest.fixture(autouse=True)
def replay(request: pytest.FixtureRequest) -> None:
    print(f"replay: python -m pytest '{request.node.nodeid}'")


def check(shape: str, run: scenarios.Partly) -> None:
    """No member that answers anybody is held for dead, and all see by way of which members the others are
    reached. A member that really dies is known to be dead as soon as in a mesh in which all reach all."""
    assert run.deaths == []
    assert run.unseen == []
    assert run.suspicions < 100 and run.incarnation <= 16  # thousands before
    nodes = scenarios.SHAPES[shape][1]
    left = nodes - 1
    if shape == "chain":
        left -= 1  # node 0 has no other neighbour: it is alone, and slow to believe it
    assert len(run.found_dead) >= left
    assert sorted(run.found_dead.values())[left - 1] <= 12


@pytest.mark.parametrize("shape", scenarios.SHAPES)
def test_nobody_is_dead_who_answers_anybody(shape: str) -> None:
    check(shape, scenarios.partly(shape, 0, seconds=120, patience=40))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("shape", scenarios.SHAPES)
def test_nobody_is_dead_in_ten_minutes(shape: str, seed: int) -> None:
    check(shape, scenarios.partly(shape, seed))


def test_a_death_is_known_as_soon_where_one_member_brings_all_rumours() -> None:
    """That member draws whom it tells, so now and then somebody hears nothing of a death."""
    slowest = [
        max(scenarios.partly("star", seed, seconds=40, patience=20).found_dead.values(), default=99.0)
        for seed in range(12)
    ]
    assert max(slowest) <= 12


def test_a_mesh_at_rest_asks_by_way_of_others_no_more_than_at_first() -> None:
    """At 10 % loss, for two minutes: answers by way of others that come late make helpers of ever more."""
    sim, kinds, asked = Simulation(50, seed=1, network=scenarios.bad_network()), Counter[int](), list[int]()
    sim.overhear = lambda datagram: kinds.update(datagram[1:2])
    sim.start_all()
    sim.run(5)
    for _ in range(5):
        kinds.clear()
        sim.run(20)
        asked.append(kinds[PING_REQ])
    assert asked[0] > 100
    assert max(asked) < 1.5 * asked[0]


def test_a_larger_mesh_with_one_badly_placed_node_is_at_rest() -> None:
    run = scenarios.partly("half", 1, nodes=40, seconds=120)
    assert run.deaths == [] and run.unseen == []
    assert run.bytes_per_node_s < 3000


def test_a_member_is_reached_directly_again_once_it_is() -> None:
    sim = Simulation(6, seed=2, network=scenarios.bad_network())
    sim.start_all()
    events: list[tuple[int, int, str]] = []

    def heard(viewer: int, change: Changed, now: float) -> None:
        events.append((viewer, sim.index[change.node], change.event))

    sim.on_change = heard
    sim.network.cut = lambda a, b: (a, b) == (0, 1)  # one way only
    assert sim.run(60, lambda: bool(scenarios.through(sim, 0, 1)))
    assert sim.run(60, lambda: bool(scenarios.through(sim, 1, 0)))
    helpers = scenarios.through(sim, 0, 1)
    assert set(helpers) <= {node.id for node in sim.nodes[2:]}
    assert sim.state(0, 1) is State.ALIVE
    sim.network.cut = None
    assert sim.run(60, lambda: not scenarios.through(sim, 0, 1) and not scenarios.through(sim, 1, 0))
    told = [event for event in events if event[2] in ("partly", "direct")]
    assert sorted(told) == [(0, 1, "direct"), (0, 1, "partly"), (1, 0, "direct"), (1, 0, "partly")]
    assert not [event for event in events if event[2] == "dead"]


def test_lost_pings_make_nobody_partly_reachable() -> None:
    sim = Simulation(20, seed=4, network=scenarios.bad_network())
    sim.start_all()
    events: list[str] = []
    sim.on_change = lambda viewer, change, now: events.append(change.event)
    sim.run(600)
    assert "partly" not in events and "dead" not in events


def test_verdicts_about_a_member_that_comes_and_goes_are_damped() -> None:
    """For ten minutes, the member really cannot be reached for 15 s, and then can for 15 s. Nobody holds it
    for dead more often than once a minute. Another member's death meanwhile is known in the usual time."""
    sim = Simulation(10, seed=3, network=scenarios.bad_network())
    sim.start_all()
    sim.run(5)
    dead: dict[tuple[int, int], list[float]] = {}

    def heard(viewer: int, change: Changed, now: float) -> None:
        if change.event == "dead":
            dead.setdefault((viewer, sim.index[change.node]), []).append(now)

    sim.on_change = heard
    start = sim.now
    for turn in range(20):
        sim.network.cut = lambda a, b: 0 in (a, b)
        sim.run(15)
        sim.network.cut = None
        if turn == 10:
            sim.crash(5)
            start = sim.now
        sim.run(15)
    flapping = {viewer: times for (viewer, of), times in dead.items() if of == 0}
    assert len(flapping) >= 8, "its absence was not noticed"
    for times in flapping.values():
        assert len(times) <= 10
        assert all(b - a >= MINUTE for a, b in pairwise(times))
    others = {viewer: times[0] - start for (viewer, of), times in dead.items() if of == 5 and viewer != 0}
    assert len(others) == 8 and max(others.values()) <= 7
    assert {of for viewer, of in dead if viewer != 0} == {0, 5}
    node = sim.nodes[0].member
    assert node is not None and node.incarnation < 150


def test_a_member_that_really_started_again_is_not_damped() -> None:
    sim = Simulation(10, seed=5, network=scenarios.bad_network())
    sim.start_all()
    sim.run(5)
    for _ in range(3):
        sim.crash(4)
        assert sim.run(8, lambda: all(sim.state(i, 4) is State.DEAD for i in range(10) if i != 4))
        sim.start(4, seeds=(sim.nodes[0].address,))
        assert sim.run(8, sim.agreed)


@pytest.mark.parametrize("seed", range(8))
def test_a_member_that_all_behind_nats_hold_for_dead_is_back_soon(seed: int) -> None:
    """All reach node 0 alone, and a newcomer among them is not dead: it cannot call those that think so."""
    sim = Simulation(6, seed=seed, network=scenarios.bad_network())
    sim.start_all()
    sim.network.cut = lambda a, b: 0 not in (a, b)
    sim.run(40)
    for viewer in range(1, 5):
        sim.bury(viewer, [5])
    assert sim.run(20, lambda: all(sim.state(viewer, 5) is State.ALIVE for viewer in range(1, 5)))
