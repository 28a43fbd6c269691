# SPDX-License-Identifier: GPL-3.0-or-later
"""What is chosen for a goal."""

from __future__ import annotations

from typing import get_args

from phantommesh.config.sections import Goal, ScatterSection
from phantommesh.scatter.goals import SCHEDULES, Schedule, goal_of, schedule_of


def test_a_peers_own_intent_comes_first_then_the_scheduler_then_the_intent() -> None:
    assert schedule_of("db", ScatterSection()) == Schedule("flow", splits=True)
    assert schedule_of("db", ScatterSection(goal="throughput")) == Schedule("deck")
    assert schedule_of("db", ScatterSection(goal="order")) == Schedule("flow")
    assert schedule_of("db", ScatterSection(goal="latency")) == Schedule("flow", quickest=True)
    packet = ScatterSection(goal="private", scheduler="packet", peers={"dbx": "order"})
    assert schedule_of("db", packet) == Schedule("packet", unequal=True, segments=True)
    assert schedule_of("dbx", packet) == SCHEDULES["order"]
    assert goal_of("db", packet) == "private" and goal_of("dbx", packet) == "order"
    assert SCHEDULES.keys() == set(get_args(Goal))
