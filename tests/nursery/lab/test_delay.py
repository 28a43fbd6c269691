# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames on their way between regions: all come out, in order, and none too early."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nursery.lab import delay
from phantommesh.nursery.lab.delay import Line


@given(st.lists(st.floats(0.0, 1.0), max_size=50), st.floats(0.0, 2.0))
def test_each_frame_comes_out_after_its_time_and_in_order(pauses: list[float], seconds: float) -> None:
    line, now, sent, got = Line(seconds), 0.0, list[float](), list[int]()
    for number, pause in enumerate(pauses):
        now += pause
        for frame in line.out(now):
            got.append(frame[0])
            assert sent[frame[0]] + seconds <= now
        sent.append(now)
        line.put(bytes([number]), now)
        assert now <= line.due <= now + seconds
    while line.due < inf:
        got += [frame[0] for frame in line.out(line.due)]
    assert got == list(range(len(pauses))) and not line.lost


def test_what_has_no_room_is_lost() -> None:
    line = Line(1.0)
    for _ in range(delay.LIMIT + 3):
        line.put(b"", 0.0)
    assert line.lost == 3 and len(line.out(1.0)) == delay.LIMIT
