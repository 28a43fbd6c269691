# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic of the goal `latency` leaves a path that became worse, and other traffic does not, by real nodes.

How soon, and what noise does, `python -m benchmarks.latency` measures.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.latency import CASES, once, scene
from phantommesh.dimensions import DIMENSIONS
from tests.lab.conftest import make_spec

pytestmark = [pytest.mark.lab, pytest.mark.alone]


async def test_pings_leave_a_path_that_is_late_or_loses_packets_and_datagrams_stay() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    async with scene(make_spec("q", nodes=2, uplinks=DIMENSIONS)) as place:
        for case in CASES:
            found = await once(case, place)
            assert found.left_s >= 0.0, f"{case}: the pings stay"
            assert found.stays > 0.0, f"{case}: no datagram goes by that path any more"
