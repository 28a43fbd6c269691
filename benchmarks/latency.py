# SPDX-License-Identifier: GPL-3.0-or-later
"""Traffic that waits for answers: how soon it leaves a path that became worse, and what noise does to it.

    python -m benchmarks.latency [--runs N] [--case CASE]... [--noise SECONDS] [--json] [--quick]
    python -m benchmarks.latency --simulated [--runs 100] [--nodes 200] [--noise 600]

Without ``--simulated``: two real nodes in a lab, with userspace WireGuard over seven uplinks, each of which
is a program that delays frames by 5 ms. Pings go by an intent of goal ``latency``, datagrams by another of
goal ``throughput``; the other end's kernel says by which dimension each packet came. Then the path of the
pings gets ``late`` (40 ms more each way), ``lossy`` (nftables drops 5 % each way) or ``one-way`` (5 % on the
way there). ``left_s`` is the time until the last ping on that path came in; -1: they stay. ``stays`` is the
share of the datagrams that came by that path in the 2 s after the change: a seventh is a full share. Before
each run the nodes choose anew, so that no pause from the run before counts. Noise: on all paths one probe in
a thousand is lost there or back, and one in a hundred takes 20 to 300 ms longer; every minute or so a node's
process stands still for 50 to 250 ms. Each move of the pings is a line, and each choice that the node logs.

With ``--simulated``: a node's own `Paths` on a virtual clock (`tests/simulation/latency_sim.py`). Runs of 80
ms more, of 5 % lost each way and one way, and so many nodes in so many seconds of noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import msgspec
import trio
from pyroute2 import netns

from benchmarks.cables import PLENTY
from benchmarks.failover import listen_port, whole
from benchmarks.machine import describe
from phantommesh.config.reading import load
from phantommesh.config.sections import IntentSection
from phantommesh.config.writing import render
from phantommesh.dimensions import DIMENSIONS, interface_names
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import flows_between, kill, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from phantommesh.nursery.lab.routers import port_name
from tests.simulation import latency_scenarios

CASES = ("late", "lossy", "one-way")
PING, DATAGRAM = 0.02, 0.005  # s between two
PORT = 9000
INTENTS = (
    IntentSection("answers", "latency", protocol="icmp"),
    IntentSection("bulk", "throughput", protocol="udp", ports=(PORT,)),
)
DELAY, LATE = 5.0, 40.0  # ms each way
LOSS = 500  # of 10,000
NOISE_LOSS, SPIKES = 0.05, 0.5  # percent of the frames each way
PATIENCE = 60.0  # s
WATCH = 20.0  # s that a path which became worse is watched
CALM = 1.0  # s without a ping on the path before it counts as left
STAYS = 2.0  # s
STALLS = 60.0  # s between two of them, in the mean
SEND = """
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    while True:
        try:
            out.sendto(bytes(200), (sys.argv[1], int(sys.argv[2])))
        except OSError:
            pass
        time.sleep(float(sys.argv[3]))
