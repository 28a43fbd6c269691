# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of the guard's rules for each packet of the host, and of putting them in place.

    python -m benchmarks.guard [--members 1000] [--json] [--quick]

In a network namespace with tun interfaces. A packet that the host sends ends in one that nobody reads; a
packet that arrives is written into one and ends in a socket's full buffer. Rounds with and without the rules
alternate. ``members``: where the overlay's range meets the host's, each member's address is a network of its
own; so many are guarded in the second half of the figures.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from statistics import median

import trio

from benchmarks.machine import describe
from phantommesh.nursery.host.netlink import make_tun
from phantommesh.nursery.host.nft import Table
from phantommesh.overlay.guard import FAMILY, Guard, Network, render

_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x1, 0x1000
_PORT = 9999
_UNDERLAY, _GATEWAY = "192.0.2.2", "192.0.2.1"


def _guard(networks: tuple[Network, ...]) -> Guard:
    names = tuple(f"pm{i}" for i in range(7))
    return Guard(
        "pm",
        names,
        (IPv4Address("100.64.0.1"), IPv6Address("fd00::1")),
        networks,
        51800,
        tuple(range(51820, 51827)),
    )


def _arriving_tun() -> int:
    """An interface of the underlay whose packets this process writes."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"in0", _TUN | _NO_PI))
    return device


def _udp(source: str, destination: str) -> bytes:
    payload = struct.pack("!HHHH", 4444, _PORT, 8 + 64, 0) + bytes(64)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    )  # fmt: skip
    words = struct.unpack("!10H", head)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:] + payload


def _set_up() -> int:
    device = _arriving_tun()
    make_tun("out0", 1420)
    for command in (
        "ip link set lo up",
        "ip link set in0 up",
        "ip link set out0 up",
        f"ip address add {_UNDERLAY}/24 dev in0",
        "ip route add 198.51.100.0/24 dev out0",
        "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.in0.rp_filter=0",
    ):
        subprocess.run(command.split(), check=True)
    return device


def _send(count: int) -> float:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect(("198.51.100.9", _PORT))
        begin = time.process_time()
        for _ in range(count):
            out.send(bytes(64))
        return (time.process_time() - begin) / count


def _receive(device: int, packet: bytes, count: int) -> float:
    begin = time.process_time()
    for _ in range(count):
        os.write(device, packet)
    return (time.process_time() - begin) / count


async def measure(members: int, rounds: int, packets: int) -> dict[str, float]:
    """Do it all, in the namespace that this process is in."""
    device = _set_up()
    packet = _udp(_GATEWAY, _UNDERLAY)
    whole: tuple[Network, ...] = (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48"))
    single: tuple[Network, ...] = tuple(
        IPv4Network(int(IPv4Address("100.64.0.0")) + 2 * i) for i in range(members)
    )
    table = Table(FAMILY, _guard(whole).table)
    found: dict[str, float] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as into:
        into.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        into.bind((_UNDERLAY, _PORT))
        for label, networks in (("", whole), (f"_{members}", single)):
            text = render(_guard(networks))
            out: dict[bool, list[float]] = {False: [], True: []}
            arriving: dict[bool, list[float]] = {False: [], True: []}
            installs = []
            for _ in range(rounds):
                for guarded in (False, True):
                    if guarded:
                        begin = time.perf_counter()
                        await table.install(text)
                        installs.append(time.perf_counter() - begin)
                    else:
                        await table.remove()
                    out[guarded].append(_send(packets))
                    arriving[guarded].append(_receive(device, packet, packets))
            found[f"install_ms{label}"] = round(1e3 * median(installs), 2)
            for name, taken in (("out", out), ("in", arriving)):
                extra = median(a - b for a, b in zip(taken[True], taken[False], strict=True))
                found[f"{name}_plain_ns{label}"] = round(1e9 * median(taken[False]))
                found[f"{name}_guard_ns{label}"] = round(1e9 * extra)
    os.close(device)
    return found


def main() -> None:
    """Print the figures; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard")
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(1, "error: this makes a network namespace\nfix: run it with sudo\n")
    if not given.here:
        argv = ["unshare", "--net", sys.executable, "-m", "benchmarks.guard", "--here", *sys.argv[1:]]
        sys.exit(subprocess.run(argv, check=False).returncode)
    rounds, packets = (3, 20_000) if given.quick else (11, 100_000)
    found = trio.run(measure, given.members, rounds, packets)
    print(", ".join(f"{k} {v:g}" for k, v in found.items()))
    if given.json:
        print(json.dumps({"name": "guard", "machine": describe(), "runs": [found], **found}))


if __name__ == "__main__":
    main()
