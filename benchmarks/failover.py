# SPDX-License-Identifier: GPL-3.0-or-later
"""A dimension that is cut under load: how soon its traffic takes the others, and what is lost until then.

    python -m benchmarks.failover [--rounds N] [--backend B] [--json] [--quick]

Two nodes ping each other every 5 ms, over all seven dimensions. nftables then drops, at one of them, all that
comes and goes on one dimension's WireGuard port; one dimension after the other. ``cut_to_moved_s`` is the
time from the first ping that was lost by the cut to the last, as the traffic sees it, and one interval more;
each ping crosses the mesh twice, so two in seven are exposed: ``share`` is what was lost of those sent until
then.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.management.views import PathView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import flows_between
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Traffic, open_traffic

PING = 0.005  # s
WATCH = 3.0  # s that a cut is watched
WARM = 8.0  # s of traffic before the first cut: it is noticed within two readings of the counters


@dataclass(frozen=True, slots=True)
class Cut:
    """The effect of one cut: for how long pings were lost, how many of those sent meanwhile, and how many
    later than half of the time that was watched."""

    dimension: int
    moved_s: float
    lost: int
    exposed: int
    lost_later: int


def paths_of(node: LabNode) -> list[PathView]:
    """A node's paths, by peer and dimension."""
    found: list[PathView] = NodeClient(node.socket, timeout=30.0).get_all("/v1/paths", PathView)
    return sorted(found, key=lambda view: (view.peer, view.dimension))


def listen_port(node: LabNode, dimension: int) -> int:
    """The UDP port that a dimension has at this moment."""
    command = node.inside(("wg", "show", f"pm{dimension}", "listen-port"))
    return int(subprocess.run(command, env=node.environment(), check=True, capture_output=True).stdout)


@contextmanager
def dropping(node: LabNode, dimensions: Sequence[int]) -> Iterator[None]:
    """Let nothing through on these dimensions of a node while the block runs."""
    ports = ", ".join(str(listen_port(node, dimension)) for dimension in dimensions)
    nft = ["ip", "netns", "exec", node.name, "nft", "-f", "-"]
    script = f"""table inet cut {{
        chain input {{
            type filter hook input priority 0; policy accept;
            udp dport {{ {ports} }} counter drop
        }}
        chain output {{
            type filter hook output priority 0; policy accept;
            udp sport {{ {ports} }} counter drop
        }}
    }}
    """
    subprocess.run(nft, input=script.encode(), check=True)
    try:
        yield
    finally:
        subprocess.run(nft, input=b"delete table inet cut\n", check=True)


async def wait_for(node: LabNode, wanted: Sequence[str]) -> None:
    """Wait until a node's only peer is in these states, by dimension."""
    while True:
        views = await trio.to_thread.run_sync(paths_of, node)
        if [view.state for view in views] == list(wanted):
            return
        await trio.sleep(0.1)


async def whole(nodes: Sequence[LabNode]) -> None:
    """Wait until all paths of two nodes are up."""
    for node in nodes:
        await wait_for(node, ["up"] * DIMENSIONS)


async def cut_one(node: LabNode, dimension: int, traffic: Traffic, watch: float) -> Cut:
    """Cut a dimension, watch for so long what is lost, and let it through again."""
    for flow in traffic.flows:
        flow.pending.clear()
    sent_before = sum(flow.sent for flow in traffic.flows)
    began = trio.current_time()
    rate = len(traffic.flows) / traffic.interval
    with dropping(node, [dimension]):
        await trio.sleep(watch)
        now = trio.current_time()
        sent = sum(flow.sent for flow in traffic.flows) - sent_before
        missing = sorted(at for flow in traffic.flows for at in flow.pending.values() if at < now - 1.0)
    moved = missing[-1] - missing[0] + traffic.interval if missing else 0.0
    exposed = round(min(rate, sent / watch) * moved)
    return Cut(dimension, moved, len(missing), exposed, sum(at > began + watch / 2 for at in missing))


@asynccontextmanager
async def two_nodes(spec: LabSpec) -> AsyncIterator[tuple[list[LabNode], Traffic]]:
    """A lab of two nodes under a ping, with all paths up."""
    async with up.running(spec):
        nodes = list(nodes_of(spec))
        async with open_traffic(await flows_between(nodes), PING) as traffic:
            await trio.sleep(WARM)
            await whole(nodes)
            yield nodes, traffic


async def measure(spec: LabSpec, rounds: int) -> list[Cut]:
    """Cut one dimension after the other, ``rounds`` times in all."""
    found = []
    async with two_nodes(spec) as (nodes, traffic):
        for turn in range(rounds):
            found.append(await cut_one(nodes[0], turn % DIMENSIONS, traffic, WATCH))
            await whole(nodes)
    return found


def make_spec(backend: str, patience_s: float = 600.0) -> LabSpec:
    """The lab for `measure`."""
    return LabSpec(f"fail{os.getpid()}", nodes=2, uplinks=3, backend=backend, patience_s=patience_s)


def main() -> None:
    """Print one line a cut; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failover")
    parser.add_argument("--rounds", type=int, default=2 * DIMENSIONS)
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three cuts")
    given = parser.parse_args()
    try:
        cuts = trio.run(measure, make_spec(given.backend), 3 if given.quick else given.rounds)
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    for cut in cuts:
        print(
            f"dimension {cut.dimension}: moved after {cut.moved_s:.3f} s, {cut.lost} of {cut.exposed} pings "
            f"lost until then, {cut.lost_later} later"
        )
    if given.json:
        document = {
            "name": "failover",
            "machine": describe(),
            "runs": [
                {"dimension": c.dimension, "cut_to_moved_s": round(c.moved_s, 3), "lost_packets": c.lost,
                 "sent_meanwhile": c.exposed, "share": round(c.lost / max(1, c.exposed), 3)}
                for c in cuts
            ],
            "cut_to_moved_s": round(statistics.median(c.moved_s for c in cuts), 3),
            "cut_to_moved_s_worst": round(max(c.moved_s for c in cuts), 3),
            "lost_packets": round(statistics.median(c.lost for c in cuts)),
            "exposed_share": round(2 / DIMENSIONS, 3),
        }  # fmt: skip
        print(json.dumps(document))


if __name__ == "__main__":
    main()
