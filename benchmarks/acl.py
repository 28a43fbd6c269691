# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules: the time to put many in place, and what they cost a packet.

    python -m benchmarks.acl [--json] [--quick] [--rules N]

Rules are for ten ports of each of a thousand members: each member is a class of its own. `apply_s` is
the time of the one transaction by the `nft` program, with all rules of before replaced; compiling and writing
the text are told apart.

For the cost of a packet one process sends UDP datagrams over a veth into another namespace, to a full buffer:
the kernel carries each there before the send returns. Short runs with the table alternate with runs without,
and with runs where a table does no more than have connections tracked, as any stateful packet filter does. A
cost is the difference to the mean of the two runs beside, for a packet of an open connection that a rule lets
through: connections are looked up by each packet, so a new one costs no more here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from statistics import median, quantiles

from benchmarks.machine import describe
from phantommesh.acl.compiled import compile_for
from phantommesh.acl.rules import Party, policy_of
from phantommesh.acl.ruleset import FAMILY, render, table_name
from phantommesh.config.acl import AclSection, RuleSection
from phantommesh.trust.identity import NodeId

_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_DEVICE, _SENDER, _TARGET = "pm", "100.64.0.2", "100.64.0.1"
_MEMBERS = 1000
_SIZE = 64  # bytes of a datagram: the smaller, the more of its time is what is measured
_TRACKED = f"""
table {FAMILY} tracked {{
  chain arriving {{
    type filter hook prerouting priority dstnat - 10; policy accept;
    ct state established accept
  }}
}}
"""


def _party(number: int) -> Party:
    ip4, ip6 = int(IPv4Address("100.64.0.0")) + number, int(IPv6Address("fd00::")) + number
    return Party(f"n{number}", NodeId(number.to_bytes(16, "big")), (IPv4Address(ip4), IPv6Address(ip6)))


def _rules(count: int) -> tuple[RuleSection, ...]:
    return tuple(
        RuleSection(
            f"r{number}",
            source=(f"n{1 + number % _MEMBERS}",),
            protocol="udp",
            ports=(1000 + 2 * (number // _MEMBERS),),
        )
        for number in range(count)
    )


def _run(space: str, *command: str, script: str | None = None) -> None:
    argv = ["ip", "netns", "exec", space, *command]
    subprocess.run(argv, input=script, text=True, check=True, capture_output=True)


@contextmanager
def _spaces() -> Iterator[tuple[str, str]]:
    one, two = (f"aclb{os.getpid()}{end}" for end in "ab")
    try:
        for space in (one, two):
            subprocess.run(["ip", "netns", "add", space], check=True)
        link = f"ip link add {_DEVICE} netns {one} type veth peer name {_DEVICE} netns {two}"
        subprocess.run(link.split(), check=True)
        for space, address in ((one, _SENDER), (two, _TARGET)):
            _run(space, "ip", "address", "add", f"{address}/10", "dev", _DEVICE)
            _run(space, "ip", "link", "set", _DEVICE, "up")
        yield one, two
    finally:
        for space in (one, two):
            subprocess.run(["ip", "netns", "delete", space], check=False)


def _within(space: str, port: int) -> socket.socket:
    """A UDP socket of a namespace; the process itself goes there."""
    with Path("/run/netns", space).open() as handle:
        if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    return sock


def _nanoseconds(sock: socket.socket, port: int, packets: int) -> float:
    """The time of one packet."""
    send, to, data = sock.sendto, (_TARGET, port), bytes(_SIZE)
    start = time.perf_counter()
    for _ in range(packets):
        send(data, to)
    return (time.perf_counter() - start) / packets * 1e9


def _spent() -> float:
    """Seconds of processor time that programs which have ended took, the kernel's for them included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(count: int, runs: int, packets: int) -> dict[str, object]:
    """All figures."""
    started = time.perf_counter()
    policy = policy_of(AclSection("deny", _rules(count)), "node")
    parties = [_party(number) for number in range(1, _MEMBERS + 1)]
    compiled = compile_for(parties[0], [policy], parties, (51801,))
    compiled_at = time.perf_counter()
    script = render(compiled, _DEVICE, ()).install()
    rendered_at = time.perf_counter()
    remove = f"delete table {FAMILY} {table_name(_DEVICE)}\n"
    with _spaces() as (one, two):
        applied, worked = list[float](), list[float]()
        for _ in range(runs):
            before, spent = time.perf_counter(), _spent()
            _run(two, "nft", "-f", "-", script=script)
            applied.append(time.perf_counter() - before)
            worked.append(_spent() - spent)
        _run(two, "nft", "-f", "-", script=remove)
        full, sender = _within(two, 1000), _within(one, 40000)
        costs: dict[str, list[float]] = {"rules": [], "tracked": []}
        plain = [_nanoseconds(sender, 1000, packets)]
        for _ in range(3 * runs):
            for name, put, take in (
                ("rules", script, remove),
                ("tracked", _TRACKED, f"delete table {FAMILY} tracked\n"),
            ):
                _run(two, "nft", "-f", "-", script=put)
                took = _nanoseconds(sender, 1000, packets)
                _run(two, "nft", "-f", "-", script=take)
                plain.append(_nanoseconds(sender, 1000, packets))
                costs[name].append(took - (plain[-1] + plain[-2]) / 2)
        full.close()
        sender.close()
    low, _, high = quantiles(costs["rules"], n=4)
    return {
        "name": "acl",
        "machine": describe(),
        "runs": runs,
        "rules": count,
        "members": _MEMBERS,
        "classes": len(compiled.tables),
        "compile_s": round(compiled_at - started, 3),
        "render_s": round(rendered_at - compiled_at, 3),
        "apply_s": round(median(applied), 3),
        "apply_cpu_s": round(median(worked), 3),
        "apply_s_all": [round(one, 3) for one in applied],
        "plain_ns_per_packet": round(median(plain)),
        "ns_per_packet": round(median(costs["rules"])),
        "ns_per_packet_quartiles": [round(low), round(high)],
        "tracking_ns_per_packet": round(median(costs["tracked"])),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rules", type=int, default=10_000)
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("this needs root, for network namespaces")
    found = measure(given.rules, *((3, 20_000) if given.quick else (7, 100_000)))
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['rules']} rules for {found['members']} members, {found['classes']} classes")
    print(f"compiled in {found['compile_s']} s, written in {found['render_s']} s")
    print(
        f"applied in one transaction in {found['apply_s']} s (median of {found['apply_s_all']}), "
        f"{found['apply_cpu_s']} s of them at work"
    )
    print(
        f"a packet takes {found['plain_ns_per_packet']} ns without a table, {found['ns_per_packet']} ns more "
        f"with it (quartiles {found['ns_per_packet_quartiles']}); tracking connections alone takes "
        f"{found['tracking_ns_per_packet']} ns of that"
    )


if __name__ == "__main__":
    main()
