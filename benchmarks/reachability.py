# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pairs of nodes talk, by which way, and how soon: the table of all pairs.

    sudo python -m benchmarks.reachability [--nat KINDS] [--udp-blocked N] [--rounds N] [--pairs] [--json]

A round is a new lab: a public authority, nodes of each kind of NAT (the words of ``lab up --nat``), and nodes
whose UDP is blocked. All pairs ping each other over the overlay. A pair's time runs from the moment when both
have an answer of the authority to its own first answer; it is 0 if the pair was sooner. With the authority
itself it runs from the moment when all nodes were started. *apart*: no answer within ``--patience`` seconds.
*dead*: a node called a member dead whose process ran.

All nodes of a round start at once, so on few cores the times are those of a busy machine. ``--pairs`` builds
a lab for each pair alone instead. ``--quick`` is one round of three kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import msgspec
import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.errors import PhantomMeshError
from phantommesh.management.views import Event, PathView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import flows_between
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, Traffic, open_traffic
from phantommesh.nursery.lab.underlay import PUBLIC, Underlay, parse_nat

KINDS = "public,preserve,preserve-drop,random,random-drop,double,preserve+2"
QUICK = "public,preserve,random-drop"
PING_EVERY_S = 0.2
BLOCKED = "udp blocked"


@dataclass(slots=True)
class Pair:
    """All rounds of pairs of two kinds. ``times`` are in seconds; ``ways`` counts dimensions."""

    times: list[float] = field(default_factory=list)
    apart: int = 0
    ways: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Table:
    """What was seen in all rounds, by the kinds of the two nodes, in the order of their first round."""

    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    called_dead: list[str] = field(default_factory=list)
    rounds: int = 0


def kind_of(spec: LabSpec, node: LabNode) -> str:
    """A node's kind in the table: nodes behind one NAT have a kind of their own."""
    words = spec.underlay.describe(node.number, spec.nodes)
    numbers = next(held for _, held in spec.underlay.places(spec.nodes) if node.number in held)
    if len(numbers) > 1:
        words += f", shared by {numbers[0]}" if spec.nodes > 99 else ", shared"
    return "authority" if node.number == 1 else words.removeprefix(f"{PUBLIC}, ")


async def watch(flow: Flow, traffic: Traffic, first: dict[tuple[str, str], float]) -> None:
    """Note when a pair answers for the first time."""
    await traffic.wait_answered(flow, -1.0)
    first[flow.source, flow.target] = trio.current_time()


def ways_of(node: LabNode) -> dict[str, Counter[str]]:
    """By how many dimensions a node reaches its peers by which way."""
    found: dict[str, Counter[str]] = {}
    for view in NodeClient(node.socket, timeout=30.0).get_all("/v1/paths", PathView):
        if view.state == "up":
            found.setdefault(view.peer, Counter())[view.way] += 1
    return found


def deaths(node: LabNode) -> list[str]:
    """The members that a node called dead."""
    events = NodeClient(node.socket, timeout=30.0).get_all("/v1/events", Event)
    return [
        f"{node.name} called {event.node} dead at {event.time}"
        for event in events
        if event.type == "peer.dead"
    ]


async def round_of(
    spec: LabSpec,
    patience: float,
    table: Table,
    wanted: Sequence[tuple[int, int]] | None,
    logs: Path | None,
) -> None:
    """Build the lab of one round, wait for its pairs, and write them into the table."""
    nodes = nodes_of(spec)
    by_name = {node.name: node for node in nodes}
    first: dict[tuple[str, str], float] = {}
    async with up.running(spec, partial(print, file=sys.stderr), pairs=False):
        began = trio.current_time()
        flows = await patient_flows(nodes, patience)
        async with open_traffic(flows, PING_EVERY_S) as traffic:
            with trio.move_on_after(patience):
                async with trio.open_nursery() as nursery:
                    for flow in flows:
                        nursery.start_soon(watch, flow, traffic, first)
            await trio.sleep(1.0)  # so that probes say which way it is
            linked = {node.name: first.get((nodes[0].name, node.name)) for node in nodes[1:]}
            linked[nodes[0].name] = began
            ways: dict[str, dict[str, Counter[str]]] = {}
            for flow in flows:
                ends = by_name[flow.source], by_name[flow.target]
                if wanted is not None and (ends[0].number, ends[1].number) not in wanted:
                    continue
                a, b = sorted(
                    (kind_of(spec, end) for end in ends), key=lambda kind: (kind != "authority", kind)
                )
                pair = table.pairs.setdefault((a, b), Pair())
                answered = first.get((flow.source, flow.target))
                starts = [linked[end.name] for end in ends]
                if answered is None:
                    pair.apart += 1
                    print(f"apart: {flow.source} and {flow.target} ({a}, {b})", file=sys.stderr)
                else:
                    pair.times.append(
                        max(0.0, answered - max(began if start is None else start for start in starts))
                    )
                if flow.source not in ways:
                    ways[flow.source] = await trio.to_thread.run_sync(ways_of, ends[0])
                pair.ways += ways[flow.source].get(flow.target, Counter())
        if logs is not None:
            await trio.to_thread.run_sync(keep, nodes, logs)
        for node in nodes:
            table.called_dead += await trio.to_thread.run_sync(deaths, node)
    table.rounds += 1


