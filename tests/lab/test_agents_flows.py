# SPDX-License-Identifier: GPL-3.0-or-later
"""STREAM and VELOCITY in real nodes: an elephant is pinned, short flows leave little, a scan is found, and a
path that loses packets is left.

How soon, `python -m benchmarks.flows` measures.
"""

from __future__ import annotations

import json
import os

import pytest
import trio

from benchmarks.failover import whole
from benchmarks.flows import PORT, SINK, elephant, make_spec, running, short_flows
from benchmarks.latency import losing
from phantommesh.client.http import NodeClient
from phantommesh.management.views import Event
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import flows_between, view_of
from phantommesh.nursery.lab.net import LabNode, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from tests.lab.test_lab import run_in

pytestmark = pytest.mark.lab

LOST = 1000  # of 10,000 packets: surely too many
PATIENCE = 60.0  # s


def decided(node: LabNode, agent: str) -> list[str]:
    """What an agent had done, as the node's log says: the subjects of its actions."""
    lines = map(json.loads, node.log.read_bytes().splitlines())
    return [line["subject"] for line in lines if line["event"] == "decided" and line["agent"] == agent]


async def test_elephants_are_pinned_scans_are_found_and_lossy_paths_are_left() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    spec = make_spec()
    async with up.running(spec):
        nodes = list(nodes_of(spec))
        await whole(nodes)
        flows = await flows_between(nodes)
        to = (await view_of(nodes[1])).status.ip4
        with running(nodes[1], SINK % PORT) as sink:
            assert sink.stdout is not None
            await trio.to_thread.run_sync(sink.stdout.readline)
            assert await elephant(nodes, to) >= 0.0, "it is not pinned"
        kept = await short_flows(nodes[0], to, 5_000)
        assert 0 < kept["kernel_entries"] <= kept["kernel_most"]
        status = json.loads(run_in(nodes[0], "phantommesh", "status", "--json"))
        assert "calls" in " ".join(status["degraded"]), "no scan was found"
        events = NodeClient(nodes[0].socket, timeout=30.0).get_all("/v1/events", Event)
        found = [event.data["rule"] for event in events if event.type == "threat.pattern"]
        assert found == ["pattern-scan"]
        async with open_traffic(flows, 0.01):
            await trio.sleep(8.0)
            with losing(nodes[1], [3], LOST), trio.fail_after(PATIENCE):
                while not any(subject.endswith("/3") for subject in decided(nodes[0], "velocity")):
                    await trio.sleep(0.2)
