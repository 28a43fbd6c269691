# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes whose WireGuard ports do not reach each other, and two that relay: real nodes, end to end."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Collection, Iterator, Sequence
from functools import partial

import pytest
import trio

from benchmarks.relayed import apart, over
from phantommesh.config.sections import RelaySection
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answered, phantommesh
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in, until
from tests.support.spaces import within

pytestmark = pytest.mark.lab

PORT = RelaySection().port
PATTERN = b"phantommesh-seen"
_ALL = 3  # ETH_P_ALL, linux/if_ether.h


@pytest.fixture
def four() -> Iterator[LabSpec]:
    spec = make_spec("r", nodes=4, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


async def goes(
    node: LabNode, peer: LabNode, relays: Sequence[LabNode], wanted: Collection[Sequence[int]]
) -> None:
    """Wait until so many dimensions to a peer go over each of the relays."""

    def so() -> bool:
        return [over(node, peer, relay) for relay in relays] in [list(each) for each in wanted]

    await until(so)


def forgotten(relay: LabNode, node: LabNode) -> bool:
    """Whether a relay's rules name no address of a node."""
    return f"{node.address(0)} ." not in run_in(relay, "nft", "list", "ruleset")


def captured(node: LabNode, run: list[str]) -> list[bytes]:
    """The packets at a node's uplink while a command runs elsewhere."""
    sock = within(node.name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)))
    with sock:
        sock.bind(("up0", _ALL))
        subprocess.run(run, check=True, capture_output=True)
        sock.setblocking(False)
        found = list[bytes]()
        while True:
            try:
                found.append(sock.recv(65535))
            except BlockingIOError:
                return found


async def test_a_pair_without_a_direct_way_talks_over_two_relays(four: LabSpec) -> None:
    await up.up(four)
    first, second, one, two = nodes_of(four)
    address = status_of(two).ip4
    flow = Flow(one.name, two.name, address)
    async with open_traffic([flow], 0.01) as traffic:
        await answered(traffic, trio.current_time(), PATIENCE_S)
        with apart(one, two):
            for node, peer in ((one, two), (two, one)):
                await goes(node, peer, (first, second), [(3, 4), (4, 3)])
            await answered(traffic, trio.current_time(), PATIENCE_S)
            print("longest silence until relayed", flow.silence_s)

            ping = ["ip", "netns", "exec", one.name, "ping", "-c", "20", "-i", "0.05", "-W", "5"]
            seen = captured(first, [*ping, "-p", PATTERN.hex(), address])
            relayed = [packet for packet in seen if PORT.to_bytes(2, "big") in packet[34:38]]
            assert len(relayed) > 10
            assert not any(PATTERN in packet for packet in seen)

            # The first relay's machine is gone.
            flow.silence_s = 0.0
            subprocess.run(["ip", "-n", first.name, "link", "set", "up0", "down"], check=True)
            await answered(traffic, trio.current_time() + 2.0, PATIENCE_S)
            print("longest silence after the end of a relay", flow.silence_s)
            for node, peer in ((one, two), (two, one)):
                await goes(node, peer, (first, second), [(0, 7)])
            subprocess.run(["ip", "-n", first.name, "link", "set", "up0", "up"], check=True)
            await answered(traffic, trio.current_time(), PATIENCE_S)

        print("a direct way is open again")
        flow.silence_s = 0.0
        for node, peer in ((one, two), (two, one)):
            await goes(node, peer, (first, second), [(0, 0)])
        await answered(traffic, trio.current_time(), PATIENCE_S)
        print("longest silence back to direct ways", flow.silence_s)


async def test_a_relay_forwards_for_a_revoked_member_no_more(four: LabSpec) -> None:
    await up.up(four)
    first, second, one, two = nodes_of(four)
    with apart(one, two):
        await goes(one, two, (first, second), [(3, 4), (4, 3)])
        await phantommesh(first, "revoke", two.name)
        for relay in (first, second):
            await until(partial(forgotten, relay, two))
