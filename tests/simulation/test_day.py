# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated day of all agents: nothing oscillates, nothing is done outside its bounds, nobody honest is
banned, and what was planted is answered.

Replay: ``python -m benchmarks.day --nodes N --hours H --seed S``.
"""

from __future__ import annotations

import pytest

from phantommesh.agents.everyone import MAKERS
from tests.simulation.council_sim import Day
from tests.simulation.day_views import VIEWS

ANSWERED = (
    "fortress Ban", "fortress Shed", "fortress Throttle", "aegis Mend", "cipher Rotate", "cipher Quarantine",
    "cipher ReplaceKey", "cipher Renew", "phantom Cover", "phantom ReplaceKey", "phantom Raise",
    "velocity Weigh", "stream Pin", "stream Raise", "genesis Tune", "nexus Drain", "nexus Raise",
    "omniscient Restart", "omniscient Raise",
)  # fmt: skip
"""What each agent has to have done at least once, as there was reason for it."""


def lived(nodes: int, seed: int, hours: float) -> Day:
    day = Day(nodes, seed, hours)
    told, referee = day.run(), day.referee
    assert day.missing == [], "an agent has no view in tests/simulation/day_views.py"
    assert set(told.looks) == set(VIEWS)
    assert referee.oscillations == []
    assert referee.outside == []
    assert referee.false_bans == []
    assert not +told.benched
    assert [deed for deed in ANSWERED if not told.actions[deed]] == []
    assert told.slowest_restart <= 5.0
    return day


def test_two_hours_of_ten_nodes() -> None:
    lived(10, 1, 2.0)
    assert set(VIEWS) == set(MAKERS)


@pytest.mark.slow
def test_a_day_of_two_hundred_nodes() -> None:
    lived(200, 1, 24.0)
