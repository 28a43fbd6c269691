# SPDX-License-Identifier: GPL-3.0-or-later
"""A network beyond the mesh behind two routers, and two members that use it: real nodes, end to end.

The network is a bridge in a namespace of its own, with one host on it. The first router masquerades. The
second one does not: the host has a route to the overlay by it. Both ping the host to see whether their route
works.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest
import trio

from phantommesh.config.sections import ScatterSection
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import answered, converged, kill, phantommesh, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic
from phantommesh.trust.identity import parse_node_id
from tests.attacks.rig import neighbour_of, run_inside, status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import is_gone, run_in, until
from tests.lab.test_node import edit
from tests.support.lan import HOST, LAN, ip, network_behind
from tests.support.spaces import within

pytestmark = pytest.mark.lab

OTHER = "192.168.60.1"  # an address of the first router's that is in no prefix
_ALL = 3  # ETH_P_ALL, linux/if_ether.h: with any other a socket hears nothing that leaves
_FORCE, _ROOM = 33, 1 << 26  # SO_RCVBUFFORCE

SPOOF = """
import socket, struct, sys
source, target, device = sys.argv[1:4]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
ends = socket.inet_aton(source) + socket.inet_aton(target)
head = struct.pack("!BBHHHBBH", 0x45, 0, 36, 7, 0, 64, 17, 0) + ends
for _ in range(10):
    raw.sendto(head + struct.pack("!HHHH", 9, 9999, 16, 0) + b"spoofed!", (target, 0))
"""


async def stop(node: LabNode) -> None:
    """Stop a node as a service manager does."""
    kill(node, signal.SIGTERM)
    await until(partial(is_gone, node))


@asynccontextmanager
async def meshed(spec: LabSpec, *, hides: bool = False) -> AsyncIterator[tuple[list[LabNode], str]]:
    """The mesh: an authority that uses the network, the two routers, and one more member that does. The first
    router hides members behind an address of its own, and the second one too where it ``hides`` them."""
    await up.up(spec)
    nodes = nodes_of(spec)
    authority, first, second, member = nodes
    with network_behind(spec, first, second) as lan:
        ip("-n", lan, "route", "add", "100.64.0.0/10", "via", "192.168.50.3")
        ip("-n", first.name, "address", "add", f"{OTHER}/24", "dev", "lan0")
        for router, masquerade in ((first, True), (second, hides)):
            probe = {LAN: HOST}
            edit(router.config, routes={"advertise": (LAN,), "masquerade": masquerade, "probe": probe})
        for node in (authority, member):
            edit(node.config, routes={"accept": ("192.168.0.0/16",)})
        for node in nodes:
            await stop(node)
            await start(node)
        await converged(nodes, PATIENCE_S)
        for router in (first, second):
            await phantommesh(authority, "route", "approve", router.name, LAN)
        yield nodes, lan


@pytest.fixture
def four() -> Iterator[LabSpec]:
    spec = make_spec("s", nodes=4, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


def carries(node: LabNode, router: LabNode) -> Callable[[], bool]:
    """Whether all seven interfaces of a node have the prefix at this router, and at nobody else."""

    def so() -> bool:
        shown = run_in(node, "wg", "show", "all", "allowed-ips").splitlines()
        keys = set(run_in(router, "wg", "show", "all", "public-key").split()[1::2])
        having = [line.split()[1] for line in shown if LAN in line.split()]
        return len(having) == 7 and set(having) <= keys

    return so


def answers(node: LabNode, address: str = HOST) -> bool:
    return run_inside(node.name, "ping", "-c", "1", "-W", "1", address).status == 0


@contextmanager
def watched(node: LabNode, device: str = "up0") -> Iterator[list[bytes]]:
    """The IPv4 packets for the network that leave by an interface of a node's meanwhile."""
    sock = within(node.name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)))
    found = list[bytes]()
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, _FORCE, _ROOM)
        sock.bind((device, _ALL))
        sock.setblocking(False)
        yield found
        while True:
            try:
                frame = sock.recv(65535)
            except BlockingIOError:
                return
            if frame[12:14] == b"\x08\x00" and frame[30:33] == ip_address(HOST).packed[:3]:
                found.append(frame)


