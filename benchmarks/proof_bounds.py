# SPDX-License-Identifier: GPL-3.0-or-later
"""How much may a cheating sender send one way, and still verify? And is an honest one ever refused?

``python -m benchmarks.proof_bounds [--tries 60] [--seed 1] [--min-coverage 50] [--json]`` searches, for each
scheduler, for the strategy that puts most bytes on one dimension of seven, at equal weights, with an honest
receiver: 60 epochs of 60 s at 1 MB/s, and the demands that `proofs --verify` makes by default, or more
coverage. A strategy has a bias in the proved epochs, in all of them or in some; epochs that are not proved,
with a bias of their own; time in which the receiver counted nothing; bytes that are said to have been late;
and packets stated so that they fit. Its gain is the share of the bytes of the whole time, those that nobody
counted included. Strategies are drawn at random and then changed a little as long as that helps; the size of
the bias is found by bisection.

``--honest 10000`` judges so many simulated honest links instead, and prints those that do not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.machine import describe
from phantommesh.dimensions import SLOTS
from phantommesh.proofs.statement import ZEROS, Scheduler, Seven
from phantommesh.proofs.verdict import DEMANDS, Demands
from phantommesh.scatter import maps
from tests.support.makeproofs import seven
from tests.unit.proofs.cheats import RATE, biased, convincing, plan_of, shared
from tests.unit.proofs.honest import honest
from tests.unit.proofs.telling import Act, Story, clock_ms, verdict

EPOCHS, SECONDS = 60, 60.0
KINDS: Sequence[tuple[Scheduler, int]] = (
    ("deck", 1), ("packet", 1), ("batch", 8), ("batch", 32), ("flow", 1), ("flowlet", 1),
)  # fmt: skip
STEPS = 9  # of the bisection
FAIR = 1 / 7


@dataclass(frozen=True)
class Strategy:
    """Shares, but for the counts at the end. ``some`` of the proved epochs have the bias; ``unproved`` of all
    epochs the receiver is not told of, in so many ``blocks``, and ``elsewhere`` says how much stronger the
    bias is there; ``unseen`` of an epoch nobody counts, all of it one way, at each of as many ``restarts``;
    ``late``: what can be is said to have been late; ``idle``: every other epoch has next to no bytes, and a
    plan of nearly one dimension to be late for. ``run`` is that of the plans."""

    some: float = 1.0
    unproved: float = 0.0
    elsewhere: float = 1.0
    unseen: float = 0.0
    late: bool = True
    idle: bool = False
    blocks: int = 1
    restarts: int = 0
    run: int = 1

    def changed(self, rng: random.Random) -> Strategy:
        """The same with one number changed."""
        match rng.choice(("some", "unproved", "elsewhere", "unseen", "blocks", "restarts", "idle")):
            case "idle":
                return replace(self, idle=not self.idle)
            case "some":
                return replace(self, some=min(1.0, max(0.02, self.some * rng.choice((0.5, 0.8, 1.25, 2)))))
            case "unproved":
                return replace(self, unproved=min(0.5, max(0.0, self.unproved + rng.gauss(0, 0.06))))
            case "elsewhere":
                return replace(self, elsewhere=max(0.0, self.elsewhere * rng.choice((0.5, 0.8, 1.25, 2, 8))))
            case "unseen":
                return replace(self, unseen=min(1.0, max(0.0, self.unseen + rng.gauss(0, 0.3))))
            case "blocks":
                return replace(self, blocks=rng.randint(1, 8))
            case _:
                return replace(self, restarts=rng.randint(0, 5))


def told(scheduler: Scheduler, strategy: Strategy, bias: float) -> tuple[Story, Seven]:
    """What happens and what is said, and all bytes that were truly sent, by dimension."""
    one_way = biased(min(1.0, FAIR + bias))
    more = biased(min(1.0, FAIR + bias * strategy.elsewhere))
    hidden = round(strategy.unproved * EPOCHS)
    starts = {round((i + 1) * EPOCHS / (strategy.blocks + 1)) for i in range(strategy.blocks)}
    unproved = set[int]()
    for step in range(EPOCHS):
        for start in sorted(starts):
            if len(unproved) < hidden and 0 < start + step < EPOCHS - 1:
                unproved.add(start + step)
    restarts = {round((i + 1) * EPOCHS / (strategy.restarts + 1)) for i in range(strategy.restarts)} - {0}
    acts, now, true, seen = list[Act](), 0.0, [0.0] * 7, 0.0
    for number in range(EPOCHS):
        plan = plan_of(scheduler, number, run=strategy.run)
        rate = RATE
        if strategy.idle:
            rate = RATE // 1000 if number % 2 else 2 * RATE
            if number % 2:
                nearly = seven([SLOTS[scheduler] - 6, *[1] * 6])
                plan = plan_of(scheduler, number, nearly, strategy.run)
        if number in restarts:
            away = strategy.unseen * SECONDS
            now, true[0] = now + away, true[0] + RATE * away
        if number in unproved:
            came = shared(rate * SECONDS, more)
        else:
            seen += strategy.some
            came = shared(rate * SECONDS, one_way if seen >= 1 else [1] * 7)
            if strategy.idle and number % 2:
                came = shared(rate * SECONDS, plan.cards)
            seen -= seen >= 1
        true = [a + b for a, b in zip(true, came, strict=True)]
        fair = shared(rate * SECONDS, plan.cards)
        said = convincing(plan, fair if number in unproved else came)
        edge = number + 1 in {EPOCHS, *unproved, *restarts} or (strategy.idle and number % 2 == 0)
        close = came if strategy.late and edge else ZEROS
        acts.append(
            Act(
                plan=plan, opened=now, closed=now + SECONDS, came=came, start_ms=clock_ms(now),
                end_ms=clock_ms(now + SECONDS), told=number not in unproved, late_close=close,
                late_open=acts[-1].late_close if acts and acts[-1].end_ms == clock_ms(now) else ZEROS,
                restarted=number in restarts and strategy.unseen > 0, **said,
            )
        )  # fmt: skip
        now += SECONDS
    return acts, seven([round(size) for size in true])


def best(scheduler: Scheduler, strategy: Strategy, demands: Demands = DEMANDS) -> tuple[float, float]:
    """The largest share of all bytes by one dimension that verifies so, and their entropy in bits."""
    low, high, found = 0.0, 1 - FAIR, (0.0, 0.0)
    for _ in range(STEPS):
        bias = (low + high) / 2
        story, true = told(scheduler, strategy, bias)
        if verdict(story, demands).verdict != "holds":
            high = bias
            continue
        low = bias
        shares = [size / sum(true) for size in true]
        found = max(found, (max(shares), -math.fsum(s * math.log2(s) for s in shares if s)))
    return found


STARTS: Sequence[Strategy] = (
    Strategy(),
    Strategy(late=False),
    Strategy(unproved=0.1, elsewhere=20.0),
    Strategy(unproved=0.5, elsewhere=2.0, blocks=4),
    Strategy(unseen=0.92, restarts=3),
    Strategy(some=0.5, unseen=0.92, restarts=3),
    Strategy(some=0.1),
    Strategy(idle=True),
    Strategy(idle=True, unseen=0.92, restarts=3),
)


def search(scheduler: Scheduler, run: int, tries: int, seed: int, demands: Demands) -> dict[str, Any]:
    """The best strategy that is found."""
    rng = random.Random(seed)
    hidden = 1.0 - demands.min_coverage
    starts = [replace(one, run=run, unproved=min(one.unproved, hidden)) for one in STARTS]
    found = max((best(scheduler, strategy, demands), i) for i, strategy in enumerate(starts))
    at, top = starts[found[1]], found[0]
    for _ in range(tries):
        other = at.changed(rng)
        if rng.random() < 0.3:
            other = other.changed(rng)
        reached = best(scheduler, other, demands)
        if reached > top:
            at, top = other, reached
    return {"share": round(top[0], 4), "bits": round(top[1], 3), "strategy": repr(at)}


def refused(count: int, first: int) -> dict[str, Any]:
    """Judge so many honest links."""
    verdicts, began = Counter[str](), time.monotonic()
    for seed in range(first, first + count):
        found = verdict(honest(seed))
        verdicts[found.verdict] += 1
        if found.verdict != "holds":
            print(f"seed {seed}: {found.verdict}: {found.reason}", flush=True)
        if (seed - first) % 1000 == 999:
            print(f"{seed - first + 1} judged: {dict(verdicts)}", flush=True)
    figures = {name: verdicts[name] for name in ("holds", "too little", "fails")}
    return {"links": count, "seconds": round(time.monotonic() - began), **figures}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proof_bounds")
    parser.add_argument("--honest", type=int, metavar="N", help="judge so many simulated honest links")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--tries", type=int, default=60, help="changes of a strategy, for each scheduler")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scheduler", choices=maps.SCHEDULERS, help="one only")
    parser.add_argument("--min-coverage", type=float, default=100 * DEMANDS.min_coverage, metavar="PERCENT")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"name": "proof_bounds", "machine": describe()}
    demands = replace(DEMANDS, min_coverage=arguments.min_coverage / 100)
    if arguments.honest:
        result["honest"] = refused(arguments.honest, arguments.first)
        print(result["honest"])
    else:
        for scheduler, run in KINDS:
            if arguments.scheduler in (None, scheduler):
                name = scheduler if run == 1 else f"{scheduler} {run}"
                result[name] = row = search(scheduler, run, arguments.tries, arguments.seed, demands)
                print(f"{name:>8}  {row['share']:.1%}  {row['bits']} bits  {row['strategy']}", flush=True)
    if arguments.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
