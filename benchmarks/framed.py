# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames over TCP against WireGuard over UDP and against one plain TCP connection: bytes a second and round
trips, in one run.

    python -m benchmarks.framed --turns
    python -m benchmarks.framed [--seconds S] [--rate MBIT] [--nodes N] [--burn K] [--backend B] [--json]
                                [--quick]

Nodes in namespaces, one cable. For UDP and then for frames: a TCP flow of S seconds from node 1 to node 2
through the overlay, 200 pings without a flow, and 200 during one. ``plain_mb_s`` is the flow beside the
overlay. ``shaped`` has the same for frames, and the plain flow, where both nodes send at no more than MBIT
(``tc tbf``).

nftables drops all UDP of node 1 under a ping of 100 a second: ``blocked_gap_s`` is the longest time without
an answer. Then UDP passes again under the same ping: ``left_s`` is the time until no WireGuard sends to a
local socket, and ``lost`` the pings that were lost until 5 s later.

``--turns`` measures none of that, and needs no root: 140 small batches a second, for 8 s, to a receiver whose
event loop has turns of 20 ms. It prints how many came, and how long the last 50 took.

``starved_ping_ms``: with N nodes, and K processes a core that do nothing but compute, the round trips from
node 1, whose UDP is blocked, to all others at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import trio

from benchmarks.machine import describe
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.sockets.framing import FramedStream
from phantommesh.routing.frames import GOSSIP, frame
from phantommesh.trust.identity import NodeId
from tests.nursery.dataplane.test_framed import alone

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
    """MB/s of one TCP flow through the overlay from the first node to the second."""
    return _flow(nodes, overlay(nodes[1]), seconds)


def _flow(nodes: list[LabNode], peer: str, seconds: float) -> float:
    sink = subprocess.Popen(nodes[1].inside(["python3", "-c", SINK, peer]), stdout=subprocess.PIPE, text=True)
    for _ in range(50):
        if ":7777" in _run(nodes[1], "ss", "-Hltn"):
            break
        signal.sigtimedwait([], 0.1)
    _run(nodes[0], "python3", "-c", SOURCE, peer, str(seconds))
    return round(float(sink.communicate(timeout=PATIENCE)[0]) / 1e6, 2)


def flow_beside(nodes: list[LabNode], seconds: float) -> float:
    """MB/s of one TCP flow that takes no tunnel."""
    return _flow(nodes, nodes[1].address(0), seconds)


