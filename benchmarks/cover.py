# SPDX-License-Identifier: GPL-3.0-or-later
"""What cover traffic hides for which price: the accuracy of this repository's attackers against bytes spent.

    python -m benchmarks.cover --captures DIR [--only CONDITION] [--rates 0,12500,...] [--json] [--quick]

Page loads that `benchmarks.traffic_analysis` has captured (in DIR; what is not there is captured now, which
needs root) get dummies by the code that paces a node's cover (`scatter.cover`), each end with the same
budget, at every phase of a front. So the loads are real, and the cover is modelled: it delays no packet, and
no real one gives way to it. A dummy takes the dimension of the batch under way, as the goal `private` deals,
or one drawn by the load's shares where a batch is full.

Observers: one dimension of seven; one uplink of three, which has every third dimension (the mean over the
three); all seven. The attackers of `benchmarks.traffic.attack` are trained on covered loads. ``bytes_ratio``
is against the same capture without cover, while pages load on links as fast as a lab's; ``bytes_per_second``
is the budget of each end that comes to that. Between loads cover costs its rate as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.machine import describe
from benchmarks.traffic import attack
from benchmarks.traffic.traces import Capture, Packet, Visit
from benchmarks.traffic_analysis import NEEDED, Settings, captured
from phantommesh.config.sections import ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.scatter.cover import WIDTHS, Covering, on_wire

UPLINKS: Final = 3
OBSERVERS: Final = ("one of seven", "one of three", "all seven")
BATCH: Final = ScatterSection().batch

# Tuning.
RATES: Final = (0.0, 12_500.0, 25_000.0, 50_000.0, 100_000.0, 200_000.0)
QUICK_RATES: Final = (0.0, 100_000.0)
MOST: Final = 1392  # bytes of a dummy's payload, at an MTU of 1420
BEFORE: Final = 4 * WIDTHS[1]  # s that cover has run when a load begins, at least: any phase of a front


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve: one attacker's success for one observer at one price."""

    condition: str
    bytes_per_second: float
    bytes_ratio: float
    observer: str
    attacker: str
    accuracy: float
    worst: float


def dummies(rate: float, seconds: float, random: Random) -> Iterator[tuple[float, int]]:
    """What one end sends in so many seconds of a load: times since its beginning, and bytes on the wire."""
    start = random.uniform(BEFORE, 2 * BEFORE)
    covering = Covering[int](random, rate, 0.0)
    covering.cover(0, rate, MOST, 0.0)
    while (now := covering.deadline) < start + seconds:
        for one in covering.tick(now):
            if now >= start:
                yield now - start, on_wire(one.payload)


def cover(visit: Visit, rate: float, seed: str) -> Visit:
    """Add both ends' cover to a load, until its last packet."""
    if rate <= 0.0 or not visit.packets:
        return visit
    random = Random(f"{seed}/{visit.repetition}/{visit.page}")
    begins, ends = visit.packets[0].time, visit.packets[-1].time
    found = list[Packet]()
    for sign in (1, -1):
        real = [packet for packet in visit.packets if packet.size * sign > 0]
        added = [
            Packet(begins + int(at * 1e6), sign * size, -1)
            for at, size in dummies(rate, (ends - begins) / 1e6, random)
        ]
        found += dealt(sorted([*real, *added], key=lambda one: one.time), random)
    return Visit(visit.page, visit.repetition, visit.seconds, sorted(found))


def dealt(packets: Sequence[Packet], random: Random) -> Iterator[Packet]:
    """Give each dummy (path -1) of one direction a path: the one of the batch under way, or of a new one."""
    paths = [packet.path for packet in packets if packet.path >= 0] or list(range(DIMENSIONS))
    path, run = random.choice(paths), 0
    for packet in packets:
        if packet.path < 0:
            run += 1
            if run >= BATCH:
                path, run = random.choice(paths), 0
            yield packet._replace(path=path)
        else:
            run = run + 1 if packet.path == path else 1
            path = packet.path
            yield packet


