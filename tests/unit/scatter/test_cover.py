# SPDX-License-Identifier: GPL-3.0-or-later
"""Cover traffic stays within its budgets in any window, has FRONT's shape, and depends on no traffic."""

from __future__ import annotations

from itertools import accumulate
from math import inf
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.scatter.cover import (
    LATE,
    LEAST,
    MOST_DUMMIES,
    MOST_PEERS,
    SAVED,
    WIDTHS,
    Covering,
    draw_front,
    draw_size,
    on_wire,
)

MOST = 1392

RATES = st.floats(0, 1e6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 30)),
        st.tuples(st.just("step"), st.just(0.0)),
        st.tuples(st.just("cover"), st.integers(0, 3), st.floats(0, 125_000)),
        st.tuples(st.just("uncover"), st.integers(0, 3)),
    ),
    max_size=60,
)


def run(covering: Covering[int], until: float, now: float = 0.0) -> list[tuple[float, int, int]]:
    """What is sent up to a moment by a caller that is always in time: moment, peer, bytes on the wire."""
    found = list[tuple[float, int, int]]()
    while (now := max(now, covering.deadline)) <= until:
        found += [(now, one.peer, on_wire(one.payload)) for one in covering.tick(now)]
    return found


def within(sent: list[tuple[float, int, int]], rate: float) -> bool:
    """Whether no window of any length has more bytes than a rate allows."""
    # Of all windows that begin with a dummy and end with one, the worst so far: one pass.
    level, last = 0.0, 0.0
    for at, _, cost in sent:
        level = max(0.0, level - (at - last) * rate) + cost
        last = at
        if level > rate * SAVED * (1 + 1e-9) + 1e-6:
            return False
    return True


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(), rate=st.floats(0, 200_000), steps=STEPS)
def test_no_window_has_more_than_the_budgets(
    seed: int, rate: float, steps: list[tuple[str, float] | tuple[str, int, float] | tuple[str, int]]
) -> None:
    covering, now = Covering[int](Random(seed), rate, 0.0), 0.0
    sent, most = list[tuple[float, int, int]](), dict[int, float]()
    for step in steps:
        match step:
            case "wait", float(seconds):  # a caller that comes late
                now += seconds
                sent += [(now, one.peer, on_wire(one.payload)) for one in covering.tick(now)]
            case "step", _:
                for _ in range(20):
                    if covering.deadline < inf:
                        now = max(now, covering.deadline)
                        sent += [(now, one.peer, on_wire(one.payload)) for one in covering.tick(now)]
            case "cover", int(peer), float(wanted):
                covering.cover(peer, wanted, MOST, now)
                most[peer] = max(most.get(peer, 0.0), wanted)
            case "uncover", int(peer):
                covering.uncover(peer)
    assert within(sent, rate)
    for peer, each in most.items():
        assert within([one for one in sent if one[1] == peer], each)


@given(seed=st.integers())
@settings(max_examples=20, deadline=None)
def test_a_budget_that_changes_is_kept_by_each_of_its_values(seed: int) -> None:
    covering = Covering[int](Random(seed), 50_000.0, 0.0)
    covering.cover(1, 100_000.0, MOST, 0.0)
    run(covering, 20.0)
    covering.limit(1_000.0, 20.0)
    sent = run(covering, 60.0, 20.0)
    assert sum(cost for _, _, cost in sent) <= 1_000.0 * 40.0
    covering.limit(0.0, 60.0)
    assert not run(covering, 120.0, 60.0)


def test_most_of_the_budget_is_used() -> None:
    covering = Covering[int](Random(1), 20_000.0, 0.0)
    covering.cover(1, 50_000.0, MOST, 0.0)
    covering.cover(2, 50_000.0, MOST, 0.0)
    sent = run(covering, 300.0)
    each = [sum(cost for _, peer, cost in sent if peer == one) / 300.0 for one in (1, 2)]
    assert 0.7 * 20_000 < sum(each) <= 20_000
    assert 0.7 < each[0] / each[1] < 1.4, "peers share evenly"
    assert covering.dropped["cover-over-budget"] < len(sent) / 2, "fronts are drawn for their share"


