# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m fuzz.million [--count N] [--seed S]``: a storm of N datagrams, and what became of it.

Exits with a traceback at the first limit that does not hold, or exception that gets out of the protocol.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from fuzz.storm import Storm


def main() -> int:
    """Run the storm and print a summary."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.million", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    began = time.process_time()
    storm = Storm(arguments.seed)
    while storm.thrown.total() < arguments.count:
        storm.run(min(20_000, arguments.count - storm.thrown.total()))
        print(f"{storm.thrown.total()} thrown", file=sys.stderr)
    storm.calm()
    spent = time.process_time() - began
    report = {
        "thrown": dict(storm.thrown.most_common()),
        "drops": dict(storm.drops().most_common()),
        "peak": asdict(storm.peak),
        "encapsulations": storm.kem.encapsulations,
        "link_up_afterwards": storm.sim.agree(),
        "cpu_us_per_datagram": round(spent * 1e6 / storm.thrown.total(), 1),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(name)
            for key, number in value.items() if isinstance(value, dict) else [("", value)]:
                print(f"  {key:20} {number}")
    return 0 if storm.sim.agree() else 1


if __name__ == "__main__":
    raise SystemExit(main())
