# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that moves: how soon its peers' WireGuard sends to the new place, and what is lost until then.

    python -m benchmarks.moving [--rounds N] [--case CASE] [--json] [--quick]

Three nodes ping each other every 10 ms over the overlay. ``one``: the address of one of three uplinks of
node 2 changes. ``only``: the only uplink's address changes. ``roam``: the only uplink goes, and another one
in another network comes. ``pulled``: one of three uplinks goes and stays away. ``both``: the only uplinks of
nodes 2 and 3 get another address at one moment. ``sleep``: the processes of node 2 stand still, and its
address is another afterwards.

``pings_s`` is the longest time between two answered pings of the flows of the node, ``peers_s`` the time
until no other node's WireGuard sends to the old address, ``record_s`` the time until the node's record does
not name it. Userspace WireGuard only: its sockets are read.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.dimensions import interface_names
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import converged, flows_between
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Traffic, open_traffic

PING = 0.01  # s
WATCH = 12.0  # s that a move is watched at least
PATIENCE = 60.0  # s
LOOK = 0.05  # s between looks at WireGuard
SLEEP = 70.0  # s; sessions of WireGuard are renewed after 120 s, and no NAT is between
CASES = ("one", "only", "roam", "pulled", "both", "sleep")


@dataclass(frozen=True, slots=True)
class Move:
    """One move, in seconds; -1: not within `PATIENCE`."""

    case: str
    pings_s: float
    peers_s: float
    record_s: float
    lost: int


def ip(node: LabNode, *words: str) -> None:
    """Run ``ip`` in a node's namespace."""
    subprocess.run(["ip", "-n", node.name, *words], check=True, capture_output=True)


def hosts(node: LabNode) -> dict[tuple[str, str], str]:
    """The host of each endpoint of a node's WireGuard, by interface and peer."""
    found = dict[tuple[str, str], str]()
    for name in interface_names("pm"):
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(5.0)
            asked.connect(str(node.wireguard_sockets / f"{name}.sock"))
            asked.sendall(b"get=1\n\n")
            said = b""
            while not said.endswith(b"\n\n"):
                said += asked.recv(65536)
        peer = ""
        for line in said.decode().splitlines():
            key, _, value = line.partition("=")
            if key == "public_key":
                peer = value
            elif key == "endpoint":
                found[name, peer] = value.rpartition(":")[0]
    return found


def move(case: str, moved: Sequence[LabNode], turn: int) -> set[str]:
    """Move; return the addresses that are gone."""
    gone = set[str]()
    if case == "roam":
        for node in moved:
            here, there = turn % 2, 1 - turn % 2
            ip(node, "link", "set", f"up{here}", "down")
            ip(node, "link", "set", f"up{there}", "up")
            gone.add(node.address(here))
        return gone
    for node in moved:
        up0 = node.address(0)
        old, new = (up0, up0 + "0") if turn % 2 == 0 else (up0 + "0", up0)
        if case == "pulled":
            ip(node, "link", "set", "up0", "down" if turn % 2 == 0 else "up")
            gone |= {up0} if turn % 2 == 0 else set()
            continue
        ip(node, "address", "del", f"{old}/24", "dev", "up0")
        ip(node, "address", "add", f"{new}/24", "dev", "up0")
        gone.add(old)
    return gone


async def once(case: str, nodes: Sequence[LabNode], traffic: Traffic, turn: int) -> Move:
    """One move, watched."""
    moved = [nodes[1], nodes[2]] if case == "both" else [nodes[1]]
    mine = [f for f in traffic.flows if {f.source, f.target} & {m.name for m in moved}]
    for flow in mine:
        flow.silence_s = 0.0
        flow.pending.clear()
    pids = list[int]()
    if case == "sleep":
        pids = net.processes_in([moved[0].name])
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(SLEEP)
    gone = move("only" if case == "sleep" else case, moved, turn)
    began = trio.current_time()
    if case == "sleep":
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for flow in mine:
            flow.silence_s = 0.0
            flow.pending.clear()
            flow.last_answered = began
    peers_s = record_s = -1.0
    others = [node for node in nodes if node not in moved or len(moved) > 1]
    while (now := trio.current_time() - began) < PATIENCE:
        if peers_s < 0:
            seen = [await trio.to_thread.run_sync(hosts, node) for node in others]
            if not any(host in gone for found in seen for host in found.values()):
                peers_s = trio.current_time() - began
        if record_s < 0:
            try:
                stands = [await trio.to_thread.run_sync(NodeClient(node.socket).status) for node in moved]
                places = {c.endpoint.rpartition(":")[0] for s in stands for c in s.whereabouts.candidates}
                if not places & gone:
                    record_s = trio.current_time() - began
            except PhantomMeshError:
                pass
        if now > WATCH and peers_s >= 0 and record_s >= 0:
            break
        await trio.sleep(LOOK)
    end = trio.current_time()
    lost = sum(at < end - 1.0 for flow in mine for at in flow.pending.values())
    silence = max(max(flow.silence_s, end - flow.last_answered) for flow in mine)
    return Move(case, silence, peers_s, record_s, lost)


async def measure(case: str, rounds: int) -> list[Move]:
    """Make a lab and move ``rounds`` times."""
    few = 1 if case in ("only", "both", "sleep") else 3
    spec = LabSpec(f"mv{os.getpid()}", nodes=3, uplinks=few, backend="userspace", patience_s=120.0)
    if case == "roam":
        spec = replace(spec, uplinks=2)
    spec = replace(spec, named=False)  # else the operator's word, which no move changes, comes first
    found = []
    async with up.running(spec):
        nodes = list(nodes_of(spec))
        if case == "roam":
            ip(nodes[1], "link", "set", "up1", "down")
            await trio.sleep(20)
        async with open_traffic(await flows_between(nodes), PING) as traffic:
            await trio.sleep(8.0)
            for turn in range(rounds):
                found.append(await once(case, nodes, traffic, turn))
                print(found[-1], file=sys.stderr, flush=True)
                await trio.sleep(15.0)
                if case != "roam":
                    await converged(nodes, PATIENCE)
        if os.environ.get("KEEP_LOGS"):
            for node in nodes:
                print(f"==== {node.name}\n", node.log.read_text()[-12000:], file=sys.stderr)
    return found


def main() -> None:
    """Print one line a move; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.moving")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two moves of each but sleep")
    given = parser.parse_args()
    moves = list[Move]()
    try:
        for case in given.case or (CASES[:-1] if given.quick else CASES):
            moves += trio.run(measure, case, 2 if given.quick else given.rounds)
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    for one in moves:
        print(
            f"{one.case}: pings after {one.pings_s:.2f} s, at the peers after {one.peers_s:.2f} s, "
            f"in the record after {one.record_s:.2f} s; {one.lost} pings lost"
        )
    if given.json:
        middle = {
            case: round(statistics.median(one.pings_s for one in moves if one.case == case), 3)
            for case in dict.fromkeys(one.case for one in moves)
        }
        runs = [asdict(one) for one in moves]
        print(json.dumps({"name": "moving", "machine": describe(), "runs": runs, "pings_s": middle}))


if __name__ == "__main__":
    main()
