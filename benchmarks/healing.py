# SPDX-License-Identifier: GPL-3.0-or-later
"""How soon a real mesh notices that a node died, and how soon it is whole after a death and after a cut.

    python -m benchmarks.healing [--nodes N] [--cut SECONDS] [--runs R] [--backend B] [--json] [--quick]

A lab of real nodes. One is ended as by a power cut, its WireGuard too: when each of the others called it
suspect, and dead, is read from its events, which carry the time. Then it is started again, until every
other answers a ping over the overlay. Then nftables cuts a node off in both directions, on every uplink, and
lets it through again, until all see all others alive and all links are whole. Each figure is the slowest
node's; over several runs the median of these.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from datetime import datetime
from time import time

import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.errors import PhantomMeshError
from phantommesh.management.views import Event, PeerView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answered, converged, crash, flows_between, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic

LOOK = 0.25  # s between looks at the APIs
PATIENCE = 120.0  # s
PING = 0.1  # s

CUT = """table inet cut {
    chain out { type filter hook output priority 0; policy accept; oifname "up*" drop; }
    chain in { type filter hook input priority 0; policy accept; iifname "up*" drop; }
}
"""
FIGURES = ("suspected_s", "dead_s", "returned_s", "cut_noticed_s", "cut_healed_s")


def seen_by(node: LabNode) -> dict[str, str]:
    """Return what one node says of each other one."""
    return {peer.name: peer.membership for peer in NodeClient(node.socket).get_all("/v1/peers", PeerView)}


def heard_by(node: LabNode, victim: LabNode, since: float, kinds: Sequence[str]) -> float | None:
    """How many seconds after ``since``, in Unix time, one node published the first such event about another;
    None: not yet."""
    events = NodeClient(node.socket).get_all("/v1/events", Event, {"types": ",".join(kinds)})
    times = (datetime.fromisoformat(event.time).timestamp() for event in events if event.node == victim.name)
    return min((round(moment - since, 2) for moment in times if moment >= since), default=None)


async def all_heard(nodes: Sequence[LabNode], victim: LabNode, since: float, *kinds: str) -> float:
    """The same of the slowest node, once all have."""
    slowest = 0.0
    with trio.fail_after(PATIENCE):
        for node in nodes:
            found = None
            while found is None:
                await trio.sleep(LOOK)
                found = await trio.to_thread.run_sync(heard_by, node, victim, since, kinds)
            slowest = max(slowest, found)
    return slowest


async def when(nodes: Sequence[LabNode], holds: Callable[[dict[str, str]], bool]) -> float:
    """Return the seconds until what a node says of the others satisfied ``holds`` once, on every node."""
    began, left = trio.current_time(), list(nodes)
    with trio.fail_after(PATIENCE):
        while True:
            for node in list(left):
                try:
                    if holds(await trio.to_thread.run_sync(seen_by, node)):
                        left.remove(node)
                except PhantomMeshError:
                    pass  # not up yet
            if not left:
                return round(trio.current_time() - began, 2)
            await trio.sleep(LOOK)


async def death_and_return(nodes: Sequence[LabNode], victim: LabNode) -> dict[str, float]:
    """End a node and start it again."""
    others = [node for node in nodes if node != victim]
    found = {}
    async with open_traffic(await flows_between(nodes), PING) as traffic:
        ended = time()
        await crash(victim)
        found["dead_s"] = await all_heard(others, victim, ended, "peer.dead")
        found["suspected_s"] = await all_heard(others, victim, ended, "peer.suspected", "peer.dead")
        began = trio.current_time()
        await start(victim)
        await answered(traffic, began, PATIENCE)
        found["returned_s"] = round(trio.current_time() - began, 2)
    await converged(nodes, PATIENCE)
    return found


async def cut_and_heal(nodes: Sequence[LabNode], victim: LabNode, seconds: float) -> dict[str, float]:
    """Cut a node off for some time."""
    others = [node for node in nodes if node != victim]
    found = {}
    began, cut = trio.current_time(), time()
    await _nft(victim, CUT)
    found["cut_noticed_s"] = await all_heard(others, victim, cut, "peer.dead")
    await trio.sleep_until(began + seconds)
    await _nft(victim, "delete table inet cut\n")
    began = trio.current_time()
    await when(nodes, lambda seen: set(seen.values()) == {"alive"} and len(seen) == len(nodes) - 1)
    await converged(nodes, PATIENCE)
    found["cut_healed_s"] = round(trio.current_time() - began, 2)
    return found


async def _nft(node: LabNode, script: str) -> None:
    await trio.run_process(["ip", "netns", "exec", node.name, "nft", "-f", "-"], stdin=script.encode())


async def measure(spec: LabSpec, cut: float, runs: int) -> list[dict[str, float]]:
    """Run both, several times, in one lab."""
    results = []
    async with up.running(spec):
        nodes = nodes_of(spec)
        for run in range(runs):
            died = await death_and_return(nodes, nodes[1 + run % (len(nodes) - 1)])
            healed = await cut_and_heal(nodes, nodes[-1 - run % (len(nodes) - 1)], cut)
            results.append(died | healed)
    return results


def main() -> None:
    """Print the figures; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.healing")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--cut", type=float, default=60.0, help="seconds that a node is cut off")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="three nodes, one run, a cut of 10 s")
    given = parser.parse_args()
    nodes, cut, runs = (3, 10.0, 1) if given.quick else (given.nodes, given.cut, given.runs)
    spec = LabSpec(f"heal{os.getpid()}", nodes=nodes, backend=given.backend, patience_s=600.0)
    try:
        results = trio.run(measure, spec, cut, runs)
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    medians = {key: statistics.median(result[key] for result in results) for key in FIGURES}
    for key, value in medians.items():
        print(f"{key:14} {value:6.2f}   ({', '.join(f'{result[key]:g}' for result in results)})")
    if given.json:
        document = {"name": "healing", "machine": describe(), "runs": results, "nodes": nodes, "cut_s": cut}
        print(json.dumps(document | medians))


if __name__ == "__main__":
    main()
