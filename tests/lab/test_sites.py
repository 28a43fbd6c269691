# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sites of the same private range, both reached from one member at once: real nodes, end to end.

Each site is a bridge in a namespace of its own with one host on it, 192.168.1.10, which says where it is. The
first site has two routers, which masquerade. The router of the second one does not: that host has a route to
the overlay.
"""

from __future__ import annotations

import errno
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import pytest
import trio

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import kill, phantommesh
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in, until
from tests.lab.test_node import edit
from tests.lab.test_subnets import answers
from tests.support.lan import ip
from tests.support.spaces import within

pytestmark = pytest.mark.lab

RANGE, HOST = "192.168.1.0/24", "192.168.1.10"
FIRST, SECOND = "10.77.1.0/24", "10.77.2.0/24"
PLAIN = "198.51.100.0/24"  # RFC 5737; at the second site, too, and by its own addresses
PORT = 8000
SMALL = 900  # bytes that the routers' interfaces to the sites take

_IP_MTU_DISCOVER, _DO, _IP_MTU = 10, 2, 14  # linux/in.h: set DF and cut nothing; what the way takes


@contextmanager
def site(name: str, routers: Mapping[str, str]) -> Iterator[str]:
    """A site with ``lan0`` on each router, which have these addresses there. Yields its namespace; the cable
    of the router N is ``N-l``."""
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "add", "br0", "type", "bridge")
        for device in ("br0", "lo"):
            ip("-n", name, "link", "set", device, "up")
        ip("-n", name, "address", "add", f"{HOST}/24", "dev", "br0")
        for number, (router, address) in enumerate(routers.items()):
            cable = f"l{number}"
            ip("-n", name, "link", "add", cable, "type", "veth", "peer", "name", "lan0", "netns", router)
            ip("-n", name, "link", "set", cable, "master", "br0", "up")
            ip("-n", router, "address", "add", f"{address}/24", "dev", "lan0")
            ip("-n", router, "link", "set", "lan0", "up")
        yield name
    finally:
        ip("netns", "delete", name)


def listening(namespace: str) -> trio.SocketListener:
    def made() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, PORT))
        sock.listen()
        return sock

    return trio.SocketListener(trio.socket.from_stdlib_socket(within(namespace, made)))


async def tell(name: str, stream: trio.SocketStream) -> None:
    """Say which site this is, and who asked."""
    async with stream:
        await stream.send_all(f"{name} {stream.socket.getpeername()[0]}".encode("ascii"))


async def connected(node: LabNode, address: str) -> trio.SocketStream:
    sock = trio.socket.from_stdlib_socket(within(node.name, socket.socket))
    await sock.connect((address, PORT))
    return trio.SocketStream(sock)


async def heard(stream: trio.SocketStream) -> str:
    async with stream:
        return b"".join([chunk async for chunk in stream]).decode("ascii")


@asynccontextmanager
async def meshed(spec: LabSpec) -> AsyncIterator[tuple[list[LabNode], str]]:
    """The mesh: an authority, which is the first site's second router, both sites' routers, and a member that
    uses both. All of it is set on nodes that run. Yields the first site's namespace, too."""
    await up.up(spec)
    nodes = nodes_of(spec)
    authority, first, second, member = nodes
    with (
        site(f"{spec.name}-a", {first.name: "192.168.1.1", authority.name: "192.168.1.2"}) as a,
        site(f"{spec.name}-b", {second.name: "192.168.1.1"}) as b,
    ):
        ip("-n", b, "route", "add", "100.64.0.0/10", "via", "192.168.1.1")
        ip("-n", b, "address", "add", "198.51.100.10/24", "dev", "br0")
        ip("-n", second.name, "address", "add", "198.51.100.1/24", "dev", "lan0")
        for router, prefix in ((authority, FIRST), (first, FIRST), (second, SECOND)):
            edit(
                router.config,
                routes={
                    "advertise": (prefix, *([PLAIN] if router is second else [])),
                    "sites": {prefix: RANGE},
                    "probe": {prefix: HOST},
                    "masquerade": router is not second,
                },
            )
        edit(member.config, routes={"accept": ("10.77.0.0/16", PLAIN)})
        for node in nodes:
            kill(node, signal.SIGHUP)
        for router, prefix in ((authority, FIRST), (first, FIRST), (second, SECOND)):
            more = [PLAIN] if router is second else []
            await phantommesh(authority, "route", "approve", router.name, prefix, *more)
        async with trio.open_nursery() as nursery:
            for name, namespace in (("first", a), ("second", b)):
                nursery.start_soon(trio.serve_listeners, partial(tell, name), [listening(namespace)])
            yield nodes, a
            nursery.cancel_scope.cancel()


