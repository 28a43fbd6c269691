# SPDX-License-Identifier: GPL-3.0-or-later
"""Two namespaces joined by seven paths, a WireGuard on each, and a node's scatter rules: no node runs.

Besides the overlay address that all seven share, dimension i has 10.98.i.END alone, so one WireGuard without
any scatter is at hand for comparison, in the same boot and under the same load.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from benchmarks.splitter import Ending
from phantommesh.dimensions import DIMENSIONS, SLOTS
from phantommesh.nursery.host.kernel import kernel_has_wireguard
from phantommesh.scatter.maps import Epoch, Scheduler, cards, deal, deck_of_split, epoch_keys
from phantommesh.scatter.peermap import PeerMap, length_of
from phantommesh.scatter.ruleset import Frame, render, table_name, ways
from phantommesh.secret import Secret
from phantommesh.wireguard.device import public_key_of

MTU = 1420
BATCH = 8
FLOWLET_MS = 60
QUEUE_MS = 100.0  # an access line's buffer
WARM_S = 3.0  # that the splitter measures empty paths for
MASTER = "pm"
FOUR = (IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2"))
SIX = (IPv6Address("fd99::1"), IPv6Address("fd99::2"))


@dataclass(frozen=True, slots=True)
class PathShape:
    """One path, in each direction: delay in ms, rate in Mbit/s (0: none), loss in percent."""

    delay_ms: float = 0.0
    rate_mbit: float = 0.0
    loss: float = 0.0

    @property
    def limit(self) -> int:
        """Packets that the path holds: those under way, and a queue of QUEUE_MS; without a rate, plenty."""
        held = self.rate_mbit * 1000.0 * (self.delay_ms + QUEUE_MS) / (8.0 * 1500.0)
        return max(20, round(held)) if self.rate_mbit else 10_000

    @property
    def queue(self) -> int:
        """Bytes that may wait in the path, where a program makes it."""
        return max(15_000, round(self.rate_mbit * 125.0 * QUEUE_MS)) if self.rate_mbit else 10_000_000


class Rig:
    """Made by ``rig()``. Ends are 0 and 1; dimension i of end e is the interface ``names[e][i]``."""

    def __init__(self, backend: str, congestion: str | None, shaped: bool) -> None:
        self.backend, self._congestion, self._shaped = backend, congestion, shaped
        self.spaces = (f"zs{os.getpid()}a", f"zs{os.getpid()}b")
        # A userspace WireGuard's socket is named after its interface, in a directory that all share.
        stem = f"z{os.getpid() % 100000}"
        self.names = tuple([f"{stem}{end}{i}" for i in range(DIMENSIONS)] for end in "ab")
        self.emulated = False  # whether a program makes the paths slow, as the kernel has no netem
        self._cables: subprocess.Popen[str] | None = None
        self._splitters: list[subprocess.Popen[bytes]] = []

    def run(self, end: int, *command: str, stdin: str = "") -> str:
        """Run a command in an end's namespace; return what it printed."""
        argv = ["ip", "netns", "exec", self.spaces[end], *command]
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True).stdout

    def build(self) -> None:
        """Make everything but the scatter rules, by one shell an end: an emulated machine starts few a
        second."""
        for space in self.spaces:
            subprocess.run(["ip", "netns", "add", space], check=True)
        keys = [[Secret(secrets.token_bytes(32)) for _ in range(DIMENSIONS)] for _ in (0, 1)]
        asked = "tc qdisc add dev lo root netem limit 1000"
        if self._shaped and "netem" in self.run(0, "sh", "-c", f"{asked} 2>&1 || echo no netem"):
            self._start_cables()
        else:
            veth = "link add up{0} type veth peer name up{0} netns {1}"
            cables = [veth.format(i, self.spaces[1]) for i in range(DIMENSIONS)]
            self.run(0, "ip", "-batch", "-", stdin="\n".join(cables))
        for end in (0, 1):
            lines = ["set -e", "ip link set lo up", "sysctl -qw net.ipv4.conf.all.rp_filter=2"]
            for i, name in enumerate(self.names[end]):
                lines += self._dimension(end, i, name, keys[end][i], keys[1 - end][i])
            kernel = self.backend == "kernel"
            lines += [
                f"ip link add {MASTER} type wireguard" if kernel else f"ip tuntap add dev {MASTER} mode tun",
                f"ip link set {MASTER} mtu {MTU} up",
                f"ip address add {FOUR[end]}/32 dev {MASTER}",
                f"ip address add {SIX[end]}/128 dev {MASTER} nodad",
                f"ip route add {FOUR[1 - end]}/32 dev {MASTER}",
                f"ip route add {SIX[1 - end]}/128 dev {MASTER}",
            ]
            self.run(end, "sh", stdin="\n".join(lines) + "\n")
        for i in range(DIMENSIONS):
            self.run(0, "ping", "-q", "-c", "3", "-i", "0.2", "-w", "30", f"10.98.{i}.2")

    def _dimension(self, end: int, i: int, name: str, mine: Secret, theirs: Secret) -> list[str]:
        private = base64.b64encode(mine.reveal()).decode()
        public = base64.b64encode(public_key_of(theirs)).decode()
        allowed = f"{FOUR[1 - end]}/32,{SIX[1 - end]}/128,10.98.{i}.{2 - end}/32"
        peer = f"peer {public} endpoint 10.97.{i}.{2 - end}:{52000 + i} allowed-ips {allowed}"
        return [
            f"ip address add 10.97.{i}.{end + 1}/24 dev up{i}",
            f"ip link set up{i} up",
            f"ip link add {name} type wireguard" if self.backend == "kernel" else f"wireguard-go {name}",
            f"echo {private} | wg set {name} listen-port {52000 + i} private-key /dev/stdin {peer}",
            f"ip link set {name} mtu {MTU} up",
            f"ip address add 10.98.{i}.{end + 1}/24 dev {name}",
            f"ip address add {FOUR[end]}/32 dev {name}",
            f"ip route add {FOUR[1 - end]}/32 dev {name} metric {2000 + i}",
        ]

    def _start_cables(self) -> None:
        self.emulated = True
        pairs = [f"up{i}:far{i}" for i in range(DIMENSIONS)]
        command = ["ip", "netns", "exec", self.spaces[0], sys.executable, "-m", "benchmarks.cables", *pairs]
        self._cables = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._cables.stdout is not None
        self._cables.stdout.readline()
        moves = [f"link set far{i} netns {self.spaces[1]} name up{i}" for i in range(DIMENSIONS)]
        self.run(0, "ip", "-batch", "-", stdin="\n".join(moves))

    def shape(self, paths: Sequence[PathShape]) -> None:
        """Give each path of a rig that is ``shaped`` its delay, rate and loss."""
        if self._cables is not None:
            assert self._cables.stdin is not None and self._cables.stdout is not None
            shapes = [(path.delay_ms, path.rate_mbit, path.loss, path.queue) for path in paths]
            print(json.dumps(shapes), file=self._cables.stdin, flush=True)
            self._cables.stdout.readline()
            return
        lines = ["set -e"]
        for i, path in enumerate(paths):
            line = f"tc qdisc replace dev up{i} root netem delay {path.delay_ms}ms limit {path.limit}"
            line += f" rate {path.rate_mbit}mbit" if path.rate_mbit else ""
            line += f" loss {path.loss}%" if path.loss else ""
            lines.append(line)
        for end in (0, 1):
            self.run(end, "sh", stdin="\n".join(lines) + "\n")

    def scatter(
        self, scheduler: Scheduler, scores: Sequence[float] = (1.0,) * DIMENSIONS, *, splits: bool = False
    ) -> None:
        """Install the rules of a node with one peer, at both ends; with ``splits`` also start what splits
        flows there."""
        self._stop_splitters()
        for end in (0, 1):
            links = {
                link["ifname"]: link["ifindex"] for link in json.loads(self.run(end, "ip", "-j", "link"))
            }
            networks = (IPv4Network("10.99.0.0/16"), IPv6Network("fd99::/48"))
            frame = Frame(
                "egress", table_name(MASTER), MASTER, networks, (FOUR[end], SIX[end]), 7, FLOWLET_MS
            )
            keys = epoch_keys(Secret(os.urandom(32)), bytes([end]) * 16, Epoch(1, 0))
            committed = cards(scores, keys.noise, SLOTS[scheduler])
            dealt = deal(committed, scheduler, keys.stream, BATCH)
            length = length_of(scheduler, BATCH)
            peer = PeerMap(
                1, FOUR[1 - end], SIX[1 - end], scheduler, length, 0, dealt,
                deck=deck_of_split(committed, keys.stream) if splits else None,
            )  # fmt: skip
            way = ways([links[name] for name in self.names[end]])
            self.run(end, "nft", "-f", "-", stdin=render(frame, way, [peer]))
            if splits:
                self._start_splitter(end, (frame.family, frame.table), peer)
        if splits:
            time.sleep(WARM_S)

    def _start_splitter(self, end: int, table: tuple[str, str], peer: PeerMap) -> None:
        ending = Ending(table, peer, tuple(self.names[end]), FOUR[end], FOUR[1 - end], MTU)
        command = [sys.executable, "-m", "benchmarks.splitter"]
        started = subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[end], *command], stdin=subprocess.PIPE, stdout=sys.stderr
        )
        assert started.stdin is not None
        with started.stdin as pipe:
            pipe.write(pickle.dumps(ending))
        self._splitters.append(started)

    def _stop_splitters(self) -> None:
        for started in self._splitters:
            started.kill()
            started.wait()
        self._splitters.clear()

    def sent(self, end: int) -> list[int]:
        """Packets that each dimension's WireGuard of an end has sent."""
        links = json.loads(self.run(end, "ip", "-j", "-s", "link"))
        found = {link["ifname"]: link["stats64"]["tx"]["packets"] for link in links}
        return [found[name] for name in self.names[end]]

    def tcp_segments(self, end: int) -> tuple[int, int]:
        """TCP segments that an end has sent, and those of them that it had sent before (RFC 4022)."""
        names, values = (
            line.split() for line in self.run(end, "cat", "/proc/net/snmp").splitlines() if "Tcp:" in line
        )
        found = dict(zip(names, values, strict=True))
        return int(found["OutSegs"]), int(found["RetransSegs"])

    def tcp_mbps(self, address: str, flows: int, seconds: float) -> float:
        """TCP from end 0 to end 1: Mbit/s received, all flows together, without the first second's start."""
        with subprocess.Popen(
            ["ip", "netns", "exec", self.spaces[1], "iperf3", "-s", "-1", "-J"], stdout=subprocess.DEVNULL
        ) as server:
            try:
                for attempt in range(50):
                    time.sleep(0.1)
                    client = ["iperf3", "-c", address, "-J", "-P", str(flows), "-t", str(seconds), "-O", "1"]
                    client += [] if self._congestion is None else ["-C", self._congestion]
                    argv = ["ip", "netns", "exec", self.spaces[0], *client]
                    done = subprocess.run(argv, capture_output=True, text=True, check=False)
                    report = json.loads(done.stdout or "{}")
                    if "end" in report and "sum_received" in report["end"]:
                        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6
                    if attempt == 49:
                        raise RuntimeError(f"iperf3: {report.get('error') or done.stderr}")
            finally:
                server.kill()
        raise AssertionError

    def ping_ms(self, address: str, count: int, interval: float) -> list[float]:
        """Round trips from end 0, in ms."""
        said = self.run(0, "ping", "-n", "-c", str(count), "-i", str(interval), "-w", "600", address)
        return [float(line.split("time=")[1].split()[0]) for line in said.splitlines() if "time=" in line]

    def destroy(self) -> None:
        """End the WireGuards and delete the namespaces."""
        self._stop_splitters()
        if self._cables is not None:
            self._cables.kill()
            self._cables.wait()
        for space in self.spaces:
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                subprocess.run(["kill", pid], check=False)
            subprocess.run(["ip", "netns", "delete", space], check=False)
        for name in (name for row in self.names for name in row):
            Path(f"/var/run/wireguard/{name}.sock").unlink(missing_ok=True)


@contextmanager
def rig(backend: str, congestion: str | None = None, *, shaped: bool = False) -> Iterator[Rig]:
    """A rig for as long as the block takes. ``backend``: auto, kernel or userspace; ``congestion``: TCP's
    congestion control, the kernel's default where it is None; ``shaped``: the paths can be given a delay, a
    rate and losses, by netem, or where the kernel has none by a program (`benchmarks/cables.py`)."""
    if backend == "auto":
        backend = "kernel" if kernel_has_wireguard() else "userspace"
    made = Rig(backend, congestion, shaped)
    try:
        made.build()
        yield made
    finally:
        made.destroy()
