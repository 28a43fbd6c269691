# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast news and deaths spread through a simulated mesh, who is wronged meanwhile, and what it costs.

    python -m benchmarks.gossip --nodes N [--params ours|memberlist-lan] [--seeds K] [--json] [--quick]

Real `Membership` instances under a virtual clock: 10 % loss, 5 to 40 ms one way. An update and a death are
timed until 99 % of the nodes know. For the false deaths, 5 % of up to 100 nodes do not run at any time, for
2 s each, with Lifeguard and without (`false_deaths_per_node_hour_without_lifeguard`); each node that believes
a death counts. Bytes are datagrams with their envelope but without UDP and IP headers, and streams,
at rest. CPU is this process's, the simulator's own share included. memberlist's TCP ping is not simulated.

    python -m benchmarks.gossip --fault partition|restart|dead [--nodes N] [--roster] [--seeds K] [--json]

The same mesh is cut 60 to 40 for ten minutes, or all of it ends and starts again within a second: seconds
until all agree on all again. A node keeps what 256 members said; it fetches the records of the others, or
with ``--roster`` has all of them on disk. ``dead``: five live nodes hold N others for dead: seconds until all
know an update, and a death.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.machine import describe
from phantommesh.membership.messages import ENVELOPE_OVERHEAD
from phantommesh.membership.presets import LAN, MEMBERLIST_LAN, Params
from tests.simulation.gossip_scenarios import (
    among_the_dead,
    bad_network,
    mass_restart,
    partition,
    spread,
    stalls,
)
from tests.simulation.gossip_sim import Simulation

CHOICES = {"ours": LAN, "memberlist-lan": MEMBERLIST_LAN}
STALLED_NODES = 100


def at_rest(nodes: int, seed: int, params: Params, seconds: float) -> tuple[float, float]:
    """Return bytes and CPU microseconds per node and virtual second of a mesh in which nothing happens."""
    sim = Simulation(nodes, seed=seed, params=params, network=bad_network())
    sim.start_all()
    sim.run(2)
    before = sim.tally.bytes + sim.tally.stream_bytes + sim.tally.datagrams * ENVELOPE_OVERHEAD
    started = time.process_time()
    sim.run(seconds)
    cpu = time.process_time() - started
    after = sim.tally.bytes + sim.tally.stream_bytes + sim.tally.datagrams * ENVELOPE_OVERHEAD
    return (after - before) / nodes / seconds, cpu * 1e6 / nodes / seconds


def after_faults(options: argparse.Namespace) -> None:
    """Time how long a mesh takes to be of one mind after a fault."""
    restart = partial(mass_restart, roster=options.roster)
    heal: Callable[..., float] = partition if options.fault == "partition" else restart
    runs = []
    for seed in range(options.first_seed, options.first_seed + (options.seeds or 1)):
        runs.append({"seed": seed, "healed_s": heal(options.nodes, seed, params=CHOICES[options.params])})
        gc.collect()  # the mesh of this seed
        print(f"seed {seed}: {runs[-1]['healed_s']:.1f} s", file=sys.stderr, flush=True)
    healed = statistics.median(run["healed_s"] for run in runs)
    if options.json:
        document = {"name": "gossip", "machine": describe(), "runs": runs, "nodes": options.nodes}
        print(json.dumps(document | {"fault": options.fault, "healed_s": healed}))
    else:
        print(f"{'healed_s':46} {healed:10.1f}")


def among_many_dead(options: argparse.Namespace) -> None:
    """Time an update and a death among five who hold many for dead."""
    seeds = range(options.first_seed, options.first_seed + (options.seeds or 10))
    runs = [(seed, *among_the_dead(5, options.nodes, seed)) for seed in seeds]
    found = {
        "update_s": statistics.median(update for _, update, _ in runs),
        "dead_s": statistics.median(death for _, _, death in runs),
    }
    if options.json:
        rows = [{"seed": seed, "update_s": update, "dead_s": death} for seed, update, death in runs]
        document = {"name": "gossip", "machine": describe(), "runs": rows, "nodes": options.nodes}
        print(json.dumps(document | {"fault": options.fault} | found))
    else:
        for key, value in found.items():
            print(f"{key:46} {value:10.2f}")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gossip")
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--params", choices=sorted(CHOICES), default="ours")
    parser.add_argument("--seeds", type=int, default=None, help="how many; 10, or 3 with --quick")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="to replay one run: --first-seed S --seeds 1"
    )
    parser.add_argument(
        "--stall-seconds", type=float, default=None, help="virtual; 3600, or 120 with --quick"
    )
    parser.add_argument(
        "--fault",
        choices=("partition", "restart", "dead"),
        help="this alone; one seed (dead: 10), or --seeds",
    )
    parser.add_argument("--roster", action="store_true", help="restart: with all records on disk")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.fault == "dead":
        among_many_dead(options)
        return
    if options.nodes < 4:
        parser.error("--nodes: at least 4")
    if options.roster and options.fault != "restart":
        parser.error("--roster goes with --fault restart")
    if options.fault:
        gc.disable()  # it would look through a million table entries again and again, and find no garbage
        after_faults(options)
        return
    params = CHOICES[options.params]
    count = options.seeds or (3 if options.quick else 10)
    stall_seconds = options.stall_seconds or (120.0 if options.quick else 3600.0)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    runs = []
    for seed in range(options.first_seed, options.first_seed + count):
        run = spread(options.nodes, seed, params)
        runs.append({"seed": seed, "update_p99_s": run.update_p99, "dead_p99_s": run.dead_p99,
                     "false_deaths": run.false_deaths, "trace": f"{run.trace:08x}"})  # fmt: skip
        say(f"seed {seed}: update {run.update_p99:.2f} s, death {run.dead_p99:.2f} s")
    size, cpu = at_rest(options.nodes, options.first_seed, params, 10.0 if options.nodes <= 1000 else 3.0)
    rates = {}
    for name, variant in (("with", params), ("without", replace(params, lifeguard=False))):
        result = stalls(min(options.nodes, STALLED_NODES), options.first_seed, variant, seconds=stall_seconds)
        rates[name] = result.false_deaths / result.node_hours
        say(
            f"{name} Lifeguard: {result.false_deaths} false deaths, {result.false_suspicions} suspicions "
            f"in {result.node_hours:.1f} node hours"
        )
    document = {
        "name": "gossip",
        "machine": describe(),
        "runs": runs,
        "nodes": options.nodes,
        "params": options.params,
        "update_p99_s": statistics.median(run["update_p99_s"] for run in runs),  # type: ignore[type-var]
        "dead_p99_s": statistics.median(run["dead_p99_s"] for run in runs),  # type: ignore[type-var]
        "false_deaths_per_node_hour": rates["with"],
        "false_deaths_per_node_hour_without_lifeguard": rates["without"],
        "bytes_per_s_per_node": size,
        "cpu_us_per_s_per_node": cpu,
    }
    if options.json:
        print(json.dumps(document))
    else:
        for key in ("update_p99_s", "dead_p99_s", "false_deaths_per_node_hour",
                    "false_deaths_per_node_hour_without_lifeguard", "bytes_per_s_per_node",
                    "cpu_us_per_s_per_node"):  # fmt: skip
            print(f"{key:46} {document[key]:10.3f}")


if __name__ == "__main__":
    main()
