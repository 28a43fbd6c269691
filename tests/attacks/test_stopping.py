# SPDX-License-Identifier: GPL-3.0-or-later
"""A gateway that holds a peer's overlay address waits for a node's parts to die, in every order.

The gateway is the default route of the node's host, answers for the peer's addresses, and counts what
arrives for them. All the while a program on the host sends to the peer, by every means there is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio

from phantommesh.config.reading import load
from phantommesh.config.writing import render
from phantommesh.dimensions import interface_names, master_name
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import converged, kill, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of, processes_in
from phantommesh.nursery.overlay.closing import KINDS
from tests.attacks.rig import Neighbour, run_inside, start_inside, status_of
from tests.lab.conftest import BACKEND, PATIENCE_S
from tests.lab.test_node import edit

pytestmark = pytest.mark.lab

# Counts packets of every kind for the addresses given, and says on request how many there were.
GATEWAY: Final = """
import selectors, socket, sys
from ipaddress import ip_address
wanted = {ip_address(a).packed for a in sys.argv[1:]}
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
heard.bind(("up0", 0))
seen, last, ready = 0, "", selectors.DefaultSelector()
ready.register(heard, selectors.EVENT_READ); ready.register(sys.stdin, selectors.EVENT_READ)
heard.setblocking(False)

def drain():  # all that is here: what is counted after an answer was sent after the question
    global seen, last
    while True:
        try:
            frame = heard.recv(65536)
        except BlockingIOError:
            return
        kind, packet = frame[12:14].hex(), frame[14:]
        if {"0800": packet[16:20], "86dd": packet[24:40]}.get(kind) in wanted:
            seen, last = seen + 1, packet[:60].hex()

print("ready", flush=True)
while True:
    asked = any(key.fileobj is sys.stdin for key, _ in ready.select())
    drain()
    if asked:
        if not sys.stdin.readline():
            sys.exit()
        print(seen, last, flush=True)
        seen, last = 0, ""
"""

# Sends to the peer without end: each kind of socket, those that look the way up once and always.
SENDER: Final = """
import os, socket, struct, sys, time
peer4, peer6, own4 = sys.argv[1:4]
def quietly(act, *arguments):
    try:
        return act(*arguments)
    except OSError:
        return None
def made(family, kind, protocol=0):
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made
def echo(kind):
    return struct.pack("!BBHHH", kind, 0, 0 if kind == 128 else 0xffff - (kind << 8), 0, 0)
