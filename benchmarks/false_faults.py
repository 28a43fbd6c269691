# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that a well mesh tells of: there should be none.

    sudo python -m benchmarks.false_faults --minutes 60 --nodes 4

Builds a lab whose links rotate every 20 s. One node after the other leaves with a goodbye and starts again,
and links are rotated by hand. Meanwhile every node is asked for its status three times a second. Prints each
fault that any node told of, with the seconds from the first time to the last. Nothing is left out. Exits with
1 if there was any.
"""

import argparse
import random
import signal
import sys
import time
from functools import partial

import trio

from phantommesh.client.http import NodeClient
from phantommesh.config.sections import LinkSection
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import kill, phantommesh, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of, processes_in

LOOK = 0.3  # s between two looks at a node
AWAY = 4.0  # s that a node stays away


async def watch(node: LabNode, told: dict[tuple[str, str], list[float]], began: float) -> None:
    """Note what a node tells of, until cancelled."""
    while True:
        try:
            status = await trio.to_thread.run_sync(NodeClient(node.socket).status)
        except PhantomMeshError:
            pass  # it is away
        else:
            for fault in status.faults:
                told.setdefault((node.name, fault.text), []).append(trio.current_time() - began)
        await trio.sleep(LOOK)


def wait_for_end(node: LabNode) -> None:
    """Block until a node's process has ended."""
    while int(pid_file(node).read_text(encoding="ascii")) in processes_in([node.name]):
        time.sleep(0.1)


async def churn(nodes: list[LabNode], until: float, draw: random.Random) -> int:
    """Have nodes leave and come back, and rotate, until it is time. Return how many left."""
    left = 0
    while trio.current_time() < until:
        node = draw.choice(nodes)
        other = draw.choice([n for n in nodes if n != node])
        try:
            await phantommesh(other, "rotate")
        except LabError as error:  # it has just started, and does not answer yet
            print(f"not rotated: {error}", file=sys.stderr)
        kill(node, signal.SIGTERM)
        await trio.to_thread.run_sync(wait_for_end, node)
        await trio.sleep(draw.uniform(0, AWAY))
        await start(node)
        left += 1
        await trio.sleep(draw.uniform(2.0, 20.0))
    return left


async def run(minutes: float, number: int, seed: int) -> int:
    """Build the lab and watch it; return the exit status."""
    spec = LabSpec(
        "ff", nodes=number, uplinks=1, backend="userspace", patience_s=300.0,
        link=LinkSection(rotate_seconds=20.0, jitter_seconds=2.0),
    )  # fmt: skip
    told: dict[tuple[str, str], list[float]] = {}
    async with up.running(spec, partial(print, file=sys.stderr)):
        nodes, began = nodes_of(spec), trio.current_time()
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(watch, node, told, began)
            left = await churn(nodes, began + 60 * minutes, random.Random(seed))
            nursery.cancel_scope.cancel()
    for (name, text), moments in sorted(told.items(), key=lambda item: item[1][0]):
        print(f"{moments[0]:8.1f} to {moments[-1]:8.1f} s, {len(moments)} times: {name}: {text}")
    print(f"{len(told)} faults told in {minutes:g} minutes of {number} nodes, with {left} leaves and returns")
    return bool(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    sys.exit(trio.run(run, given.minutes, given.nodes, given.seed))


if __name__ == "__main__":
    main()
