# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's cost for each packet, against plain forwarding of UDP by the same host in the same run.

    python -m benchmarks.relay [--json] [--quick]

Three namespaces in a row, joined by veths, with connection tracking off as on a router and no WireGuard. One
process sends; the kernel carries each packet through the middle and to the other end's full buffer before the
send returns, so a packet's time is the sender's system call, two forwardings' worth of veths, and what is
compared: a plain route; the long way through the relay's rules, with one lease; the short way, with one lease
and with 1,000 of which one is used. Many short runs alternate, each between two of plain forwarding; a ratio
is that of a run to the mean of its two. Figures are medians, with quartiles.
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
from statistics import quantiles

from benchmarks.machine import describe
from phantommesh.endpoint import Address
from phantommesh.nftables import messages
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.nursery.host.nexthops import read_hops
from phantommesh.nursery.host.nft import commit
from phantommesh.routing import fastlane
from phantommesh.routing.forwarding import RELAY_MARK, Frame, render
from phantommesh.routing.leases import Forward

_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_PORT, _SINK, _SIZE = 51700, 40002, 1400
_RATE = 10_000_000_000  # bytes a second: no limit in effect
_KINDS = (
    ("long way, one lease", 1, False),
    ("long way, 1,000 leases", 1000, False),
    ("short way, one lease", 1, True),
    ("short way, 1,000 leases", 1000, True),
)
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
        Forward(n, n % 256, Address(f"198.18.{n >> 8}.{n & 255}", 1000), Address("10.91.2.3", 1000))
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


def measure(rounds: int, packets: int) -> dict[str, tuple[float, float, float]]:
    """Return lower quartile, median and upper quartile: of microseconds a packet by what carries it, and of
    the ratios of plain forwarding's to the relay's."""
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
        times: dict[str, list[float]] = {"plain": []}
        ratios: dict[str, list[float]] = {}
        _fill(sock, ("10.91.2.2", _SINK))
        for _ in range(rounds):
            for kind, number, short in _KINDS:
                before = _round(sock, ("10.91.2.2", _SINK), packets)
                _enter(relay)
                _install(_leases(number, source), short=short)
                _enter(one)
                if not _came(sink, sock, ("10.91.1.1", _PORT)):
                    raise SystemExit("the relay does not forward: the figures would be of drops")
                _fill(sock, ("10.91.1.1", _PORT))
                took = _round(sock, ("10.91.1.1", _PORT), packets)
                _enter(relay)
                if short and not _short() > packets:
                    raise SystemExit("the packets did not take the short way")
                _remove()
                _enter(one)
                _fill(sock, ("10.91.2.2", _SINK))
                after = _round(sock, ("10.91.2.2", _SINK), packets)
                times["plain"] += [before, after]
                times.setdefault(kind, []).append(took)
                ratios.setdefault(f"plain / {kind}", []).append((before + after) / 2 / took)
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=True)
    return {name: _quartiles(found) for name, found in (times | ratios).items()}


def _quartiles(found: list[float]) -> tuple[float, float, float]:
    low, middle, high = quantiles(found, n=4)
    return low, middle, high


def _install(leases: list[Forward], *, short: bool) -> None:
    """In the namespace that this process is in."""
    subprocess.run(["nft", "-f", "-"], input=render(_FRAME, leases), text=True, check=True)
    if short:
        found, _ = read_hops({lease.target.host for lease in leases}, RELAY_MARK)
        mtu, lanes = fastlane.choose(leases, found)
        _commit(fastlane.whole(_FRAME, ("up1", "up2"), mtu, lanes))


def _remove() -> None:
    subprocess.run(["nft", "flush", "ruleset"], check=True)


def _commit(changes: list[messages.Change]) -> None:
    with NetlinkSocket(messages.NETFILTER) as netlink:
        commit(netlink, *messages.encode_transaction(changes, messages.FAMILIES["netdev"], sequence=1))


def _short() -> int:
    """Packets that took the short way."""
    table, name = _FRAME.table, fastlane.lanes_of(4)
    with NetlinkSocket(messages.NETFILTER) as netlink:
        asked = messages.encode_get_elements(messages.FAMILIES["netdev"], table, name, sequence=1)
        held = messages.decode_counters_by_key(payload for _, _, payload in netlink.exchange(asked))
    return sum(packets for packets, _ in held.values())


def _fill(sock: socket.socket, to: tuple[str, int]) -> None:
    """Warm all that the first packets find cold, and fill the other end's buffer."""
    _round(sock, to, 500)


def _came(sink: socket.socket, sock: socket.socket, to: tuple[str, int]) -> bool:
    """Whether a packet comes through now: empties the sink's buffer first."""
    sink.setblocking(False)
    try:
        while True:
            sink.recv(2000)
    except BlockingIOError:
        pass
    sock.sendto(b"\x04\0\0\0", to)
    sink.settimeout(5.0)
    try:
        return sink.recvfrom(2000)[0] == b"\x04\0\0\0"
    except TimeoutError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of relaying a packet")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root, for network namespaces")
    figures = measure(*((10, 3_000) if args.quick else (60, 3_000)))
    if args.json:
        print(json.dumps({"machine": describe(), "quartiles": figures}))
        return
    for name, (low, middle, high) in figures.items():
        print(f"{name:30} {middle:7.2f}  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
