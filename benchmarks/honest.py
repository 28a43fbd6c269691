# SPDX-License-Identifier: GPL-3.0-or-later
"""Honest nodes in a lab, under TCP load, loss and clocks that are set: does any proof of theirs not hold?

Nodes run with short epochs. TCP goes over the overlay between all pairs. Each node's nftables drops a
share of what comes in from its cables, and the clock of each node's process is set every few seconds. The
lab ends when enough epochs have been signed by both ends; then every node's own file is verified.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio

from phantommesh.client.http import NodeClient
from phantommesh.config.sections import ScatterSection
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.verify import verify
from phantommesh.state.directory import ROOT_CERT, StateDir
from phantommesh.trust.certificates import describe_mesh, load_root

NODES, UPLINKS = 3, 2
NONE_YET = "there are no scatter proofs yet"
LOSS = 0.03
STEP = 10.0  # s: how far a clock is set at most, either way
SET_EVERY = 8.0  # s
PATIENCE = 120.0

SINK = """
import socket, threading
listener = socket.create_server(("0.0.0.0", 5555))
print("up", flush=True)
def take(connection):
    while connection.recv(1 << 20):
        pass
while True:
    threading.Thread(target=take, args=listener.accept()[:1], daemon=True).start()
"""
# Bursts as fast as they go, and pauses; never more than so many bytes a second on the average.
SOURCE = """
import random, socket, sys, time
draw, rate = random.Random(int(sys.argv[3])), float(sys.argv[2])
while True:
    try:
        with socket.create_connection((sys.argv[1], 5555), timeout=10) as connection:
            for _ in range(100):
                burst = int(draw.expovariate(1 / 200_000))
                connection.sendall(bytes(burst))
                time.sleep(burst / rate)
    except OSError:
        time.sleep(1)
"""
# A node's clock is the machine's and a number in a file, which both sides have mapped.
SITE = """
import mmap, os, struct, time
def _set(clock=time.time):
    name = os.path.basename(os.environ.get("PHANTOMMESH_STATE_DIR", ""))
    try:
        with open(os.path.join(os.path.dirname(__file__), name), "rb") as file:
            shown = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return
    time.time = lambda: clock() + struct.unpack("d", shown[:8])[0]
_set()
"""


@contextmanager
def clocks(nodes: Sequence[LabNode]) -> Iterator[dict[str, mmap.mmap]]:
    """Give the nodes that are started in this block clocks that can be set."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        Path(directory, "sitecustomize.py").write_text(SITE, encoding="ascii")
        shown = {}
        for node in nodes:
            path = Path(directory, node.name)
            path.write_bytes(bytes(8))
            file = stack.enter_context(path.open("r+b"))
            shown[node.name] = stack.enter_context(mmap.mmap(file.fileno(), 8))
        os.environ["PYTHONPATH"] = os.pathsep.join([directory, *([before] if before else [])])
        try:
            yield shown
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before


def results(node: LabNode) -> Counter[str]:
    """What the node has counted of its proofs, by result."""
    shown = NodeClient(node.socket).request("GET", "/metrics").decode()
    found = re.findall(r'^phantommesh_scatter_proofs_total\{result="(\w+)"\} ([0-9.e+]+)$', shown, re.M)
    return Counter({name: int(float(value)) for name, value in found})


def verified(node: LabNode) -> list[dict[str, Any]]:
    """Each link of the node's own file; one that does not hold says why."""
    root = load_root(StateDir.open(node.state_dir).read(ROOT_CERT))
    try:
        exported = NodeClient(node.socket, timeout=60.0).request("GET", "/v1/proofs/export")
        report = verify(Archive.decode_untrusted(exported), root_hash=describe_mesh(root).root_hash)
    except PhantomMeshError as error:
        return [] if str(error) == NONE_YET else [{"node": node.name, "error": str(error)}]
    return [
        {"sender": link.sender, "receiver": link.receiver, "countersigned": link.countersigned}
        for link in report.links
    ]


async def measure(
    epochs: int, *, backend: str = "auto", count: int = NODES, epoch_s: float = 4.0, rate: float = 2e6,
    loss: float = LOSS, step: float = STEP, seconds: float = 3600.0,
) -> dict[str, Any]:  # fmt: skip
    """Run until so many epochs have both ends' signatures, or so many seconds have passed."""
    spec = LabSpec(
        f"hon{os.getpid()}", count, UPLINKS, backend,
        scatter=ScatterSection(goal="throughput", epoch_seconds=epoch_s), patience_s=PATIENCE,
    )  # fmt: skip
    nodes, draw, sets = nodes_of(spec), random.Random(1), 0  # no secret
    with clocks(nodes) as shown:
        async with up.running(spec):
            addresses = {node.name: (await view_of(node)).status.ip4 for node in nodes}
            began = trio.current_time()
            with ExitStack() as stack:
                for node in nodes:
                    await trio.run_process(node.inside(["nft", _losing(loss)]))
                    sink = stack.enter_context(_running(node, SINK))
                    assert sink.stdout is not None and sink.stdout.readline() == b"up\n"
                for i, (a, b) in enumerate((a, b) for a in nodes for b in nodes if a != b):
                    stack.enter_context(_running(a, SOURCE, addresses[b.name], str(rate), str(i)))
                counted = Counter[str]()
                while counted["countersigned"] < epochs and trio.current_time() < began + seconds:
                    await trio.sleep(SET_EVERY)
                    if step:
                        node, sets = nodes[sets % len(nodes)], sets + 1
                        shown[node.name][:8] = struct.pack("d", draw.uniform(-step, step))
                    counted = Counter()
                    for node in nodes:
                        counted += await trio.to_thread.run_sync(results, node)
            took = trio.current_time() - began
            links = [link for node in nodes for link in await trio.to_thread.run_sync(verified, node)]
    return {
        "nodes": count, "rate": rate, "seconds": round(took, 1), "epoch_seconds": epoch_s,
        "loss": loss, "clocks_set": sets,
        "results": dict(sorted(counted.items())), "links": links,
        "mismatches": counted["mismatch"], "files_refused": sum("error" in link for link in links),
    }  # fmt: skip


def _losing(loss: float) -> str:
    """Rules that drop a share of the datagrams that come in by the cables."""
    return f"""table inet losing {{
        chain in {{
            type filter hook prerouting priority -400
            iifname "up*" meta l4proto udp numgen random mod 10000 < {round(loss * 10_000)} counter drop
        }}
    }}"""


@contextmanager
def _running(node: LabNode, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = node.inside([sys.executable, "-c", program, *arguments])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def show(found: dict[str, Any]) -> None:
    """Print what `measure` has returned."""
    print(
        f"honest nodes: {found['results'].get('countersigned', 0)} epochs signed by both ends in "
        f"{found['seconds']:g} s, {found['loss']:.0%} lost, clocks set {found['clocks_set']} times: "
        f"{found['mismatches']} mismatches, {found['files_refused']} of {found['nodes']} files refused"
    )
    for name, value in found["results"].items():
        print(f"  {name:>14} {value}")
    for link in found["links"]:
        print("  " + "  ".join(f"{key} {value}" for key, value in link.items()))
