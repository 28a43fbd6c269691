# SPDX-License-Identifier: GPL-3.0-or-later
"""Can an observer of an uplink tell which page is loaded through the mesh?

    python -m benchmarks.traffic_analysis [--captures DIR] [--only CONDITION] [--what-if] [--json] [--quick]

Two nodes, seven uplinks, one a dimension. Real pages are loaded from a web server on one node by a client on
the other; what is seen on each uplink (times, lengths and directions of WireGuard's packets) is kept and then
attacked, by attackers that were trained on other loads of the same pages. A condition is a scheduler,
"private" for the goal, or "plain" for traffic that takes dimension 0 alone, with "+adaptive" or "+constant"
for cover traffic and "+mss" for TCP segments of another size in each connection.

Captures are kept in DIR and not made again, so that attackers can be run on them anew.
``accuracy_one_path`` and ``accuracy_one_of_seven`` are k-fingerprinting's with lengths. The second is under
the node's default goal with nothing added; ``overhead_bytes_ratio`` is the bytes of that condition on all
uplinks over plain's: 1.0 is none. Figures that end in ``_private`` are the same under the goal "private".
See docs/traffic-analysis.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import trio

from benchmarks.machine import describe
from benchmarks.traffic import attack, fingerprint, pagelab, splitting
from benchmarks.traffic.pages import Page, choose, survey
from benchmarks.traffic.traces import Capture, load, save
from phantommesh.config.sections import ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.net import LabSpec
from phantommesh.scatter.goals import SCHEDULES

SCHEDULERS = ("packet", "batch", "deck", "flow", "flowlet")
EXTRAS = frozenset({"adaptive", "constant", "mss"})
DEFAULT, PRIVATE = SCHEDULES["throughput"].scheduler, "private"
NEEDED = ("httpx", "numpy", "sklearn")

# Tuning.
PAGES, QUICK_PAGES = 60, 20
REPETITIONS, QUICK_REPETITIONS = 12, 4
EPOCH_SECONDS = 2.0  # many maps in a capture of minutes, where a node's default would give two

# TrafficSliver (De la Cadena et al., CCS 2020): 100 sites over Tor, batched weighted random.
ANCHOR = {"name": "TrafficSliver (published)", "paths": 5, "one_path": 0.98, "one_of_paths_below": 0.16}

WHAT_IF = (
    splitting.Rule("TrafficSliver's, five paths", (50, 70), 1.0, paths=5),
    splitting.Rule("TrafficSliver's, seven paths", (50, 70), 1.0),
    splitting.Rule("packet, equal"),
    splitting.Rule("packet, unequal 1", alpha=1.0),
    splitting.Rule("packet, unequal 0.3", alpha=0.3),
    splitting.Rule("packet, unequal 0.1", alpha=0.1),
    splitting.Rule("batch 1-8, unequal 0.3", (1, 8), 0.3),
    splitting.Rule("batch 8, unequal 0.3", (8, 8), 0.3),
    splitting.Rule("batch 8-32, unequal 0.3", (8, 32), 0.3),
    splitting.Rule("one path a load", (1, 1), 0.001),
    splitting.Rule(
        "batch 1-8, unequal 0.3, three lengths", (1, 8), 0.3, lengths=(124, 640, splitting.LONGEST)
    ),
    splitting.Rule("batch 1-8, unequal 0.3, one length", (1, 8), 0.3, lengths=(splitting.LONGEST,)),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What all captures of a run share."""

    pages: int
    repetitions: int
    seed: int
    backend: str


@dataclass(frozen=True, slots=True)
class Row:
    """One attacker's success under one condition. ``bytes_ratio`` and ``load_ratio`` are against plain."""

    condition: str
    observer: str
    attacker: str
    accuracy: float
    worst_path: float
    folds: list[float]
    bytes_ratio: float
    load_ratio: float
    simulated: bool = False


def conditions(quick: bool) -> list[str]:
    """Return the conditions of a whole run."""
    if quick:
        return ["plain", DEFAULT, PRIVATE]
    return [
        "plain",
        "plain+adaptive",
        *(s + c for s in SCHEDULERS for c in ("", "+adaptive")),
        f"{DEFAULT}+constant",
        "plain+mss",
        "batch+mss",
        "batch+adaptive+mss",
        PRIVATE,
        f"{PRIVATE}+adaptive",
    ]


