# SPDX-License-Identifier: GPL-3.0-or-later
"""Which bucket is moved, and that moves come to an end."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.steering import LEAST, LIGHTER, move


def carried(rates: dict[int, float], ways: dict[int, int]) -> dict[int, float]:
    return {way: sum(rates[b] for b in ways if ways[b] == way) for way in range(DIMENSIONS)}


def test_one_of_two_heavy_buckets_goes_to_the_path_that_carries_least() -> None:
    rates = {1: 300e3, 2: 300e3, 3: 10e3, **dict.fromkeys(range(10, 16), 50e3)}
    ways = {1: 0, 2: 0, 3: 0, **{b: 1 + (b - 10) % 5 for b in range(10, 16)}}
    assert move(rates, ways, carried(rates, ways)) in ((1, 6), (2, 6))


def test_one_bucket_alone_light_ones_and_full_paths_are_let_alone() -> None:
    assert move({1: 1e6}, {1: 0}, carried({1: 1e6}, {1: 0})) is None
    light = dict.fromkeys(range(5), LEAST / 2)
    assert move(light, dict.fromkeys(range(5), 0), carried(light, dict.fromkeys(range(5), 0))) is None
    full = {b: 1e6 if b < DIMENSIONS else 0.5e6 for b in range(DIMENSIONS + 2)}
    ways = {b: b % DIMENSIONS for b in full}
    assert move(full, ways, carried(full, ways)) is None


@given(
    st.dictionaries(st.integers(0, 255), st.floats(0.0, 1e9), max_size=40),
    st.randoms(use_true_random=False),
)
def test_each_move_eases_a_path_and_after_some_there_are_none(
    rates: dict[int, float], random: Random
) -> None:
    ways = {b: random.randrange(DIMENSIONS) for b in rates}
    for _ in range(20 * len(rates) + 1):
        before = carried(rates, ways)
        found = move(rates, ways, before)
        if found is None:
            return
        bucket, to = found
        donor, ways[bucket] = ways[bucket], to
        after = carried(rates, ways)
        assert max(after[donor], after[to]) <= LIGHTER * before[donor] * (1 + 1e-9)
    raise AssertionError("no end of moves")
