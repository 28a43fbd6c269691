# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer that makes no new PSKs while its WireGuard goes on: its traffic is closed by the kernel, and opened
with the next handshake."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import trio

from benchmarks.failover import paths_of
from phantommesh.client.http import NodeClient
from phantommesh.config.sections import LinkSection
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answered, view_of
from phantommesh.nursery.lab.net import LabNode, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import until

pytestmark = pytest.mark.lab

CONTROL = 51800
# The least that the configuration allows, and a random PSK too late to close anything here.
LINK = LinkSection(
    rotate_seconds=3.0, jitter_seconds=0.5, stale_alarm_seconds=15.0, stale_random_seconds=600.0
)


@contextmanager
def deaf(node: LabNode) -> Iterator[None]:
    """Nobody gets a handshake through to a node, nor from it: all else goes on."""
    nft = ["ip", "netns", "exec", node.name, "nft", "-f", "-"]
    rules = ""
    for hook in ("input", "output"):
        drops = "".join(
            f"meta l4proto {{ tcp, udp }} th {end} {CONTROL} drop\n" for end in ("dport", "sport")
        )
        rules += f"chain {hook} {{\ntype filter hook {hook} priority 0; policy accept;\n{drops}}}\n"
    subprocess.run(nft, input=f"table inet deaf {{\n{rules}}}\n".encode(), check=True)
    try:
        yield
    finally:
        subprocess.run(nft, input=b"delete table inet deaf", check=True)


def dropped(node: LabNode) -> int:
    metrics = NodeClient(node.socket).request("GET", "/metrics").decode()
    name = 'phantommesh_dropped_total{reason="guard-quarantined"} '
    return sum(int(float(line.removeprefix(name))) for line in metrics.splitlines() if line.startswith(name))


def found(node: LabNode) -> set[str]:
    return {fault.subject for fault in status_of(node).faults if fault.code == "agent-finding"}


async def age(node: LabNode, peer: LabNode) -> float:
    return (await view_of(node)).links[peer.name].handshake_age_s or 0.0


async def test_a_peer_that_stops_rotating_is_closed_until_it_rotates_again() -> None:
    spec = replace(make_spec("q", nodes=3, uplinks=1), link=LINK)
    try:
        await up.up(spec)
        one, two, three = nodes_of(spec)
        flow, other = (Flow(one.name, node.name, status_of(node).ip4) for node in (two, three))
        async with open_traffic([flow, other], 0.05) as traffic:
            await answered(traffic, trio.current_time(), PATIENCE_S)
            assert not found(one) and not dropped(one)
            with deaf(two):
                began = trio.current_time()
                await until(lambda: "cipher-quarantine" in found(one) and dropped(one) > 0)
                closed = trio.current_time() - began
                assert LINK.stale_alarm_seconds <= await age(one, two)
                await trio.sleep(1.0)
                received, others = flow.received, other.received
                await trio.sleep(3.0)
                assert flow.received == received, "nothing passes either way"
                assert other.received > others + 20, "nobody else is concerned"
                # Probes pass: no path is given up, and there is nothing to find again afterwards.
                assert {view.state for view in paths_of(one) if view.peer == two.name} == {"up"}
            healed = trio.current_time()
            await answered(traffic, healed, PATIENCE_S)
            opened = trio.current_time() - healed
            await until(lambda: "cipher-quarantine" not in found(one) | found(two) | found(three))
            print(f"closed after {closed:.1f} s, open {opened:.1f} s after the handshakes get through again")
    finally:
        with trio.CancelScope(shield=True):
            await up.down(spec.name)
