# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames over TCP against WireGuard over UDP: bytes a second and round trips, in one run.

    python -m benchmarks.framed [--seconds S] [--backend B] [--json] [--quick]

Two nodes in namespaces, one cable. A TCP flow of S seconds through the overlay, then 200 pings, by UDP. Then
nftables drops all UDP between the nodes; ``blocked_to_framed_s`` is the time until a ping is answered again.
The same flow and the same pings go by frames. Then UDP passes again, under a ping of 20 a second: ``left_s``
is the time until no WireGuard sends to a local socket, and ``lost`` the pings that were lost meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
from functools import partial

import trio

from benchmarks.machine import describe
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of

PATIENCE = 120.0  # s; a guard
BLOCK = """table inet blocked {
  chain coming { type filter hook input priority -500; iifname != { "lo", "pm*" } udp dport 1-65535 drop; }
  chain going { type filter hook output priority -500; oifname != { "lo", "pm*" } udp dport 1-65535 drop; }
}
"""
SINK = """
import socket, sys, time
connection, _ = socket.create_server((sys.argv[1], 7777)).accept()
count, began = 0, time.monotonic()
while part := connection.recv(1 << 18):
    count += len(part)
print(count / (time.monotonic() - began))
"""
SOURCE = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7777))
end, part = time.monotonic() + float(sys.argv[2]), bytes(1 << 16)
while time.monotonic() < end:
    connection.sendall(part)
"""


def _run(node: LabNode, *command: str, check: bool = True, script: str | None = None) -> str:
    done = subprocess.run(node.inside(command), input=script, text=True, capture_output=True, check=check)
    return done.stdout


def overlay(node: LabNode) -> str:
    """A node's address in the mesh."""
    shown = json.loads(_run(node, "ip", "-4", "-j", "address", "show", "dev", "pm"))
    return str(shown[0]["addr_info"][0]["local"])


def framed(node: LabNode) -> int:
    """How many dimensions of its peer WireGuard sends to a local socket."""
    ends = _run(node, "wg", "show", "all", "endpoints").split()
    return sum(end.startswith("127.0.0.1:") for end in ends)


def flow(nodes: list[LabNode], seconds: float) -> float:
    """MB/s of one TCP flow from the first node to the second."""
    peer = overlay(nodes[1])
    sink = subprocess.Popen(nodes[1].inside(["python3", "-c", SINK, peer]), stdout=subprocess.PIPE, text=True)
    for _ in range(50):
        if ":7777" in _run(nodes[1], "ss", "-Hltn"):
            break
        signal.sigtimedwait([], 0.1)
    _run(nodes[0], "python3", "-c", SOURCE, peer, str(seconds))
    return round(float(sink.communicate(timeout=PATIENCE)[0]) / 1e6, 2)


def pings(nodes: list[LabNode]) -> dict[str, float]:
    """Round trips in ms of 200 pings, 50 a second."""
    shown = _run(nodes[0], "ping", "-q", "-i", "0.02", "-c", "200", overlay(nodes[1]), check=False)
    found = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/", shown)
    loss = re.search(r"([\d.]+)% packet loss", shown)
    least, mean, most = map(float, found.groups()) if found else (0.0, 0.0, 0.0)
    return {"least": least, "mean": mean, "most": most, "loss_percent": float(loss[1]) if loss else 100.0}


def _answered(nodes: list[LabNode], peer: str) -> bool:
    return " 1 received" in _run(nodes[0], "ping", "-q", "-c", "1", "-W", "1", peer, check=False)


def _ping(node: LabNode, peer: str) -> subprocess.Popen[str]:
    return subprocess.Popen(node.inside(["ping", "-i", "0.05", peer]), stdout=subprocess.PIPE, text=True)


async def _until(seen: partial[bool]) -> float:
    began = trio.current_time()
    with trio.fail_after(PATIENCE):
        while not await trio.to_thread.run_sync(seen):  # noqa: ASYNC110  # another process is watched
            await trio.sleep(0.1)
    return round(trio.current_time() - began, 1)


async def measure(backend: str, seconds: float) -> dict[str, object]:
    """One run."""
    spec = LabSpec(f"b{os.getpid()}", nodes=2, uplinks=1, backend=backend, patience_s=PATIENCE)
    async with up.running(spec):
        nodes = list(nodes_of(spec))
        peer = overlay(nodes[1])
        found: dict[str, object] = {"udp_mb_s": flow(nodes, seconds), "udp_ping_ms": pings(nodes)}
        for node in nodes:
            _run(node, "nft", "-f", "-", script=BLOCK)
        found["blocked_to_framed_s"] = await _until(partial(_answered, nodes, peer))
        await _until(partial(lambda: all(framed(node) == 7 for node in nodes)))
        await trio.sleep(5.0)
        found |= {"framed_mb_s": flow(nodes, seconds), "framed_ping_ms": pings(nodes)}
        ping = _ping(nodes[0], peer)
        for node in nodes:
            _run(node, "nft", "delete table inet blocked")
        found["left_s"] = await _until(partial(lambda: not any(framed(node) for node in nodes)))
        ping.send_signal(signal.SIGINT)
        shown = re.search(r"(\d+) packets transmitted, (\d+) received", ping.communicate()[0])
        found["lost"] = None if shown is None else int(shown[1]) - int(shown[2])
        return found


def main() -> None:
    """Run it, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found = trio.run(measure, options.backend, 3.0 if options.quick else options.seconds)
    if options.json:
        print(json.dumps({"machine": describe(), **found}))
        return
    print(describe())
    for name, value in found.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
