# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip in a mesh of three regions, simulated; for the tests and the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from phantommesh.membership.effects import Changed
from tests.simulation.gossip_scenarios import Views
from tests.simulation.gossip_sim import Network, Simulation

REGIONS = 3
BETWEEN = 0.05  # s more one way between two regions: 100 ms of round trip


def regional(loss: float = 0.01) -> Network:
    """Regions of 1 to 5 ms one way, 50 ms more between any two."""
    return Network(loss=loss, delay=(0.001, 0.005), regions=REGIONS, between=BETWEEN)


@dataclass(frozen=True)
class Crossing:
    """One run of `crossing`: bytes a node and second from region to region, at rest and with one update a
    second; seconds until 99 % of the nodes knew an update, and a death (the worst of several); and members
    that were held for dead and lived."""

    at_rest: float
    busy: float
    update_p99: float
    dead_p99: float
    false_deaths: int


def crossing(nodes: int, seed: int, *, flat: bool, seconds: float = 20.0, updates: int = 3) -> Crossing:
    """A settled mesh: first nothing happens, then nodes publish, at last one dies."""
    sim = Simulation(nodes, seed=seed, network=regional(), flat=flat)
    sim.start_all()
    dead = 0
    views: list[Views] = []

    def heard(viewer: int, change: Changed, now: float) -> None:
        nonlocal dead
        for view in views:
            view.heard(viewer, change, now)
        dead += change.event == "dead" and change.node != sim.nodes[2].id

    sim.on_change = heard
    sim.run(2)
    before, began = sim.tally.crossing, sim.now
    sim.run(seconds)
    at_rest = (sim.tally.crossing - before) / nodes / (sim.now - began)
    before, began = sim.tally.crossing, sim.now
    for number in range(updates):
        subject = 3 + number * 7 % (nodes - 3)
        views.append(Views(sim, subject, "updated", sim.now))
        sim.publish(subject)
        sim.run(1.0)
    sim.run(4.0)
    busy = (sim.tally.crossing - before) / nodes / (sim.now - began)
    slowest = max(view.when(0.99, nodes - 1) for view in views)
    death = Views(sim, 2, "dead", sim.now)
    views = [death]
    sim.crash(2)
    sim.run(40, lambda: len(death.times) >= round(0.99 * (nodes - 1)))
    return Crossing(at_rest, busy, slowest, death.when(0.99, nodes - 1), dead)


@dataclass(frozen=True)
class Apart:
    """One run of `region_cut`: whether the region went on inside, as far as an update and a death there show;
    and the seconds until all agreed on all again once it was joined."""

    update_inside: float
    dead_inside: float
    healed: float


def region_cut(nodes: int, seed: int, *, seconds: float = 600.0, patience: float = 60.0) -> Apart:
    """One region is cut off for so long."""
    sim = Simulation(nodes, seed=seed, network=regional())
    network = sim.network
    sim.start_all()
    sim.run(3)
    network.cut = lambda a, b: (network.region(a) == 0) != (network.region(b) == 0)
    sim.run(seconds - 60)
    inside = [index for index in range(nodes) if network.region(index) == 0]
    update, death = Views(sim, inside[1], "updated", sim.now), Views(sim, inside[2], "dead", sim.now)

    def heard(viewer: int, change: Changed, now: float) -> None:
        if network.region(viewer) == 0:
            update.heard(viewer, change, now)
            death.heard(viewer, change, now)

    sim.on_change = heard
    sim.publish(inside[1])
    sim.crash(inside[2])
    sim.run(60)
    sim.on_change = None
    network.cut = None
    joined = sim.now
    healed = sim.run(patience, sim.agreed)
    others = len(inside) - 2
    took = sim.now - joined if healed else float("inf")
    return Apart(update.when(1, others), death.when(1, others), took)
