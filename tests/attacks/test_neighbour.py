# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine on the underlay that is no member wants to reach overlay addresses, a member to reach beyond
them. Both address families, over real interfaces."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import trio

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.overlay.guard import table_name
from tests.attacks.rig import Neighbour, link_local, run_inside, start_inside, status_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_lab import run_in

pytestmark = pytest.mark.lab

LEAVES_IT_WHOLE = True

# A server bound to argv[1]:argv[2]. It says "up", then who sent each datagram or connection.
SERVE = """
import socket, sys, threading
host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
tcp, udp = socket.create_server((host, port), family=family), socket.socket(family, socket.SOCK_DGRAM)
udp.bind((host, port))

def accept():
    while True:
        connection, source = tcp.accept()
        print("tcp", source[0], flush=True)
        connection.sendall(b"secret")
        connection.close()

threading.Thread(target=accept, daemon=True).start()
print("up", flush=True)
while True:
    data, source = udp.recvfrom(2048)
    print("udp", source[0], flush=True)
"""
# Connects to argv[1]:argv[2] and prints what it is sent.
FETCH = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2) as connection:
        print(connection.recv(100).decode())
except OSError as error:
    print("failed:", error)
"""
# Sends 20 datagrams to argv[2]:argv[3] that claim to come from argv[1] (IPv4).
FORGE = """
import socket, struct, sys
source, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
udp = struct.pack("!HHHH", 4444, port, 8 + 6, 0) + b"forged"
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0,
                   socket.inet_aton(source), socket.inet_aton(host))
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as out:
    for _ in range(20):
        out.sendto(head + udp, (host, 0))
"""
# Tells argv[1] that a packet from argv[2] to argv[3] was too big for a path of 1280 bytes, 552 over IPv4. It
# quotes an echo reply, which the kernel takes without a socket. argv[4] is the interface.
TOO_BIG = """
import ipaddress, socket, struct, sys
to, source, target = (ipaddress.ip_address(a) for a in sys.argv[1:4])

def total(data):
    words = sum(struct.unpack(f"!{len(data) // 2}H", data))
    words = (words & 0xFFFF) + (words >> 16)
    return ~(words + (words >> 16)) & 0xFFFF

if source.version == 4:
    quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1400, 1, 0x4000, 64, 1, 0, source.packed, target.packed)
    quoted = quoted[:10] + struct.pack("!H", total(quoted)) + quoted[12:]
    error = struct.pack("!BBHHH", 3, 4, 0, 0, 552) + quoted + struct.pack("!BBHHH", 0, 0, 0, 1, 1)
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    place = (str(to), 0)
else:
    quoted = struct.pack("!IHBB16s16s", 6 << 28, 1360, 58, 64, source.packed, target.packed)
    error = struct.pack("!BBHI", 2, 0, 0, 1280) + quoted + struct.pack("!BBHHH", 129, 0, 0, 1, 1)
    out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)  # the kernel sums it up
    place = (str(to), 0, 0, socket.if_nametoindex(sys.argv[4]))
if source.version == 4:
    error = error[:2] + struct.pack("!H", total(error)) + error[4:]
for _ in range(5):
    out.sendto(error, place)
"""
PORT = "20888"


@contextmanager
def serving(node: LabNode, host: str) -> Iterator[list[str]]:
    """A server on a node's address; what it saw is in the list when the block has ended."""
    seen: list[str] = []
    server = start_inside(node.name, sys.executable, "-c", SERVE, host, PORT)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        yield seen
    finally:
        server.kill()
        seen += server.communicate()[0].decode().splitlines()


@contextmanager
def routed(neighbour: Neighbour, victim: LabNode) -> Iterator[None]:
    """The neighbour sends the overlay's addresses to the victim's place on the underlay."""
    status = status_of(victim)
    six = [f"{status.ip6}/128", "via", link_local(victim), "dev", "up0"]
    assert neighbour.run("ip", "route", "replace", f"{status.ip4}/32", "via", victim.address(0)).status == 0
    assert neighbour.run("ip", "-6", "route", "replace", *six).status == 0
    try:
        yield
    finally:
        neighbour.run("ip", "route", "delete", f"{status.ip4}/32")
        neighbour.run("ip", "-6", "route", "delete", f"{status.ip6}/128")


def pings(namespace: str, address: str) -> int:
    done = run_inside(namespace, "ping", "-q", "-c", "5", "-i", "0.2", "-W", "2", address)
    return int(done.out.split(" received")[0].split()[-1])


def drops(node: LabNode) -> dict[int, int]:
    """Packets that the guard has dropped, by the number of the reason."""
    shown = run_inside(node.name, "nft", "-j", "list", "set", "inet", table_name("pm"), "drops").out
    found = next(item["set"] for item in json.loads(shown)["nftables"] if "set" in item)
    return {e["elem"]["val"]: e["elem"]["counter"]["packets"] for e in found["elem"]}


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not seen():
            await trio.sleep(0.05)


def guarded(node: LabNode) -> bool:
    return run_inside(node.name, "nft", "list", "table", "inet", table_name("pm")).status == 0


