# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes between which no UDP passes: WireGuard's datagrams go over TCP, and leave it again."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import crash, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import run_in, try_in
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


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(seen):
            await trio.sleep(0.1)


def called_dead(node: LabNode) -> bool:
    return "member dead" in node.log.read_text(encoding="utf-8")


class Pings:
    """A ping that goes on while the block runs, 20 a second. ``lost`` counts at the end."""

    def __init__(self, node: LabNode, peer: str) -> None:
        self._command = node.inside(["ping", "-i", "0.05", peer])
        self.lost = 0

    def __enter__(self) -> Self:
        self._ping = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._ping.send_signal(signal.SIGINT)
        text = self._ping.communicate()[0]
        found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        assert found is not None, text
        self.lost = int(found[1]) - int(found[2])


async def test_wireguard_goes_over_tcp_while_udp_is_blocked_and_leaves_it_without_loss(pair: LabSpec) -> None:
    async with up.running(pair):
        nodes = list(nodes_of(pair))
        peer = overlay(nodes[1])
        block(nodes)
        began = trio.current_time()
        await until(lambda: all(framed(node) == DIMENSIONS for node in nodes))
        await until(lambda: try_in(nodes[0], "ping", "-q", "-c", "1", "-W", "1", peer).returncode == 0)
        print("through after", trio.current_time() - began)
        await until(lambda: all("udp-blocked" in codes(node) for node in nodes))

        # Gossip goes over TCP too, and a trial that finds UDP blocked still loses nothing.
        with Pings(nodes[0], peer) as pings:
            await trio.sleep(25.0)
        print("lost while blocked", pings.lost)

        with Pings(nodes[0], peer) as pings:
            unblock(nodes)
            began = trio.current_time()
            await until(lambda: not any(framed(node) for node in nodes))
            print("left after", trio.current_time() - began)
            await until(lambda: not any("udp-blocked" in codes(node) for node in nodes))
            print("told after", trio.current_time() - began)
        print("lost", pings.lost)

        # A node that starts anew where UDP is blocked.
        await crash(nodes[1])
        block(nodes)
        await start(nodes[1])
        began = trio.current_time()
        await until(lambda: try_in(nodes[0], "ping", "-q", "-c", "1", "-W", "1", peer).returncode == 0)
        print("restarted through after", trio.current_time() - began)
        print([called_dead(node) for node in nodes])
        import shutil

        for node in nodes:
            shutil.copy(node.log, f"/dev/shm/framed-{node.number}.log")
