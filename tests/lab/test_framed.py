# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes between which no UDP passes: WireGuard's datagrams go over TCP, and leave it again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from time import time

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import crash, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.state.start import load_node
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in, try_in
from tests.lab.test_mtu import overlay

pytestmark = [pytest.mark.lab, pytest.mark.alone]

BLOCK = """table inet blocked {
  chain coming { type filter hook input priority -500; iifname != { "lo", "pm*" } udp dport 1-65535 drop; }
  chain going { type filter hook output priority -500; oifname != { "lo", "pm*" } udp dport 1-65535 drop; }
}
"""
ONLY_443 = """table inet only_443 {
  chain coming { type filter hook input priority -500; tcp dport 51800 tcp flags & (syn | ack) == syn drop; }
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


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(seen):
            await trio.sleep(0.1)


async def test_wireguard_goes_over_tcp_while_udp_is_blocked_and_leaves_it_without_loss(pair: LabSpec) -> None:
    async with up.running(pair):
        nodes = list(nodes_of(pair))
        peer = overlay(nodes[1])

        def passes() -> bool:
            return try_in(nodes[0], "ping", "-q", "-c", "1", "-W", "1", peer).returncode == 0

        block(nodes)
        await until(lambda: all(framed(node) == DIMENSIONS for node in nodes))
        await until(passes)
        await until(lambda: all("udp-blocked" in codes(node) for node in nodes))
        with trio.fail_after(PATIENCE_S):
            await trio.to_thread.run_sync(
                lambda: run_in(nodes[0], "ping", "-q", "-c", "20", "-i", "0.1", peer)
            )

        # UDP passes again: WireGuard leaves TCP while pings go on, and none is lost.
        command = nodes[0].inside(["ping", "-q", "-i", "0.05", "-c", "300", peer])
        ping = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        unblock(nodes)
        await until(lambda: not any(framed(node) for node in nodes))
        said, _ = await trio.to_thread.run_sync(ping.communicate)
        assert "300 packets transmitted, 300 received" in said
        await until(lambda: not any("udp-blocked" in codes(node) for node in nodes))
        assert not any("member dead" in node.log.read_text(encoding="utf-8") for node in nodes)

        # A node that starts where UDP is blocked, and TCP to all ports but 443.
        await crash(nodes[0])
        text = nodes[0].config.read_text(encoding="utf-8")
        assert "tcp_ports = []" in text
        nodes[0].config.write_text(text.replace("tcp_ports = []", "tcp_ports = [443]"), encoding="utf-8")
        await start(nodes[0])
        await until(lambda: any(one.record.tcp_ports for one in load_node(nodes[1].state_dir, time()).roster))
        await crash(nodes[1])
        block(nodes)
        for node in nodes:
            nft(node, ONLY_443)
        await start(nodes[1])
        await until(lambda: all(framed(node) == DIMENSIONS for node in nodes))
        await until(passes)
