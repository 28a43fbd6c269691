# SPDX-License-Identifier: GPL-3.0-or-later
"""The costs and gains of scattering against one plain WireGuard, in the same boot.

    python -m benchmarks.scatter [--paths equal|unequal] [--way NAME]... [--rate MBIT] [--backend B]
                                 [--congestion NAME] [--only PART]... [--seconds N] [--rounds N]
                                 [--json] [--quick]

A way to scatter is a goal (`auto`, `throughput`, `order`) or a scheduler. Under `auto` both ends run what
splits flows in a node, with its probes.

``equal``: seven paths without limits; the CPU is the limit. One plain WireGuard and each way take turns,
and every ratio is the median of the rounds' ratios; ACKs for each segment, and segments sent again, tell
what packets that overtake each other cost TCP. ``unequal``: paths of 5 to 35 ms, each of the same rate:
one TCP flow and fourteen against the best single path, and one flow when three paths also lose 1.5 %, with
and without those three drained. Where the kernel has no netem, a program makes the paths
(`benchmarks/cables.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

from benchmarks.machine import describe
from benchmarks.rig import FOUR, PathShape, Rig, rig
from phantommesh.config.sections import Goal
from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.maps import SCHEDULERS, entropy_bits

DEFAULT: Goal = "throughput"
GOALS: tuple[Goal, ...] = ("auto", "throughput", "order")  # `throughput` is the scheduler deck, `order` flow
WAYS = (*GOALS, *(name for name in SCHEDULERS if name not in ("deck", "flow")))
PARTS = ("ping", "one", "many", "lossy", "shed")
EQUAL = (1.0,) * DIMENSIONS
PLAIN = "10.98.0.2"
SCATTERED = str(FOUR[1])
DELAYS_MS = (5, 10, 15, 20, 25, 30, 35)
LOSSY = (4, 5, 6)
LOSS = 1.5  # percent
FLOWS = 14
PINGS = 300
PING_S = 0.005


@dataclass(slots=True)
class Outcome:
    """One scheduler's figures, or the plain WireGuard's; lists hold one value a round."""

    name: str
    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    lossy: list[float] = field(default_factory=list)
    shed: list[float] = field(default_factory=list)
    ping: list[float] = field(default_factory=list)
    acks: list[float] = field(default_factory=list)  # that came back for each segment
    again: list[float] = field(default_factory=list)  # of the segments, those sent once more
    entropy: float | None = None


def _equal(made: Rig, outcomes: list[Outcome], rounds: int, seconds: float, parts: Sequence[str]) -> None:
    for _ in range(rounds):
        for outcome in outcomes:
            address = PLAIN
            if outcome.name != "plain":
                _scatter(made, outcome.name)
                address = SCATTERED
            before = made.sent(0)
            if "ping" in parts:
                outcome.ping.append(median(made.ping_ms(address, PINGS, PING_S)))
            segments = made.tcp_segments(0), made.tcp_segments(1)
            if "one" in parts:
                outcome.one.append(made.tcp_mbps(address, 1, seconds))
            if "many" in parts:
                outcome.many.append(made.tcp_mbps(address, FLOWS, seconds))
            outcome.entropy = entropy_bits([a - b for a, b in zip(made.sent(0), before, strict=True)])
            sent, again = (b - a for a, b in zip(segments[0], made.tcp_segments(0), strict=True))
            if sent:
                outcome.acks.append((made.tcp_segments(1)[0] - segments[1][0]) / sent)
                outcome.again.append(again / sent)
            _tell(outcome)


def _unequal(
    made: Rig, outcomes: list[Outcome], rounds: int, seconds: float, rate: float, parts: Sequence[str]
) -> None:
    clean = [PathShape(delay, rate) for delay in DELAYS_MS]
    lossy = [PathShape(delay, rate, LOSS if i in LOSSY else 0.0) for i, delay in enumerate(DELAYS_MS)]
    kept = [0.0 if i in LOSSY else 1.0 for i in range(DIMENSIONS)]
    for _ in range(rounds):
        made.shape(clean)
        for outcome in outcomes:
            if outcome.name == "plain":  # the best of the single paths: one of those with the shortest delays
                outcome.one.append(max(made.tcp_mbps(f"10.98.{i}.2", 1, seconds) for i in (0, 1)))
                if "many" in parts:
                    outcome.many.append(made.tcp_mbps(PLAIN, FLOWS, seconds))
                _tell(outcome)
                continue
            for part, flows, found in (("one", 1, outcome.one), ("many", FLOWS, outcome.many)):
                if part in parts:
                    _scatter(made, outcome.name)
                    before = made.sent(0)
                    found.append(made.tcp_mbps(SCATTERED, flows, seconds))
                    outcome.entropy = entropy_bits([a - b for a, b in zip(made.sent(0), before, strict=True)])
            _tell(outcome)
        made.shape(lossy)
        for outcome in outcomes[1:]:
            for part, scores, found in (("lossy", EQUAL, outcome.lossy), ("shed", kept, outcome.shed)):
                if part in parts:
                    _scatter(made, outcome.name, scores)
                    found.append(made.tcp_mbps(SCATTERED, 1, seconds))
            _tell(outcome)


def _tell(outcome: Outcome) -> None:
    last = {key: values[-1] for key, values in asdict(outcome).items() if isinstance(values, list) and values}
    print(outcome.name, *(f"{key} {value:.2f}" for key, value in last.items()), file=sys.stderr, flush=True)


def _scatter(made: Rig, name: str, scores: Sequence[float] = EQUAL) -> None:
    goal = next((goal for goal in GOALS if goal == name), None)
    if goal is not None:
        made.scatter(SCHEDULES[goal].scheduler, scores, splits=SCHEDULES[goal].splits)
    else:
        made.scatter(next(scheduler for scheduler in SCHEDULERS if scheduler == name), scores)


def _ratio(ours: list[float], theirs: list[float]) -> float | None:
    """The median of the rounds' ratios. Another load beside the benchmark is much the same within a round."""
    return round(median(a / b for a, b in zip(ours, theirs, strict=True)), 3) if ours and theirs else None