def pings(node: LabNode, peer: str, count: int = 200) -> dict[str, float]:
    """Round trips in ms of so many pings, 50 a second."""
    command = ("ping", "-i", "0.02", "-c", str(count), "-W", "2", peer)
    shown = _run(node, *command, check=False)
    times = sorted(float(found) for found in re.findall(r"time=([\d.]+) ms", shown))
    if not times:
        return {"median": 0.0, "p95": 0.0, "most": 0.0, "lost": count}
    at = times[len(times) // 2], times[len(times) * 95 // 100], times[-1]
    return dict(zip(("median", "p95", "most", "lost"), (*at, count - len(times)), strict=True))


async def under_load(nodes: list[LabNode], seconds: float) -> dict[str, object]:
    """A flow, pings without one, and pings during one."""
    peer, during = overlay(nodes[1]), dict[str, float]()
    idle = await trio.to_thread.run_sync(pings, nodes[0], peer)

    async def ping() -> None:
        await trio.sleep(1.0)
        during.update(await trio.to_thread.run_sync(pings, nodes[0], peer, int((seconds - 2.0) * 50)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping)
        speed = await trio.to_thread.run_sync(flow, nodes, seconds)
    ratio = round(during["median"] / idle["median"], 1) if idle["median"] else None
    return {"mb_s": speed, "idle_ms": idle, "loaded_ms": during, "loaded_to_idle": ratio}


def shape(nodes: list[LabNode], mbit: float | None) -> None:
    """Have nodes send at no more than so many Mbit/s, with 50 ms of queue; None: as fast as they can."""
    for node in nodes:
        what = ("del", "root") if mbit is None else (
            "replace", "root", "tbf", "rate", f"{mbit}mbit", "burst", "32k", "latency", "50ms",
        )  # fmt: skip
        _run(node, "tc", "qdisc", what[0], "dev", "up0", *what[1:])


def _answered(nodes: list[LabNode], peer: str) -> bool:
    return " 1 received" in _run(nodes[0], "ping", "-q", "-c", "1", "-W", "1", peer, check=False)


def _ping(node: LabNode, peer: str) -> subprocess.Popen[str]:
    return subprocess.Popen(node.inside(["ping", "-i", "0.01", peer]), stdout=subprocess.PIPE, text=True)


def _gaps(ping: subprocess.Popen[str]) -> tuple[int, int]:
    """End a ping: how many were lost, and the most in a row."""
    ping.send_signal(signal.SIGINT)
    said = ping.communicate()[0]
    came = sorted({int(number) for number in re.findall(r"icmp_seq=(\d+) ", said)})
    sent = re.search(r"(\d+) packets transmitted", said)
    ends = [0, *came, 1 + (int(sent[1]) if sent else 0)]
    runs = [after - before - 1 for before, after in pairwise(ends)]
    # The last one may have been under way still.
    runs[-1] = max(0, runs[-1] - 1)
    return sum(runs), max(runs)


async def _until(seen: partial[bool]) -> float:
    began = trio.current_time()
    with trio.fail_after(PATIENCE):
        while not await trio.to_thread.run_sync(seen):  # noqa: ASYNC110  # another process is watched
            await trio.sleep(0.1)
    return round(trio.current_time() - began, 1)


async def measure(backend: str, seconds: float, rate: float, nodes: int, burn: int) -> dict[str, object]:
    """One run."""
    spec = LabSpec(f"b{os.getpid()}", nodes=nodes, uplinks=1, backend=backend, patience_s=PATIENCE)
    async with up.running(spec):
        all_nodes = list(nodes_of(spec))
        first, pair = all_nodes[0], all_nodes[:2]
        peer = overlay(all_nodes[1])
        found: dict[str, object] = {"plain_mb_s": await trio.to_thread.run_sync(flow_beside, pair, seconds)}
        found["udp"] = await under_load(pair, seconds)
        ping = _ping(first, peer)
        await trio.sleep(1.0)
        _run(first, "nft", "-f", "-", script=BLOCK)
        await trio.sleep(0.5)
        await _until(partial(_answered, pair, peer))
        await _until(partial(lambda: framed(first) == 7 * (nodes - 1)))
        await trio.sleep(2.0)
        found["blocked_gap_s"] = round(_gaps(ping)[1] * 0.01, 2)
        found["framed"] = await under_load(pair, seconds)
        shape(pair, rate)
        found["shaped"] = {
            "mbit_s": rate,
            "plain_mb_s": await trio.to_thread.run_sync(flow_beside, pair, seconds),
            **await under_load(pair, seconds),
        }
        shape(pair, None)
        if burn:
            found["starved_ping_ms"] = await starved(all_nodes, burn)
        ping = _ping(first, peer)
        await trio.sleep(1.0)
        _run(first, "nft", "delete table inet blocked")
        found["left_s"] = await _until(partial(lambda: not any(framed(node) for node in all_nodes)))
        await trio.sleep(5.0)
        found["lost"] = _gaps(ping)[0]
        return found


def _burner() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["python3", "-c", "while True: pass"])


async def starved(nodes: list[LabNode], burn: int) -> dict[str, object]:
    """Round trips to all others while processes take all there is of the processors."""
    told = dict[str, object]()
    burners = [_burner() for _ in range(burn * (os.cpu_count() or 1))]

    async def ping(node: LabNode) -> None:
        told[node.name] = await trio.to_thread.run_sync(pings, nodes[0], overlay(node), 500)

    try:
        await trio.sleep(2.0)
        async with trio.open_nursery() as nursery:
            for node in nodes[1:]:
                nursery.start_soon(ping, node)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    return told


async def turns() -> dict[str, float]:
    """See ``--turns``."""
    ages, count, at = list[float](), 140 * 8, struct.Struct("d")
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    out = socket.create_connection(listener.socket.getsockname())
    out.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    framed = FramedStream(await listener.accept())
    framed.hold_little()

    def feed() -> None:
        with suppress(OSError):
            for _ in range(count):
                batch = frame(GOSSIP, at.pack(time.monotonic()))
                out.sendall(len(batch).to_bytes(4) + batch)
                time.sleep(1 / 140)

    driver = alone(range(7), [])
    driver._gossip = cast(
        "Any",
        SimpleNamespace(receive_framed=lambda sent, *_: ages.append(time.monotonic() - at.unpack(sent)[0])),
    )
    line = SimpleNamespace(framed=framed, sealed=SimpleNamespace(open=lambda batch: batch), address=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver._receive, NodeId(bytes(16)), cast("Any", line))
        threading.Thread(target=feed, daemon=True).start()
        end = time.monotonic() + 8.0
        while time.monotonic() < end:
            time.sleep(0.02)  # noqa: ASYNC251  # this is the load
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    last = sorted(ages[-50:])
    return {
        "taken": len(ages),
        "of": count,
        "median_ms": round(last[25] * 1e3),
        "most_ms": round(last[-1] * 1e3),
    }


def main() -> None:
    """Run it, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--burn", type=int, default=0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--turns", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    seconds = 4.0 if options.quick else options.seconds
    found: dict[str, object] = {}
    if options.turns:
        found |= trio.run(turns)
    else:
        found = trio.run(measure, options.backend, seconds, options.rate, options.nodes, options.burn)
    if options.json:
        print(json.dumps({"machine": describe(), **found}))
        return
    print(describe())
    for name, value in found.items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
