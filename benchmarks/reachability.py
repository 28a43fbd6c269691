# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pairs of nodes talk, by which way, and how soon: the table of all pairs.

    sudo python -m benchmarks.reachability [--nat KINDS] [--udp-blocked N] [--rounds N] [--restarts N]
        [--forget] [--pairs] [--json]

A round is a new lab: a public authority, nodes of each kind of NAT (the words of ``lab up --nat``), and
nodes whose UDP is blocked. All pairs ping each other over the overlay. Two times are taken of each pair, both
to its first answer. *started*: from the moment when both have an answer of the authority (0 if the pair was
sooner), or, with the authority itself, when all nodes were started. *keyed*: from the moment when both ends
had finished their first handshake, so that each held the other's record and keys. *apart*: no answer within
``--patience`` seconds. *dead*: a node called a member dead whose process ran.

``--restarts N`` goes on in the same lab, N times: one node loses its power (all of its processes and
interfaces), is started anew, and all pairs that it is in are measured: *started* is the start of its process
then. The nodes take turns. With ``--forget`` the NATs before it forget all mappings meanwhile.

All nodes of a lab start at once, so on few cores the times are those of a busy machine. ``--pairs`` builds
a lab for each pair alone instead. ``--quick`` is one round of three kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import trio
from pyroute2 import netns

from benchmarks.machine import describe
from benchmarks.reachtable import Pair, Table, markdown, plain
from phantommesh.client.http import NodeClient
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.management.views import Event, PathView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import crash, flows_between, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, Traffic, open_traffic
from phantommesh.nursery.lab.underlay import PUBLIC, Underlay, parse_nat

KINDS = "public,preserve,preserve-drop,random,random-drop,double,preserve+2"
QUICK = "public,preserve,random-drop"
PING_EVERY_S = 0.2
BLOCKED = "udp blocked"
WHOLE_S = 12.0  # that a round waits for all dimensions, once all pairs answer
CALM_S = 3.0  # between two restarts
_NETFILTER, _FORGET = 12, 0x0102  # NETLINK_NETFILTER; IPCTNL_MSG_CT_DELETE of the subsystem CTNETLINK

Kinds = tuple[str, str]


def kind_of(spec: LabSpec, node: LabNode) -> str:
    """A node's kind in the table: nodes behind one NAT have a kind of their own."""
    words = spec.underlay.describe(node.number, spec.nodes)
    numbers = next(held for _, held in spec.underlay.places(spec.nodes) if node.number in held)
    if len(numbers) > 1:
        words += f", shared by {numbers[0]}" if spec.nodes > 99 else ", shared"
    return "authority" if node.number == 1 else words.removeprefix(f"{PUBLIC}, ")


def ways_of(node: LabNode) -> dict[str, Counter[str]]:
    """By how many dimensions a node reaches its peers by which way."""
    found: dict[str, Counter[str]] = {}
    for view in NodeClient(node.socket, timeout=30.0).get_all("/v1/paths", PathView):
        if view.state == "up":
            found.setdefault(view.peer, Counter())[view.way] += 1
    return found


def events_of(node: LabNode) -> list[Event]:
    """All events that a node still has."""
    return NodeClient(node.socket, timeout=30.0).get_all("/v1/events", Event)


def moment(event: Event) -> float:
    """When it happened, in Unix seconds."""
    return datetime.fromisoformat(event.time).timestamp()


def deaths(node: LabNode, after: Mapping[str, float] | None = None) -> list[str]:
    """The members that a node called dead; ``after``: only those named there, and after that Unix time."""
    return [
        f"{node.name} called {event.node} dead at {event.time}"
        for event in events_of(node)
        if event.type == "peer.dead"
        and (after is None or moment(event) > after.get(event.node or "", float("inf")))
    ]


def keyed_at(ends: Sequence[LabNode], after: float) -> float | None:
    """When both ends of a pair had finished a handshake with each other, in Unix seconds, no sooner than
    ``after``."""
    found = []
    for node, peer in (ends, ends[::-1]):
        moments = [moment(e) for e in events_of(node) if e.type == "link.opened" and e.node == peer.name]
        found.append(min((at for at in moments if at >= after), default=None))
    return None if None in found else max(at for at in found if at is not None)


