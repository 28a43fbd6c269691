# SPDX-License-Identifier: GPL-3.0-or-later
"""Rates of buckets from counters: which stand still, and which do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.scatter.readings import KEPT, OVER, STILL_OVER, Readings


def read(size: Callable[[float], float], seconds: float = 6.0, every: float = 0.25) -> Readings:
    readings = Readings()
    for step in range(round(seconds / every) + 1):
        sent = round(size(step * every))
        readings.add({5: (sent // 1000, sent)}, step * every)
    return readings


@pytest.mark.parametrize("every", [0.25, 0.5])
def test_a_steady_rate_stands_still(every: float) -> None:
    readings = read(lambda now: 600e3 * now, every=every)
    assert readings.still(5) == pytest.approx(600e3, rel=0.01)
    assert (readings.rates(OVER) or {})[5] == pytest.approx(600e3, rel=0.01)
    assert readings.size(5) == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(
    "size",
    [
        lambda now: 100e3 * now * now,  # rises
        lambda now: 600e3 * min(now, 4.5),  # has ended
        lambda now: 600e3 * max(0.0, now - 2.5),  # has begun just now
        lambda now: 600e3 * (now // 2.0 * 1.0 + min(1.0, now % 2.0)),  # on and off, each a second
        lambda now: 0.0,
    ],
)
def test_a_rate_that_rises_falls_or_pauses_does_not(size: Callable[[float], float]) -> None:
    assert read(size, seconds=5.0).still(5) == 0.0


def test_a_rise_is_told_by_the_halves_of_the_newest_second() -> None:
    assert read(lambda now: 600e3 * now).rise() == pytest.approx(1.0, rel=0.01)
    assert read(lambda now: 100e3 * now * now, seconds=2.0).rise() > 1.2
    assert read(lambda now: 600e3 * min(now, 5.5)).rise() < 0.1
    assert read(lambda now: 600e3 * now, seconds=0.25).rise() == 1.0


def test_too_little_is_known_at_first_and_after_another_table() -> None:
    readings = read(lambda now: 600e3 * now, seconds=STILL_OVER - 0.25)
    assert readings.still(5) == 0.0 and readings.rates(STILL_OVER) is None
    readings.add({5: (1, 1000)}, STILL_OVER)
    assert readings.rates(0.0) == {} and readings.newest == STILL_OVER


counters = st.dictionaries(
    st.integers(0, 3), st.tuples(st.integers(0, 10**6), st.integers(0, 10**9)), max_size=4
)


@given(st.lists(st.tuples(st.floats(0.01, 5.0), counters), min_size=1, max_size=40))
def test_any_counters_give_rates_that_are_none_or_positive_and_few_readings(
    steps: list[tuple[float, dict[int, tuple[int, int]]]],
) -> None:
    readings, now = Readings(), 0.0
    for pause, counted in steps:
        now += pause
        readings.add(counted, now)
        assert all(rate > 0.0 for rate in (readings.rates(OVER) or {}).values())
        assert readings.rise() >= 0.0
        assert all(readings.still(bucket) >= 0.0 <= readings.size(bucket) for bucket in counted)
        assert all(now - at <= KEPT for at, _ in readings._readings)
