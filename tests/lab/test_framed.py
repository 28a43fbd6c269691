# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes between which no UDP passes: WireGuard's datagrams go over TCP, and leave it again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in
from tests.lab.test_mtu import overlay

pytestmark = pytest.mark.lab

BLOCK = """table inet blocked {
  chain coming { type filter hook input priority -500; iifname != { "lo", "pm*" } udp dport 1-65535 drop; }
  chain going { type filter hook output priority -500; oifname != { "lo", "pm*" } udp dport 1-65535 drop; }
}
"""


@pytest.fixture
def pair() -> Iterator[LabSpec]:
    spec = make_spec("f", nodes=2, uplinks=1)
    yield spec
    trio.run(partial(up.down, spec.name))


def nft(node: LabNode, text: str) -> None:
    subprocess.run(node.inside(["nft", "-f", "-"]), input=text.encode(), check=True)


def block(nodes: list[LabNode]) -> None:
    for node in nodes:
        nft(node, BLOCK)


def unblock(nodes: list[LabNode]) -> None:
    for node in nodes:
        nft(node, "delete table inet blocked\n")


def codes(node: LabNode) -> set[str]:
    return {fault.code for fault in status_of(node).faults}


def framed(node: LabNode) -> int:
    """How many dimensions WireGuard sends to a local socket."""
    ends = run_in(node, "wg", "show", "all", "endpoints").split()
    return sum(end.startswith("127.0.0.1:") for end in ends)


async def until(seen: partial[bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(seen):
            await trio.sleep(0.2)


def events(node: LabNode) -> list[str]:
    shown = run_in(node, "phantommesh", "events", "--json")
    return [json.loads(line)["type"] for line in shown.splitlines() if line]


async def test_wireguard_goes_over_tcp_while_udp_is_blocked_and_leaves_it_without_loss(pair: LabSpec) -> None:
    async with up.running(pair):
        nodes = list(nodes_of(pair))
        peer = overlay(nodes[1])
        block(nodes)
        began = trio.current_time()
        run_in(nodes[0], "ping", "-q", "-i", "0.05", "-w", str(int(PATIENCE_S)), "-c", "200", peer)
        print("ping through after", trio.current_time() - began)
        print(run_in(nodes[0], "wg", "show", "all", "endpoints"))
        print(run_in(nodes[0], "phantommesh", "status"))
        print(run_in(nodes[0], "phantommesh", "paths"))
