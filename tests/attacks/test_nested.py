# SPDX-License-Identifier: GPL-3.0-or-later
"""WireGuard is told that its peer is at an overlay address. Each outer packet would enter the mesh and be
encrypted again, without end. The node does not run meanwhile: only the kernel's rules stand in the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from phantommesh.management.views import Status
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, crash, kill, start
from phantommesh.nursery.lab.net import LabSpec, nodes_of
from tests.attacks.rig import counted, run_inside, status_of
from tests.attacks.test_neighbour import drops
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_lab import INTERFACES, run_in

pytestmark = pytest.mark.lab

LEAVES_IT_WHOLE = True
SECONDS = 5
BOUND = 20_000 * SECONDS  # bytes
NESTED = 5  # guard.Drop.NESTED


@pytest.fixture(scope="module")
def member(mesh: up.LabResult, spec: LabSpec) -> Iterator[Status]:
    """The member's status before both nodes ended. The victim's WireGuards and rules go on."""
    victim, member = nodes_of(spec)
    trio.run(converged, [victim, member], PATIENCE_S)
    status = status_of(member)
    kill(victim)
    trio.run(crash, member)  # else its WireGuard would tell the victim's where it is
    try:
        yield status
    finally:
        for node in (victim, member):
            trio.run(start, node)
        trio.run(converged, nodes_of(spec), PATIENCE_S)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_an_outer_packet_does_not_enter_the_mesh(member: Status, spec: LabSpec, family: str) -> None:
    victim, target = nodes_of(spec)[0], getattr(member, family)
    for name in INTERFACES:
        peer = run_in(victim, "wg", "show", name, "peers").strip()
        there = f"[{target}]:51820" if ":" in target else f"{target}:51820"
        run_in(victim, "wg", "set", name, "peer", peer, "endpoint", there)
    # Only now: no packet to the other family's address is counted for this one.
    before, sent = drops(victim)[NESTED], counted(victim, ["pm", *INTERFACES])
    run_inside(victim.name, "ping", "-q", "-i", "0.2", "-w", str(SECONDS), member.ip4)
    assert counted(victim, ["pm", *INTERFACES]) - sent < BOUND
    assert drops(victim)[NESTED] > before
