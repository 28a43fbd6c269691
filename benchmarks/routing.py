# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to choose a way and to look at the whole mesh, by the number of members.

    python -m benchmarks.routing --nodes 1000 10000

Per size: the time of one decision (`routing.choice.hop`: direct, or the one relay that costs least, of as
many neighbours as there are members), median and p99, and with the cost of each leg worked out anew; the
same by Dijkstra's algorithm over the graph, once, as the baseline; the time that one answer to a member
takes; and what the analysis of the sampled mesh takes, with how late an event loop beside it wakes, and one
without it. Decisions and answers are counted in the processor time of the thread, the rest by the clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import networkx as nx
import trio

from phantommesh.control import messages
from phantommesh.node.surveying import SALT, answer
from phantommesh.routing.choice import hop, latency
from phantommesh.routing.graph import Station, Survey, analyse
from phantommesh.routing.neighbours import ALL_PAIRS, Link, by_both, share_of
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

DECISIONS = 1_000
ANSWERS = 50
QUIET = 3.0  # s that the event loop is watched without an analysis beside it
TICK = 0.005  # s between two looks at the clock by the event loop


def link(chance: Random) -> Link:
    """A link of some quality."""
    return Link(
        chance.uniform(0.005, 0.2), chance.uniform(0, 0.01), chance.choice((0.0, 0.0, 0.01)), Kind.DIRECT
    )


def node(number: int) -> NodeId:
    """A node id."""
    return NodeId(number.to_bytes(16, "big"))


def decide(nodes: int, chance: Random, *, anew: bool) -> tuple[list[float], float]:
    """Return the seconds of many decisions over so many relays, and those of Dijkstra's algorithm."""
    near = {node(n): link(chance) for n in range(2, nodes)}
    far = {node(n): link(chance) for n in range(2, nodes)}
    here = {relay: latency(one) for relay, one in near.items()}
    there = {relay: latency(one) for relay, one in far.items()}
    took, held = list[float](), None
    for _ in range(DECISIONS if nodes <= 1_000 else DECISIONS // 5):
        direct = link(chance)
        began = time.thread_time()
        if anew:
            here = {relay: latency(one) for relay, one in near.items()}
            there = {relay: latency(one) for relay, one in far.items()}
        held, _ = hop(latency(direct), here, there, held)
        took.append(time.thread_time() - began)
    graph = nx.Graph()
    for relay in near:
        graph.add_edge(node(0), relay, cost=latency(near[relay]))
        graph.add_edge(relay, node(1), cost=latency(far[relay]))
    began = time.thread_time()
    nx.dijkstra_path(graph, node(0), node(1), weight="cost")
    return took, time.thread_time() - began


def whole(nodes: int, chance: Random) -> tuple[Survey, int]:
    """Return a whole mesh as one member's sweep has it, and the bytes of all answers."""
    members = [node(n) for n in range(nodes)]
    salt, share = chance.randbytes(SALT), share_of(nodes)
    words: dict[NodeId, dict[NodeId, Link]] = {member: {} for member in members}
    wanted = nodes * share / ALL_PAIRS / 2
    for one in members:
        # The pairs of the sample: drawn here, as hashing all of 50 million pairs says nothing of a node.
        for two in chance.sample(members, min(nodes - 1, round(wanted))):
            if one != two:
                words[one][two] = words[two][one] = link(chance)
    stations = {
        one: Station(
            f"m{n}", f"region-{n % 3}", relay=n % 50 == 0, places=frozenset([f"192.0.{n // 256}.{n % 256}"])
        )
        for n, one in enumerate(members)
    }
    sent = sum(
        len(
            messages.encode(
                answer(one, words[one].keys(), words[one].get, messages.AskNeighbours(salt, ALL_PAIRS))
            )
        )
        for one in members[:ANSWERS]
    )
    return Survey(stations, words, nodes * share / ALL_PAIRS, 0.0, me=members[0]), sent // min(nodes, ANSWERS)


def answering(nodes: int, chance: Random) -> list[float]:
    """Return the seconds of answers of a member that has a link with all others."""
    links = {node(n): link(chance) for n in range(1, nodes)}
    took = []
    for _ in range(ANSWERS):
        asked = messages.AskNeighbours(chance.randbytes(SALT), share_of(nodes))
        began = time.thread_time()
        answer(node(0), links.keys(), links.get, asked)
        took.append(time.thread_time() - began)
    return took


async def beside(work: Callable[[], object]) -> tuple[float, list[float]]:
    """Work in a thread; return the seconds, and how late a task that ticks was woken meanwhile."""
    late, done = list[float](), trio.Event()

    async def tick() -> None:
        while not done.is_set():
            due = trio.current_time() + TICK
            await trio.sleep_until(due)
            late.append(trio.current_time() - due)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        began = trio.current_time()
        await trio.to_thread.run_sync(work)
        took = trio.current_time() - began
        done.set()
    return took, late


def p99(values: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(values, n=100)[98]


def measure(nodes: int, seed: int) -> dict[str, Any]:
    """Measure one size. Times in milliseconds."""
    chance = Random(seed)  # a benchmark's
    took, dijkstra = decide(nodes, chance, anew=False)
    anew, _ = decide(nodes, chance, anew=True)
    answers = answering(nodes, chance)
    survey, size = whole(nodes, chance)
    analysis, late = trio.run(beside, partial(analyse, survey))
    _, alone = trio.run(beside, partial(time.sleep, QUIET))
    return {
        "nodes": nodes,
        "decision_ms": round(1000 * statistics.median(took), 3),
        "decision_p99_ms": round(1000 * p99(took), 3),
        "with_all_costs_anew_ms": round(1000 * statistics.median(anew), 3),
        "dijkstra_ms": round(1000 * dijkstra, 2),
        "answer_ms": round(1000 * statistics.median(answers), 3),
        "answer_bytes": size,
        "edges": len(by_both(survey.words, survey.stations)),
        "analysis_s": round(analysis, 2),
        "loop_late_ms": round(1000 * statistics.median(late), 2),
        "loop_late_alone_ms": round(1000 * statistics.median(alone), 2),
        "loop_late_p99_ms": round(1000 * p99(late), 2),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(json.dumps({"python": platform.python_version(), "machine": platform.machine()}))
    for nodes in chosen.nodes:
        print(json.dumps(measure(nodes, chosen.seed)), flush=True)


if __name__ == "__main__":
    main()
