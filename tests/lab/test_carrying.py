# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes that drop what they have not asked for, with another source port for each destination, have a
link all the same: the third node carries the handshake."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answering, converged, crash, start, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.lab.conftest import PATIENCE_S

pytestmark = pytest.mark.lab

# The NAT is in the node's own namespace: what leaves has a random port, and only what answers comes in.
NAT = """table inet nat_of_the_test {
    chain in { type filter hook input priority 0; policy accept; iifname "up*" ct state new counter drop; }
    chain out { type nat hook postrouting priority 100; policy accept; oifname "up*" masquerade random; }
}
"""


def nft(node: LabNode, rules: str) -> None:
    subprocess.run(["ip", "netns", "exec", node.name, "nft", "-f", "-"], input=rules.encode(), check=True)


@contextmanager
def natted(*nodes: LabNode) -> Iterator[None]:
    try:
        for node in nodes:
            nft(node, NAT)
        yield
    finally:
        for node in nodes:
            nft(node, "delete table inet nat_of_the_test")


async def keyed(one: LabNode, other: LabNode) -> float:
    """Wait until both hold a fresh link with the other, and return how many seconds it took."""
    began = time.monotonic()
    with trio.fail_after(PATIENCE_S):
        for a, b in ((one, other), (other, one)):
            while (link := (await view_of(a)).links.get(b.name)) is None or link.state != "fresh":
                await trio.sleep(0.05)
    return time.monotonic() - began


async def test_two_nodes_behind_nats_have_a_link(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    hidden = nodes[1:]
    with natted(*hidden):
        for turn in (hidden, hidden[:1]):  # both from the start; then one starts anew
            for node in turn:
                await crash(node)
            for node in turn:
                await start(node)
            for node in turn:
                await answering(node, PATIENCE_S)
            print(f"keyed {await keyed(*hidden):.2f} s after the API answered")
            for node in hidden:
                counts = (await view_of(node)).status
                assert counts is not None
    for node in hidden:
        await crash(node)
        await start(node)
    await converged(nodes, PATIENCE_S)
