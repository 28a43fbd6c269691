# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue that stands in a path, told by its probes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.paths.standing import FLOOR, Standing


def test_a_queue_that_stands_is_told_from_one_slow_answer() -> None:
    path = Standing()
    for i in range(10):
        path.answered(0.020, i / 10)
    assert path.queue(1.0) == 0.0
    path.answered(0.150, 1.0)
    assert path.queue(1.0) == 0.0
    for i in range(11, 18):
        path.answered(0.110 + i / 1000, i / 10)
    assert path.queue(1.75) == pytest.approx(0.101, abs=0.005)
    assert path.queue(9.0) == 0.0  # nothing is known of now


def test_the_empty_path_is_measured_anew() -> None:
    path = Standing()
    path.answered(0.020, 0.0)
    for i in range(int(3 * FLOOR * 10)):
        path.answered(0.100, 1.0 + i / 10)
    assert path.queue(1.0 + 3 * FLOOR) == 0.0  # the path is a longer one


def test_losses_count_while_they_are_new() -> None:
    path = Standing()
    for i in range(20):
        (path.missed if i % 4 == 0 else lambda now: path.answered(0.02, now))(i / 10)
    assert path.loss(1.95) == pytest.approx(0.25)
    assert path.loss(60.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.one_of(st.none(), st.floats(1e-6, 10.0)))))
def test_any_probes_give_a_queue_and_a_loss(probes: list[tuple[float, float | None]]) -> None:
    path, now = Standing(), 0.0
    for pause, rtt in probes:
        now += pause
        if rtt is None:
            path.missed(now)
        else:
            path.answered(rtt, now)
        assert path.queue(now) >= 0.0 and 0.0 <= path.loss(now) <= 1.0
