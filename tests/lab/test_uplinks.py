# SPDX-License-Identifier: GPL-3.0-or-later
"""An uplink goes and comes back: its dimensions take another one meanwhile, and then their own again."""

from __future__ import annotations

import subprocess

import pytest

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_direct import paths
from tests.lab.test_lab import until

pytestmark = pytest.mark.lab


def uplinks(node: LabNode, peer: LabNode) -> list[int]:
    """The uplink of the peer by which each dimension goes; -1 where that cannot be told."""
    numbers = {peer.address(number): number for number in range(3)}
    return [numbers.get((path.endpoint or "").partition(":")[0], -1) for path in paths(node, peer)]


async def test_dimensions_go_back_to_an_uplink_that_came_back(mesh: up.LabResult, spec: LabSpec) -> None:
    one, two, _ = nodes_of(spec)
    ends = (one, two), (two, one)
    own = [dimension % spec.uplinks for dimension in range(DIMENSIONS)]
    await until(lambda: all(uplinks(*end) == own for end in ends))
    link = ["ip", "-n", two.name, "link", "set", "up0"]
    subprocess.run([*link, "down"], check=True)
    try:
        await until(lambda: 0 not in uplinks(one, two) and all(p.state == "up" for p in paths(one, two)))
    finally:
        subprocess.run([*link, "up"], check=True)
    await until(lambda: all(uplinks(*end) == own for end in ends))
    await converged(nodes_of(spec), PATIENCE_S)
