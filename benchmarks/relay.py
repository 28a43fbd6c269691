# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's cost for each packet, against plain forwarding of UDP by the same host in the same run.

    python -m benchmarks.relay [--json] [--quick]

Three namespaces in a row, joined by veths, with connection tracking off as on a router and no WireGuard. One
process sends; the kernel carries each packet through the middle and to the other end's full buffer before the
send returns, so a packet's time is the sender's system call, two forwardings' worth of veths, and what is
compared: a plain route, one lease, 1,000 leases of which one is used. Rounds alternate; figures are medians
of rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median

from benchmarks.machine import describe
from phantommesh.endpoint import Address
from phantommesh.routing.forwarding import Frame, render
from phantommesh.routing.leases import Forward

_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_PORT, _SINK, _SIZE = 51700, 40002, 1400
_RATE = 10_000_000_000  # bytes a second: no limit in effect
_FRAME = Frame("pm", _PORT, IPv4Address("10.91.1.1"), None, _RATE)


def _enter(space: str) -> None:
    with Path("/run/netns", space).open() as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def _run(space: str, command: str, script: str | None = None) -> None:
    argv = ["ip", "netns", "exec", space, *command.split()]
    subprocess.run(argv, input=script, text=True, check=True, capture_output=True)


def _set_up(relay: str, one: str, two: str) -> None:
    for number, space in ((1, one), (2, two)):
        link = f"ip link add up0 netns {space} type veth peer name up{number} netns {relay}"
        subprocess.run(link.split(), check=True)
        for where, name, host in ((relay, f"up{number}", 1), (space, "up0", 2)):
            _run(where, f"ip addr add 10.91.{number}.{host}/24 dev {name}")
            _run(where, f"ip link set {name} up")
        _run(space, f"ip route add default via 10.91.{number}.1")
    _run(relay, "sysctl -qw net.ipv4.ip_forward=1")


def _leases(number: int, source: int) -> list[Forward]:
    """So many leases; the first is the one that is used."""
    used = Forward(1, 0, Address("10.91.1.2", source), Address("10.91.2.2", _SINK))
    others = (
        Forward(n, n % 256, Address(f"198.18.{n >> 8}.{n & 255}", 1000), Address("198.19.0.1", 1000))
        for n in range(2, 2 * number + 1)
    )
    return [used, *others]


def _round(sock: socket.socket, to: tuple[str, int], packets: int) -> float:
    """Microseconds a packet."""
    data = bytes((4, 0, 0, 0)) + bytes(_SIZE - 4)
    send, start = sock.sendto, time.perf_counter()
    for _ in range(packets):
        send(data, to)
    return (time.perf_counter() - start) / packets * 1e6


def measure(rounds: int, packets: int) -> dict[str, float]:
    """Return microseconds a packet by what carries it, and the ratios of plain forwarding's to the
    relay's."""
    relay, one, two = (f"relaybench{os.getpid()}{name}" for name in "rab")
    spaces = (relay, one, two)
    for space in spaces:
        subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        _set_up(*spaces)
        _enter(two)
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind(("10.91.2.2", _SINK))
        _enter(one)
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("10.91.1.2", 0))
        source = sock.getsockname()[1]
        times: dict[str, list[float]] = {"plain": [], "one lease": [], "1,000 leases": []}
        for _ in range(rounds):
            for kind, number in (("plain", 0), ("one lease", 1), ("1,000 leases", 1000)):
                if number:
                    _run(relay, "nft -f -", render(_FRAME, _leases(number, source)))
                to = ("10.91.1.1", _PORT) if number else ("10.91.2.2", _SINK)
                _round(sock, to, packets // 10)
                if number and not _came(sink, sock, to):
                    raise SystemExit("the relay does not forward: the figures would be of drops")
                times[kind].append(_round(sock, to, packets))
                _run(relay, "nft delete table inet phantommesh_relay_pm") if number else None
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=True)
    figures = {kind: median(found) for kind, found in times.items()}
    for kind in ("one lease", "1,000 leases"):
        ratios = [plain / relayed for plain, relayed in zip(times["plain"], times[kind], strict=True)]
        figures[f"plain / {kind}"] = median(ratios)
    return figures


def _came(sink: socket.socket, sock: socket.socket, to: tuple[str, int]) -> bool:
    """Whether a packet comes through now: empties the sink's buffer first."""
    sink.setblocking(False)
    try:
        while True:
            sink.recv(2000)
    except BlockingIOError:
        pass
    sock.sendto(b"\x01\0\0\0", to)
    sink.settimeout(5.0)
    try:
        return sink.recvfrom(2000)[0] == b"\x01\0\0\0"
    except TimeoutError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of relaying a packet")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root, for network namespaces")
    figures = measure(*((3, 20_000) if args.quick else (9, 200_000)))
    if args.json:
        print(json.dumps({"machine": describe(), "us_a_packet": figures}))
        return
    for name, value in figures.items():
        print(f"{name:22} {value:7.2f}")


if __name__ == "__main__":
    main()