def parts_of(condition: str) -> tuple[ScatterSection, list[str]]:
    """Return what a condition means: the nodes' scatter section and what is added. Raises ValueError."""
    name, *extras = condition.split("+")
    if name not in ("plain", PRIVATE, *SCHEDULERS) or not EXTRAS.issuperset(extras):
        raise ValueError(
            f"no condition {condition!r}: say plain, private or a scheduler, and what is added, as deck+mss"
        )
    if name == "plain":
        return ScatterSection(hook="off"), extras
    choice = {"goal": name} if name == PRIVATE else {"scheduler": name}
    return msgspec.convert(choice | {"epoch_seconds": EPOCH_SECONDS}, ScatterSection), extras


async def make(condition: str, pages: Sequence[Page], settings: Settings) -> Capture:
    """Build a lab and capture one condition."""
    scatter, extras = parts_of(condition)
    spec = LabSpec(f"ta{os.getpid()}", 2, DIMENSIONS, settings.backend, scatter=scatter)
    visits = pagelab.order(len(pages), range(settings.repetitions), settings.seed)
    async with up.running(spec):
        seen = await pagelab.watch(spec, pages, visits, extras)
    return Capture(condition, DIMENSIONS, [page.path for page in pages], asdict(settings), seen)


@cache
def chosen(number: int, seed: int) -> list[Page]:
    """Return the pages to load; to read them all takes seconds. Raises LabError."""
    pages = choose(survey(pagelab.sites()), number, seed)
    if len(pages) < number:
        raise LabError(f"the packages have {len(pages)} pages that will do", fix=f"give --pages {len(pages)}")
    return pages


def captured(condition: str, settings: Settings, directory: Path) -> Capture:
    """Return a condition's capture, made now unless it is kept already. Raises PhantomMeshError."""
    file = directory / f"{condition}.msgpack"
    if file.exists():
        try:
            capture = load(file)
        except msgspec.MsgspecError:
            raise PhantomMeshError(f"{file} is damaged", fix="remove it") from None
        if capture.settings != asdict(settings):
            raise PhantomMeshError(
                f"{file} was made with {capture.settings}", fix="remove it, or give other --captures"
            )
        return capture
    print(f"capturing {condition}", file=sys.stderr, flush=True)
    pages = chosen(settings.pages, settings.seed)
    capture = trio.run(make, condition, pages, settings)
    save(capture, file)
    return capture


def seconds(capture: Capture) -> float:
    """Return the median page load."""
    return statistics.median(visit.seconds for visit in capture.visits)


def observers(capture: Capture) -> list[str]:
    """Return who looks on: with one path in use, there is only one place to look."""
    if capture.condition.startswith("plain"):
        return ["one path of one"]
    return ["one of five" if capture.paths == 5 else "one of seven", "all seven"]


def judge(capture: Capture, observer: str, attacker: str, seed: int) -> attack.Accuracy:
    """Run one attacker on what one observer has of a capture."""
    features, classifier = attack.ATTACKERS[attacker]
    if observer.startswith("one of"):
        samples = attack.samples_of_paths(capture.visits, range(capture.paths), features)
    else:
        samples = attack.samples_of_all(capture.visits, features)
    return attack.judge(samples, classifier(seed))


def attack_all(
    pool: Executor, capture: Capture, plain: Capture, seed: int, *, simulated: bool = False
) -> list[Row]:
    """Run every attacker on what every observer of this capture has."""
    print(f"attacking {capture.condition}", file=sys.stderr, flush=True)
    # Of a simulated capture, an observer of everything has what he had of the real one.
    seen = observers(capture)[: 1 if simulated else 2]
    tasks = [(observer, attacker) for observer in seen for attacker in attack.ATTACKERS]
    running = [pool.submit(judge, capture, observer, attacker, seed) for observer, attacker in tasks]
    return [
        Row(
            capture.condition,
            observer,
            attacker,
            result.mean,
            result.worst_path,
            result.folds,
            round(capture.bytes / plain.bytes, 4),
            round(seconds(capture) / seconds(plain), 3),
            simulated,
        )
        for (observer, attacker), result in zip(tasks, (task.result() for task in running), strict=True)
    ]


def line(row: Row) -> str:
    """Return a row as text."""
    return (
        f"{row.condition:48} {row.observer:15} {row.attacker:15} {row.accuracy:7.1%} "
        f"(worst path {row.worst_path:6.1%})  bytes x{row.bytes_ratio:.3f}"
        + ("" if row.simulated else f"  load x{row.load_ratio:.2f}")
    )