@pytest.fixture
def four() -> Iterator[LabSpec]:
    spec = make_spec("m", nodes=4, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


async def test_two_sites_of_one_range_are_reached_at_once(four: LabSpec) -> None:
    async with meshed(four) as (nodes, lan):
        authority, first, second, member = nodes
        own = status_of(member).ip4
        for address in ("10.77.1.10", "10.77.2.10"):
            await until(partial(answers, member, address))

        # Both at once, each under its own addresses. The one that does not masquerade shows who asked.
        streams = [await connected(member, "10.77.1.10"), await connected(member, "10.77.2.10")]
        one, other = [await heard(stream) for stream in streams]
        assert one in ("first 192.168.1.1", "first 192.168.1.2")
        assert other == f"second {own}"

        # An error comes back in the name of the address that was asked.
        def asking() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.settimeout(5.0)
            sock.connect(("10.77.1.10", 9))
            return sock

        with within(member.name, asking) as sock:
            sock.send(b"nobody listens")
            with pytest.raises(ConnectionRefusedError) as refused:
                sock.recv(64)
            assert refused.value.errno == errno.ECONNREFUSED

        # A packet that the way beyond the router does not take is told of, and not only to TCP.
        for router in (authority, first, second):
            ip("-n", router.name, "link", "set", "lan0", "mtu", str(SMALL))
        for address in ("10.77.1.10", "10.77.2.10", "198.51.100.10"):
            await told(member, address, SMALL)
        for router in (authority, first, second):
            ip("-n", router.name, "link", "set", "lan0", "mtu", "1500")

        # Translating is the router's own matter: others see the prefix.
        assert RANGE not in run_in(member, "wg", "show", "all", "allowed-ips")
        assert RANGE not in run_in(member, "ip", "route", "show", "table", "all")

        # Nothing is there under the prefix without the translation, though the router itself has such an
        # address.
        ip("-n", second.name, "address", "add", "10.77.2.9/32", "dev", "lan0")
        assert not answers(member, "10.77.2.9")

        # The first site's routers stand in for each other.
        carrier = await carried_by(member, FIRST)
        cable = {first.name: "l0", authority.name: "l1"}[carrier]
        ip("-n", lan, "link", "set", cable, "down")
        with trio.fail_after(PATIENCE_S):
            while await carried_by(member, FIRST) in ("", carrier):
                await trio.sleep(0.2)
        await until(partial(answers, member, "10.77.1.10"))
        assert (await heard(await connected(member, "10.77.1.10"))).startswith("first ")

        # What is no longer accepted is opened without a restart.
        edit(member.config, routes={"accept": ()})
        kill(member, signal.SIGHUP)
        await until(lambda: "10.77." not in run_in(member, "ip", "route", "show", "table", "all"))


async def told(node: LabNode, address: str, size: int) -> None:
    """Send until the kernel of a node thinks that so many bytes to an address pass and no more."""

    def made() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
        sock.connect((address, 9))
        return sock

    with within(node.name, made) as sock, trio.fail_after(PATIENCE_S):
        while sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) != size:
            with suppress(OSError):  # the last one's error
                sock.send(bytes(size + 100))
            await trio.sleep(0.1)  # an error for a socket that is closed tells nobody


async def carried_by(node: LabNode, prefix: str) -> str:
    """The router that a node sends a prefix to; empty where that is nobody."""
    found = json.loads(await phantommesh(node, "route", "list", "--json"))
    return next((one["router"] for one in found["routes"] if one["carried"] and one["prefix"] == prefix), "")
