# SPDX-License-Identifier: GPL-3.0-or-later
"""How soon VELOCITY leaves a path that became worse, when it takes it back, and how often that is in error.

    python -m benchmarks.velocity [--runs 100] [--noise 600] [--nodes 50] [--json] [--quick]

VELOCITY, its judge and a node's own paths on a virtual clock (`tests/simulation/velocity_sim.py`), with the
noise of `latency_sim`. In each run one path is 80 ms later (``late``), or loses 5 % each way (``lossy``) or
one way (``one-way``), for 40 s; three minutes more are watched. ``order``: traffic of the goal `auto` over
all paths; ``quickest``: traffic of the goal `latency` over one. ``left`` counts from the change, ``back``
from its end, in seconds; ``leaves`` more than one a run is flapping. ``met``: decisions whose outcome was the
expected one. Then so many nodes have nothing but noise: each leave is an error.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.latency import summary
from benchmarks.machine import describe
from tests.simulation.velocity_sim import Course, Scene, course

CASES = {"late": (0.080, 0.0), "lossy": (0.0, 1 - 0.95**2), "one-way": (0.0, 0.05)}


def simulate(runs: int) -> dict[str, object]:
    """Each case for both kinds of traffic."""
    found = dict[str, object]()
    for traffic in ("order", "quickest"):
        for case, (late, loss) in CASES.items():
            seeks = traffic == "quickest"
            courses: list[Course] = [course(seed, late=late, loss=loss, seeks=seeks) for seed in range(runs)]
            one = {
                "left": summary([each.left for each in courses]),
                "back": summary([each.back for each in courses]),
                "flaps": sum(max(0, each.leaves - 1) for each in courses),
                "met": sum(each.met for each in courses),
                "unmet": sum(each.unmet for each in courses),
            }
            found[f"{traffic} {case}"] = one
            print(f"{traffic} {case}: {json.dumps(one)}", flush=True)
    return found


def noise(nodes: int, seconds: float) -> int:
    """How many paths are left by so many nodes in so many seconds of noise."""
    leaves = 0
    for seed in range(nodes):
        place = Scene(seed)
        place.run(seconds)
        leaves += sum(gone for _, _, gone in place.turns)
    print(f"noise: {leaves} leaves of {nodes} nodes in {seconds:g} s", flush=True)
    return leaves


def main() -> None:
    """Print a line a case; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.velocity")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--noise", type=float, default=600.0, help="seconds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two runs, one node")
    given = parser.parse_args()
    runs, nodes = (2, 1) if given.quick else (given.runs, given.nodes)
    found = simulate(runs)
    leaves = noise(nodes, given.noise)
    if given.json:
        document = {"name": "velocity", "machine": describe(), "cases": found, "nodes": nodes}
        print(json.dumps({**document, "noise_s": given.noise, "leaves": leaves}))


if __name__ == "__main__":
    main()
