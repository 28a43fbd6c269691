# SPDX-License-Identifier: GPL-3.0-or-later
"""The flows of a lab, whose nodes may be slow to start on a busy machine."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from phantommesh.client.http import NodeNotRunningError
from phantommesh.nursery.lab import mesh
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.net import LabNode


async def test_a_node_that_still_starts_is_waited_for_and_one_that_does_not_is_named(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked = Counter[str]()

    async def view_of(node: LabNode) -> Any:
        asked[node.name] += 1
        if node.number == 2 and asked[node.name] < 3:
            raise NodeNotRunningError("the node is not running")
        return SimpleNamespace(status=SimpleNamespace(ip4=f"100.64.0.{node.number}"))

    monkeypatch.setattr(mesh, "view_of", view_of)
    nodes = [LabNode("t", 1), LabNode("t", 2)]
    assert [flow.address for flow in await mesh.flows_between(nodes)] == ["100.64.0.2"]
    asked.clear()
    with pytest.raises(LabError, match="t-2 does not start"):
        await mesh.flows_between(nodes, 0.0)
