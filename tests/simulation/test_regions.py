# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip over three regions 100 ms apart: little crosses, news does, and a region that was cut off heals.

Times are virtual. `python -m benchmarks.regions` has the figures of a thousand nodes.
"""

from __future__ import annotations

import pytest

from tests.simulation import region_scenarios as scenarios


@pytest.mark.parametrize("seed", range(2))
def test_a_tenth_of_a_flat_meshs_bytes_cross_and_news_spreads_as_fast(seed: int) -> None:
    flat = scenarios.crossing(90, seed, flat=True, seconds=10.0)
    regions = scenarios.crossing(90, seed, flat=False, seconds=10.0)
    assert regions.at_rest <= flat.at_rest / 10 and regions.busy <= flat.busy / 10
    assert regions.update_p99 <= 2.0
    assert regions.false_deaths == flat.false_deaths == 0
    assert regions.dead_p99 <= 8.0


def test_a_region_that_was_cut_off_works_inside_and_heals() -> None:
    apart = scenarios.region_cut(18, 1, seconds=600.0)
    assert apart.update_inside <= 2.0 and apart.dead_inside <= 10.0
    assert apart.healed <= 30.0
