# SPDX-License-Identifier: GPL-3.0-or-later
"""Pauses that double, and a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.scatter.budget import BURST, MAX_PAUSE, PAUSE, REFILL, Budget, Pause


def test_each_pause_is_twice_the_one_before_and_the_first_again_after_a_long_rest() -> None:
    pause, now, lengths = Pause(), 100.0, []
    assert pause.over(now)
    for _ in range(9):
        pause = pause.longer(now)
        lengths.append(pause.length)
        assert not pause.over(now + pause.length - 0.1)
        now += pause.length
        assert pause.over(now)
    assert lengths[:3] == [PAUSE, 2 * PAUSE, 4 * PAUSE] and lengths[-1] == MAX_PAUSE
    assert pause.longer(now + MAX_PAUSE).length == PAUSE


@given(st.lists(st.tuples(st.floats(0.0, 300.0), st.floats(0.01, BURST)), max_size=50))
def test_no_more_is_spent_than_at_once_and_since(steps: list[tuple[float, float]]) -> None:
    budget, now, spent = Budget(), 0.0, 0.0
    for pause, amount in steps:
        now += pause
        if budget.allows(now, amount):
            budget.spend(amount, now)
            spent += amount
    assert spent <= (BURST + REFILL * now) * (1 + 1e-9)