"""


@dataclass(frozen=True, slots=True)
class Left:
    """One path that became worse."""

    case: str
    left_s: float
    stays: float


class Witness:
    """Reads what comes in by a node's interfaces: moments and dimensions of echo requests, and of datagrams.
    Raises OSError."""

    def __init__(self, node: LabNode, sender: str) -> None:
        self.pings, self.datagrams = list[tuple[float, int]](), list[tuple[float, int]]()
        self._sender = socket.inet_aton(sender)
        self._names = {name: i for i, name in enumerate(interface_names("pm"))}
        self._node, self._ended, self._failed = node, False, list[OSError]()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()

    def _read(self) -> None:
        netns.setns(self._node.name)  # of this thread alone
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as opened:
            opened.settimeout(0.2)
            while not self._ended:
                try:
                    packet, (name, _, kind, *_) = opened.recvfrom(2048)
                except TimeoutError:
                    continue
                dimension = self._names.get(name)
                if dimension is None or kind == socket.PACKET_OUTGOING or packet[12:16] != self._sender:
                    continue
                now = time.monotonic()
                inside = packet[(packet[0] & 15) * 4 :]
                if packet[9] == socket.IPPROTO_ICMP and inside[0] == 8:
                    self.pings.append((now, dimension))
                elif packet[9] == socket.IPPROTO_UDP and int.from_bytes(inside[2:4], "big") == PORT:
                    self.datagrams.append((now, dimension))

    def path(self, seconds: float = 0.5) -> int | None:
        """The dimension of all pings of late; None where there are several, or none came."""
        now = time.monotonic()
        found = {dimension for at, dimension in self.pings[:] if at >= now - seconds}
        return found.pop() if len(found) == 1 else None


class Cables:
    """A program in the place of each cable of the first node: frames take their time. The lab runs."""

    def __init__(self, spec: LabSpec) -> None:
        self._space = f"{spec.name}-net"
        pairs = [f"tn{i}:tf{i}" for i in range(DIMENSIONS)]
        command = ["ip", "netns", "exec", self._space, sys.executable, "-m", "benchmarks.cables", *pairs]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ms, self.noisy = [DELAY] * DIMENSIONS, False
        self._said()
        lines = []
        for i in range(DIMENSIONS):
            lines += [f"link add late{i} type bridge", f"link set late{i} up"]
            lines += [f"link set tn{i} master late{i} up", f"link set tf{i} master seg{i} up"]
            lines += [f"link set {port_name(1, i)} master late{i}"]
        batch = ["ip", "-n", self._space, "-batch", "-"]
        subprocess.run(batch, input="\n".join(lines), text=True, check=True)
        self.shape()

    def _said(self) -> None:
        assert self._program.stdout is not None
        if not self._program.stdout.readline():
            raise RuntimeError("the program that delays frames has ended")

    def shape(self) -> None:
        """Be as `ms` says, by dimension, from now on: ms each way; and as `noisy` says."""
        assert self._program.stdin is not None
        noise = (NOISE_LOSS, PLENTY, SPIKES) if self.noisy else (0, PLENTY, 0)
        shapes = [(ms, 0, *noise) for ms in self.ms]
        print(json.dumps(shapes), file=self._program.stdin, flush=True)
        self._said()

    def close(self) -> None:
        """End the program."""
        self._program.kill()
        self._program.wait()


@contextmanager
def losing(node: LabNode, dimensions: Sequence[int], share: int) -> Iterator[None]:
    """Drop so many of 10,000 of what comes to a node on these dimensions."""
    ports = ", ".join(str(listen_port(node, dimension)) for dimension in dimensions)
    nft = ["ip", "netns", "exec", node.name, "nft", "-f", "-"]
    script = f"""table inet losing {{
        chain in {{
            type filter hook prerouting priority -400
            udp dport {{ {ports} }} numgen random mod 10000 < {share} counter drop
        }}
    }}
    """
    subprocess.run(nft, input=script, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(nft, input="delete table inet losing\n", text=True, check=True)


@contextmanager
def worse(case: str, path: int, nodes: Sequence[LabNode], cables: Cables) -> Iterator[None]:
    """Let a path be worse while the block runs, for what the first node sends at least."""
    if case == "late":
        cables.ms[path] += LATE
        cables.shape()
        try:
            yield
        finally:
            cables.ms[path] -= LATE
            cables.shape()
        return
    with losing(nodes[1], [path], LOSS):
        if case == "one-way":
            yield
        else:
            with losing(nodes[0], [path], LOSS):
                yield


@dataclass(frozen=True, slots=True)
class Scene:
    """Two nodes, the first of which sends pings and datagrams to the second."""

    nodes: Sequence[LabNode]
    cables: Cables
    seen: Witness

    async def settled(self) -> int:
        """Wait until all pings have taken one path for 3 s, and return it."""
        with trio.fail_after(PATIENCE):
            while (path := self.seen.path(3.0)) is None:  # noqa: ASYNC110  # a thread reads
                await trio.sleep(0.1)
        return path

    async def anew(self) -> int:
        """Have the nodes choose anew; return the path that the pings take."""
        for intents in ((), INTENTS):
            for node in self.nodes:
                _configure(node, intents)
                kill(node, signal.SIGHUP)
            await trio.sleep(3.0)
        await whole(self.nodes)
        self.seen.pings.clear()
        self.seen.datagrams.clear()
        return await self.settled()


@contextmanager
def _running(command: Sequence[str]) -> Iterator[None]:
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


def _configure(node: LabNode, intents: tuple[IntentSection, ...]) -> None:
    config = msgspec.structs.replace(load(node.config), intent=intents)
    node.config.write_text(render(config), encoding="ascii")


@asynccontextmanager
async def scene(spec: LabSpec) -> AsyncIterator[Scene]:
    """A lab with both kinds of traffic, slow cables, and all paths up."""
    async with up.running(spec):
        nodes = list(nodes_of(spec))
        cables = Cables(spec)
        try:
            flows = [flow for flow in await flows_between(nodes) if flow.source == nodes[0].name]
            here, there = [(await view_of(node)).status.ip4 for node in nodes]
            async with open_traffic(flows, PING):
                command = [sys.executable, "-c", SEND, there, str(PORT), str(DATAGRAM)]
                with _running(nodes[0].inside(command)), Witness(nodes[1], here) as seen:
                    yield Scene(nodes, cables, seen)
        finally:
            cables.close()


async def once(case: str, place: Scene) -> Left:
    """Let the path of the pings become worse, and watch when they leave."""
    path, seen = await place.anew(), place.seen
    began = time.monotonic()
    with worse(case, path, place.nodes, place.cables):
        began = time.monotonic()
        left = -1.0
        while (now := time.monotonic()) < began + WATCH:
            await trio.sleep(0.05)
            late = [at for at, dimension in seen.pings[:] if dimension == path]
            if late[-1] < now - CALM and now > began + STAYS:
                left = max(0.0, late[-1] - began)
                break
        came = [dimension for at, dimension in seen.datagrams[:] if began <= at < began + STAYS]
    return Left(case, left, came.count(path) / max(1, len(came)))


async def noise(seconds: float, place: Scene, seed: int = 1) -> list[tuple[float, int]]:
    """How the pings move in so many seconds of noise: when, and to which path."""
    chance, seen, cables = random.Random(seed), place.seen, place.cables
    await place.anew()
    logged = place.nodes[0].log.stat().st_size
    cables.noisy = True
    cables.shape()
    began, end = time.monotonic(), time.monotonic() + seconds
    seen.pings.clear()
    while (now := time.monotonic()) < end:
        await trio.sleep(min(chance.expovariate(1 / STALLS), end - now))
        node = chance.choice(place.nodes)
        kill(node, signal.SIGSTOP)
        try:
            await trio.sleep(chance.uniform(0.05, 0.25))
        finally:
            kill(node, signal.SIGCONT)
    cables.noisy = False
    cables.shape()
    for line in place.nodes[0].log.read_bytes()[logged:].decode().splitlines():
        if "quickest path" in line:
            print(f"log: {line}", flush=True)
    found, before = list[tuple[float, int]](), seen.pings[0][1]
    for at, dimension in seen.pings[:]:
        if dimension != before:
            found.append((round(at - began, 1), dimension))
            before = dimension
    return found


def make_spec() -> LabSpec:
    """The lab for `scene`: each dimension has an uplink."""
    return LabSpec(f"lat{os.getpid()}", nodes=2, uplinks=DIMENSIONS, backend="userspace")


async def measure(cases: Sequence[str], runs: int, seconds: float) -> dict[str, object]:
    """Make a lab, let paths become worse by turns, and let there be noise."""
    found, moved = list[Left](), list[tuple[float, int]]()
    async with scene(make_spec()) as place:
        for _ in range(runs):
            for case in cases:
                found.append(await once(case, place))
                print(f"{case}: left after {found[-1].left_s:.2f} s; {found[-1].stays:.3f} stays", flush=True)
        if seconds:
            moved = await noise(seconds, place)
            for at, dimension in moved:
                print(f"noise: after {at:.1f} s to dimension {dimension}", flush=True)
            print(f"noise: {len(moved)} moves in {seconds:g} s", flush=True)
    left = {case: summary([one.left_s for one in found if one.case == case]) for case in cases}
    return {"left": left, "runs": [asdict(one) for one in found], "noise_s": seconds, "moves": moved}


def summary(times: Sequence[float]) -> dict[str, float]:
    """Of times in seconds, negative or infinite where it did not happen."""
    came = sorted(at for at in times if 0 <= at < float("inf"))
    found = {"runs": len(times), "within_2_s": sum(at <= 2.0 for at in came), "never": len(times) - len(came)}
    if not came:
        return dict[str, float](found)
    return found | {"median_s": round(statistics.median(came), 2), "worst_s": round(came[-1], 2)}


def simulate(cases: Sequence[str], runs: int, nodes: int, seconds: float) -> dict[str, object]:
    """The same on a virtual clock, with many nodes in the noise."""
    changes = {"late": (0.080, 0.0), "lossy": (0.0, 1 - 0.95**2), "one-way": (0.0, 0.05)}
    left = dict[str, object]()
    for case in cases:
        late, loss = changes[case]
        left[case] = summary([latency_scenarios.leaves(seed, late, loss) for seed in range(runs)])
        print(f"{case}: {json.dumps(left[case])}", flush=True)
    why, moved = Counter[str](), 0
    for seed in range(nodes if seconds else 0):
        moves = latency_scenarios.moves(seed, seconds)
        why.update(reason for _, _, reason in moves)
        moved += bool(moves)
        for at, dimension, reason in moves:
            print(f"noise: node {seed} after {at:.1f} s to dimension {dimension}: {reason}", flush=True)
    if seconds:
        print(f"noise: {moved} of {nodes} nodes moved in {seconds:g} s: {dict(why)}", flush=True)
    return {"left": left, "nodes": nodes, "noise_s": seconds, "moved": moved, "why": dict(why)}


def main() -> None:
    """Print one line a run or a case, and a move; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--runs", type=int, help="of each case; 10 if not set, simulated 100")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--nodes", type=int, default=200, help="in simulated noise")
    parser.add_argument("--noise", type=float, help="seconds; 120 if not set, simulated 600")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one run of each, 20 s of noise")
    given = parser.parse_args()
    cases = given.case or CASES
    runs = given.runs if given.runs is not None else 1 if given.quick else 100 if given.simulated else 10
    seconds = (
        given.noise
        if given.noise is not None
        else 20.0
        if given.quick
        else 600.0
        if given.simulated
        else 120.0
    )
    if given.simulated:
        found = simulate(cases, runs, given.nodes, seconds)
    else:
        try:
            found = trio.run(partial(measure, cases, runs, seconds))
        except PhantomMeshError as error:
            parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
        for case, times in dict[str, object](found["left"]).items():  # type: ignore[call-overload]
            print(f"{case}: {json.dumps(times)}")
    if given.json:
        print(json.dumps({"name": "latency", "machine": describe(), **found}))


if __name__ == "__main__":
    main()