def covered(capture: Capture, rate: float, seed: int) -> Capture:
    """A capture with cover of so many bytes a second from each end."""
    visits = [cover(visit, rate, str(seed)) for visit in capture.visits]
    return Capture(capture.condition, capture.paths, capture.pages, capture.settings, visits)


def uplinks(visits: Sequence[Visit], number: int) -> list[Visit]:
    """The same loads with so many uplinks, over which the dimensions are dealt in turn."""
    return [
        Visit(v.page, v.repetition, v.seconds, [p._replace(path=p.path % number) for p in v.packets])
        for v in visits
    ]


def judge(capture: Capture, observer: str, attacker: str, seed: int) -> attack.Accuracy:
    """Run one attacker on what one observer has of a capture."""
    features, classifier = attack.ATTACKERS[attacker]
    match observer:
        case "one of seven":
            samples = attack.samples_of_paths(capture.visits, range(DIMENSIONS), features)
        case "one of three":
            seen = uplinks(capture.visits, UPLINKS)
            samples = attack.samples_of_paths(seen, range(UPLINKS), features)
        case _:
            samples = attack.samples_of_all(capture.visits, features)
    return attack.judge(samples, classifier(seed))


def curve(capture: Capture, rates: Sequence[float], attackers: Sequence[str], seed: int) -> Iterator[Point]:
    """The points of all curves of one capture, as they are known."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for rate in rates:
            with_cover = covered(capture, rate, seed)
            running = [
                (observer, attacker, pool.submit(judge, with_cover, observer, attacker, seed))
                for observer in OBSERVERS
                for attacker in attackers
            ]
            for observer, attacker, task in running:
                result, ratio = task.result(), round(with_cover.bytes / capture.bytes, 4)
                yield Point(
                    capture.condition, rate, ratio, observer, attacker, result.mean, result.worst_path
                )


def main() -> int:
    """Print a line a point; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cover")
    parser.add_argument("--captures", type=Path, help="directory to keep captures in, and to take them from")
    parser.add_argument("--only", default="private", metavar="CONDITION", help="as of traffic_analysis")
    parser.add_argument("--attackers", default=",".join(attack.ATTACKERS))
    parser.add_argument("--rates", help="bytes a second of each end, as 0,12500,25000")
    parser.add_argument("--pages", type=int)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few pages and loads, one price")
    given = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.exit(1, f"error: {', '.join(missing)} not installed\nfix: scripts/setup bench\n")
    attackers = given.attackers.split(",")
    if not attack.ATTACKERS.keys() >= set(attackers):
        parser.error(f"the attackers are {', '.join(attack.ATTACKERS)}")
    rates: tuple[float, ...] = QUICK_RATES if given.quick else RATES
    if given.rates:
        try:
            rates = tuple(float(rate) for rate in given.rates.split(","))
        except ValueError:
            parser.error("give --rates as 0,12500,25000")
    settings = Settings(
        given.pages or (10 if given.quick else 40),
        given.repetitions or (4 if given.quick else 8),
        given.seed,
        given.backend,
    )
    with tempfile.TemporaryDirectory() as temporary:
        try:
            capture = captured(given.only, settings, given.captures or Path(temporary))
        except PhantomMeshError as error:
            parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    points = list[Point]()
    print(f"{given.only}: {settings.pages} pages, chance {1 / settings.pages:.1%}")
    for point in curve(capture, rates, attackers, settings.seed):
        points.append(point)
        print(
            f"{point.bytes_per_second:8.0f} bytes/s  x{point.bytes_ratio:.3f}  {point.observer:12} "
            f"{point.attacker:15} {point.accuracy:6.1%} (worst {point.worst:6.1%})",
            flush=True,
        )
    if given.json:
        document = {"name": "cover", "machine": describe(), "runs": len(capture.visits), **asdict(settings)}
        document |= {"condition": given.only, "accuracy_chance": round(1 / settings.pages, 4)}
        print(json.dumps({**document, "points": [asdict(point) for point in points]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
