# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes behind NATs find direct ways to each other, by the word of no more than a public authority."""

from __future__ import annotations

import os

import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.dimensions import DIMENSIONS
from phantommesh.management.views import PathView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.underlay import Underlay, parse_nat
from tests.lab.conftest import BACKEND, NAME, PATIENCE_S

pytestmark = pytest.mark.lab


def paths(node: LabNode, peer: LabNode) -> list[PathView]:
    return [one for one in NodeClient(node.socket).get_all("/v1/paths", PathView) if one.peer == peer.name]


def host(path: PathView) -> str:
    return (path.endpoint or "").rpartition(":")[0]


async def test_two_nodes_behind_nats_talk_directly_in_all_dimensions() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    underlay = Underlay(nat=parse_nat("preserve-drop,preserve-drop"))
    spec = LabSpec(f"{NAME}d", nodes=3, uplinks=1, backend=BACKEND, patience_s=PATIENCE_S, underlay=underlay)
    async with up.running(spec) as lab:
        assert lab.apart == []
        _, one, two = nodes_of(spec)
        with trio.fail_after(PATIENCE_S):
            for node, peer in ((one, two), (two, one)):
                # A relay may be there first. The peer's NAT has this address outside, and keeps the ports.
                direct = {("up", peer.address(0))}
                while True:
                    found = await trio.to_thread.run_sync(paths, node, peer)
                    if len(found) == DIMENSIONS and {(one.state, host(one)) for one in found} == direct:
                        break
                    await trio.sleep(0.2)
                assert "direct way" in node.log.read_text()
