# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a node that was killed with SIGKILL takes to be back in its mesh.

    python -m benchmarks.restart [--rounds N] [--backend B] [--seed S] [--json] [--quick]

In a lab of three nodes one is killed at several kinds of moment, a random while into each, and started
again. It is back when all its links are whole (keyed and answering in all dimensions) and every other node
has an answer from it to a ping that was sent after the start. Its identity has to be the one it had.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import (
    answered,
    configure,
    converged,
    crash,
    endpoints,
    kill,
    phantommesh,
    start,
    view_of,
)
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic

ROUNDS, QUICK_ROUNDS = 8, 2
PING = 0.05  # s
ROTATING = 0.05  # s; a handshake and its installation take less
HEALING = 1.5  # s; the reconciler looks more often, and making an interface anew takes most of one
STARTING = 2.0  # s; about what a start takes until all links are whole


@dataclass(slots=True)
class Round:
    """One node of a lab, to be killed. ``node_id`` is who it is, as the API prints it."""

    spec: LabSpec
    victim: LabNode
    rng: random.Random = field(default_factory=random.Random)
    node_id: str = ""

    @property
    def others(self) -> list[LabNode]:
        """The lab's other nodes."""
        return [node for node in nodes_of(self.spec) if node != self.victim]


async def at_rest(it: Round) -> None:
    """Kill its process; a userspace WireGuard goes on."""
    kill(it.victim)


async def with_wireguard(it: Round) -> None:
    """Kill everything of it, WireGuard and interfaces too."""
    await crash(it.victim)


async def rotating(it: Round) -> None:
    """Kill it while it rotates its links: in a handshake, or while new PSKs are being installed."""

    def rotate() -> None:
        with suppress(PhantomMeshError):  # who answers may be dead by then
            NodeClient(it.victim.socket).rotate(None, dry_run=False, idempotency_key=os.urandom(8).hex())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, rotate)
        await trio.sleep(it.rng.uniform(0, ROTATING))
        kill(it.victim)


async def reconciling(it: Round) -> None:
    """Kill it while it mends an interface that was deleted, and peers that another program removed."""
    keys = await trio.run_process(it.victim.inside(["wg", "show", "pm2", "peers"]), capture_stdout=True)
    for peer in keys.stdout.decode("ascii").split():
        await trio.run_process(it.victim.inside(["wg", "set", "pm2", "peer", peer, "remove"]))
    await trio.run_process(["ip", "-n", it.victim.name, "link", "delete", "pm3"])
    await trio.sleep(it.rng.uniform(0, HEALING))
    kill(it.victim)


async def starting(it: Round) -> None:
    """Kill it, start it, and kill it again before it is up."""
    kill(it.victim)
    await start(it.victim)
    await trio.sleep(it.rng.uniform(0, STARTING))
    kill(it.victim)


async def first_run(it: Round) -> None:
    """Take it out of the lab with all it has, let a new node in at its place, and kill that in its first
    run."""
    await crash(it.victim)
    shutil.rmtree(it.victim.state_dir)
    it.victim.config.unlink()
    invite = await phantommesh(nodes_of(it.spec)[0], "invite")
    name = f"new{it.rng.getrandbits(32):08x}"
    where = endpoints(it.spec, it.victim)
    joined = await phantommesh(it.victim, "--json", "join", invite, "--name", name, *where)
    it.node_id = msgspec.json.decode(joined)["node_id"]
    configure(it.spec, it.victim)
    await start(it.victim)
    await trio.sleep(it.rng.uniform(0, STARTING))
    kill(it.victim)


MOMENTS: dict[str, Callable[[Round], Awaitable[None]]] = {
    moment.__name__: moment
    for moment in (at_rest, with_wireguard, rotating, reconciling, starting, first_run)
}


async def come_back(it: Round, moment: str) -> float:
    """Kill the victim at such a moment and start it again. Return the seconds until it is back.

    Raises LabError if that takes longer than the lab's patience, AssertionError if it is somebody else then.
    """
    it.node_id = (await view_of(it.victim)).status.node_id
    await MOMENTS[moment](it)
    began = trio.current_time()
    await start(it.victim)
    await converged(nodes_of(it.spec), it.spec.patience_s, of=[it.victim])
    status = (await view_of(it.victim)).status
    assert status.node_id == it.node_id
    flows = [Flow(other.name, it.victim.name, status.ip4) for other in it.others]
    async with open_traffic(flows, PING) as traffic:
        await answered(traffic, -1.0, it.spec.patience_s)
    return trio.current_time() - began


async def measure(spec: LabSpec, rounds: int, seed: int) -> dict[str, list[float]]:
    """Return the seconds of each round, by moment."""
    found: dict[str, list[float]] = {moment: [] for moment in MOMENTS}
    async with up.running(spec):
        it = Round(spec, nodes_of(spec)[-1], random.Random(seed))
        for moment, seconds in found.items():
            for _ in range(rounds):
                seconds.append(round(await come_back(it, moment), 3))
    return found


def main() -> None:
    """Print one line a moment; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each moment")
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    given = parser.parse_args()
    spec = LabSpec(f"re{os.getpid()}", backend=given.backend, patience_s=120.0)
    rounds = QUICK_ROUNDS if given.quick else given.rounds
    try:
        found = trio.run(measure, spec, rounds, given.seed)
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    for moment, seconds in found.items():
        print(f"{moment:15} median {statistics.median(seconds):5.2f} s, longest {max(seconds):5.2f} s")
    if given.json:
        every = [each for seconds in found.values() for each in seconds]
        document = {
            "name": "restart",
            "machine": describe(),
            "runs": found,
            "back_s_median": statistics.median(every),
            "back_s_max": max(every),
        }
        print(json.dumps(document))


if __name__ == "__main__":
    main()