connected = {}
four, six = made(socket.AF_INET, socket.SOCK_DGRAM), made(socket.AF_INET6, socket.SOCK_DGRAM)
ping4 = made(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping6 = made(socket.AF_INET6, socket.SOCK_RAW, socket.getprotobyname("ipv6-icmp"))
bound = None
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    quietly(four.sendto, b"secret", (peer4, 9))
    quietly(six.sendto, b"secret", (peer6, 9))
    quietly(ping4.sendto, echo(8), (peer4, 0))
    quietly(ping6.sendto, echo(128), (peer6, 0))
    for family, peer in ((socket.AF_INET, peer4), (socket.AF_INET6, peer6)):
        if family not in connected:  # it keeps the way that it has found
            connected[family] = made(family, socket.SOCK_DGRAM)
            quietly(connected[family].connect, (peer, 9))
        if quietly(connected[family].send, b"secret") is None and turn % 20 == 0:
            quietly(connected[family].connect, (peer, 9))
    if turn % 5 == 0:
        for family, peer in ((socket.AF_INET, peer4), (socket.AF_INET6, peer6)):
            with made(family, socket.SOCK_STREAM) as tcp:
                tcp.connect_ex((peer, 80))
    if turn % 7 == 0:
        if bound is not None:
            bound.close()
        bound = made(socket.AF_INET, socket.SOCK_DGRAM)
        quietly(bound.bind, (own4, 0))
    quietly(bound.sendto, b"secret", (peer4, 9)) if bound else None
    time.sleep(0.002)
"""


@dataclass
class Host:
    """The host whose node dies, and the gateway that waits."""

    spec: LabSpec
    node: LabNode
    gateway: subprocess.Popen[bytes]

    def leaked(self) -> tuple[int, str]:
        """How many packets for the peer's overlay addresses came to the gateway since the last time, and the
        beginning of the latest."""
        assert self.gateway.stdin is not None and self.gateway.stdout is not None
        self.gateway.stdin.write(b"\n")
        self.gateway.stdin.flush()
        count, _, last = self.gateway.stdout.readline().decode("ascii").strip().partition(" ")
        return int(count), last

    @property
    def dimensions(self) -> tuple[str, ...]:
        return interface_names(load(self.node.config).wireguard.prefix)

    def run(self, *command: str) -> None:
        """Run a command on the host; what it removes may be gone already."""
        run_inside(self.node.name, *command)

    def node_runs(self) -> bool:
        return int(pid_file(self.node).read_text(encoding="ascii")) in processes_in([self.node.name])


def terminate(host: Host) -> None:
    with suppress(LabError):
        kill(host.node, signal.SIGTERM)


def kill_node(host: Host) -> None:
    with suppress(LabError):
        kill(host.node, signal.SIGKILL)


def kill_wireguard(host: Host) -> None:
    """End what carries the dimensions: the userspace WireGuard of each, or the interface itself."""
    if BACKEND == "kernel":
        for name in host.dimensions:
            host.run("ip", "link", "delete", name)
        return
    for pid in processes_in([host.node.name]):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith("wireguard"):
                os.kill(pid, signal.SIGKILL)


def delete_master(host: Host) -> None:
    host.run("ip", "link", "delete", master_name(load(host.node.config).wireguard.prefix))


def flush_tables(host: Host) -> None:
    host.run("nft", "flush", "ruleset")


def flush_routes(host: Host) -> None:
    for family in ("-4", "-6"):
        host.run("ip", family, "route", "flush", "proto", str(ROUTE_PROTOCOL))


def delete_rules(host: Host) -> None:
    for family in ("-4", "-6"):
        for priority in KINDS:
            host.run("ip", family, "rule", "delete", "priority", str(priority))


LAYERS: Final = {"the guard": flush_tables, "routes": flush_routes, "rules": delete_rules}

DEATHS: Final[dict[str, Callable[[Host], None]]] = {
    "wireguard": kill_wireguard,
    "pm": delete_master,
    "tables": flush_tables,
    "routes": flush_routes,
}
ENDINGS: Final[dict[str, Callable[[Host], None]]] = {"SIGKILL": kill_node, "SIGTERM": terminate}


@contextmanager
def sending(node: LabNode, peer: LabNode) -> Iterator[None]:
    there, here = status_of(peer), status_of(node)
    program = start_inside(node.name, sys.executable, "-c", SENDER, there.ip4, there.ip6, here.ip4)
    try:
        assert program.stdout is not None and program.stdout.readline() == b"ready\n"
        yield
        assert program.poll() is None, program.communicate()[1].decode()
    finally:
        program.kill()
        program.communicate()


@pytest.fixture(scope="module")
def host(mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour) -> Iterator[Host]:
    """Node 2's host: its default routes lead to the gateway, which has node 1's overlay addresses."""
    peer, node = nodes_of(spec)[0], nodes_of(spec)[1]
    # From its next start on it says goodbye for one second, not two. It leaves some forty times here.
    edit(node.config, gossip={"preset": "local"})
    there = status_of(peer)
    for address in (f"{there.ip4}/32", f"{there.ip6}/128"):
        assert neighbour.run("ip", "address", "add", address, "dev", "lo").status == 0
    shown = neighbour.run("ip", "-6", "-o", "address", "show", "dev", "up0", "scope", "link").out
    six = shown.split()[3].split("/")[0]
    link = neighbour.run("cat", "/sys/class/net/up0/address").out.strip()
    for command in (
        ("ip", "route", "add", "default", "via", neighbour.address()),
        ("ip", "-6", "route", "add", "default", "via", six, "dev", "up0"),
        # Nothing has to wait for the gateway's link address: up to 256 packets that were sent while an
        # operator had opened all would be let go seconds later, when the overlay is closed again.
        *(
            ("ip", "neighbour", "replace", address, "lladdr", link, "nud", "permanent", "dev", "up0")
            for address in (neighbour.address(), six)
        ),
    ):
        assert run_inside(node.name, *command).status == 0
    gateway = subprocess.Popen(
        ["ip", "netns", "exec", neighbour.name, sys.executable, "-c", GATEWAY, there.ip4, there.ip6],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert gateway.stdout is not None and gateway.stdout.readline() == b"ready\n"
        with sending(node, peer):
            yield Host(spec, node, gateway)
    finally:
        gateway.kill()
        gateway.communicate()


async def revive(host: Host) -> None:
    """Start the node, and wait until its interfaces carry the overlay's traffic again."""
    if not host.node_runs():
        await start(host.node)
    wanted = {*host.dimensions, master_name(load(host.node.config).wireguard.prefix)}
    with trio.fail_after(PATIENCE_S):
        while True:
            shown = run_inside(host.node.name, "ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).out
            if all(f"dev {name} " in shown for name in wanted) and "unreachable" in shown:
                break
            await trio.sleep(0.1)


async def ended(host: Host) -> None:
    with trio.fail_after(PATIENCE_S):
        while host.node_runs():
            await trio.sleep(0.05)


def orders(ending: str) -> list[tuple[str, ...]]:
    """The orders in which the node and its parts can die: with PHANTOMMESH_ALL_ORDERS set all of them, else
    enough of them that each death comes after each set of others."""
    left = list(permutations((ending, *DEATHS)))
    if "PHANTOMMESH_ALL_ORDERS" in os.environ:
        return left
    steps = {order: {(frozenset(order[:i]), death) for i, death in enumerate(order)} for order in left}
    wanted, chosen = set().union(*steps.values()), list[tuple[str, ...]]()
    while wanted:
        best = max(left, key=lambda order: len(steps[order] & wanted))
        chosen.append(best)
        wanted -= steps[best]
    return chosen


async def test_the_gateway_sees_what_leaves_in_clear(host: Host) -> None:
    """The rig itself: where an operator has opened all by hand, the gateway gets the packets."""
    await revive(host)
    host.leaked()
    for death in (kill_node, *DEATHS.values(), delete_rules):
        death(host)
    await trio.sleep(0.3)
    assert host.leaked()[0] > 0


@pytest.mark.parametrize("left", LAYERS)
async def test_each_thing_that_closes_the_overlay_does_so_alone(host: Host, left: str) -> None:
    await revive(host)
    host.leaked()
    for death in (kill_node, *(open_ for name, open_ in LAYERS.items() if name != left)):
        death(host)
    kill_wireguard(host)
    delete_master(host)
    await trio.sleep(0.2)
    assert host.leaked() == (0, "")


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_leaves_in_clear_in_any_order_of_deaths(host: Host, ending: str) -> None:
    """Also for as long as nothing is left of the node."""
    leaks = {}
    for order in orders(ending):
        await revive(host)
        host.leaked()
        for death in order:
            (ENDINGS | DEATHS)[death](host)
        await ended(host)
        await trio.sleep(0.05)
        count, last = host.leaked()
        if count:
            leaks[order] = (count, last)
    assert leaks == {}


async def test_nothing_leaves_in_clear_when_all_dies_at_once(host: Host) -> None:
    for ending in ENDINGS.values():
        await revive(host)
        host.leaked()
        async with trio.open_nursery() as nursery:
            for death in (ending, *DEATHS.values()):
                nursery.start_soon(trio.to_thread.run_sync, death, host)
        await ended(host)
        await trio.sleep(0.1)
        assert host.leaked() == (0, "")


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_leaves_in_clear_when_dimensions_go_one_by_one(host: Host, ending: str) -> None:
    await revive(host)
    host.leaked()
    delete_master(host)
    for i, name in enumerate(host.dimensions):
        host.run("ip", "link", "delete", name)
        if i == 3:
            ENDINGS[ending](host)
    await ended(host)
    await trio.sleep(0.1)
    assert host.leaked() == (0, "")


async def test_nothing_leaves_in_clear_while_nothing_is_scattered(host: Host) -> None:
    """With scatter.hook = "off" there is no interface but the dimensions'."""
    before = host.node.config.read_bytes()
    config = load(host.node.config)
    off = msgspec.structs.replace(config, scatter=msgspec.structs.replace(config.scatter, hook="off"))
    terminate(host)
    await ended(host)
    host.node.config.write_text(render(off), encoding="ascii")
    try:
        for ending in ENDINGS.values():
            await start(host.node)
            with trio.fail_after(PATIENCE_S):
                while (
                    f"dev {host.dimensions[-1]} "
                    not in run_inside(host.node.name, "ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).out
                ):
                    await trio.sleep(0.1)
            host.leaked()
            kill_wireguard(host)
            ending(host)
            flush_routes(host)
            await ended(host)
            assert host.leaked() == (0, "")
    finally:
        host.node.config.write_bytes(before)
    await revive(host)


async def test_what_is_opened_is_closed_again_while_the_node_runs(host: Host) -> None:
    await revive(host)
    flush_routes(host)
    delete_rules(host)
    await revive(host)
    with trio.fail_after(PATIENCE_S):
        while run_inside(host.node.name, "ip", "rule").out.count(f"proto {ROUTE_PROTOCOL}") != 2:
            await trio.sleep(0.1)


async def test_the_mesh_comes_back_whole(host: Host) -> None:
    await revive(host)
    await converged(nodes_of(host.spec), PATIENCE_S)
    assert host.leaked()[0] >= 0
