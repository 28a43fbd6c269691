# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a node's disk, started in a namespace of its own while the node runs."""

from __future__ import annotations

import shutil
import signal
import subprocess

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answered, kill, start, view_of
from phantommesh.nursery.lab.net import LabNode, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import until
from tests.lab.test_node import interfaces, stop

pytestmark = pytest.mark.lab


def faults(node: LabNode) -> set[tuple[str, str]]:
    """The node's faults by code and subject; none while it does not answer."""
    try:
        return {(fault.code, fault.subject) for fault in status_of(node).faults}
    except PhantomMeshError:
        return set()


async def shows(node: LabNode, code: str, subject: str = "") -> None:
    """Wait until the node's status has this fault."""
    with trio.fail_after(PATIENCE_S):
        while (code, subject) not in await trio.to_thread.run_sync(faults, node):
            await trio.sleep(0.1)


async def test_a_copy_beside_its_original_is_told_at_both_ends_and_the_original_steps_aside() -> None:
    spec = make_spec("c", nodes=4, uplinks=1)
    try:
        await up.up(spec)
        _, peer, original, copy = nodes_of(spec)
        await stop(copy)
        shutil.rmtree(copy.state_dir)
        shutil.copytree(original.state_dir, copy.state_dir)
        copy.config.write_text(
            original.config.read_text()
            .replace(original.address(0), copy.address(0))
            .replace(str(original.socket), str(copy.socket))
        )
        address, other_end = status_of(original).ip4, status_of(peer).ip4
        flow = Flow(peer.name, original.name, address)
        async with open_traffic([flow], 0.05) as traffic:
            await answered(traffic, trio.current_time(), PATIENCE_S)
            began = trio.current_time()
            await start(copy)
            await shows(original, "copy-running")
            aside = trio.current_time() - began
            await shows(peer, "identity-copied", original.name)
            await shows(copy, "identity-copied")
            told = trio.current_time() - began
            # Nothing of the original's reaches the overlay, nor the underlay in clear.
            await until(lambda: not interfaces(original))
            reached = ["ip", "-n", original.name, "route", "get", other_end]
            assert subprocess.run(reached, capture_output=True, check=False).returncode != 0
            await answered(traffic, trio.current_time() + 1.0, PATIENCE_S)
        print(f"aside after {aside:.1f} s, told after {told:.1f} s, longest silence {flow.silence_s:.2f} s")
        kill(copy, signal.SIGTERM)
        await until(lambda: len(interfaces(original)) == DIMENSIONS)
        back = Flow(peer.name, original.name, address)
        async with open_traffic([back], 0.05) as traffic:
            await answered(traffic, trio.current_time(), PATIENCE_S)
        assert (await view_of(original)).status.ip4 == address
    finally:
        with trio.CancelScope(shield=True):
            await up.down(spec.name)
