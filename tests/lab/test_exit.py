# SPDX-License-Identifier: GPL-3.0-or-later
"""A member whose traffic leaves by an exit, and the capture that shows nothing beside it: real nodes, end to
end.

The internet is one more machine on the segment. It has addresses of both families, is the gateway of all
nodes, and answers whoever asks. So whatever the member lets out beside the exit would reach it.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio

from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import converged, kill, phantommesh, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import neighbour_of, run_inside
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in, until
from tests.lab.test_node import edit
from tests.lab.test_subnets import stop
from tests.support.lan import ip
from tests.support.spaces import within

pytestmark = pytest.mark.lab

FOUR, SIX = "1.1.1.1", "2606:4700::1111"  # of the internet
RESOLVER = "9.9.9.9"
GATE4, GATE6 = "128.0.0.0/1", "::/1"  # of each default route: WireGuard has them without the overlay
LAN, LAN6 = "10.201.0.250", "2001:db8:7::250"  # the gateway, by its addresses in the member's own network
_ALL = 3  # ETH_P_ALL, linux/if_ether.h: with any other a socket hears nothing that leaves
_OUTGOING = 4  # PACKET_OUTGOING, linux/if_packet.h
_FORCE, _ROOM = 33, 1 << 26  # SO_RCVBUFFORCE

# Datagrams, questions for names and beginnings of connections to all of these, again and again.
NOISE = """
import socket, sys, time
device, targets = sys.argv[1], sys.argv[2:]
told = False
while True:
    for target in targets:
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        for kind, port in ((socket.SOCK_DGRAM, 53), (socket.SOCK_DGRAM, 9), (socket.SOCK_STREAM, 853)):
            with socket.socket(family, kind) as sock:
                sock.setblocking(False)
                try:
                    if device:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
                    sock.connect((target, port))
                    sock.send(b"beside the exit?")
                except OSError:
                    pass
    if not told:
        print("tried all", flush=True)
    told = True
    time.sleep(0.05)
"""


@contextmanager
def internet(spec: LabSpec) -> Iterator[None]:
    """The machine that is everywhere else, and the nodes' default routes to it."""
    with neighbour_of(spec) as far:
        for address in (FOUR, RESOLVER):
            ip("-n", far.name, "address", "add", f"{address}/32", "dev", "lo")
        ip("-n", far.name, "address", "add", f"{SIX}/128", "dev", "lo", "nodad")
        ip("-n", far.name, "address", "add", "2001:db8:7::250/64", "dev", "up0", "nodad")
        for node in nodes_of(spec):
            ip("-n", node.name, "address", "add", f"2001:db8:7::{node.number}/64", "dev", "up0", "nodad")
            ip("-n", node.name, "route", "add", "default", "via", LAN)
            ip("-n", node.name, "-6", "route", "add", "default", "via", LAN6)
        yield


@asynccontextmanager
async def meshed(spec: LabSpec, **user: object) -> AsyncIterator[list[LabNode]]:
    """An authority that is an exit of both families, a second exit of IPv4 alone, and a member that uses them
    in this order."""
    await up.up(spec)
    nodes = nodes_of(spec)
    first, second, member = nodes
    with internet(spec):
        # As strict as the check of source addresses can be: the way back to a sender seems to be the exit.
        for device in ("all", "up0"):
            run_in(member, "sysctl", "-q", "-w", f"net.ipv4.conf.{device}.rp_filter=1")
        run_in(first, "sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1")
        edit(first.config, routes={"advertise": ("0.0.0.0/0", "::/0"), "probe": {"0.0.0.0/0": FOUR}})
        edit(second.config, routes={"advertise": ("0.0.0.0/0",), "probe": {"0.0.0.0/0": FOUR}})
        edit(member.config, routes={"exit": (first.name, second.name), **user})
        for node in nodes:
            await stop(node)
            await start(node)
        await converged(nodes, PATIENCE_S)
        for router in (first, second):
            await phantommesh(first, "route", "approve", router.name, "exit")
        yield nodes


@pytest.fixture
def three() -> Iterator[LabSpec]:
    spec = make_spec("e", nodes=3, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


def answers(node: LabNode, address: str) -> bool:
    return run_inside(node.name, "ping", "-c", "1", "-W", "1", address).status == 0


def carried(node: LabNode, prefix: str, router: LabNode | None) -> bool:
    """Whether all seven interfaces of a node have the prefix at this router and at nobody else; None: none
    has it at all."""
    shown = run_in(node, "wg", "show", "all", "allowed-ips").splitlines()
    having = [line.split()[1] for line in shown if prefix in line.split()]
    if router is None:
        return not having
    keys = set(run_in(router, "wg", "show", "all", "public-key").split()[1::2])
    return len(having) == 7 and set(having) <= keys


def kind_of(frame: bytes, nodes: set[bytes]) -> str:
    """What a frame that leaves is: the mesh, the life of the link, or else what it is and to whom."""
    kind, packet = frame[12:14], frame[14:]
    if kind == b"\x08\x06":
        return "link"
    if kind == b"\x08\x00":
        protocol, to, body = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
        first = int.from_bytes(packet[6:8], "big") & 0x1FFF == 0
        shown = socket.inet_ntop(socket.AF_INET, to)
    elif kind == b"\x86\xdd":
        protocol, to, body, first = packet[6], packet[24:40], packet[40:], True
        if protocol == 0:  # hop-by-hop options, before reports on groups
            protocol, body = body[0], body[8:]
        if protocol == 58 and body[0] in (131, 132, 133, 135, 136, 143):
            return "link"
        shown = socket.inet_ntop(socket.AF_INET6, to)
    else:
        return f"type {kind.hex()}"
    source, target = (int.from_bytes(body[i : i + 2], "big") if first else 0 for i in (0, 2))
    mesh = protocol == 17 and (not first or source == 51800 or 51820 <= source <= 51826)
    control = protocol == 6 and 51800 in (source, target)
    if to in nodes and (mesh or control):
        return "mesh"
    name = {1: "ping", 6: f"tcp/{target}", 17: f"udp/{target}", 58: "ping"}.get(protocol, f"no. {protocol}")
    return f"{name} to {shown}"


@contextmanager
def watched(member: LabNode, others: list[LabNode]) -> Iterator[Counter[str]]:
    """What leaves a node by its uplink meanwhile, by kind."""
    sock = within(member.name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)))
    nodes = {socket.inet_aton(node.address(0)) for node in others}
    nodes |= {socket.inet_pton(socket.AF_INET6, f"2001:db8:7::{node.number}") for node in others}
    found = Counter[str]()
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, _FORCE, _ROOM)
        sock.bind(("up0", _ALL))
        sock.setblocking(False)
        yield found
        while True:
            try:
                frame, where = sock.recvfrom(65535)
            except BlockingIOError:
                return
            if where[2] == _OUTGOING:
                found[kind_of(frame, nodes)] += 1


