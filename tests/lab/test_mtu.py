# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways that carry less than both ends take them to: two nodes, one cable."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import trio

from phantommesh.nursery.host.marking import FIRST_TABLE, SEGMENTS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in

pytestmark = pytest.mark.lab

LARGEST = 1420


@pytest.fixture
def pair() -> Iterator[LabSpec]:
    spec = make_spec("m", nodes=2, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


def swallow(spec: LabSpec, mtu: int) -> None:
    """Have the cables between the nodes drop what is longer, in both directions and without a word: so does a
    bridge, which is no router."""
    for node in nodes_of(spec):
        subprocess.run(f"ip -n {spec.name}-net link set n{node.number}u0 mtu {mtu}".split(), check=True)


def route(spec: LabSpec, mtu: int) -> None:
    """Put a router between the nodes, which sends what is longer in fragments. It answers for each node at
    the other's cable (proxy ARP, RFC 1027), so the nodes keep their addresses."""
    lines = list[str]()
    for node in nodes_of(spec):
        port = f"n{node.number}u0"
        for name in ("proxy_arp", "forwarding"):
            switch = f"ip netns exec {spec.name}-net sysctl -qw net.ipv4.conf.{port}.{name}=1"
            subprocess.run(switch.split(), check=True)
        lines += [
            f"link set {port} mtu {mtu}",
            f"link set {port} nomaster",
            f"address replace 10.201.0.254/32 dev {port}",
            f"route replace {node.address(0)}/32 dev {port}",
        ]
    subprocess.run(f"ip -n {spec.name}-net -batch -".split(), input="\n".join(lines), text=True, check=True)
    for node in nodes_of(spec):
        run_in(node, "ip", "neighbour", "flush", "dev", "up0")


def overlay(node: LabNode) -> str:
    shown = json.loads(run_in(node, "ip", "-4", "-j", "address", "show", "dev", "pm"))
    return str(shown[0]["addr_info"][0]["local"])


def limit(node: LabNode, peer: str) -> int:
    """The longest packet that a node's kernel sends to a peer."""
    found = re.search(r"\bmtu (\d+)", run_in(node, "ip", "route", "get", peer))
    return int(found[1]) if found else LARGEST


def pings(node: LabNode, peer: str, size: int, *options: str) -> int:
    """How many of ten pings of this many bytes, with their headers, are answered."""
    command = ["ping", "-q", "-c", "10", "-i", "0.05", "-W", "2", "-s", str(size - 28), *options, peer]
    done = subprocess.run(node.inside(command), capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) received", done.stdout)
    return int(found[1]) if found else 0


async def limited(nodes: Sequence[LabNode], wanted: int) -> None:
    """Wait until both ends send each other packets of this length and no longer ones, under a light ping."""
    first, second = (overlay(node) for node in nodes)
    with trio.fail_after(PATIENCE_S):
        while [limit(nodes[0], second), limit(nodes[1], first)] != [wanted, wanted]:
            await trio.to_thread.run_sync(pings, nodes[0], second, 1000)


SINK = """
import socket, sys
connection, _ = socket.create_server((sys.argv[1], 7777)).accept()
count = 0
while part := connection.recv(1 << 16):
    count += len(part)
print(count)
"""
SOURCE = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 7777))
for _ in sys.stdin.buffer:
    connection.sendall(bytes(20_000))
"""


def codes(node: LabNode) -> list[str]:
    status = json.loads(run_in(node, "phantommesh", "status", "--json"))
    return [fault["code"] for fault in status["faults"]]


async def test_what_is_sent_follows_what_the_way_carries(pair: LabSpec) -> None:
    async with up.running(pair):
        nodes = list(nodes_of(pair))
        peer = overlay(nodes[1])
        await limited(nodes, LARGEST)
        assert pings(nodes[0], peer, LARGEST, "-M", "do") == 10
        assert "path-black-hole" not in codes(nodes[0])

        swallow(pair, 1380)
        await limited(nodes, 1312)
        assert pings(nodes[0], peer, 1312, "-M", "do") == 10
        assert pings(nodes[0], peer, LARGEST) == 10  # in fragments, inside the overlay
        assert "path-black-hole" in codes(nodes[0])

        # Both uplinks say what the way carries: then nothing is swallowed.
        swallow(pair, 1500)
        for node in nodes:
            run_in(node, "ip", "link", "set", "up0", "mtu", "1450")
        await limited(nodes, 1376)
        assert pings(nodes[0], peer, 1376, "-M", "do") == 10
        assert "path-black-hole" not in codes(nodes[0])
        for node in nodes:
            run_in(node, "ip", "link", "set", "up0", "mtu", "1500")
        await limited(nodes, LARGEST)
        assert pings(nodes[0], peer, LARGEST, "-M", "do") == 10

        # A hop that cuts packets lets all sizes pass. It is asked at the end of a search.
        route(pair, 1380)
        for node in nodes:
            run_in(node, "ip", "link", "set", "up0", "mtu", "1450")
        await limited(nodes, 1312)
        assert pings(nodes[0], peer, 1312, "-M", "do") == 10
        assert "path-black-hole" not in codes(nodes[0])


async def test_a_tcp_flow_goes_on_when_its_way_shrinks_below_what_ipv6_needs(pair: LabSpec) -> None:
    async with up.running(pair):
        nodes = list(nodes_of(pair))
        peer, sent = overlay(nodes[1]), 0
        await limited(nodes, LARGEST)
        sink = subprocess.Popen(nodes[1].inside(["python3", "-c", SINK, peer]), stdout=subprocess.PIPE)
        await trio.sleep(1.0)
        source = subprocess.Popen(nodes[0].inside(["python3", "-c", SOURCE, peer]), stdin=subprocess.PIPE)
        assert source.stdin is not None and sink.stdout is not None
        for mtu, wanted in ((1500, LARGEST), (1280, 1216)):
            swallow(pair, mtu)
            for _ in range(100):
                source.stdin.write(b"\n")
                source.stdin.flush()
                sent += 20_000
                await trio.sleep(0.02)
            await limited(nodes, wanted)
        source.stdin.close()
        with trio.fail_after(PATIENCE_S):
            counted = await trio.to_thread.run_sync(sink.stdout.read, abandon_on_cancel=True)
        assert int(counted) == sent
        sink.stdout.close()
        assert (source.wait(), sink.wait()) == (0, 0)
        six = run_in(nodes[0], "ip", "-6", "route", "show", "dev", "pm")
        if six:
            assert "mtu lock 1280" in six and "advmss 1156" in six
            only_tcp = run_in(nodes[0], "ip", "-6", "route", "show", "table", str(FIRST_TABLE + SEGMENTS))
            assert "mtu lock 1216" in only_tcp
