# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math
from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS, SLOTS
from phantommesh.scatter.maps import (
    NOISE,
    SCHEDULERS,
    Epoch,
    EpochKeys,
    Scheduler,
    cards,
    deal,
    entropy_bits,
    epoch_keys,
)
from phantommesh.secret import Secret
from tests.unit.link.test_keys import hkdf_expand, prefixed

SECRET = Secret(b"s" * 32)
SENDER = b"n" * 16
EVEN = (1.0,) * DIMENSIONS

scores = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e9)), min_size=7, max_size=7)
noises = st.lists(st.floats(1 - NOISE, 1 + NOISE), min_size=7, max_size=7)
all_noises = st.one_of(noises, st.lists(st.floats(2.0**-96, 1.0), min_size=7, max_size=7))


def keys(epoch: Epoch = Epoch(1, 0), sender: bytes = SENDER, secret: Secret = SECRET) -> EpochKeys:
    return epoch_keys(secret, sender, epoch)


def test_an_epochs_key_is_hkdf_of_secret_sender_and_number() -> None:
    key = hkdf_expand(b"s" * 32, prefixed(b"scatter", SENDER, (3).to_bytes(8), (9).to_bytes(8)), 64)
    made = keys(Epoch(3, 9))
    assert made.stream.reveal() == hkdf_expand(key, prefixed(b"order"), 64)
    draws = hkdf_expand(key, prefixed(b"noise"), 28)
    assert made.noise[6] == pytest.approx(0.8 + 0.4 * int.from_bytes(draws[24:]) / 2**32)


def test_unequal_factors_are_cubes_and_leave_each_dimension_a_slot() -> None:
    key = hkdf_expand(b"s" * 32, prefixed(b"scatter", SENDER, (1).to_bytes(8), (0).to_bytes(8)), 64)
    draws = hkdf_expand(key, prefixed(b"noise"), 28)
    made = epoch_keys(SECRET, SENDER, Epoch(1, 0), unequal=True)
    part = (int.from_bytes(draws[:4]) + 1) / 2**32
    assert made.noise[0] == part * part * part
    assert made.stream.reveal() == keys().stream.reveal()
    largest = []
    for number in range(200):
        dealt = cards(EVEN, epoch_keys(SECRET, SENDER, Epoch(1, number), unequal=True).noise, SLOTS["batch"])
        assert sum(dealt) == SLOTS["batch"] and min(dealt) >= 1
        largest.append(max(dealt) / sum(dealt))
    assert 0.35 < sorted(largest)[100] < 0.55  # of seven equal ones it would be a seventh


def test_epochs_senders_and_secrets_have_maps_of_their_own() -> None:
    made = [
        keys(),
        keys(Epoch(1, 1)),
        keys(Epoch(2, 0)),
        keys(sender=b"m" * 16),
        keys(secret=Secret(b"t" * 32)),
    ]
    assert len({each.noise for each in made}) == len({each.stream.reveal() for each in made}) == 5
    assert all(abs(factor - 1.0) <= NOISE for each in made for factor in each.noise)
    assert repr(made[0]) == "EpochKeys(stream=Secret(***))"


def test_a_secret_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        keys(secret=Secret(b"short"))


@given(scores, all_noises, st.integers(7, 2000))
def test_cards_fill_the_map_and_leave_out_only_the_drained(
    given_scores: list[float], noise: list[float], size: int
) -> None:
    dealt = cards(given_scores, noise, size)
    assert sum(dealt) == (size if any(given_scores) else 0)
    assert [count > 0 for count in dealt] == [score > 0.0 for score in given_scores]


@given(noises, st.integers(7, 2000))
def test_equal_scores_differ_by_noise_alone(noise: list[float], size: int) -> None:
    dealt = cards(EVEN, noise, size)
    total = sum(noise)
    # One slot each is given beforehand, so a share differs from its weight by up to that and by rounding.
    assert all(abs(n - size * f / total) <= 2.5 for n, f in zip(dealt, noise, strict=True))


