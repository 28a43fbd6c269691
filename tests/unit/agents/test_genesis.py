# SPDX-License-Identifier: GPL-3.0-or-later
"""GENESIS in a model of what probing costs and saves: outages by chance, and traffic that swings."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from phantommesh.agents.actions import Tune
from phantommesh.agents.base import Observation
from phantommesh.agents.council import Council
from phantommesh.agents.genesis import BLOCK, EVERY, RESTS, Genesis, GenesisSeen, Parameter
from phantommesh.node.steps import Moment

KEY, DEFAULT = "paths.probe_seconds", 0.1
LOW, HIGH = 0.05, 0.4

Effect = Callable[[float, random.Random], tuple[float, float]]
"""Of a value: the bytes lost and the bytes of probes in `EVERY` seconds, of `SENT`."""
SENT = 5_000_000.0


def outages(an_hour: float) -> Effect:
    """Paths that go dark: a seventh of the traffic is lost for four intervals each time."""

    def effect(value: float, rng: random.Random) -> tuple[float, float]:
        lost, chance = 0.0, an_hour * EVERY / 3600
        while rng.random() < chance:
            lost, chance = lost + SENT / EVERY / 7 * 4 * value * rng.uniform(0.5, 1.5), chance / 2
        return lost, EVERY * 7 * 2 * 80 / value

    return effect


def flat(_value: float, rng: random.Random) -> tuple[float, float]:
    """A value changes nothing; what is lost swings."""
    return SENT * rng.uniform(0, 0.01), 100_000.0


class Run:
    """One node. ``effect`` is what its mesh makes of a value."""

    def __init__(self, effect: Effect, seed: int, *, taken: float | None = None, low: float = LOW) -> None:
        self.rng, self.effect, self.now = random.Random(seed), effect, 0.0
        self.agent = Genesis(random.Random(seed), (Parameter(KEY, low, HIGH, 2.0),))
        traces = iter(range(10**9))
        self.council = Council([self.agent], trace=lambda: str(next(traces)), now=0.0)
        self.value, self.sent, self.lost, self.probes = DEFAULT, 0.0, 0.0, 0.0
        self.taken = {} if taken is None else {KEY: taken}
        self.tuned: list[Tune] = []
        self.scale = 1.0

    def seen(self) -> GenesisSeen:
        return GenesisSeen(self.sent, self.lost, self.probes, {KEY: DEFAULT}, self.taken)

    def look(self) -> None:
        at = Moment(self.now, self.now)
        assert self.council.looks("genesis", self.now)
        look = self.council.look("genesis", self.seen(), (), at)
        orders = self.council.looked("genesis", look(), 0.0, at).orders + self.council.lapse(self.now)
        for order in orders:
            assert isinstance(order.proposal.action, Tune)
            self.tuned.append(order.proposal.action)
            self.value = DEFAULT if order.lift else order.proposal.action.value
            assert LOW / 100 <= self.value <= HIGH

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.look()
            self.now += EVERY
            lost, probes = self.effect(self.value, self.rng)
            swing = self.scale * self.rng.uniform(0.5, 1.5)
            self.sent, self.lost, self.probes = (
                self.sent + SENT * swing, self.lost + lost * swing, self.probes + probes,
            )  # fmt: skip


def test_where_paths_hardly_ever_fail_probes_become_fewer() -> None:
    for seed in range(3):
        node = Run(lambda value, rng: (0.0, 20_000 / value), seed)
        node.run(6 * 3600)
        assert node.agent.taken == {KEY: HIGH}


def test_where_paths_fail_all_the_time_probes_become_more() -> None:
    for seed in range(3):
        node = Run(outages(600), seed)
        node.run(12 * 3600)
        assert node.agent.value(KEY, {KEY: DEFAULT}) == LOW


def test_nothing_moves_where_nothing_is_better() -> None:
    taken = 0
    for seed in range(8):
        node = Run(flat, seed)
        node.run(24 * 3600)
        taken += bool(node.agent.taken)
        assert node.tuned  # there were trials
    assert taken == 0


@pytest.mark.parametrize("planted", [0.2, HIGH])
def test_a_bad_value_that_was_planted_is_rolled_back(planted: float) -> None:
    for seed in range(3):
        node = Run(outages(600), seed, taken=planted)
        node.look()
        assert node.value == planted
        node.run(12 * 3600)
        assert node.agent.value(KEY, {KEY: DEFAULT}) <= DEFAULT


def test_a_trial_that_harms_ends_within_its_block_and_is_not_tried_again_soon() -> None:
    def cliff(value: float, rng: random.Random) -> tuple[float, float]:
        return (SENT * 0.3 if value < DEFAULT else 0.0), 100_000.0

    node = Run(cliff, 1)
    bad = 0
    for _ in range(int(RESTS / 2 / EVERY)):
        node.run(EVERY)
        bad += node.value < DEFAULT
    assert 0 < bad * EVERY <= BLOCK
    assert not node.agent.taken


def test_a_value_that_turns_bad_after_it_was_taken_goes_at_once() -> None:
    node = Run(lambda value, rng: (0.0, 20_000 / value), 2)
    node.run(6 * 3600)
    assert node.agent.taken == {KEY: HIGH}
    node.effect = lambda value, rng: ((SENT * 0.5 if value > DEFAULT else 0.0), 100_000.0)
    node.run(6 * BLOCK)
    assert node.agent.value(KEY, {KEY: DEFAULT}) <= DEFAULT


def test_without_traffic_nothing_is_tried() -> None:
    node = Run(flat, 3)
    node.scale = 0.0
    node.run(3600)
    assert node.tuned == [] and node.agent.trial is None


def test_a_value_on_disk_that_is_out_of_bounds_is_not_taken_up() -> None:
    for planted in (50.0, 0.0001, float("nan")):
        node = Run(flat, 4, taken=planted)
        node.look()
        assert node.agent.taken == {} and node.tuned == []


def test_proposals_have_evidence_and_end_by_themselves() -> None:
    node = Run(flat, 5)
    node.run(10 * BLOCK)
    node.council.pause("genesis", node.now)
    assert node.council.apex.at is not None
    assert [*node.council.apex.standing()] == []
    proposals = node.agent.observe(Observation(Moment(node.now, node.now), node.seen()))
    assert all(one.evidence and one.until > node.now for one in proposals)