def shape(capture: Capture) -> dict[str, Any]:
    """Return what the figures of a capture rest on: packets, bytes, milliseconds, each path's share."""
    packets = [packet for visit in capture.visits for packet in visit.packets]
    return {
        "loads": len(capture.visits),
        "packets_median": statistics.median(len(visit.packets) for visit in capture.visits),
        "bytes": capture.bytes,
        "load_ms_median": round(seconds(capture) * 1e3, 1),
        "share_of_path": [
            round(sum(packet.path == path for packet in packets) / len(packets), 4)
            for path in range(DIMENSIONS)
        ],
    }


def measure(wanted: Sequence[str], settings: Settings, directory: Path, *, what_if: bool) -> dict[str, Any]:
    """Return the document that ``--json`` prints."""
    captures = {each: captured(each, settings, directory) for each in dict.fromkeys(["plain", *wanted])}
    plain = captures["plain"]
    # A process a core: the forest's own threads spoil each other's warning filters under load.
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        rows = [row for each in captures.values() for row in attack_all(pool, each, plain, settings.seed)]
        for rule in WHAT_IF if what_if else ():
            split = splitting.split_all(plain, rule, settings.seed)
            rows += attack_all(pool, split, plain, settings.seed, simulated=True)
    control = attack.shuffled(attack.samples_of_all(plain.visits, fingerprint.all_groups), settings.seed)

    def accuracy(condition: str, observer: str) -> Row | None:
        found = (r for r in rows if (r.condition, r.observer, r.attacker) == (condition, observer, "kfp"))
        return next(found, None)

    one, seven = accuracy("plain", "one path of one"), accuracy(DEFAULT, "one of seven")
    private = accuracy(PRIVATE, "one of seven")
    return {
        "name": "traffic_analysis",
        "machine": describe(),
        "runs": sum(len(capture.visits) for capture in captures.values()),
        **asdict(settings),
        "scheduler": DEFAULT,
        "accuracy_one_path": one and one.accuracy,
        "accuracy_one_of_seven": seven and seven.accuracy,
        "accuracy_chance": round(1 / settings.pages, 4),
        "accuracy_shuffled_control": attack.judge(control, attack.forest(settings.seed)).mean,
        "overhead_bytes_ratio": seven and seven.bytes_ratio,
        "accuracy_one_of_seven_private": private and private.accuracy,
        "overhead_bytes_ratio_private": private and private.bytes_ratio,
        "anchor": ANCHOR,
        "captures": {each: shape(capture) for each, capture in captures.items()},
        "rows": [asdict(row) for row in rows],
    }


def main() -> int:
    """Print a line a row; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic_analysis")
    parser.add_argument("--captures", type=Path, help="directory to keep captures in, and to take them from")
    parser.add_argument(
        "--only", action="append", metavar="CONDITION", help="this and plain; may be repeated"
    )
    parser.add_argument(
        "--what-if", action="store_true", help="also divide plain's loads by rules, simulated"
    )
    parser.add_argument("--pages", type=int)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few pages, loads and conditions")
    given = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        parser.exit(1, f"error: {', '.join(missing)} not installed\nfix: scripts/setup bench\n")
    settings = Settings(
        given.pages or (QUICK_PAGES if given.quick else PAGES),
        given.repetitions or (QUICK_REPETITIONS if given.quick else REPETITIONS),
        given.seed,
        given.backend,
    )
    if settings.pages < 2 or settings.repetitions < attack.FOLDS:
        parser.error(f"--pages from 2 and --repetitions from {attack.FOLDS}, for as many folds")
    wanted = given.only or conditions(given.quick)
    for condition in wanted:
        try:
            parts_of(condition)
        except ValueError as error:
            parser.error(str(error))
    with tempfile.TemporaryDirectory() as temporary:
        try:
            directory = given.captures or Path(temporary)
            result = measure(wanted, settings, directory, what_if=given.what_if)
        except PhantomMeshError as error:
            parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    print(
        f"{settings.pages} pages, {settings.repetitions} loads each; chance {result['accuracy_chance']:.1%}, "
        f"control with shuffled labels {result['accuracy_shuffled_control']:.1%}"
    )
    for row in result["rows"]:
        print(line(Row(**row)))
    if given.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