@contextmanager
def noise(member: LabNode, device: str = "") -> Iterator[None]:
    """Programs that try all ways out, with their packets bound to a device where one is named: from when each
    target was tried once."""
    to = (FOUR, SIX, RESOLVER, LAN, LAN6)
    inside = ["ip", "netns", "exec", member.name]
    pings = [
        subprocess.Popen([*inside, "ping", "-i", "0.05", "-q", one], stdout=subprocess.DEVNULL) for one in to
    ]
    command = [*inside, sys.executable, "-c", NOISE, device, *to]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trying:
        try:
            assert trying.stdout is not None and trying.stdout.readline()
            yield
        finally:
            for process in (trying, *pings):
                process.kill()
                process.wait()


async def test_nothing_leaves_beside_an_exit(three: LabSpec) -> None:
    """While the exit is up, dies and returns, while the node is killed, and when its rules are flushed; in
    both families, questions for names among it."""
    async with meshed(three) as nodes:
        first, second, member = nodes
        await until(lambda: carried(member, GATE4, first) and carried(member, GATE6, first))
        with watched(member, [first, second]) as seen, noise(member, "up0"), noise(member):
            await until(partial(answers, member, FOUR))
            await until(partial(answers, member, SIX))
            assert answers(member, RESOLVER)
            assert not answers(member, LAN), "the exit has led into its own network"
            assert not answers(member, LAN6), "the exit has led into its own network"
            said = await phantommesh(member, "route", "explain", FOUR)
            assert f"{first.name} carries it" in said
            said = await phantommesh(member, "status")
            assert f"IPv4 by {first.name}, IPv6 by {first.name}" in said

            await net.kill([first.name])
            await until(lambda: carried(member, GATE4, second) and carried(member, GATE6, None))
            await until(partial(answers, member, FOUR))
            assert not answers(member, SIX), "the second exit has no IPv6"
            said = await phantommesh(member, "status")
            assert f"IPv4 by {second.name}, IPv6 is refused" in said

            await net.kill([second.name])
            await until(lambda: carried(member, GATE4, None))
            assert not answers(member, FOUR)
            await start(second)
            await until(lambda: carried(member, GATE4, second))
            await until(partial(answers, member, FOUR))

            await stop(member)
            await trio.sleep(0.5)
            await start(member)
            await until(lambda: carried(member, GATE4, second))
            kill(member)
            await trio.sleep(0.5)
            for name in ("pm", *(f"pm{i}" for i in range(7))):
                subprocess.run(["ip", "-n", member.name, "link", "delete", name], check=False)
            await trio.sleep(0.5)
        kinds = dict(seen)
        print(f"what left the member: {kinds}")
        assert set(kinds) <= {"mesh", "link"}
        assert kinds["mesh"] > 100

        with watched(member, [first, second]) as seen, noise(member):
            run_in(member, "nft", "flush", "ruleset")  # the routes hold without the rules
            await trio.sleep(1.0)
            await start(member)  # and the node is closed before it has found anybody
            await until(lambda: carried(member, GATE4, second))
            run_in(member, "nft", "flush", "ruleset")
            await until(partial(answers, member, FOUR))
        assert set(seen) <= {"mesh", "link"}, dict(seen)

        await stop(member)
        await phantommesh(member, "down")
        assert "unreachable" not in run_in(member, "ip", "route", "show", "table", "all")
        with watched(member, [first, second]) as seen, noise(member):
            await until(partial(answers, member, FOUR))
            await until(partial(answers, member, LAN))
        assert seen[f"udp/53 to {RESOLVER}"], "down has opened it"

        edit(member.config, routes={"lan": True})
        await start(member)
        await until(lambda: carried(member, GATE4, second))
        with watched(member, [first, second]) as seen, noise(member):
            await until(partial(answers, member, FOUR))
            assert answers(member, LAN)
            await trio.sleep(1.0)
        print(f"with the host's own networks beside the exit: {dict(seen)}")
        assert seen[f"ping to {LAN}"] and seen[f"udp/9 to {LAN}"]
        beside = [kind.partition(" to ") for kind in set(seen) - {"mesh", "link"}]
        assert not [name for name, _, _ in beside if name.endswith(("/53", "/853"))], (
            "names leave by the exit"
        )
        assert not {to for _, _, to in beside} & {FOUR, SIX, RESOLVER, LAN6}