def _row(o: Outcome, plain: Outcome) -> list[str]:
    """What was measured of one way: medians, ratios to plain, and the range of the rounds' figures."""
    found = []
    for name, ours, theirs, unit in (
        ("1 flow", o.one, plain.one, ""),
        (f"{FLOWS} flows", o.many, plain.many, ""),
        ("ping", o.ping, plain.ping, " ms"),
        ("lossy", o.lossy, plain.one, ""),
        ("shed", o.shed, plain.one, ""),
    ):
        if ours:
            spread = f", {min(ours):.2f} to {max(ours):.2f}" if len(ours) > 1 else ""
            found.append(f"  {name} {median(ours):.2f}{unit} ({_ratio(ours, theirs)}x{spread})")
    if o.acks:
        found.append(f"  ACKs {median(o.acks):.3f}, again {median(o.again):.2%}")
    if o.entropy is not None and o.name != "plain":
        found.append(f"  entropy {o.entropy:.3f}")
    return found


def main() -> None:
    """Print a table; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scatter")
    parser.add_argument("--paths", choices=("equal", "unequal"), default="equal")
    parser.add_argument(
        "--way", choices=WAYS, action="append", help="a goal or a scheduler; may be given more than once"
    )
    parser.add_argument("--rate", type=float, default=5.0, help="Mbit/s of each unequal path")
    parser.add_argument("--congestion", help="TCP's congestion control, e.g. cubic")
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each TCP run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given more than once")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round of short runs, the default goal")
    given = parser.parse_args()
    rounds, seconds = (1, 2.0) if given.quick else (given.rounds, given.seconds)
    parts = given.only or PARTS
    names = given.way or ([DEFAULT] if given.quick else list(WAYS))
    outcomes = [Outcome("plain"), *(Outcome(name) for name in names)]
    with rig(given.backend, given.congestion, shaped=given.paths == "unequal") as made:
        if given.paths == "equal":
            _equal(made, outcomes, rounds, seconds, parts)
        else:
            _unequal(made, outcomes, rounds, seconds, given.rate, parts)
        backend, emulated = made.backend, made.emulated
    plain = outcomes[0]
    print(f"{given.paths} paths, {backend} WireGuard, {rounds} rounds; TCP in Mbit/s, and against plain")
    if emulated:
        print("this kernel has no netem: a program makes the paths (benchmarks/cables.py)")
    for o in outcomes:
        print(f"{o.name:10}" + "".join(_row(o, plain)))
    if given.json:
        best = next((o for o in outcomes if o.name == DEFAULT), outcomes[-1])
        unequal = given.paths == "unequal"
        document = {
            "name": "scatter",
            "machine": describe() | {"backend": backend},
            "runs": [asdict(o) for o in outcomes],
            "paths": given.paths,
            "goal": best.name,
            "plain_mbps": round(median(plain.many), 2) if plain.many else None,
            "scatter_mbps": round(median(best.many), 2) if best.many else None,
            "throughput_ratio": _ratio(best.many, plain.many),
            "one_flow_ratio": _ratio(best.one, plain.one),
            "one_flow_lossy_ratio": _ratio(best.shed, plain.one),
            "latency_ratio": _ratio(best.ping, plain.ping),
            "acks_ratio": _ratio(best.acks, plain.acks),
            "entropy_bits": None if best.entropy is None else round(best.entropy, 4),
            "best_single_mbps": round(median(plain.one), 2) if unequal and plain.one else None,
        }
        print(json.dumps(document))


if __name__ == "__main__":
    main()
