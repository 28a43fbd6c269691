# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole mesh on the kernel's WireGuard: rotations with the ends out of step, under a ping every 10 ms."""

import pytest

from benchmarks.rotation import SKEWS, make_spec, measure
from phantommesh.nursery.host.kernel import kernel_has_wireguard

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
]  # five nodes: too much for an emulated machine

SECONDS = 200.0  # past WireGuard's rekey at 120 s, and past 180 s, where ends that disagree go dark


async def test_no_ping_is_lost_while_links_rotate_out_of_step() -> None:
    if not kernel_has_wireguard():
        pytest.skip("this kernel has no WireGuard; run `make test-kernel`")
    results = await measure(make_spec(SKEWS, "kernel"), SKEWS, SECONDS)
    assert {result.skew: result.lost for result in results} == dict.fromkeys(SKEWS, 0)
    assert all(result.rotations >= 2 and result.sent > 1000 for result in results)
