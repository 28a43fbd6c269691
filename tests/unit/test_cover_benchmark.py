# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of benchmarks.cover: cover changes no real packet, and costs what its curve says."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cover import BATCH, cover, covered, dealt, dummies, uplinks
from benchmarks.traffic.traces import Capture, Packet, Visit
from phantommesh.scatter.cover import SAVED

packets = st.lists(
    st.builds(
        Packet,
        st.integers(0, 3_000_000),
        st.integers(76, 1484).flatmap(lambda n: st.sampled_from([n, -n])),
        st.integers(0, 6),
    ),
    max_size=60,
).map(sorted)


@given(packets, st.floats(0, 100_000))
@settings(max_examples=50, deadline=None)
def test_a_load_keeps_its_packets_and_gets_dummies_until_its_end(real: list[Packet], rate: float) -> None:
    before = Visit(1, 2, 0.5, real)
    after = cover(before, rate, "1")
    left = list(after.packets)
    for packet in real:
        left.remove(packet)
    assert all(0 <= one.path < 7 for one in left)
    if left:
        assert real[0].time <= min(left).time and max(left).time <= real[-1].time
        seconds = (real[-1].time - real[0].time) / 1e6
        for sign in (1, -1):
            assert sum(abs(one.size) for one in left if one.size * sign > 0) <= rate * (seconds + SAVED)


def test_cover_costs_its_rate_in_the_mean() -> None:
    load = Visit(0, 0, 4.0, [Packet(0, 1000, 0), Packet(4_000_000, -1000, 3)])
    visits = [Visit(0, i, 4.0, load.packets) for i in range(30)]
    capture = Capture("private", 7, ["x"], {}, visits)
    added = covered(capture, 20_000.0, 1).bytes - capture.bytes
    assert 0.7 * 2 * 20_000.0 * 120.0 < added < 1.1 * 2 * 20_000.0 * 120.0
    assert covered(capture, 0.0, 1).bytes == capture.bytes


def test_a_load_may_begin_at_any_phase_of_a_front() -> None:
    counts = {len(list(dummies(20_000.0, 0.2, Random(seed)))) for seed in range(30)}
    assert 0 in counts and max(counts) > 12


def test_dummies_go_with_the_batch_under_way() -> None:
    real = [Packet(i, 500, 4) for i in range(3)]
    short = [*real, *(Packet(9, 100, -1) for _ in range(BATCH - 4))]
    assert {one.path for one in dealt(short, Random(1))} == {4}
    both = [Packet(0, 500, 4), Packet(1, 500, 2), *(Packet(9, 100, -1) for _ in range(20 * BATCH))]
    ways = [one.path for one in dealt(both, Random(1))][2:]
    assert ways[: BATCH - 2] == [2] * (BATCH - 2) and {2, 4} == set(ways)
    assert not any(len(set(ways[i : i + BATCH])) > 2 for i in range(len(ways)))


def test_an_uplink_of_three_has_every_third_dimension() -> None:
    visit = Visit(0, 0, 1.0, [Packet(i, 100, i) for i in range(7)])
    (seen,) = uplinks([visit], 3)
    assert [len(seen.on(path)) for path in range(3)] == [3, 2, 2]
