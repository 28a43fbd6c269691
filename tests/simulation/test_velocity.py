# SPDX-License-Identifier: GPL-3.0-or-later
"""VELOCITY leaves a path that became worse, and comes back to stay; its own traffic moves little."""

from __future__ import annotations

from tests.simulation.velocity_sim import Scene, course


def test_a_late_path_is_left_within_2_s_and_taken_back_once() -> None:
    for seed in (0, 1, 3):
        found = course(seed, late=0.080)
        assert found.left <= 2.5 and found.back <= 30.0 and found.leaves == 1 and found.met == 1


def test_a_lossy_path_is_left_soon_and_not_taken_back_while_it_loses() -> None:
    found = course(2, loss=1 - 0.95**2)
    assert found.left <= 5.0 and found.leaves == 1 and found.met == 1


def test_a_path_that_only_its_own_traffic_makes_late_is_tried_once_a_minute_at_most() -> None:
    def fill(scene: Scene) -> None:
        scene.model.late[4] = 0.0 if 4 in scene.out else 0.12

    place = Scene(4)
    place.run(30.0)
    place.filled = fill
    place.run(100.0)
    assert 1 <= sum(gone for _, _, gone in place.turns) <= 2 and not place.out


def test_an_agent_that_looks_no_more_takes_nothing_from_traffic() -> None:
    place = Scene(5)
    place.run(30.0)
    place.model.loss[1] = 0.1
    place.run(20.0, until=lambda: bool(place.out))
    assert place.out == {1}
    place.council.failed("velocity", "it raised", place.model.now)
    place.run(6.0)
    assert not place.out
