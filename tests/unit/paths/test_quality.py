# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes as bytes, and what of a path they measure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.errors import DecodeError
from phantommesh.paths.pace import BUSY_RATE, READ
from phantommesh.paths.probe import ON_WIRE, SIZE, Probe, decode_probe_untrusted
from phantommesh.paths.quality import LEAST_PROBES, MEMORY, WINDOW, Counted, Quality
from phantommesh.paths.state import MISSES
from tests.simulation.paths_sim import INTERVAL

# --- what strangers can do ---


@given(st.binary(max_size=64))
def test_any_bytes_are_a_probe_or_a_decode_error(data: bytes) -> None:
    try:
        probe = decode_probe_untrusted(data)
    except DecodeError:
        return
    assert len(data) == SIZE and 0 <= probe.dimension < 7
    assert decode_probe_untrusted(probe.encode()) == probe


@given(
    st.booleans(), st.integers(0, 6), st.integers(0, 2**32 - 1), st.booleans(), st.booleans(),
    st.integers(0, 2**64 - 1), st.none() | st.integers(0, 65534).map(lambda ms: ms / 1000),
)  # fmt: skip
def test_a_probe_reads_back(
    pong: bool, dimension: int, number: int, leaving: bool, drained: bool, received: int, age: float | None
) -> None:
    probe = Probe(pong, dimension, number, leaving, drained, received if age is not None else 0, age)
    assert len(probe.encode()) == SIZE
    assert decode_probe_untrusted(probe.encode()) == probe


def test_a_count_that_is_too_old_is_left_out() -> None:
    for age in (65.535, 1e9):
        probe = decode_probe_untrusted(Probe(False, 0, 1, received=7, age=age).encode())
        assert (probe.received, probe.age) == (0, None)


# --- measurements ---


def test_round_trips_are_smoothed_as_rfc_6298_has_it() -> None:
    quality = Quality()
    quality.answered(0.1, 1.0)
    assert (quality.rtt, quality.variation) == (0.1, 0.05)
    assert quality.timeout == pytest.approx(0.3)
    quality.answered(0.2, 1.1)
    assert quality.rtt == pytest.approx(0.1125) and quality.variation == pytest.approx(0.0625)
    assert quality.jitter == pytest.approx(0.1 / 16)


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_probe_loss_is_estimated_and_its_lower_bound_lower(seed: int, loss: float) -> None:
    rng, quality = random.Random(seed), Quality()
    for number in range(10 * WINDOW):
        if rng.random() < loss:
            quality.missed(number, number * INTERVAL)
        else:
            quality.answered(0.01, number * INTERVAL)
    assert abs(quality.probe_loss - loss) <= 6 * (loss / WINDOW) ** 0.5
    low, high = quality.bounds
    assert 0.0 <= low <= quality.probe_loss <= high and (loss > 0 or low == 0.0)
    assert low - 0.02 <= loss <= high + 0.02


@pytest.mark.parametrize("pause", [INTERVAL, 2.0, 10.0, 3600.0])
def test_what_was_lost_long_ago_weighs_little(pause: float) -> None:
    quality, now = Quality(), 0.0
    for number in range(WINDOW):
        now += INTERVAL
        if number % 2:
            quality.missed(0, now)
        else:
            quality.answered(0.01, now)
    probes = min(WINDOW, LEAST_PROBES + MEMORY / pause)
    for _ in range(round(3 * probes)):
        now += pause
        quality.answered(0.01, now)
    assert quality.probe_loss < 0.08
    for _ in range(LEAST_PROBES):
        now += pause
        quality.missed(0, now)
    assert quality.probe_loss < 0.7  # nor is what came before forgotten at once


def test_a_late_answer_takes_the_loss_back() -> None:
    quality = Quality()
    quality.missed(0, 1.0)
    quality.came_late(0)
    quality.answered(0.3, 1.1)
    assert quality.probe_loss == 0.0


@given(
    st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.02, 0.1]), st.floats(0, 2), st.floats(0.0, 0.2),
)  # fmt: skip
def test_counters_that_are_read_at_different_times_tell_the_loss(
    seed: int, loss: float, skew: float, delay: float
) -> None:
    rng, counted = random.Random(seed), Counted()
    rate = rng.uniform(50_000, 5_000_000)
    for second in range(0, 90, 2):
        counted.sent(int(rate * second), float(second))
        at = second - skew
        if second >= 2:
            counted.arrived(int(rate * at * (1 - loss)), at + rng.uniform(-0.001, 0.001))
    found = counted.loss
    assert found is not None and found == pytest.approx(loss, abs=0.002)
    low, high = counted.bounds
    assert 0.0 <= low <= found <= high and high - low <= 0.002 + 3 * (loss * 1500 / (rate * 60)) ** 0.5


def lost(counted: Counted) -> float | None:
    """A call, so that a type checker does not think it constant."""
    return counted.loss


def test_counters_of_another_key_start_over_and_little_traffic_says_nothing() -> None:
    counted = Counted()
    for second in range(0, 20, 2):
        counted.sent(second * 10, float(second))
        counted.arrived(0, second - 1.0)
    assert lost(counted) is None
    for second in range(20, 60, 2):
        counted.sent(second * 100_000, float(second))
        counted.arrived(second * 50_000, second - 1.0)
    assert (lost(counted) or 0.0) > 0.4
    counted.sent(0, 60.0)
    assert lost(counted) is None and counted.bounds == (0.0, 1.0)


def test_the_constants_fit_together() -> None:
    assert MISSES * INTERVAL < 0.5
    assert BUSY_RATE * READ > 7 * ON_WIRE  # one probe a path that was not counted yet is no traffic
