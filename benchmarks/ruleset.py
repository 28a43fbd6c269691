# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of the scatter rules of a node with many peers: to install, to change, to read, to hold, and a
packet.

    python -m benchmarks.ruleset [--peers 50] [--scheduler S] [--json] [--quick]

In a network namespace with seven tun interfaces that nobody reads, so that a packet ends where WireGuard
would take it over. A packet's cost is that of sending a UDP datagram to a peer over the scattering interface,
less that of sending one straight to a dimension.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from statistics import median

import trio

from benchmarks.machine import describe
from phantommesh.config.sections import ScatterSection
from phantommesh.dimensions import DIMENSIONS, SLOTS
from phantommesh.nursery.host.netlink import make_tun
from phantommesh.nursery.host.nft import Table
from phantommesh.scatter.maps import SCHEDULERS, Epoch, Scheduler, cards, deal, deck_of_split, epoch_keys
from phantommesh.scatter.peermap import PeerMap, length_of
from phantommesh.scatter.ruleset import FAMILY, HITS, Frame, render, table_name, ways
from phantommesh.secret import Secret

BATCH = ScatterSection().batch
MASTER = "pm"
FRAME = Frame(
    "egress",
    table_name(MASTER),
    MASTER,
    (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48")),
    (IPv4Address("100.64.0.1"), IPv6Address("fd00::1")),
    7,
    60,
)


def _map(slot: int, scheduler: Scheduler, number: int) -> PeerMap:
    keys = epoch_keys(Secret(b"s" * 32), slot.to_bytes(16), Epoch(1, number))
    committed = cards((1.0,) * DIMENSIONS, keys.noise, SLOTS[scheduler])
    dealt = deal(committed, scheduler, keys.stream, BATCH)
    ip4, ip6 = IPv4Address("100.64.1.0") + slot, IPv6Address("fd00::1:0") + slot
    deck = deck_of_split(committed, keys.stream) if scheduler == "flow" else None
    return PeerMap(slot, ip4, ip6, scheduler, length_of(scheduler, BATCH), number & 1, dealt, deck=deck)


def _kernel_kib() -> int:
    """Memory that the kernel holds for itself: slabs, counters of each CPU, and large tables."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("Slab", "Percpu", "VmallocUsed"))


def _interfaces() -> list[int]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    names = [MASTER, *(f"{MASTER}{i}" for i in range(DIMENSIONS))]
    for name in names:
        make_tun(name, 1420)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
    subprocess.run(["ip", "address", "add", "100.64.0.1/32", "dev", MASTER], check=True)
    subprocess.run(["ip", "route", "add", "100.64.0.0/10", "dev", MASTER], check=True)
    subprocess.run(["ip", "route", "add", "100.65.0.0/16", "dev", f"{MASTER}0"], check=True)
    return [socket.if_nametoindex(name) for name in names[1:]]


def _send(address: str, count: int) -> float:
    """Seconds of this process's CPU to send that many datagrams; the kernel works inside each call."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.connect((address, 9))
        begin = time.process_time()
        for _ in range(count):
            out.send(b"x" * 64)
        return time.process_time() - begin


async def _milliseconds(act: Callable[[], object], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        await act()  # type: ignore[misc]
        taken.append(1000 * (time.perf_counter() - begin))
    return taken


async def measure(peers: int, scheduler: Scheduler, rounds: int, packets: int) -> dict[str, float]:
    """Do it all, in the namespace that this process is in."""
    way = ways(_interfaces())
    table = Table(FAMILY[FRAME.hook], FRAME.table)
    maps = [_map(slot, scheduler, 0) for slot in range(1, peers + 1)]
    text = render(FRAME, way, maps)
    await table.install(render(FRAME, way, maps[:1]))
    before = _kernel_kib()
    await table.install(text)
    held = _kernel_kib() - before
    install = await _milliseconds(lambda: table.install(text), max(3, rounds // 10))
    turn = iter(range(1, 10**6))

    async def swap() -> None:
        made = _map(7 % peers + 1, scheduler, next(turn))
        await table.replace({made.name: made.elements})

    elements = [replace(made, parity=1).elements for made in maps]

    async def swap_only() -> None:
        await table.replace({maps[0].name: elements[0]})

    swaps = await _milliseconds(swap, rounds)
    replaces = await _milliseconds(swap_only, rounds)
    reads = await _milliseconds(lambda: table.counters(HITS), rounds)
    checks = await _milliseconds(table.fingerprint, rounds)
    straight, scattered = [], []
    for _ in range(5):
        straight.append(_send("100.65.0.9", packets))
        scattered.append(_send(str(maps[-1].ip4), packets))
    counters = await table.counters(HITS)
    sent = sum(hits for word, (hits, _) in counters.items() if word >> 8 == maps[-1].slot)
    if sent != 5 * packets:
        raise SystemExit(f"error: {5 * packets} packets were sent and {sent} counted")
    return {
        "install_ms": round(median(install), 2),
        "install_kib_text": round(len(text) / 1024, 1),
        "swap_ms": round(median(swaps), 2),
        "replace_ms": round(median(replaces), 2),
        "counters_ms": round(median(reads), 2),
        "check_ms": round(median(checks), 2),
        "memory_kib": float(held),
        "packet_plain_us": round(1e6 * median(straight) / packets, 3),
        "packet_scattered_us": round(1e6 * median(scattered) / packets, 3),
    }


def main() -> None:
    """Print the figures; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ruleset")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="flow", help="flow as with auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if os.geteuid() != 0:
        parser.exit(1, "error: this makes a network namespace\nfix: run it with sudo\n")
    if not given.here:
        argv = ["unshare", "--net", sys.executable, "-m", "benchmarks.ruleset", "--here", *sys.argv[1:]]
        sys.exit(subprocess.run(argv, check=False).returncode)
    rounds, packets = (10, 20_000) if given.quick else (50, 100_000)
    found = trio.run(measure, given.peers, given.scheduler, rounds, packets)
    print(f"{given.peers} peers, {given.scheduler}:", ", ".join(f"{k} {v:g}" for k, v in found.items()))
    if given.json:
        document = {"name": "ruleset", "machine": describe(), "runs": [found], "peers": given.peers, **found}
        print(json.dumps(document))


if __name__ == "__main__":
    main()
