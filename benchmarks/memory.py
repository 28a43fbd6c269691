# SPDX-License-Identifier: GPL-3.0-or-later
"""MNEMONIC's memory: what a recall and an insert cost by size, what a pattern takes, what kill -9 loses.

    python -m benchmarks.memory [--sizes 1000,...] [--runs N] [--kills N] [--quick] [--json]

For each size a memory with a quarter more places is filled. The runs go round the sizes, so that all see the
same machine; each times 2,000 operations by the thread's CPU clock, on keys that are drawn before. An insert
is the first record of a pattern; the tables are full by the time that they are timed, so each evicts another.
``recall_us`` and ``insert_us`` are medians, ``ratio`` the larger of both's at the largest size to the
smallest, medians over the runs of each run's ratio. ``bytes_per_pattern`` is what the process grew by (RSS);
``stated_bytes_per_pattern`` what `Memory.size` says.

``--kills``: a process records 1,000 patterns a second and keeps them as a node does, and is killed (SIGKILL)
after 0.1 to 2.5 s. ``lost_s_max`` is the longest time before a kill from which anything was lost. Exits 1 if
that is more than a second.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe
from phantommesh.mnemonic.memory import MOST_PATTERN_BYTES, WAYS, Key, Memory
from tests.support.remembering import left

SIZES = (1_000, 10_000, 100_000, 1_000_000)
RUNS, QUICK_RUNS, KILLS, QUICK_KILLS = 60, 15, 30, 4
OPERATIONS = 2_000
NOW = 1_790_000_000.0
SLACK = 1.25  # places for each pattern: with fewer some have gone before the table is filled
BOUND = 1.0  # s


def key(number: int) -> Key:
    """One of 2**24 patterns of a kind that FORTRESS would remember."""
    return Key("scan", f"198.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", "wireguard", "udp")


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def filled(size: int) -> tuple[Memory, int]:
    """A memory of so many patterns, and by how many bytes the process grew."""
    before = resident()
    memory = Memory(max(WAYS, int(size * SLACK)) * MOST_PATTERN_BYTES)
    for number in range(size):
        memory.record(key(number), NOW)
    return memory, resident() - before


def timed(work: Callable[[Key, float], object], keys: list[Key]) -> float:
    """Microseconds of CPU for each of the operations."""
    began = time.thread_time()
    for one in keys:
        work(one, NOW)
    return (time.thread_time() - began) / len(keys) * 1e6


def measure(sizes: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Time both operations at all sizes."""
    memories, grown = dict[int, Memory](), dict[int, int]()
    for size in sorted(sizes, reverse=True):  # so that a small one's growth is not in pages that are there
        memories[size], grown[size] = filled(size)
    held = {size: len(memory) for size, memory in memories.items()}
    stated = {size: memory.size for size, memory in memories.items()}
    draw, fresh = random.Random(1), max(sizes)
    took: dict[str, dict[int, list[float]]] = {"recall": {}, "insert": {}}
    for _ in range(runs):
        for size, memory in memories.items():
            drawn = [key(draw.randrange(size)) for _ in range(OPERATIONS)]
            took["recall"].setdefault(size, []).append(timed(memory.recall, drawn))
    for memory in memories.values():  # until every insert evicts
        while memory.evicted < memory.places // 10:
            memory.record(key(fresh), NOW)
            fresh += 1
    for _ in range(runs):
        for size, memory in memories.items():
            new = [key(fresh + number) for number in range(OPERATIONS)]
            fresh += OPERATIONS
            took["insert"].setdefault(size, []).append(timed(memory.record, new))
    ratios = {
        name: median(large / small for large, small in zip(of[max(sizes)], of[min(sizes)], strict=True))
        for name, of in took.items()
    }
    return {
        "recall_us": {str(size): round(median(took["recall"][size]), 2) for size in sizes},
        "insert_us": {str(size): round(median(took["insert"][size]), 2) for size in sizes},
        "ratio": round(max(ratios.values()), 2),
        "recall_ratio": round(ratios["recall"], 2),
        "insert_ratio": round(ratios["insert"], 2),
        "bytes_per_pattern": round(grown[max(sizes)] / held[max(sizes)]),
        "stated_bytes_per_pattern": round(stated[max(sizes)] / held[max(sizes)]),
    }


def kill(after: float) -> float:
    """Kill a process that remembers; return from how many seconds before the kill on anything was lost."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "tests.support.remembering", directory, "1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            time.sleep(after)
            killed = time.monotonic()
            process.kill()
            lines += process.stdout.readlines()
        moments = {int(line.split()[1]): float(line.split()[2]) for line in lines if line.startswith("r ")}
        found = set(left(Path(directory), max(moments)))
    lost = [moment for number, moment in moments.items() if number not in found]
    return max(0.0, killed - min(lost, default=killed))


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="how many patterns, with commas")
    parser.add_argument("--runs", type=int, help="times that each size is measured")
    parser.add_argument("--kills", type=int, help="processes that are killed")
    parser.add_argument("--quick", action="store_true", help="fewer runs and kills")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    arguments = parser.parse_args()
    runs = arguments.runs or (QUICK_RUNS if arguments.quick else RUNS)
    kills = (QUICK_KILLS if arguments.quick else KILLS) if arguments.kills is None else arguments.kills
    found = measure(tuple(int(size) for size in arguments.sizes.split(",")), runs)
    draw = random.Random(2)
    lost = [kill(draw.uniform(0.1, 2.5)) for _ in range(kills)]
    found |= {"kills": kills, "lost_s_max": round(max(lost, default=0.0), 3)}
    if arguments.json:
        print(json.dumps({"name": "memory", "machine": describe(), "runs": runs, **found}))
    else:
        print(f"MNEMONIC's memory, medians of {runs} runs, {describe()['cpu']}")
        for size, recall in found["recall_us"].items():
            print(f"  {size:>8} patterns  recall {recall:5.2f} us  insert {found['insert_us'][size]:5.2f} us")
        print(f"  ratio {found['ratio']} (recall {found['recall_ratio']}, insert {found['insert_ratio']})")
        told = f"{found['bytes_per_pattern']} bytes a pattern, stated {found['stated_bytes_per_pattern']}"
        print(f"  {told}; {kills} kills lost at most the last {found['lost_s_max']} s")
    return 1 if found["lost_s_max"] > BOUND else 0


if __name__ == "__main__":
    raise SystemExit(main())
