# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes behind NATs: every pair talks, nobody who answers is called dead, and TCP outlives an address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from benchmarks.reachability import deaths, patient_flows
from benchmarks.roaming import once
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.net import LabSpec, namespace_exists, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from phantommesh.nursery.lab.underlay import Underlay, parse_nat
from tests.lab.conftest import BACKEND, NAME, PATIENCE_S

pytestmark = pytest.mark.lab


@pytest.fixture
def homes() -> Iterator[LabSpec]:
    """A public authority, two nodes behind NATs of their own, and two behind one."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    underlay = Underlay(nat=parse_nat("preserve,random,preserve+2"))
    spec = LabSpec(f"{NAME}n", 5, 1, BACKEND, patience_s=PATIENCE_S, underlay=underlay)
    yield spec
    trio.run(partial(up.down, spec.name))


async def test_every_pair_talks_whatever_its_nats_and_nobody_is_called_dead(homes: LabSpec) -> None:
    async with up.running(homes, pairs=False):
        flows = await patient_flows(nodes_of(homes), PATIENCE_S)
        async with open_traffic(flows, 0.2) as traffic:
            with trio.move_on_after(PATIENCE_S):
                async with trio.open_nursery() as nursery:
                    for flow in flows:
                        nursery.start_soon(traffic.wait_answered, flow, -1.0)
        called_dead = [line for node in nodes_of(homes) for line in deaths(node)]
    assert [(flow.source, flow.target) for flow in flows if not flow.received] == []
    assert called_dead == []
    assert not [name for name in homes.namespaces if namespace_exists(name)]


async def test_tcp_lives_on_when_a_nat_gets_another_address_and_forgets_all() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    change = await once("nat", BACKEND, watch=2.0)
    assert change.stall_s is not None and change.stall_s >= 0
