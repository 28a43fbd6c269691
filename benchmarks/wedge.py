# SPDX-License-Identifier: GPL-3.0-or-later
"""How long until a service that hangs is noticed and runs again, in a whole node.

    python -m benchmarks.wedge [--rounds N] [--json] [--quick]

A node runs on the loopback device over a model of WireGuard. In each round one of its services is made to
wait for ever at its next turn, in the midst of its work. Meanwhile all other services run, and none of them
may be started again. ``noticed_s`` is from the moment at which the service hangs to OMNISCIENT's decision,
``again_s`` to the next turn of the service. A service that hangs while it waits, and not in its work, is
noticed as long after the moment at which its next turn was due.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import trio

from benchmarks.machine import describe
from phantommesh.nursery.node import Node
from tests.support.loopback import make_authority, serving

ROUNDS, QUICK_ROUNDS = 9, 3
REST = 31.0  # s between two rounds of one service: `Restart.rests`, and a look
PATIENCE = 60.0  # s


@dataclass(frozen=True, slots=True)
class Round:
    """One service that hung."""

    service: str
    noticed_s: float
    again_s: float


async def hang(node: Node, service: str) -> Round:
    """Have a service hang at its next turn."""
    parts = node.parts
    part, name, kick = {
        "routes": (parts.taking, "look", parts.taking.kick),
        "reconciler": (parts.reconciler, "converge", parts.reconciler.kick),
    }[service]
    real, hung, again = getattr(part, name), trio.Event(), trio.Event()
    began = [0.0]

    async def wrapped() -> object:
        if not hung.is_set():
            began[0] = trio.current_time()
            hung.set()
            await trio.sleep_forever()
        again.set()
        return await real()

    before = {name: pulse.restarts for name, pulse in parts.services.running.items()}
    setattr(part, name, wrapped)
    try:
        kick()
        with trio.fail_after(PATIENCE):
            await hung.wait()
            while True:
                if any(
                    one.verdict.accepted and one.verdict.proposal.subject.name == service
                    for one in list(parts.council.decisions)[-1:]
                ):
                    break
                await trio.sleep(0.005)
            noticed = trio.current_time() - began[0]
            await again.wait()
        took = trio.current_time() - began[0]
    finally:
        setattr(part, name, real)
    parts.council.decisions.clear()
    others = {
        name: pulse.restarts - before.get(name, 0)
        for name, pulse in parts.services.running.items()
        if name != service and pulse.restarts != before.get(name, 0)
    }
    if others:
        raise SystemExit(f"other services were started again too: {others}")
    return Round(service, round(noticed, 2), round(took, 2))


async def measure(rounds: int) -> list[Round]:
    """Have services hang, one after the other."""
    found = list[Round]()
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        make_authority(at)
        async with serving(at) as node:
            await trio.sleep(5.0)
            names = ("routes", "reconciler")
            for count in range(rounds):
                if count and count % len(names) == 0:
                    await trio.sleep(REST)
                found.append(await hang(node, names[count % len(names)]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found = trio.run(measure, QUICK_ROUNDS if given.quick else given.rounds)
    worst = max(one.again_s for one in found)
    if given.json:
        rounds = [asdict(one) for one in found]
        print(
            json.dumps(
                {
                    "name": "wedge", "machine": describe(), "runs": len(found), "rounds": rounds,
                    "again_s_median": statistics.median(one.again_s for one in found), "again_s_max": worst,
                }
            )
        )  # fmt: skip
        return 0
    print(describe())
    for one in found:
        print(
            f"  {one.service:12} noticed after {one.noticed_s:5.2f} s, runs again after {one.again_s:5.2f} s"
        )
    print(f"  worst {worst:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