def keep(nodes: Sequence[LabNode], logs: Path) -> None:
    """Leave what the nodes logged and what they say of their paths and peers in a directory."""
    logs.mkdir(parents=True, exist_ok=True)
    for node in nodes:
        shutil.copy(node.log, logs)
        for what in ("paths", "peers", "events"):
            found: list[dict[str, Any]] = NodeClient(node.socket, timeout=30.0).get_all(f"/v1/{what}", dict)
            (logs / f"{node.name}.{what}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))


async def patient_flows(nodes: Sequence[LabNode], patience: float) -> list[Flow]:
    """The pings between all pairs, as soon as every node's API answers."""
    with trio.fail_after(patience):
        while True:
            try:
                return await flows_between(nodes)
            except PhantomMeshError:
                await trio.sleep(0.1)


def labs(given: argparse.Namespace) -> list[tuple[LabSpec, Sequence[tuple[int, int]] | None]]:
    """The labs of one round, with the pairs that count in each (None: all)."""

    def spec(nat: str, blocked: tuple[int, ...], nodes: int) -> LabSpec:
        underlay = Underlay(nat=parse_nat(nat), no_udp=blocked or None)
        return LabSpec(f"re{os.getpid()}", nodes, given.uplinks, given.backend, underlay=underlay)

    if not given.pairs:
        blocked, nat = given.udp_blocked, given.nat + ",public" * given.udp_blocked
        nodes = Underlay(nat=parse_nat(nat)).wanted_nodes()
        return [(spec(nat, tuple(range(nodes - blocked + 1, nodes + 1)), nodes), None)]
    found: list[tuple[LabSpec, Sequence[tuple[int, int]] | None]] = []
    kinds = [*dict.fromkeys(kind for kind in given.nat.split(",") if "+" not in kind)]
    for a, b in combinations_with_replacement([*kinds, *([BLOCKED] if given.udp_blocked else [])], 2):
        hidden = tuple(number for number, kind in ((2, a), (3, b)) if kind == BLOCKED)
        nat = ",".join(PUBLIC if kind == BLOCKED else kind for kind in (a, b))
        found.append((spec(nat, hidden, 3), [(2, 3)]))
    found += [(spec(kind, (), 3), [(2, 3)]) for kind in given.nat.split(",") if "+" in kind]
    return found


def markdown(table: Table, patience: float) -> str:
    """The table of all pairs."""
    lines = [
        "| pair | first answer, s: median (worst) | apart | ways of the dimensions that are up |",
        "|---|---|---|---|",
    ]
    for (a, b), pair in sorted(table.pairs.items()):
        total = len(pair.times) + pair.apart
        times = f"{statistics.median(pair.times):.1f} ({max(pair.times):.1f})" if pair.times else "none"
        ways = ", ".join(f"{way} {count}" for way, count in pair.ways.most_common()) or "none"
        lines.append(f"| {a} - {b} | {times} | {pair.apart} of {total} | {ways} |")
    apart = sum(pair.apart for pair in table.pairs.values())
    dead, machine = len(table.called_dead), describe()
    lines += [
        "",
        f"{table.rounds} labs; {apart} apart for {patience:g} s; {dead} called dead who ran.",
        *(f"- {line}" for line in table.called_dead),
        f"`python -m benchmarks.reachability {' '.join(sys.argv[1:])}`",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['kernel']}",
    ]
    return "\n".join(lines)


async def measure(given: argparse.Namespace) -> Table:
    """Do all rounds. A lab that does not come up is said and counted by nobody."""
    table = Table()
    for number in range(given.rounds):
        for spec, wanted in labs(given):
            try:
                await round_of(spec, given.patience, table, wanted, given.logs)
            except (LabError, trio.TooSlowError) as error:
                print(f"round {number + 1}: no lab: {error}", file=sys.stderr)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nat", default="")
    parser.add_argument("--udp-blocked", type=int, default=-1, metavar="NODES")
    parser.add_argument("--pairs", action="store_true", help="a lab for each pair alone")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="a directory for what the nodes logged, of the last lab")
    parser.add_argument("--uplinks", type=int, default=1)
    parser.add_argument("--patience", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--backend", choices=("auto", "kernel", "userspace"), default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.nat = given.nat or (QUICK if given.quick else KINDS)
    given.rounds = given.rounds or (1 if given.quick else 5)
    given.udp_blocked = given.udp_blocked if given.udp_blocked >= 0 else int(not given.quick)
    table = trio.run(measure, given)
    if given.json:
        print(json.dumps({"machine": describe(), **msgspec.to_builtins(plain(table))}))
    else:
        print(markdown(table, given.patience))
    sys.exit(bool(table.called_dead or any(pair.apart for pair in table.pairs.values()) or not table.rounds))


def plain(table: Table) -> dict[str, Any]:
    """The table as JSON has it."""
    return {
        "rounds": table.rounds,
        "called_dead": table.called_dead,
        "pairs": [
            {"a": a, "b": b, "times_s": pair.times, "apart": pair.apart, "ways": dict(pair.ways)}
            for (a, b), pair in sorted(table.pairs.items())
        ],
    }


if __name__ == "__main__":
    main()
