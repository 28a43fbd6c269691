# SPDX-License-Identifier: GPL-3.0-or-later
"""A wrong clock is told where members agree on it, and only there."""

import pytest

from phantommesh.node.clocks import KEPT, MOST, Clocks
from phantommesh.node.steps import Moment
from phantommesh.trust.identity import NodeId
from tests.simulation.full_scenarios import mesh

HOUR, DAY = 3_600.0, 86_400.0
WALL = 1.8e9


def member(number: int) -> NodeId:
    return NodeId(number.to_bytes(16))


def told(*ahead: float) -> Clocks:
    """By how much each member thinks that our clock is ahead, heard at one moment."""
    clocks = Clocks()
    for number, seconds in enumerate(ahead):
        clocks.heard(member(number), WALL - seconds, Moment(50.0, WALL))
    return clocks


@pytest.mark.parametrize("ahead", [[], [HOUR], [HOUR, 0.0], [HOUR, -HOUR], [290.0, 280.0], [0.0, 0.0, DAY]])
def test_nothing_is_said_where_few_agree_or_little_is_wrong(ahead: list[float]) -> None:
    assert told(*ahead).wrong(Moment(50.0, WALL)) is None


@pytest.mark.parametrize("ahead", [HOUR, -HOUR, DAY, -DAY])
def test_what_most_say_is_said(ahead: float) -> None:
    found = told(ahead, ahead + 20, 0.0, ahead - 20).wrong(Moment(50.0, WALL))
    assert found is not None
    assert (found.agree, found.heard) == (3, 4)
    assert abs(found.ahead - ahead) <= 20


def test_a_clock_that_was_set_since_is_judged_anew() -> None:
    """And so is the clock of a machine that slept, where the other clock stood still."""
    clocks = told(HOUR, HOUR, HOUR)
    assert clocks.wrong(Moment(60.0, WALL + 10)) is not None
    assert clocks.wrong(Moment(60.0, WALL + 10 - HOUR)) is None
    assert clocks.wrong(Moment(60.0, WALL + 10 + DAY)) is None
    assert clocks.wrong(Moment(50.0 + KEPT + 1, WALL + KEPT + 1)) is None


def test_there_is_a_bound_on_what_is_kept() -> None:
    clocks = told(*[0.0] * (MOST + 50))
    assert len(clocks._words) == MOST


@pytest.mark.parametrize("seconds", [HOUR, -HOUR, DAY, -DAY])
def test_a_running_node_hears_of_it_and_of_its_mending(seconds: float) -> None:
    sim = mesh(0, 5)
    sim.run(60)
    assert not any(p.news.clocks.wrong(Moment(p.now, p.wall)) for p in sim.running())
    wrong = sim.process(3)
    sim.step_clock(3, seconds)
    assert sim.run(300, lambda: wrong.news.clocks.wrong(Moment(wrong.now, wrong.wall)) is not None)
    found = wrong.news.clocks.wrong(Moment(wrong.now, wrong.wall))
    assert found is not None and abs(found.ahead - seconds) < 5
    others = [p for p in sim.running() if p is not wrong]
    assert not any(p.news.clocks.wrong(Moment(p.now, p.wall)) for p in others)
    sim.step_clock(3, -seconds)
    assert wrong.news.clocks.wrong(Moment(wrong.now, wrong.wall)) is None
    sim.run(120)
    assert wrong.news.clocks.wrong(Moment(wrong.now, wrong.wall)) is None