def test_slots_are_in_proportion_to_scores() -> None:
    assert cards((1, 1, 1, 1, 1, 1, 94), EVEN, 1000) == (10, 10, 10, 10, 10, 10, 940)
    assert cards((1, 2, 3, 4, 0, 0, 0), EVEN, 1000) == (100, 200, 300, 400, 0, 0, 0)


def test_at_equal_scores_the_committed_entropy_is_nearly_whole() -> None:
    for number in range(200):
        noise = keys(Epoch(1, number)).noise
        for scheduler in SCHEDULERS:
            assert entropy_bits(cards(EVEN, noise, SLOTS[scheduler])) >= 2.75


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_scores_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not negative"):
        cards((*EVEN[:6], bad), EVEN, 256)


@pytest.mark.parametrize(("number", "size"), [(6, 256), (8, 256), (7, 6)])
def test_other_sizes_are_refused(number: int, size: int) -> None:
    with pytest.raises(ValueError, match="slots"):
        cards([1.0] * number, [1.0] * number, size)


@given(scores, st.integers(0, 1000), st.sampled_from(SCHEDULERS))
def test_what_is_dealt_is_what_was_committed(
    given_scores: list[float], number: int, scheduler: Scheduler
) -> None:
    made = keys(Epoch(1, number))
    committed = cards(given_scores, made.noise, SLOTS[scheduler])
    batch = 8 if scheduler == "batch" else 1
    dealt = deal(committed, scheduler, made.stream, batch)
    counted = Counter(dealt)
    assert [counted[i] for i in range(DIMENSIONS)] == [count * batch for count in committed]


def test_a_deck_of_equal_shares_is_hands_of_seven() -> None:
    dealt = deal((146,) * 7, "deck", keys().stream)
    hands = [dealt[start : start + 7] for start in range(0, 1022, 7)]
    assert all(sorted(hand) == list(range(7)) for hand in hands)
    assert len(set(hands)) > 100  # of 5,040 orders


@given(scores, st.integers(0, 1000))
def test_a_deck_is_smooth_at_any_shares(given_scores: list[float], number: int) -> None:
    made = keys(Epoch(1, number))
    committed = cards(given_scores, made.noise, 1022)
    seen = [0] * DIMENSIONS
    for count, dimension in enumerate(deal(committed, "deck", made.stream), start=1):
        seen[dimension] += 1
        for i in range(DIMENSIONS):
            assert abs(seen[i] - count * committed[i] / 1022) <= 7.0


def test_batches_are_runs() -> None:
    dealt = deal((20, 18, 18, 18, 18, 18, 18), "batch", keys().stream, 8)
    assert len(dealt) == 128 * 8
    assert all(len(list(run)) % 8 == 0 for _, run in groupby(dealt))
    assert [len(list(run)) for _, run in groupby(dealt)].count(8) > 64


@pytest.mark.parametrize("scheduler", ["deck", "batch", "flow"])
def test_every_place_is_dealt_to_every_dimension_alike(scheduler: Scheduler) -> None:
    # 1,400 maps: a dimension is expected 200 times in each place; 5 standard deviations are 65.
    first, last = Counter[int](), Counter[int]()
    for number in range(1400):
        dealt = deal((18,) * 7, scheduler, keys(Epoch(1, number)).stream)
        first[dealt[0]] += 1
        last[dealt[-1]] += 1
    assert all(135 < counted[i] < 265 for counted in (first, last) for i in range(DIMENSIONS))


def test_entropy() -> None:
    assert entropy_bits([1] * 7) == pytest.approx(math.log2(7))
    assert entropy_bits([5, 5, 0]) == 1.0
    assert entropy_bits([3, 0, 0]) == entropy_bits([]) == 0.0
    assert entropy_bits([1, 3]) == pytest.approx(0.8112781)
