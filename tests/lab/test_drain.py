# SPDX-License-Identifier: GPL-3.0-or-later
"""A rolling restart of five nodes under load loses no connection: real nodes, end to end."""

from __future__ import annotations

import pytest

from benchmarks.drain import make_spec, roll
from tests.lab.conftest import BACKEND

pytestmark = [pytest.mark.lab, pytest.mark.slow]  # five restarts, each with its drain: minutes


async def test_a_rolling_restart_of_five_nodes_loses_no_connection() -> None:
    """Routed, relayed and direct connections, those with the node that restarts among them."""
    result = await roll(make_spec(BACKEND), each=2, drained=True, keep=True)
    print(f"longest silence in seconds: {result.silence_s}")
    assert result.connections == {"direct": 18, "relayed": 2, "routed": 6}
    assert result.errors == [] and sum(result.lost.values()) == 0
    assert result.echoes > 26 * len(result.drain_s)
