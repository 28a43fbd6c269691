# SPDX-License-Identifier: GPL-3.0-or-later
"""A stolen state directory, restored and started on another machine: how soon is it reported, and where.

    python -m benchmarks.copies [--nodes N] [--backend B] [--json] [--quick]

A lab of N nodes and one machine more. Each node in turn is the victim: its state directory is copied to the
further machine as it is, and started there while the victim runs. Seconds are from the moment at which the
copy's process is started, so they hold the start of Python and of the node (``up_s``: until its API answers);
``first_s`` is when a reader of the victim's events has its ``health.copied``, ``peers_s`` when the last of
the readers at all other nodes has ``peer.copied``. Then the copy is ended, and the victim comes back.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import trio

from benchmarks.machine import describe
from phantommesh.client.events import follow
from phantommesh.client.http import NodeClient
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import converged, kill, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of

PATIENCE = 60.0  # s for each wait
SETTLED = 3.0  # s between two rounds


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds from the start of the copy's process."""

    victim: str
    up_s: float
    first_s: float
    peers_s: float


class Reader(threading.Thread):
    """Follows one node's events until it stops, and notes when the first of a type came (``time.monotonic``).
    ``about``: the member that the event has to be about; None: the node itself."""

    def __init__(self, node: LabNode, kind: str, about: str | None) -> None:
        super().__init__(daemon=True)
        self._node, self._kind, self._about = node, kind, about
        self.came: float | None = None

    def run(self) -> None:
        """Follow."""
        try:
            for event in follow(self._node.socket, {"types": self._kind}):
                if event.node == self._about:
                    self.came = time.monotonic()
                    return
        except PhantomMeshError:
            pass  # the node stopped


async def answers(node: LabNode) -> float:
    """Wait until a node's API answers; return when it did (``time.monotonic``)."""
    while True:
        try:
            await trio.to_thread.run_sync(NodeClient(node.socket, timeout=1.0).status)
        except PhantomMeshError:
            await trio.sleep(0.02)
        else:
            return time.monotonic()


async def until(true: Callable[[], bool]) -> None:
    """Wait until something holds that nobody tells of."""
    while not true():  # noqa: ASYNC110  # threads and other processes bring it about
        await trio.sleep(0.02)


async def stop(node: LabNode) -> None:
    """End a node by SIGTERM, and wait until it is gone."""
    kill(node, signal.SIGTERM)
    with trio.fail_after(PATIENCE):
        await until(lambda: not net.processes_in([node.name]))


def restore(victim: LabNode, copy: LabNode) -> None:
    """Put the victim's state directory, and its configuration, on another machine."""
    shutil.rmtree(copy.state_dir)
    shutil.copytree(victim.state_dir, copy.state_dir)
    text = victim.config.read_text(encoding="utf-8")
    text = text.replace(victim.address(0), copy.address(0)).replace(str(victim.socket), str(copy.socket))
    copy.config.write_text(text.replace(str(victim.state_dir), str(copy.state_dir)), encoding="utf-8")


async def one(nodes: Sequence[LabNode], victim: LabNode, copy: LabNode) -> Round:
    """Copy one node, start the copy, and see who reports it when."""
    restore(victim, copy)
    first = Reader(victim, "health.copied", None)
    peers = [Reader(node, "peer.copied", victim.name) for node in nodes if node != victim]
    for reader in (first, *peers):
        reader.start()
    await trio.sleep(SETTLED)
    began = time.monotonic()
    await start(copy)
    with trio.fail_after(PATIENCE):
        there = await answers(copy)
        await until(lambda: all(reader.came for reader in (first, *peers)))
    came = [reader.came or 0.0 for reader in peers]
    found = Round(victim.name, there - began, (first.came or 0.0) - began, max(came) - began)
    await stop(copy)
    await converged(nodes, PATIENCE)
    return found


async def measure(spec: LabSpec, rounds: int) -> list[Round]:
    """Have the first nodes copied, one after the other."""
    async with up.running(spec):
        *nodes, copy = nodes_of(spec)
        await stop(copy)
        return [await one(nodes, victim, copy) for victim in nodes[:rounds]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--backend", default="auto", choices=["auto", "kernel", "userspace"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round, three nodes")
    given = parser.parse_args()
    nodes, rounds = (3, 1) if given.quick else (given.nodes, given.nodes)
    spec = LabSpec("copies", nodes + 1, 1, given.backend)
    found = trio.run(measure, spec, rounds)
    for each in found:
        print(
            f"{each.victim}: the copy is up after {each.up_s:.2f} s, reported by the first after "
            f"{each.first_s:.2f} s, by all peers after {each.peers_s:.2f} s"
        )
    figures = {
        f"{key}_{name}": round(value([asdict(each)[key] for each in found]), 3)
        for key in ("up_s", "first_s", "peers_s")
        for name, value in (("median", statistics.median), ("most", max))
    }
    if given.json:
        runs = [asdict(each) for each in found]
        print(json.dumps({"name": "copies", "machine": describe(), "runs": runs, "nodes": nodes, **figures}))


if __name__ == "__main__":
    main()
