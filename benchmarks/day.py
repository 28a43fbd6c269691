# SPDX-License-Identifier: GPL-3.0-or-later
"""All agents of many nodes through a simulated day: do they oscillate, and do they stay within their bounds?

    python -m benchmarks.day [--nodes 200] [--hours 24] [--seed 1] [--json] [--quick]

`tests/simulation/council_sim.py` says what happens on the day, and where an agent looks less often than a
node would have it look; `tests/simulation/day_referee.py` what counts as an oscillation, as outside the
bounds and as a false ban. Fails if there is any.
"""

from __future__ import annotations

import argparse
import json
import sys
from time import process_time
from typing import Any

from benchmarks.machine import describe
from tests.simulation.council_sim import Day

SHOWN = 20  # of a list of what went wrong


def measure(nodes: int, hours: float, seed: int) -> dict[str, Any]:
    """Run one day."""
    began = process_time()
    day = Day(nodes, seed, hours)
    told, referee = day.run(), day.referee
    return {
        "machine": describe(), "nodes": nodes, "hours": hours, "seed": seed,
        "agents": sorted(day.councils[0].seats), "not_run": day.missing,
        "looks": dict(told.looks), "decisions": dict(told.decisions), "refused": dict(told.refused),
        "actions": dict(sorted(told.actions.items())), "troubles": dict(sorted(told.planted.items())),
        "met": dict(told.met), "unmet": dict(told.unmet), "benched": +told.benched,
        "failed_on_purpose_or_shielded": told.failed, "bans": told.bans,
        "most_standing_at_a_node": told.most_standing,
        "slowest_restart_s": round(told.slowest_restart, 2), "busiest_subject_an_hour": referee.busiest,
        "oscillations": sum(referee.oscillated.values()), "oscillated": dict(referee.oscillated),
        "repeated_as_the_trouble_came_again": dict(referee.repeated),
        "outside_bounds": len(referee.outside), "false_bans": len(referee.false_bans),
        "found": [*referee.oscillations[:SHOWN], *referee.outside[:SHOWN], *referee.false_bans[:SHOWN]],
        "cpu_s": round(process_time() - began, 1),
    }  # fmt: skip


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="10 nodes for two hours")
    options = parser.parse_args()
    nodes, hours = (10, 2.0) if options.quick else (options.nodes, options.hours)
    found = measure(nodes, hours, options.seed)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            if name != "found":
                print(f"{name.replace('_', ' '):>30}  {value}")
        for line in found["found"]:
            print(f"  {line}")
    if found["oscillations"] or found["outside_bounds"] or found["false_bans"] or found["not_run"]:
        sys.exit("the day did not go as it should")


if __name__ == "__main__":
    main()
