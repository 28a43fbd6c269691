# SPDX-License-Identifier: GPL-3.0-or-later
"""Links with members of another mesh: opened by a pact's secret, for those members and for nobody else."""

from __future__ import annotations

from phantommesh.secret import Secret
from tests.simulation.pair import ADMISSION, Node, Simulation

PACT, THEIRS = Secret(b"p" * 32), Secret(b"t" * 32)


def set_up(*, admission: Secret = THEIRS) -> tuple[Simulation, list[Node]]:
    """Two members of one mesh, and a member of another, whose admission secret this is."""
    sim = Simulation(nodes=3)
    here, also, there = sim.nodes
    assert here.links is not None and there.links is not None
    there.links.set_admission([admission], [])
    here.links.set_pacts([(PACT, frozenset({there.identity.node_id}))])
    return sim, [here, also, there]


def test_a_pacts_secret_links_two_meshes() -> None:
    sim, (here, _, there) = set_up()
    assert there.links is not None
    there.links.set_pacts([(PACT, frozenset({here.identity.node_id}))])
    sim.run(30.0)
    assert sim.agree(0, 2) and sim.agree(0, 1)
    assert not sim.agree(1, 2)  # there is no pact between these
    there.links.set_pacts([])
    sim.run(300.0)
    assert sim.agree(0, 1) and not sim.agree(0, 2)


def test_who_knows_a_pacts_secret_is_no_member_of_this_mesh() -> None:
    """Whoever has it may claim to be one of the other mesh, and not one of ours."""
    sim, (here, also, _) = set_up()
    assert also.links is not None and here.links is not None
    also.links.set_admission([PACT], [])
    sim.run(30.0)
    assert not sim.agree(0, 1) and here.links.drops["mac"]


def test_a_member_of_another_mesh_comes_by_the_pact_alone() -> None:
    sim, (here, _, _) = set_up(admission=ADMISSION)
    sim.run(30.0)
    assert not sim.agree(0, 2) and sim.agree(1, 2)  # who has both in its peers, as the simulation begins
    assert here.links is not None and here.links.drops["mac"]
