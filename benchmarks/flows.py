# SPDX-License-Identifier: GPL-3.0-or-later
"""How soon STREAM pins an elephant, and what 50,000 short flows leave behind.

    python -m benchmarks.flows [--runs N] [--short N] [--json] [--quick]

Two real nodes in a lab of seven uplinks, userspace WireGuard. In each run a sender begins a TCP flow of 8
Mbit/s to the other node, from an idle overlay: ``pinned_s`` is the time from its first bytes until the node
has logged that it pins the flow; -1: it did not within 10 s. Then ``short`` UDP flows of one packet
each leave, from as many ports: ``kernel_entries`` is how many elements the kernel's sets of flows and calls
have afterwards at most, ``kernel_most`` what they may have, ``rss_grew_kb`` how much more memory the node's
process has than before, and ``remembered`` how many entries STREAM itself keeps after as many flows in looks
of as many as the kernel gives (in this process, at no node).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import trio

from benchmarks.failover import whole
from benchmarks.machine import describe
from phantommesh.agents.base import Observation
from phantommesh.agents.stream import FlowSeen, Seen, Stream
from phantommesh.config.agents import StreamSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.node.steps import Moment
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import flows_between, pid_file, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.scatter.flows import CALLS, FAMILY, SENT, FlowKey, table_name

PORT = 9100 + 77
WAIT = 10.0  # s
REST = 12.0  # s between two elephants: the pin before has lapsed
SINK = """
import socket, threading
server = socket.create_server(("", %d))
print("listens", flush=True)
def take(peer):
    while peer.recv(1 << 16):
        pass
while True:
    threading.Thread(target=take, args=(server.accept()[0],), daemon=True).start()
"""
ELEPHANT = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as out:
    print("sends", flush=True)
    end, chunk = time.monotonic() + float(sys.argv[3]), bytes(10_000)
    while time.monotonic() < end:
        out.sendall(chunk)
        time.sleep(0.01)
"""
SHORT = """
import socket, sys
for i in range(int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        try:
            out.bind(("", 1024 + i % 60000))
        except OSError:  # another program has this port
            out.bind(("", 0))
        out.sendto(bytes(100), (sys.argv[1], 20000 + i % 20000))
"""


@contextmanager
def running(node: LabNode, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program inside a node, killed at the end."""
    inside = node.inside([sys.executable, "-c", *command])
    with subprocess.Popen(inside, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def pinned(node: LabNode, after: int) -> bool:
    """Whether the node has logged since so many bytes of its log that it pins a flow. The node does so at
    once: what `_agent_response_seconds` counts is milliseconds."""
    said = map(json.loads, node.log.read_bytes()[after:].splitlines())
    return any((one.get("agent"), one.get("action")) == ("stream", "pin") for one in said)


async def elephant(nodes: Sequence[LabNode], to: str) -> float:
    """One elephant from the first node: seconds until it is pinned, or -1."""
    logged = nodes[0].log.stat().st_size
    with running(nodes[0], ELEPHANT, to, str(PORT), str(WAIT)) as sender:
        assert sender.stdout is not None
        await trio.to_thread.run_sync(sender.stdout.readline)
        began = time.monotonic()
        while time.monotonic() < began + WAIT:
            if await trio.to_thread.run_sync(pinned, nodes[0], logged):
                return time.monotonic() - began
            await trio.sleep(0.02)
    return -1.0


def entries(node: LabNode) -> int:
    """The elements of all the kernel's sets of flows and calls."""
    listed = 0
    for name in (*SENT.values(), *CALLS.values()):
        command = ["nft", "-j", "list", "set", FAMILY, table_name("pm"), name]
        done = subprocess.run(node.inside(command), capture_output=True, check=True)
        sets = [one["set"] for one in json.loads(done.stdout)["nftables"] if "set" in one]
        listed += len(sets[0].get("elem", ()))
    return listed


def rss_kb(node: LabNode) -> int:
    """The memory of a node's process that is in RAM."""
    status = Path(f"/proc/{int(pid_file(node).read_text())}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]  # proc(5) always has it


async def short_flows(node: LabNode, to: str, count: int) -> dict[str, int]:
    """Send so many short flows, and see what is kept."""
    before, most = rss_kb(node), 0
    with running(node, SHORT, to, str(count)) as sender:
        while sender.poll() is None:
            most = max(most, await trio.to_thread.run_sync(entries, node))
            await trio.sleep(0.2)
    most = max(most, entries(node))
    await trio.sleep(5.0)
    bound = StreamSection().most_flows * 4
    return {"kernel_entries": most, "kernel_most": bound, "rss_grew_kb": rss_kb(node) - before}


def remembered(count: int) -> int:
    """The entries that STREAM keeps after so many flows, each at one look."""
    agent, most = Stream(), StreamSection().most_flows
    here, there = IPv4Address("100.64.0.1"), IPv4Address("100.64.0.2")
    for look in range(0, count, most):
        keys = [FlowKey(here, there, 17, port % 65536, 9000) for port in range(look, look + most)]
        calls = {FlowKey(here, there, 17, 0, key.source_port): 1 for key in keys}
        seen = Seen([FlowSeen(key, 1, 100) for key in keys], calls)
        list(agent.observe(Observation(Moment(look / most, look / most), seen)))
    return agent.remembered


async def measure(spec: LabSpec, runs: int, short: int) -> dict[str, object]:
    """Make a lab, send elephants and then short flows."""
    async with up.running(spec):
        nodes = list(nodes_of(spec))
        await whole(nodes)
        await flows_between(nodes)
        to = (await view_of(nodes[1])).status.ip4
        times = list[float]()
        with running(nodes[1], SINK % PORT) as sink:
            assert sink.stdout is not None
            await trio.to_thread.run_sync(sink.stdout.readline)
            for i in range(runs):
                if i:
                    await trio.sleep(REST)
                times.append(await elephant(nodes, to))
                print(f"elephant: pinned after {times[-1]:.2f} s", flush=True)
            left = await short_flows(nodes[0], to, short)
    came = [at for at in times if at >= 0]
    return {
        "pinned_s": [round(at, 2) for at in times],
        "pinned_median_s": round(statistics.median(came), 2) if came else None,
        "pinned_within_2_s": sum(at <= 2.0 for at in came),
        "short": short,
        "remembered": remembered(short),
        **left,
    }


def make_spec() -> LabSpec:
    """The lab for `measure`: each dimension has an uplink."""
    return LabSpec(f"flw{os.getpid()}", nodes=2, uplinks=DIMENSIONS, backend="userspace")


def main() -> None:
    """Print a line for each run; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flows")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--short", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one run, 5,000 short flows")
    given = parser.parse_args()
    runs, short = (1, 5_000) if given.quick else (given.runs, given.short)
    try:
        found = trio.run(partial(measure, make_spec(), runs, short))
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    print(json.dumps({"name": "flows", "machine": describe(), **found}) if given.json else found)


if __name__ == "__main__":
    main()