async def test_a_twin_takes_over_when_a_router_its_link_or_what_is_behind_it_dies(four: LabSpec) -> None:
    async with meshed(four) as (nodes, lan):
        _, first, second, member = nodes
        best, twin = sorted((first, second), key=lambda node: parse_node_id(status_of(node).node_id))
        cable = {first.name: "l2", second.name: "l3"}
        await until(partial(answers, member))
        await until(carries(member, best))
        flow = Flow(member.name, "the network", HOST)
        async with open_traffic([flow], 0.05) as traffic:
            await answered(traffic, trio.current_time(), PATIENCE_S)

            ip("-n", lan, "link", "set", cable[best.name], "down")
            await until(carries(member, twin))
            await answered(traffic, trio.current_time(), PATIENCE_S)
            print(f"longest silence, the link of a living router dead: {flow.silence_s:.2f} s")

            ip("-n", lan, "link", "set", cable[best.name], "up")
            await trio.sleep(4.0)  # until the router has said that its route works again
            flow.silence_s = 0.0
            # The bridge forwards nothing to the router, whose link keeps its carrier.
            subprocess.run(
                ["bridge", "-n", lan, "link", "set", "dev", cable[twin.name], "state", "0"], check=True
            )
            await until(carries(member, best))
            await answered(traffic, trio.current_time(), PATIENCE_S)
            print(f"longest silence, what is behind a living router dead: {flow.silence_s:.2f} s")

            subprocess.run(
                ["bridge", "-n", lan, "link", "set", "dev", cable[twin.name], "state", "3"], check=True
            )
            await trio.sleep(4.0)
            flow.silence_s = 0.0
            await net.kill([best.name])
            await until(carries(member, twin))
            await answered(traffic, trio.current_time(), PATIENCE_S)
            print(f"longest silence, a router killed: {flow.silence_s:.2f} s")


async def test_a_prefix_is_reached_where_marks_scatter(four: LabSpec) -> None:
    async with meshed(replace(four, scatter=ScatterSection(hook="mark", goal="throughput")), hides=True) as (
        nodes,
        _,
    ):
        await until(partial(answers, nodes[3]))
        shown = run_in(nodes[3], "ip", "route", "show", "table", "11201")
        assert f"{LAN} dev pm0" in shown


async def test_nobody_gets_beside_or_beyond(four: LabSpec) -> None:
    """Members reach the prefix and nothing else behind a router; nobody else comes in as the network; what is
    for the network leaves by the mesh or not at all, whatever dies."""
    async with meshed(four) as (nodes, lan):
        authority, first, second, member = nodes
        own = status_of(member).ip4
        await until(partial(answers, member))
        await until(partial(answers, authority))

        # Not beyond the prefix, though the router has the address.
        run_in(member, "ip", "route", "add", f"{OTHER}/32", "dev", "pm")
        assert not answers(member, OTHER)
        # The network opens nothing into the mesh, by the router that it has a route by.
        assert run_inside(lan, "ping", "-c", "3", "-i", "0.2", "-W", "1", own).status != 0
        assert not answers_from(lan, status_of(second).ip4)

        # A neighbour on the underlay, and another member, are not the network.
        def heard() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind(("0.0.0.0", 9999))
            made.settimeout(1.0)
            return made

        with within(member.name, heard) as sock, neighbour_of(four) as neighbour:
            neighbour.python(SPOOF, HOST, member.address(0), "up0")
            run_inside(authority.name, "python3", "-c", SPOOF, HOST, own, "pm0")
            with pytest.raises(TimeoutError):
                sock.recv(64)

        # A router that is revoked opens nothing.
        await phantommesh(authority, "revoke", first.name)
        await until(carries(member, second))
        await phantommesh(authority, "route", "revoke", second.name, LAN)
        await until(lambda: LAN not in run_in(member, "wg", "show", "all", "allowed-ips"))

        # Somebody else answers for the network on the member's default route.
        ip("-n", member.name, "route", "replace", "default", "via", authority.address(0))
        ping = ["ip", "netns", "exec", member.name, "ping", "-i", "0.02", "-W", "1", "-q", HOST]
        with watched(member) as seen, subprocess.Popen(ping, stdout=subprocess.DEVNULL) as pings:
            await trio.sleep(3.0)  # nobody carries it
            await stop(member)
            await start(member)
            await converged([authority, member], PATIENCE_S)
            kill(member)
            await trio.sleep(0.5)
            for name in ("pm", "pm0"):
                subprocess.run(["ip", "-n", member.name, "link", "delete", name], check=False)
            await trio.sleep(0.5)
            # Either of the two holds without the other.
            run_in(member, "nft", "flush", "ruleset")
            await trio.sleep(0.5)
            pings.terminate()
        assert seen == []
        await phantommesh(member, "down")
        assert "unreachable" not in run_in(member, "ip", "route", "show", "table", "all")
        with watched(member) as seen:
            answers(member)
        assert seen, "down has opened it"


def answers_from(namespace: str, address: str) -> bool:
    return run_inside(namespace, "ping", "-c", "1", "-W", "1", address).status == 0
