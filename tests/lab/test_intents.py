# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes of traffic (`[[intent]]`): flows to one peer that go different ways at once, by the real kernel."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.config.sections import IntentSection, ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.management.views import ScatterClass
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import kill
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.scatter.maps import entropy_bits
from tests.lab.test_lab import INTERFACES, run_in, until
from tests.lab.test_node import COMMAND, configured
from tests.lab.test_scatter import addresses, scatter_of, scattered

pytestmark = [pytest.mark.lab, pytest.mark.alone]

PACKETS = 700
SSH, BULK, DUMPS = 22, 873, 9000
NOBODY = 65534
INTENTS = (
    IntentSection("ssh", "order", protocol="udp", ports=(SSH,)),
    IntentSection("dumps", "order", user="nobody"),
    IntentSection("bulk", "throughput", ports=(BULK, DUMPS)),
)
# Sends argv[3] datagrams of one flow to argv[1]:argv[2], as the user argv[4], 1 ms apart.
FLOW = """
import os, socket, sys, time
host, port, count, user = sys.argv[1], *map(int, sys.argv[2:5])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
os.setuid(user)
with socket.socket(family, socket.SOCK_DGRAM) as out:
    for number in range(count):
        try:
            out.sendto(bytes(100), (host, port))
        except ConnectionRefusedError:
            pass
        time.sleep(0.001)
"""


def witness(node: LabNode) -> None:
    """Have the receiving node's kernel count the flows by the interface that they come in by."""
    rules = "".join(
        f'  iifname "{name}" udp dport {port} counter comment "{name} {port}"\n'
        for name in INTERFACES
        for port in (SSH, BULK, DUMPS)
    )
    chain = f"chain seen {{\n type filter hook prerouting priority -300;\n{rules} }}\n"
    text = f"table inet witness {{\n{chain}}}\n"
    subprocess.run(node.inside(["nft", "-f", "-"]), input=text, text=True, check=True)


def seen(node: LabNode) -> dict[int, list[int]]:
    """Packets by port and dimension that have come so far."""
    listed = json.loads(run_in(node, "nft", "-j", "list", "table", "inet", "witness"))["nftables"]
    found = {port: [0] * DIMENSIONS for port in (SSH, BULK, DUMPS)}
    for item in listed:
        if "rule" in item:
            name, port = item["rule"]["comment"].split()
            counters = [expr["counter"]["packets"] for expr in item["rule"]["expr"] if "counter" in expr]
            found[int(port)][INTERFACES.index(name)] = counters[0]
    return found


async def flows(a: LabNode, b: LabNode, host: str, *sent: tuple[int, int]) -> dict[int, list[int]]:
    """Send a flow to each of these ports by these users, all at once; return what came by port and
    dimension. If another epoch began meanwhile, which moves every flow, send once more."""
    while True:
        epoch, before = (view := scatter_of(a)[b.name]).epoch, seen(b)
        async with trio.open_nursery() as nursery:
            for port, user in sent:
                command = [sys.executable, "-c", FLOW, host, str(port), str(PACKETS), str(user)]
                nursery.start_soon(trio.to_thread.run_sync, partial(run_in, a, *command))
        after = seen(b)
        if (now := scatter_of(a)[b.name]).epoch == epoch and now.link_epoch == view.link_epoch:
            return {port: [x - y for x, y in zip(after[port], before[port], strict=True)] for port in after}


def ways(packets: Sequence[int]) -> int:
    return sum(count > 0 for count in packets)


@asynccontextmanager
async def pinging(a: LabNode, host: str) -> AsyncIterator[None]:
    """Ping all the while; none is lost."""
    command = ["ping", "-q", "-i", "0.02", "-c", "100000", host]
    process = subprocess.Popen(a.inside(command), stdout=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        said = (await trio.to_thread.run_sync(process.communicate))[0]
    found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert found is not None and int(found[1]) >= 50 and found[1] == found[2], said


def shown(a: LabNode, b: LabNode) -> dict[str, ScatterClass]:
    """The classes of the traffic from a to b, by name."""
    return {part.name: part for part in scatter_of(a)[b.name].classes}


async def test_by_default_a_flow_keeps_to_one_path_and_many_flows_take_several(other: LabSpec) -> None:
    spec = replace(other, scatter=ScatterSection(epoch_seconds=600))
    await up.up(spec)
    a, b = nodes_of(spec)
    await scattered([a, b])
    assert (scatter_of(a)[b.name].goal, scatter_of(a)[b.name].scheduler) == ("auto", "flow")
    witness(b)
    for host in addresses(b):
        came = (await flows(a, b, host, (BULK, 0)))[BULK]
        assert ways(came) == 1 and sum(came) >= 0.9 * PACKETS, came
    came = (await flows(a, b, host, *[(BULK, 0)] * 14))[BULK]
    assert ways(came) >= 3, came  # fewer once in a million


async def test_flows_to_one_peer_go_different_ways_at_once(other: LabSpec) -> None:
    spec = replace(other, scatter=ScatterSection(goal="throughput", epoch_seconds=600))
    await up.up(spec)
    a, b = nodes_of(spec)
    await scattered([a, b])
    witness(b)
    for host in addresses(b):
        came = await flows(a, b, host, (SSH, 0), (BULK, 0))
        assert ways(came[SSH]) == ways(came[BULK]) == DIMENSIONS, "without intents all is dealt"
    async with pinging(a, addresses(b)[0]):
        with configured(a, intent=INTENTS):
            kill(a, signal.SIGHUP)
            await until(lambda: len(shown(a, b)) == len(INTENTS) + 1)
            for host in addresses(b):
                came = await flows(a, b, host, (SSH, 0), (BULK, 0), (DUMPS, NOBODY))
                assert ways(came[SSH]) == ways(came[DUMPS]) == 1, came
                assert entropy_bits(came[BULK]) >= 2.6, came
                assert min(map(sum, came.values())) >= 0.9 * PACKETS, came
            came = await flows(a, b, host, (DUMPS, 0))
            assert entropy_bits(came[DUMPS]) >= 2.6, "of another user it is of another class"
            # What is shown was read up to 2 s ago, and another epoch may have begun meanwhile.
            await until(lambda: sum(shown(a, b)["rest"].packets) > 0)  # the pings
            assert [*shown(a, b)] == ["ssh", "dumps", "bulk", "rest"]
            await flows(a, b, host, (SSH, 0))
            await until(lambda: sum(shown(a, b)["ssh"].packets) >= PACKETS)
            assert ways(shown(a, b)["ssh"].packets) <= 2  # IPv4 and IPv6
            text = await trio.to_thread.run_sync(partial(run_in, a, *COMMAND, "scatter"))
            assert f"{b.name}: ssh" in text and f"{b.name}: rest" in text
            counted = 'phantommesh_scatter_class_packets_total{class="bulk"} '
            await until(lambda: counted in NodeClient(a.socket).request("GET", "/metrics").decode())
        kill(a, signal.SIGHUP)
        await until(lambda: not shown(a, b))
    came = await flows(a, b, addresses(b)[0], (SSH, 0))
    assert ways(came[SSH]) == DIMENSIONS