class Lab:
    """One lab under its pings."""

    def __init__(self, spec: LabSpec, given: argparse.Namespace, flows: list[Flow], traffic: Traffic) -> None:
        self._spec, self._given, self._traffic = spec, given, traffic
        self._flows, self._nodes = flows, nodes_of(spec)
        self._by_name = {node.name: node for node in self._nodes}

    async def measure(
        self, into: dict[Kinds, Pair], flows: Sequence[Flow], began: float, linked: bool
    ) -> dict[str, float]:
        """Wait until these flows have an answer that was sent after ``began``, and write them down. Return
        when each answered, in Unix seconds, by the flow's ends. ``linked``: a pair's time runs from its first
        answers of the authority."""
        first: dict[str, float] = {}
        offset = time.time() - trio.current_time()

        async def watch(flow: Flow) -> None:
            await self._traffic.wait_answered(flow, began)
            first[_name(flow)] = trio.current_time()

        with trio.move_on_after(self._given.patience):
            async with trio.open_nursery() as nursery:
                for flow in flows:
                    nursery.start_soon(watch, flow)
        partly, ways = await self._whole([flow for flow in flows if _name(flow) in first])
        for flow in flows:
            ends = self._by_name[flow.source], self._by_name[flow.target]
            a, b = sorted(
                (kind_of(self._spec, end) for end in ends), key=lambda kind: (kind != "authority", kind)
            )
            pair = into.setdefault((a, b), Pair())
            answered = first.get(_name(flow))
            if answered is None:
                pair.apart += 1
                self._say(f"apart: {flow.source} and {flow.target} ({a}, {b})")
                continue
            since = [began]
            if linked:
                since += [first.get(f"{self._nodes[0].name} {end.name}", began) for end in ends]
            pair.started.append(max(0.0, answered - max(since)))
            keyed = await trio.to_thread.run_sync(keyed_at, ends, began + offset - 1.0)
            if keyed is not None:
                pair.keyed.append(max(0.0, answered + offset - keyed))
            pair.partly += _name(flow) in partly
            pair.ways += ways[_name(flow)]
            if pair.started[-1] > self._given.tell or _name(flow) in partly:
                took = f"{pair.started[-1]:.1f} s" + (
                    "" if keyed is None else f", {pair.keyed[-1]:.1f} s keyed"
                )
                self._say(f"{flow.source} and {flow.target} ({a}, {b}): {took}; {dict(ways[_name(flow)])}")
        return {name: at + offset for name, at in first.items()}

    async def _whole(self, flows: Sequence[Flow]) -> tuple[set[str], dict[str, Counter[str]]]:
        """Wait until all dimensions of these are up at both ends. Return those that are not, and the ways."""
        ways: dict[str, Counter[str]] = {}
        partly = set[str]()
        until = trio.current_time() + WHOLE_S
        while True:
            seen = {
                name: await trio.to_thread.run_sync(ways_of, self._by_name[name])
                for name in {end for flow in flows for end in (flow.source, flow.target)}
            }
            partly = set()
            for flow in flows:
                ways[_name(flow)] = here = seen[flow.source].get(flow.target, Counter())
                there = seen[flow.target].get(flow.source, Counter())
                if min(here.total(), there.total()) < DIMENSIONS:
                    partly.add(_name(flow))
            if not partly or trio.current_time() > until:
                return partly, ways
            await trio.sleep(0.5)

    async def restart(self, node: LabNode, table: Table) -> None:
        """Cut a node's power, start it anew, and measure its pairs."""
        await crash(node)
        if self._given.forget:
            for router in self._spec.routers:
                if node.number in router.nodes:
                    await trio.to_thread.run_sync(forget, router.namespace)
        await start(node)
        began = trio.current_time()
        await patient_flows([node], self._given.patience)
        own = [flow for flow in self._flows if node.name in (flow.source, flow.target)]
        answered = await self.measure(table.anew, own, began, linked=False)
        table.restarts += 1
        await trio.sleep(CALM_S)
        for other in self._nodes:
            after = {
                (flow.target if flow.source == other.name else flow.source): answered[_name(flow)]
                for flow in own
                if other.name in (flow.source, flow.target) and _name(flow) in answered
            }
            table.called_dead += await trio.to_thread.run_sync(deaths, other, after)

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _name(flow: Flow) -> str:
    return f"{flow.source} {flow.target}"


