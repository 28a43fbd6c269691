# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of a disk and restored snapshots in a mesh of whole nodes. Times are virtual.

`python -m tests.simulation.test_copies` prints the figures of docs/decisions/0042-the-later-run-stays.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import pytest

from phantommesh.link.copies import Why
from phantommesh.link.psk import PskPhase
from tests.simulation.full_scenarios import mesh, settle
from tests.simulation.full_sim import Simulation

VICTIM = 4
STEP = 0.05  # s between two looks


@dataclass
class Found:
    """Seconds from the start of the copy: until the first run stepped aside, until every other node and the
    first run said so (``reported``), and the copy too (``told``); and how long the slowest peer held other
    keys than the copy's once it had the copy's."""

    aside: float
    reported: float
    told: float
    lost: float


def reported(sim: Simulation, nodes: int) -> bool:
    node = sim.machines[VICTIM].identity.node_id
    peers = all(
        (i, node) in sim.suspected and sim.suspected[i, node].why is Why.TWO_RUNS
        for i in range(nodes)
        if i != VICTIM
    )
    return peers and (VICTIM, None) in sim.suspected


def keyed(sim: Simulation, peer: int, copy: int) -> bool:
    """Whether a peer and the copy hold the same keys: else nothing gets through between them."""
    one, other = sim.machines[peer], sim.machines[copy]
    held = one.kernel.psks.get(other.identity.node_id)
    return bool(held) and held == other.kernel.psks.get(one.identity.node_id)


def beside(sim: Simulation, nodes: int) -> tuple[int, Found]:
    """Start a copy of a node beside it, and see what comes of it in a minute."""
    copy, began = sim.copy(VICTIM), sim.now
    sim.start(copy)
    aside = spoken = known = float("nan")
    first, lost = dict[int, float](), dict[int, float]()
    peers = [i for i in range(nodes) if i != VICTIM]
    while sim.now < began + 60:
        sim.run(STEP)
        if aside != aside and sim.machines[VICTIM].standby is not None:
            aside = sim.now - began
        if known != known and reported(sim, nodes):
            known = sim.now - began
        if spoken != spoken and reported(sim, nodes) and (copy, None) in sim.suspected:
            spoken = sim.now - began
        for peer in peers:
            if keyed(sim, peer, copy):
                first.setdefault(peer, sim.now)
            elif peer in first:
                lost[peer] = lost.get(peer, 0.0) + STEP
    assert len(first) == len(peers)
    return copy, Found(aside, known, spoken, max(lost.values(), default=0.0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nodes", [5, 8])
def test_a_copy_beside_its_original_is_told_by_all_and_the_original_steps_aside(
    nodes: int, seed: int
) -> None:
    sim = mesh(seed, nodes)
    copy, found = beside(sim, nodes)
    assert sim.machines[VICTIM].standby is not None and sim.machines[copy].process is not None
    assert found.reported <= 2.0 and found.told <= 5.0 and found.lost <= 2.0, found
    settle(sim, 30)
    # The copy goes, and the original comes back by itself.
    sim.crash(copy)
    assert sim.run(60, lambda: sim.machines[VICTIM].process is not None)
    sim.by_id[sim.machines[VICTIM].identity.node_id] = sim.machines[VICTIM]
    settle(sim, 60)


@pytest.mark.parametrize("back", [0, 86_400])
def test_a_restored_snapshot_comes_back_by_itself(back: int) -> None:
    """Its roster, its record number and the number of its start go back, and with ``back`` its clock too, so
    that the clock keeps the number of its start no greater than at the start before."""
    sim = mesh(1, 7)
    machine = sim.machines[VICTIM]
    disk, generation = dict(machine.disk), machine.generation - back
    sim.publish(VICTIM, "newer")
    sim.run(20)
    sim.crash(VICTIM)
    sim.run(15)
    machine.disk, machine.generation, machine.version = disk, generation, "sim"
    machine.wall_offset = -min(back, 3_000)
    sim.start(VICTIM)
    settle(sim, 60)
    sim.run(60)
    assert machine.process is not None and machine.standby is None
    assert not sim.suspected


def test_no_word_of_another_makes_a_node_step_aside() -> None:
    """An insider that holds the group key raises the victim's numbers as it likes, for ten minutes."""
    sim = mesh(2, 6)
    victim = sim.process(VICTIM)
    for _ in range(60):
        generation = victim.membership.generation + 1
        event = victim.me + generation.to_bytes(6) + bytes(3) + b"\1" + bytes(22)
        victim.membership._rumours.hear([event], sim.process(1).me)
        sim.run(10)
    assert sim.machines[VICTIM].process is victim
    assert not sim.suspected
    phases = [victim.links.state(peer, victim.now).phase for peer in victim.links._peers]
    assert set(phases) == {PskPhase.FRESH}


def main() -> None:
    """Print the figures."""
    for nodes in (3, 5, 8, 12):
        global VICTIM
        VICTIM = nodes - 1
        found = [beside(mesh(seed, nodes), nodes)[1] for seed in range(10)]
        for what in ("aside", "reported", "told", "lost"):
            values = [getattr(one, what) for one in found]
            print(f"{nodes} nodes, {what}: median {median(values):.2f} s, most {max(values):.2f} s")


if __name__ == "__main__":
    main()
