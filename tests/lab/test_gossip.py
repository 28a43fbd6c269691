# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip in a real mesh: deaths and returns, a node cut off, a revocation."""

import pytest
import trio

from benchmarks.healing import CUT, seen_by
from phantommesh.client.http import ApiError, NodeNotRunningError
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, crash, start, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_lab import INTERFACES, run_in, until

pytestmark = [pytest.mark.lab, pytest.mark.alone]


async def all_see(nodes: list[LabNode], who: LabNode, state: str) -> None:
    with trio.fail_after(PATIENCE_S):
        for node in nodes:
            while node != who and (await trio.to_thread.run_sync(seen_by, node)).get(who.name) != state:
                await trio.sleep(0.1)


async def test_a_dead_node_is_reported_and_its_return_too(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    victim = nodes[1]
    await crash(victim)
    await all_see(nodes, victim, "dead")
    gone = f"peer {victim.name} does not answer: neither probes inside the dimensions nor its control port"
    with trio.fail_after(PATIENCE_S):  # a peer is gone once its dimensions are silent, too
        while gone not in " ".join((status := (await view_of(nodes[0])).status).degraded):
            await trio.sleep(0.1)
    assert status.members == {"alive": 1, "dead": 1}
    await start(victim)
    await all_see(nodes, victim, "alive")
    await converged(nodes, PATIENCE_S)
    with trio.fail_after(PATIENCE_S):  # what an earlier test of this lab did heals meanwhile, too
        while (await view_of(nodes[0])).status.degraded:
            await trio.sleep(0.1)


async def test_a_node_that_was_cut_off_is_found_again(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    victim = nodes[2]
    await trio.run_process([*victim.inside(["nft", "-f", "-"])], stdin=CUT.encode())
    try:
        await all_see(nodes, victim, "dead")
    finally:
        run_in(victim, "nft", "delete", "table", "inet", "cut")
    for node in nodes:
        await all_see(nodes, node, "alive")
    await converged(nodes, PATIENCE_S)


async def test_a_revoked_node_is_gone_from_every_interface_and_told_why(other: LabSpec) -> None:
    await up.up(other)
    first, second = nodes_of(other)
    assert len(run_in(first, "wg", "show", "all", "peers").splitlines()) == len(INTERFACES)
    run_in(first, "phantommesh", "revoke", second.name)
    await until(lambda: run_in(first, "wg", "show", "all", "peers").split() == [])
    with trio.fail_after(PATIENCE_S):
        while not any("was revoked" in reason for reason in (await view_of(second)).status.degraded):
            await trio.sleep(0.2)
    await until(lambda: run_in(second, "wg", "show", "all", "peers").split() == [])


async def test_a_new_identity_takes_the_old_ones_place_on_every_interface(other: LabSpec) -> None:
    await up.up(other)
    first, second = nodes_of(other)
    before = after = (await view_of(second)).status
    keys = set(run_in(first, "wg", "show", "all", "peers").split()) - set(INTERFACES)
    run_in(second, "phantommesh", "identity", "new")
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                after = (await view_of(second)).status
                if after.node_id != before.node_id and after.peers_up == 1 and not after.degraded:
                    break
            except (NodeNotRunningError, ApiError):  # it starts again
                pass
            await trio.sleep(0.2)
    assert (after.node, after.ip4) == (before.node, before.ip4)
    shown = run_in(first, "wg", "show", "all", "peers").split()
    assert len(shown) == 2 * len(INTERFACES) and not keys & set(shown)
