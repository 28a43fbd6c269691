# SPDX-License-Identifier: GPL-3.0-or-later
"""The API beside a bare hello world, and what many readers of events cost the node.

    python -m benchmarks.api [--seconds S] [--rounds N] [--readers N] [--quick] [--json]

Rounds go to and fro between two processes, each asked over a Unix socket by 8 connections that stay: a real
node of two (over the model of WireGuard, on loopback) for ``GET /v1/status``, and quart-trio on hypercorn
that answers "hello". ``requests_per_s``, ``p50_ms`` and ``p99_ms`` are the node's, medians over the rounds;
``ratio_to_hello_world`` is the median of each round's ratio of requests a second, and ``cpu_ratio`` that of
the processor's time for a request, hello's by the node's, all else that the two nodes do meanwhile included:
it holds where other programs have the processors, too.

Then ``readers`` WebSockets over TLS with a token follow the node's events, half of them without ever
reading, beside 50 clients that send a byte of a request's head a second, while the node has some 20 events a
second. ``lag_p99_ms`` is the upper bound of the bucket of `phantommesh_loop_lag_seconds` that has the 99th
percentile in that time; ``rotation_s`` are medians of ``POST /v1/rotations`` before and meanwhile, of which
``rotations_late`` took more than the 5 s for which the node waits.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.management.views import RotationResult

CONNECTIONS = 8
LORISES = 50
SETTLE = 3.0  # s for the two nodes to link, and for readers to be there
PACE = 0.1  # s between two events of each kind


def serve_hello(path: Path) -> None:
    """Serve the bare application until killed."""
    from hypercorn.config import Config
    from hypercorn.trio import serve
    from quart_trio import QuartTrio

    app = QuartTrio("hello")

    @app.get("/")
    async def hello() -> str:
        return "hello"

    config = Config()
    config.bind = [f"unix:{path}"]
    trio.run(partial(serve, app, config))


def serve_node(at: Path, port: int) -> None:
    """Run two nodes until killed; the first also listens on TCP."""
    from tests.support.loopback import join, make_authority, make_invite, serving

    async def run() -> None:
        state = make_authority(at / "alpha")
        os.environ |= {"PHANTOMMESH_API_LISTEN": f"127.0.0.1:{port}", "PHANTOMMESH_API_TLS": "on"}
        async with serving(at / "alpha"):
            del os.environ["PHANTOMMESH_API_LISTEN"], os.environ["PHANTOMMESH_API_TLS"]
            await join(at / "beta", make_invite(state), "beta")
            async with serving(at / "beta"):
                await trio.sleep_forever()

    trio.run(run)


@contextmanager
def child(*words: str, ready: Callable[[], bool]) -> Iterator[int]:
    """Another process of this program, until the block ends; its id."""
    command = [sys.executable, "-m", "benchmarks.api", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            give_up = time.monotonic() + 120
            while not ready():
                if process.poll() is not None or time.monotonic() > give_up:
                    sys.exit(f"{' '.join(command)} does not serve")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.kill()


async def ask(stream: trio.abc.Stream, request: bytes) -> bytes:
    """Send a request and return its answer, head and body."""
    await stream.send_all(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some(65536) or sys.exit("the server has closed the connection")
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: (\d+)", head)
    assert head.startswith(b"HTTP/1.1 200 ") and length, head
    while len(body) < int(length[1]):
        body += await stream.receive_some(65536)
    return body


async def burst(path: Path, target: str, seconds: float) -> list[float]:
    """Ask over all connections for so long; return the seconds that each request took."""
    request, took = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), list[float]()

    async def one() -> None:
        async with await trio.open_unix_socket(path) as stream:
            while trio.current_time() < over:
                began = time.perf_counter()
                await ask(stream, request)
                took.append(time.perf_counter() - began)

    over = trio.current_time() + seconds
    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(one)
    return took


def worked(pid: int) -> float:
    """The processor's seconds that a process has had, proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def side_by_side(
    node: Path, hello: Path, pids: tuple[int, int], seconds: float, rounds: int
) -> dict[str, Any]:
    """The requests a second of both, to and fro. ``pids``: of the node and of the hello world."""
    ratios, rates, bare, p50, p99 = [], list[float](), list[float](), list[float](), list[float]()
    cpu = list[float]()
    for warm in (True, *(False for _ in range(rounds))):
        before = worked(pids[1])
        theirs = trio.run(burst, hello, "/", 1.0 if warm else seconds)
        hello_s, before = worked(pids[1]) - before, worked(pids[0])
        ours = trio.run(burst, node, "/v1/status", 1.0 if warm else seconds)
        node_s = worked(pids[0]) - before
        if warm:
            continue
        rates.append(len(ours) / seconds)
        bare.append(len(theirs) / seconds)
        ratios.append(len(ours) / len(theirs))
        cpu.append(hello_s / len(theirs) / (node_s / len(ours)))
        cuts = quantiles(ours, n=100)
        p50.append(1000 * cuts[49])
        p99.append(1000 * cuts[98])
    return {
        "requests_per_s": round(median(rates)), "hello_world_per_s": round(median(bare)),
        "ratio_to_hello_world": round(median(ratios), 2), "cpu_ratio": round(median(cpu), 2),
        "p50_ms": round(median(p50), 2),
        "p99_ms": round(median(p99), 2),
    }  # fmt: skip


