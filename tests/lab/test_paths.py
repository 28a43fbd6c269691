# SPDX-License-Identifier: GPL-3.0-or-later
"""Dimensions that are cut, whose keys are replaced, whose uplinks go: under traffic, by real processes."""

import json
import signal
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from benchmarks.failover import PING, cut_one, dropping, paths_of, two_nodes, wait_for, whole
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answered, converged, flows_between, kill, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from phantommesh.state.directory import WIREGUARD_KEYS
from tests.lab.conftest import BACKEND, PATIENCE_S, make_spec
from tests.lab.test_lab import is_gone, run_in, until

pytestmark = [pytest.mark.lab, pytest.mark.alone]


@pytest.fixture
def pair() -> Iterator[LabSpec]:
    spec = make_spec("p", nodes=2, uplinks=3)
    yield spec
    trio.run(partial(up.down, spec.name))


def own_keys(node: LabNode) -> list[tuple[str, str]]:
    """Public key and port, by dimension, each pair as it was at one moment."""
    found = {}
    for line in run_in(node, "wg", "show", "all", "dump").splitlines():
        fields = line.split("\t")
        if len(fields) == 5:  # an interface's own line: name, private key, public key, port, mark
            found[fields[0]] = fields[2], fields[3]
    return [found[f"pm{i}"] for i in range(DIMENSIONS)]


def degraded(node: LabNode) -> str:
    return " ".join(json.loads(run_in(node, "phantommesh", "status", "--json"))["degraded"])


async def test_a_cut_dimension_is_left_and_comes_back(pair: LabSpec) -> None:
    async with two_nodes(pair) as (nodes, traffic):
        for dimension in (0, 4):
            cut = await cut_one(nodes[0], dimension, traffic, 4.0)
            assert cut.lost > 0 and cut.lost_later == 0
            # No more than its share, twice two in seven for chance, of what was sent until it was left.
            assert cut.lost <= 2 * 2 / 7 * cut.exposed + 10
            assert cut.exposed <= 4.0 / PING
            await whole(nodes)
        with dropping(nodes[0], [2]):
            for node in nodes:
                await wait_for(node, ["dark" if i == 2 else "up" for i in range(DIMENSIONS)])
                assert [view.weight for view in paths_of(node)] == [float(i != 2) for i in range(DIMENSIONS)]
            assert f"dark: 2 of the dimensions of peer {nodes[1].name}" in degraded(nodes[0])
        await whole(nodes)
        assert "dark" not in degraded(nodes[0])


async def test_an_uplink_that_goes_takes_its_dimensions_along_and_brings_them_back(pair: LabSpec) -> None:
    async with two_nodes(pair) as (nodes, traffic):
        uplink = ["ip", "-n", nodes[0].name, "link", "set", "up1"]
        subprocess.run([*uplink, "down"], check=True)
        for node in nodes:  # dimension i goes to host i modulo three
            await wait_for(node, ["up", "dark", "up", "up", "dark", "up", "up"])
        for node in nodes:  # they take another host's way, and a ping may be lost while they do
            await wait_for(node, ["up"] * DIMENSIONS)
        for flow in traffic.flows:
            flow.pending.clear()
            flow.sent = flow.received = 0
        await trio.sleep(2.0)
        await traffic.settle(PATIENCE_S)
        assert [flow.sent - flow.received for flow in traffic.flows] == [0] * len(traffic.flows)
        traffic.resume()
        subprocess.run([*uplink, "up"], check=True)
        await whole(nodes)


async def young(nodes: list[LabNode], key_seconds: float) -> None:
    """Restart the nodes with keys that get no older than this."""
    for node in nodes:
        text = node.config.read_text()
        assert "key_seconds = 86400.0" in text
        node.config.write_text(text.replace("key_seconds = 86400.0", f"key_seconds = {key_seconds}"))
        kill(node, signal.SIGTERM)
        await until(partial(is_gone, node))
        await start(node)
    await converged(nodes, PATIENCE_S)


async def test_every_key_and_port_is_replaced_under_a_ping_and_none_is_lost(pair: LabSpec) -> None:
    await up.up(pair)
    nodes = list(nodes_of(pair))
    # An emulated kernel takes ten times as long for everything.
    longest, interval, sent = (400.0, 0.1, 300) if BACKEND == "kernel" else (40.0, 0.01, 700)
    await young(nodes, longest)
    async with open_traffic(await flows_between(nodes), interval) as traffic:
        await answered(traffic, trio.current_time(), PATIENCE_S)
        await whole(nodes)
        for flow in traffic.flows:
            flow.pending.clear()
            flow.sent = flow.received = 0
        before = {node.name: own_keys(node) for node in nodes}
        left = {(node.name, i) for node in nodes for i in range(DIMENSIONS)}
        with trio.fail_after(PATIENCE_S):
            while left:
                for node in nodes:
                    now = await trio.to_thread.run_sync(own_keys, node)
                    for i, (old, new) in enumerate(zip(before[node.name], now, strict=True)):
                        if old[0] != new[0] and (node.name, i) in left:
                            assert old[1] != new[1]  # the port with the key, at least the first time
                            left.remove((node.name, i))
                await trio.sleep(0.5)
        await traffic.settle(PATIENCE_S)
        assert [flow.sent - flow.received for flow in traffic.flows] == [0] * len(traffic.flows)
        assert min(flow.sent for flow in traffic.flows) > sent


async def test_a_node_that_is_killed_again_and_again_while_it_replaces_keys_comes_back(pair: LabSpec) -> None:
    await up.up(pair)
    nodes = list(nodes_of(pair))
    await young(nodes, 10.0)
    seen = set()
    for round_ in range(6):
        await trio.sleep(0.9 + 0.23 * round_)
        kill(nodes[round_ % 2])
        await until(partial(is_gone, nodes[round_ % 2]))
        await start(nodes[round_ % 2])
        await trio.sleep(1.0)
        seen.add((nodes[0].state_dir / WIREGUARD_KEYS).read_bytes())
    assert len(seen) > 1
    for node in nodes:
        text = node.config.read_text()
        node.config.write_text(text.replace("key_seconds = 10.0", "key_seconds = 3600.0"))
        kill(node)
        await until(partial(is_gone, node))
        await start(node)
    await converged(nodes, PATIENCE_S)
    await whole(nodes)
    async with open_traffic(await flows_between(nodes), 0.05) as traffic:
        await answered(traffic, trio.current_time(), PATIENCE_S)
