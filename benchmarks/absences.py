# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is back without a hand after days off, or after ten minutes with a wrong clock, and how soon.

    python -m benchmarks.absences [--seeds 3] [--only TEXT]

Whole nodes in the simulator, on a virtual clock, over a network that loses a tenth of the datagrams. The
table in docs/design.md is the output of this command.
"""

from __future__ import annotations

import argparse

from tests.simulation.absences import Case, Outcome, cases


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.absences")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="only the trials whose name has this text")
    options = parser.parse_args()
    print("| what happens | all well again after | without a hand |\n|---|---|---|")
    for case in cases():
        if options.only in case.name:
            print(row(case, [case.play(seed) for seed in range(options.seeds)]), flush=True)


def row(case: Case, outcomes: list[Outcome]) -> str:
    """One line of the table: the longest time of all seeds, and how many of them needed no hand."""
    times = [outcome.back_after for outcome in outcomes if outcome.back_after is not None]
    after = f"{max(times):.0f} s" if times else "-"
    hand = "yes" if len(times) == len(outcomes) else f"no ({len(times)} of {len(outcomes)})"
    return f"| {case.name} | {after} | {hand} |"


if __name__ == "__main__":
    main()
