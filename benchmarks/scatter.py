# SPDX-License-Identifier: GPL-3.0-or-later
"""The costs and gains of scattering against one plain WireGuard, in the same boot.

    python -m benchmarks.scatter [--paths equal|unequal] [--way NAME]... [--rate MBIT] [--backend B]
                                 [--seconds N] [--rounds N] [--json] [--quick]

A way to scatter is a goal (`auto`, `throughput`, `order`) or a scheduler. Under `auto` both ends run what
splits flows in a node, with its probes.

``equal``: seven paths without limits; the CPU is the limit. One plain WireGuard and each way take turns,
and every ratio is of medians; ACKs for each segment, and segments sent again, tell what packets that
overtake each other cost TCP. ``unequal``: paths of 5 to 35 ms, each of the same rate: one TCP flow and
fourteen against the best single path, and one flow when three paths also lose 1.5 %, with and without those
three drained. Delay and loss need netem, so a kernel that has it, or the VM of ``make test-kernel``; without
it the paths are narrow only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
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


def _equal(made: Rig, outcomes: list[Outcome], rounds: int, seconds: float) -> None:
    for _ in range(rounds):
        for outcome in outcomes:
            address = PLAIN
            if outcome.name != "plain":
                _scatter(made, outcome.name)
                address = SCATTERED
            before = made.sent(0)
            outcome.ping.append(median(made.ping_ms(address, PINGS, PING_S)))
            segments = made.tcp_segments(0), made.tcp_segments(1)
            outcome.one.append(made.tcp_mbps(address, 1, seconds))
            outcome.many.append(made.tcp_mbps(address, FLOWS, seconds))
            outcome.entropy = entropy_bits([a - b for a, b in zip(made.sent(0), before, strict=True)])
            sent, again = (b - a for a, b in zip(segments[0], made.tcp_segments(0), strict=True))
            outcome.acks.append((made.tcp_segments(1)[0] - segments[1][0]) / sent)
            outcome.again.append(again / sent)
            _tell(outcome)


def _unequal(made: Rig, outcomes: list[Outcome], rounds: int, seconds: float, rate: float) -> None:
    clean = [PathShape(delay, rate) for delay in DELAYS_MS]
    lossy = [PathShape(delay, rate, LOSS if i in LOSSY else 0.0) for i, delay in enumerate(DELAYS_MS)]
    kept = [0.0 if i in LOSSY else 1.0 for i in range(DIMENSIONS)]
    for _ in range(rounds):
        made.shape(clean)
        for outcome in outcomes:
            if outcome.name == "plain":  # the best of the single paths: one of those with the shortest delays
                outcome.one.append(max(made.tcp_mbps(f"10.98.{i}.2", 1, seconds) for i in (0, 1)))
                outcome.many.append(made.tcp_mbps(PLAIN, FLOWS, seconds))
                _tell(outcome)
                continue
            _scatter(made, outcome.name)
            before = made.sent(0)
            outcome.one.append(made.tcp_mbps(SCATTERED, 1, seconds))
            outcome.many.append(made.tcp_mbps(SCATTERED, FLOWS, seconds))
            outcome.entropy = entropy_bits([a - b for a, b in zip(made.sent(0), before, strict=True)])
        if not made.delays:
            continue
        made.shape(lossy)
        for outcome in outcomes[1:]:
            _scatter(made, outcome.name)
            outcome.lossy.append(made.tcp_mbps(SCATTERED, 1, seconds))
            _scatter(made, outcome.name, kept)
            outcome.shed.append(made.tcp_mbps(SCATTERED, 1, seconds))
            _tell(outcome)


def _tell(outcome: Outcome) -> None:
    last = {key: values[-1] for key, values in asdict(outcome).items() if isinstance(values, list) and values}
    print(outcome.name, *(f"{key} {value:.2f}" for key, value in last.items()), file=sys.stderr, flush=True)


def _scatter(made: Rig, name: str, scores: Sequence[float] = (1.0,) * DIMENSIONS) -> None:
    goal = next((goal for goal in GOALS if goal == name), None)
    if goal is not None:
        made.scatter(SCHEDULES[goal].scheduler, scores, splits=SCHEDULES[goal].splits)
    else:
        made.scatter(next(scheduler for scheduler in SCHEDULERS if scheduler == name), scores)


def _ratio(ours: list[float], theirs: list[float]) -> float | None:
    return round(median(ours) / median(theirs), 3) if ours and theirs else None


def main() -> None:
    """Print a table; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scatter")
    parser.add_argument("--paths", choices=("equal", "unequal"), default="equal")
    parser.add_argument(
        "--way", choices=WAYS, action="append", help="a goal or a scheduler; may be given more than once"
    )
    parser.add_argument("--rate", type=float, default=5.0, help="Mbit/s of each unequal path")
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each TCP run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round of short runs, the default goal")
    given = parser.parse_args()
    rounds, seconds = (1, 2.0) if given.quick else (given.rounds, given.seconds)
    names = given.way or ([DEFAULT] if given.quick else list(WAYS))
    outcomes = [Outcome("plain"), *(Outcome(name) for name in names)]
    with rig(given.backend) as made:
        try:
            if given.paths == "equal":
                _equal(made, outcomes, rounds, seconds)
            else:
                _unequal(made, outcomes, rounds, seconds, given.rate)
        except subprocess.CalledProcessError as error:
            if "netem" not in (error.stderr or "") and "qdisc" not in (error.stderr or ""):
                raise
            parser.exit(1, "error: this kernel has no netem\nfix: run it by scripts/kernel-vm\n")
        backend, delays = made.backend, made.delays
    plain = outcomes[0]
    print(f"{given.paths} paths, {backend} WireGuard, {rounds} rounds; TCP in Mbit/s, and against plain")
    if not delays:
        print("this kernel has no netem: the paths have no delay and no loss; run it by scripts/kernel-vm")
    for o in outcomes:
        print(
            f"{o.name:10} 1 flow {median(o.one):8.1f} ({_ratio(o.one, plain.one)}x)"
            f"  {FLOWS} flows {median(o.many):8.1f} ({_ratio(o.many, plain.many)}x)"
            + (f"  ping {median(o.ping):.3f} ms ({_ratio(o.ping, plain.ping)}x)" if o.ping else "")
            + (f"  ACKs {median(o.acks):.3f}, again {median(o.again):.2%}" if o.acks else "")
            + (f"  lossy {_ratio(o.lossy, plain.one)}x, shed {_ratio(o.shed, plain.one)}x" if o.shed else "")
            + (f"  entropy {o.entropy:.3f}" if o.entropy is not None and o.name != "plain" else "")
        )
    if given.json:
        best = next((o for o in outcomes if o.name == DEFAULT), outcomes[-1])
        unequal = given.paths == "unequal"
        document = {
            "name": "scatter",
            "machine": describe() | {"backend": backend},
            "runs": [asdict(o) for o in outcomes],
            "paths": given.paths,
            "goal": best.name,
            "plain_mbps": round(median(plain.many), 2),
            "scatter_mbps": round(median(best.many), 2),
            "throughput_ratio": _ratio(best.many, plain.many),
            "one_flow_ratio": _ratio(best.one, plain.one),
            "one_flow_lossy_ratio": _ratio(best.shed, plain.one),
            "latency_ratio": _ratio(best.ping, plain.ping),
            "acks_ratio": _ratio(best.acks, plain.acks),
            "entropy_bits": None if best.entropy is None else round(best.entropy, 4),
            "best_single_mbps": round(median(plain.one), 2) if unequal else None,
        }
        print(json.dumps(document))


if __name__ == "__main__":
    main()