@pytest.mark.parametrize("seed", range(3))
def test_a_peer_has_no_more_than_its_own_budget_for_long(seed: int) -> None:
    covering = Covering[int](Random(seed), 1e6, 0.0)
    covering.cover(1, 5_000.0, MOST, 0.0)
    sent = run(covering, 600.0)
    assert within(sent, 5_000.0) and len(sent) > 1000
    assert covering.dropped["cover-over-budget"] > 0, "the fronts drawn would have been more"


def test_fronts_have_a_mean_rate_and_differ() -> None:
    random = Random(7)
    fronts = [draw_front(random, 10_000.0, MOST) for _ in range(2000)]
    sizes = [sum(on_wire(size) for _, size in dummies) for _, dummies in fronts]
    assert fmean(sizes) / fmean(length for length, _ in fronts) == pytest.approx(10_000.0, rel=0.05)
    rates = sorted(size / length for size, (length, _) in zip(sizes, fronts, strict=True))
    assert rates[200] < 3_000 and rates[1800] > 17_000, "a front says nothing of the mean"


def test_the_times_of_a_front_are_rayleigh_distributed() -> None:
    random, heights = Random(3), list[float]()
    for _ in range(300):
        length, dummies = draw_front(random, 50_000.0, MOST)
        heights += [at / length for at, _ in dummies]
    # Of a Rayleigh distribution that is cut at 2.45 widths: mode at 0.41 of the length, half before 0.47.
    counts = [sum(i / 10 <= one < (i + 1) / 10 for one in heights) for i in range(10)]
    assert counts.index(max(counts)) in (3, 4)
    assert list(accumulate(counts))[4] / len(heights) == pytest.approx(0.56, abs=0.04)
    assert all(0 <= one <= 1 for one in heights)


@given(seed=st.integers(), rate=RATES, most=st.integers(1, 9000))
@settings(max_examples=50, deadline=None)
def test_a_front_is_bounded(seed: int, rate: float, most: int) -> None:
    length, dummies = draw_front(Random(seed), rate, most)
    assert WIDTHS[0] < length < 3 * WIDTHS[1]
    assert len(dummies) <= MOST_DUMMIES
    assert all(0 <= at <= length and size <= most for at, size in dummies)
    assert dummies == sorted(dummies)


def test_sizes_are_short_rather_than_long() -> None:
    random = Random(5)
    sizes = sorted(draw_size(random, MOST) for _ in range(1000))
    assert sizes[0] >= LEAST and sizes[-1] <= MOST
    assert sizes[500] < 300 < sizes[800]


def test_what_a_dummy_takes_on_the_wire() -> None:
    # WireGuard's longest packet at an MTU of 1420, and a short one: docs/traffic-analysis.md.
    assert (on_wire(1392), on_wire(40)) == (1484, 140)


def test_a_caller_that_slept_sends_no_burst() -> None:
    covering = Covering[int](Random(2), 100_000.0, 0.0)
    covering.cover(1, 100_000.0, MOST, 0.0)
    run(covering, 10.0)
    burst = covering.tick(3600.0)
    assert sum(on_wire(one.payload) for one in burst) <= 2 * 100_000.0 * LATE + 1484
    assert 0 < covering.dropped["cover-late"] <= MOST_DUMMIES, "an hour costs no more than a front"
    before = len(run(covering, 3620.0, 3600.0))
    assert before > 100, "it goes on"


def test_peers_come_and_go() -> None:
    covering = Covering[int](Random(2), 10_000.0, 0.0)
    assert all(covering.cover(peer, 5_000.0, MOST, 0.0) for peer in range(MOST_PEERS))
    assert not covering.cover(MOST_PEERS, 5_000.0, MOST, 0.0)
    assert covering.cover(0, 6_000.0, MOST, 0.0)
    for peer in range(MOST_PEERS):
        covering.uncover(peer)
    assert covering.deadline == inf and covering.covered() == [] and covering.tick(9.0) == []
    assert covering.cover(1, 0.0, MOST, 9.0) and covering.covered() == []