@dataclass
class Crowd:
    """Clients of the encrypted port. ``heard`` counts the events of those that read."""

    port: int
    token: str
    context: ssl.SSLContext
    heard: list[int] = field(default_factory=list)
    cut: int = 0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect(("127.0.0.1", self.port))
        stream = trio.SSLStream(
            trio.SocketStream(sock), self.context, server_hostname="localhost", https_compatible=True
        )
        try:
            await stream.do_handshake()
            yield stream
        finally:
            await trio.aclose_forcefully(stream)

    async def reader(
        self, *, stalled: bool, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Follow the events; a stalled one never reads past the answer to its upgrade."""
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n"
        )
        async with self.connection() as stream:
            await stream.send_all(head.encode())
            answer = bytes(await stream.receive_some(4096))
            assert answer.startswith(b"HTTP/1.1 101 "), answer
            task_status.started()
            if stalled:
                await trio.sleep_forever()
            heard, count = len(self.heard), 0
            self.heard.append(0)
            while data := await stream.receive_some(65536):
                count += bytes(data).count(b'"seq":')
                self.heard[heard] = count

    async def loris(self) -> None:
        """Send a request's head by the byte, again whenever that is cut."""
        while True:
            try:
                async with self.connection() as stream:
                    for letter in b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000:
                        await stream.send_all(bytes([letter]))
                        await trio.sleep(1.0)
            except (trio.BrokenResourceError, OSError):
                self.cut += 1
                await trio.sleep(0.1)


def lags(client: NodeClient) -> dict[float, float]:
    """How many looks at the event loop found a lag up to each bound, in seconds."""
    text = client.request("GET", "/metrics").decode()
    found = re.findall(r'^phantommesh_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.M)
    return {float(bound): float(count) for bound, count in found}


def rotation(client: NodeClient) -> float:
    """How many seconds a rotation with the other node takes; infinite where the node has told that it goes
    on."""
    began = time.perf_counter()
    result: RotationResult = client.rotate("beta", dry_run=False, idempotency_key=os.urandom(8).hex())
    done = all(one.result == "rotated" for one in result.rotations)
    return time.perf_counter() - began if done else math.inf


async def crowded(at: Path, port: int, readers: int, seconds: float) -> dict[str, Any]:
    """What the node does while many read its events, and some only seem to."""
    client = NodeClient(at / "alpha" / "api.sock", timeout=30.0)
    made = client.make_token(
        scope="read", seconds=3600.0, name="readers", dry_run=False, idempotency_key=os.urandom(8).hex()
    )
    context = ssl.create_default_context(cafile=str(at / "alpha" / "state" / "api.crt"))
    crowd = Crowd(port, made.token or "", context)
    quiet = [await trio.to_thread.run_sync(rotation, client) for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for number in range(readers):
            await nursery.start(partial(crowd.reader, stalled=number % 2 == 1))
        for _ in range(LORISES):
            nursery.start_soon(crowd.loris)
        await trio.sleep(SETTLE)
        before, busy, over = lags(client), list[float](), trio.current_time() + seconds
        while trio.current_time() < over:
            # Each is an event of the agent, and one of the audit trail.
            key = os.urandom(8).hex()
            await trio.to_thread.run_sync(partial(client.pause_agent, "stream", idempotency_key=key))
            await trio.sleep(PACE)
            again = partial(client.resume_agent, "stream", trying=False, idempotency_key=key + "r")
            await trio.to_thread.run_sync(again)
            await trio.sleep(PACE)
            if len(busy) < 5 * (1 - (over - trio.current_time()) / seconds):
                busy.append(await trio.to_thread.run_sync(rotation, client))
        after = await trio.to_thread.run_sync(lags, client)
        found = {
            "readers": readers, "stalled": readers // 2, "lorises": LORISES, "loris_cut": crowd.cut,
            "events_heard_min": min(crowd.heard), "events_heard_max": max(crowd.heard),
        }  # fmt: skip
        nursery.cancel_scope.cancel()
    seen = {bound: after[bound] - before[bound] for bound in after}
    total = max(seen.values())
    p99 = min(bound for bound, count in seen.items() if count >= 0.99 * total)
    return found | {
        "lag_looks": int(total), "lag_p99_ms": round(1000 * p99, 1),
        "rotation_s": {"quiet": round(median(quiet), 3), "crowded": round(median(busy), 3)},
        "rotations": len(quiet) + len(busy), "rotations_late": [*quiet, *busy].count(math.inf),
    }  # fmt: skip


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api")
    parser.add_argument("--seconds", type=float, help="of each round")
    parser.add_argument("--rounds", type=int, help="of the node and of the hello world")
    parser.add_argument("--readers", type=int, default=200, help="WebSockets, half of them stalled")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    parser.add_argument("--hello", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--node", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hello is not None:
        serve_hello(arguments.hello)
    if arguments.node is not None:
        serve_node(arguments.node, arguments.port)
    seconds = arguments.seconds or (2.0 if arguments.quick else 5.0)
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        node, hello = at / "alpha" / "api.sock", at / "hello.sock"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with (
            child("--hello", str(hello), ready=hello.exists) as bare,
            child("--node", str(at), "--port", str(port), ready=(at / "beta" / "api.sock").exists) as pair,
        ):
            time.sleep(SETTLE)
            load = os.getloadavg()[0]
            found = side_by_side(node, hello, (pair, bare), seconds, rounds)
            found |= trio.run(crowded, at, port, arguments.readers, 20.0 if arguments.quick else 60.0)
    document = {
        "name": "api", "machine": describe(), "runs": rounds, "seconds": seconds,
        "load_before": round(load, 1), **found,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(document))
    else:
        for key, value in document.items():
            print(f"{key:22} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