def forget(namespace: str) -> None:
    """Have the NAT in a namespace forget all mappings."""
    failed: list[OSError] = []

    def flush() -> None:
        try:
            netns.setns(namespace)  # of this thread alone, which ends right after
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER) as sock:
                flags = 1 | 4  # NLM_F_REQUEST, NLM_F_ACK
                sock.send(struct.pack("=IHHIIBBH", 20, _FORGET, flags, 1, 0, socket.AF_UNSPEC, 0, 0))
                if code := struct.unpack_from("=i", sock.recv(4096), 16)[0]:
                    raise OSError(-code, os.strerror(-code))
        except OSError as error:
            failed.append(error)

    thread = Thread(target=flush)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


async def round_of(
    spec: LabSpec, given: argparse.Namespace, table: Table, wanted: Sequence[tuple[int, int]] | None
) -> None:
    """Build the lab of one round, and write its pairs into the table. Then start nodes anew."""
    nodes = nodes_of(spec)
    async with up.running(spec, partial(print, file=sys.stderr), pairs=False):
        began = trio.current_time()
        flows = await patient_flows(nodes, given.patience)
        async with open_traffic(flows, PING_EVERY_S) as traffic:
            lab = Lab(spec, given, flows, traffic)
            counted = [flow for flow in flows if wanted is None or _numbers(flow) in wanted]
            try:
                if not given.only_restarts:
                    await lab.measure(table.fresh, counted, began, linked=True)
                    table.labs += 1
                    for node in nodes:
                        table.called_dead += await trio.to_thread.run_sync(deaths, node)
                await restarts(lab, nodes, given, table)
            finally:
                if given.logs is not None:
                    with suppress(PhantomMeshError):
                        await trio.to_thread.run_sync(keep, nodes, given.logs)


async def restarts(lab: Lab, nodes: Sequence[LabNode], given: argparse.Namespace, table: Table) -> None:
    """Start one node after the other anew, as often as asked, or until the time is over."""
    until = trio.current_time() + given.seconds
    for turn in range(given.restarts):
        if trio.current_time() > until:
            return
        await lab.restart(nodes[(turn + given.first) % len(nodes)], table)


def _numbers(flow: Flow) -> tuple[int, int]:
    return int(flow.source.rpartition("-")[2]), int(flow.target.rpartition("-")[2])


def keep(nodes: Iterable[LabNode], logs: Path) -> None:
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


async def measure(given: argparse.Namespace) -> Table:
    """Do all rounds. A lab that does not come up is said and counted by nobody."""
    table = Table()
    for number in range(given.rounds):
        for spec, wanted in labs(given):
            try:
                await round_of(spec, given, table, wanted)
            except (LabError, trio.TooSlowError) as error:
                print(f"round {number + 1}: no lab: {error}", file=sys.stderr)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nat", default="")
    parser.add_argument("--udp-blocked", type=int, default=-1, metavar="NODES")
    parser.add_argument("--pairs", action="store_true", help="a lab for each pair alone")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--restarts", type=int, default=0, metavar="NUMBER", help="in each lab")
    parser.add_argument("--first", type=int, default=1, help="the node that is started anew first, from 0 on")
    parser.add_argument("--forget", action="store_true", help="a node's NATs forget all when it loses power")
    parser.add_argument("--only-restarts", action="store_true", help="do not count pairs of the new lab")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no restart after these")
    parser.add_argument(
        "--tell", type=float, default=5.0, metavar="SECONDS", help="name pairs that took longer"
    )
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
        print(markdown(table, given.patience, sys.argv[1:]))
    sys.exit(bool(table.called_dead or table.apart or not table.labs + table.restarts))


if __name__ == "__main__":
    main()