def test_a_stranger_reaches_no_overlay_address(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim, member = nodes_of(spec)
    status = status_of(victim)
    for address in (status.ip4, status.ip6):
        with serving(victim, address) as seen, routed(neighbour, victim):
            assert pings(neighbour.name, address) == 0
            assert neighbour.python(FETCH, address, PORT).out.startswith("failed")
            assert pings(member.name, address) == 5
            assert run_inside(member.name, sys.executable, "-c", FETCH, address, PORT).out == "secret\n"
        assert {line.split()[1] for line in seen} == {getattr(status_of(member), _family(address))}
    assert drops(victim)[1] >= 12  # ten pings and two handshakes


def test_a_forged_members_address_is_not_delivered(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim, member = nodes_of(spec)
    before = drops(victim)[1]
    with serving(victim, status_of(victim).ip4) as seen, routed(neighbour, victim):
        assert neighbour.python(FORGE, status_of(member).ip4, status_of(victim).ip4, PORT).status == 0
        deadline = time.monotonic() + PATIENCE_S
        while drops(victim)[1] < before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert seen == []
    assert drops(victim)[1] >= before + 20


def test_a_stranger_is_not_answered_who_has_an_overlay_address(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim = nodes_of(spec)[0]
    address = status_of(victim).ip4
    neighbour.run("ip", "route", "replace", f"{address}/32", "dev", "up0")
    try:
        assert pings(neighbour.name, address) == 0
        shown = json.loads(neighbour.run("ip", "-j", "neighbour", "show", address).out)
        assert not any("lladdr" in entry for entry in shown)
    finally:
        neighbour.run("ip", "route", "delete", f"{address}/32")


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_a_stranger_cannot_narrow_a_path_of_the_overlay(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour, family: str
) -> None:
    """By an error of ICMP about a packet that the underlay has never seen."""
    victim, member = nodes_of(spec)
    own, peer = getattr(status_of(victim), family), getattr(status_of(member), family)
    place = victim.address(0) if family == "ip4" else link_local(victim)
    assert pings(victim.name, peer) == 5
    before = drops(victim)[1]
    assert neighbour.python(TOO_BIG, place, own, peer, "up0").err == ""
    whole = ["ping", "-q", "-M", "do", "-s", "1350", "-c", "3", "-i", "0.2", "-W", "2", peer]
    assert "mtu" not in run_inside(victim.name, "ip", "route", "get", peer).out
    assert " 3 received" in run_inside(victim.name, *whole).out
    assert drops(victim)[1] == before + 5


def test_a_member_reaches_nothing_beyond_the_overlay_address(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    """An address of a container bridge on the peer, and with forwarding on a machine behind it."""
    victim, member = nodes_of(spec)
    behind, targets = f"{victim.name}b", ("172.17.0.1", "172.17.0.2", "fd17::1", "fd17::2")
    steps = [
        f"ip netns add {behind}",
        f"ip -n {victim.name} link add docker0 type veth peer name eth0 netns {behind}",
        f"ip -n {victim.name} address add 172.17.0.1/16 dev docker0",
        f"ip -n {victim.name} -6 address add fd17::1/64 dev docker0 nodad",
        f"ip -n {victim.name} link set docker0 up",
        f"ip -n {behind} address add 172.17.0.2/16 dev eth0",
        f"ip -n {behind} -6 address add fd17::2/64 dev eth0 nodad",
        f"ip -n {behind} link set lo up",
        f"ip -n {behind} link set eth0 up",
        f"ip -n {behind} route add default via 172.17.0.1",
        f"ip -n {behind} -6 route add default via fd17::1",
        f"ip netns exec {victim.name} sysctl -qw net.ipv4.ip_forward=1",
        f"ip netns exec {victim.name} sysctl -qw net.ipv6.conf.all.forwarding=1",
    ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        before, own = drops(victim)[2], status_of(victim).ip4
        with turned(member, targets):
            assert pings(member.name, own) == 5
            for target in targets:
                assert pings(behind, target) == 5
                assert pings(member.name, target) == 0
        assert drops(victim)[2] >= before + 5 * len(targets)
    finally:
        subprocess.run(["ip", "netns", "delete", behind], check=False)
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            run_inside(victim.name, "sysctl", "-qw", f"{key}=0")
        trio.run(converged, nodes_of(spec), PATIENCE_S)


async def test_flushed_rules_are_back_at_once(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim = nodes_of(spec)[0]
    await trio.sleep(2.0)  # past the node's own look, if one is due
    assert run_inside(victim.name, "nft", "flush", "ruleset").status == 0
    await until(lambda: guarded(victim))
    with routed(neighbour, victim):
        assert pings(neighbour.name, status_of(victim).ip4) == 0


def _family(address: str) -> str:
    return "ip6" if ":" in address else "ip4"


@contextmanager
def turned(member: LabNode, targets: Sequence[str]) -> Iterator[None]:
    """A member that means harm: its node is gone and its WireGuard takes these targets for its peer's."""
    kill(member)
    peer = run_in(member, "wg", "show", "pm0", "peers").strip()
    status = run_in(member, "wg", "show", "pm0", "allowed-ips").split()[1:]
    run_in(member, "wg", "set", "pm0", "peer", peer, "allowed-ips", ",".join([*status, *targets]))
    for target in targets:
        run_in(member, "ip", "route", "add", target, "dev", "pm0")
    try:
        yield
    finally:
        for target in targets:
            run_in(member, "ip", "route", "delete", target, "dev", "pm0")
        trio.run(start, member)
