# SPDX-License-Identifier: GPL-3.0-or-later
"""What gossip costs between regions, how fast news spreads over them, and how a region that was cut heals.

    python -m benchmarks.regions --nodes 1000 [--seed K] [--cut-seconds 600] [--only flat|regions|cut]

Real `Membership` instances under a virtual clock: three regions of as many nodes, 1 to 5 ms one way inside,
50 ms more between any two, 1 % loss. The baseline is the same mesh whose nodes know of no regions. Bytes are
those of datagrams with their envelope and of streams that leave a region, per node and second, at rest and
while a node a second publishes a record. Times are seconds until 99 % knew an update (the slowest of three),
and a death. ``cut``: one region is cut off; its own update and death inside, and the seconds until all agree
on all once it is back. All figures are simulated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from tests.simulation.region_scenarios import crossing, region_cut


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cut-seconds", type=float, default=600.0)
    parser.add_argument("--only", choices=("flat", "regions", "cut"))
    chosen = parser.parse_args()
    for flat, name in ((True, "flat"), (False, "regions")):
        if chosen.only in (None, name):
            found = asdict(crossing(chosen.nodes, chosen.seed, flat=flat))
            print(json.dumps({"run": name, "nodes": chosen.nodes, **found}), flush=True)
    if chosen.only in (None, "cut"):
        apart = asdict(region_cut(chosen.nodes, chosen.seed, seconds=chosen.cut_seconds))
        print(json.dumps({"run": "cut", "nodes": chosen.nodes, **apart}), flush=True)


if __name__ == "__main__":
    main()
