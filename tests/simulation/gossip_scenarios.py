# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults to put a simulated mesh through, and measurements; for the tests and the benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from phantommesh.membership.effects import Changed
from phantommesh.membership.presets import LAN, Params
from tests.simulation.gossip_sim import Network, Simulation

BAD = (0.1, (0.005, 0.04))  # loss, and one-way delay in seconds: the network of the targets


def bad_network() -> Network:
    """10 % loss, 5 to 40 ms one way."""
    return Network(loss=BAD[0], delay=BAD[1])


@dataclass
class Views:
    """When each node came to know something of one subject."""

    sim: Simulation
    subject: int
    event: str
    since: float = 0.0
    times: dict[int, float] = field(default_factory=dict)

    def heard(self, viewer: int, change: Changed, now: float) -> None:
        """Note the first time."""
        if change.event == self.event and change.node == self.sim.nodes[self.subject].id:
            self.times.setdefault(viewer, now - self.since)

    def when(self, share: float, of: int) -> float:
        """When this share of so many nodes knew; infinite if never."""
        times = sorted(self.times.values())
        needed = max(1, round(share * of))
        return times[needed - 1] if len(times) >= needed else float("inf")


@dataclass(frozen=True)
class Spread:
    """One run of `spread`: seconds until 99 % knew an update, and a death; and what the run cost."""

    update_p99: float
    dead_p99: float
    false_deaths: int
    bytes_per_node_s: float
    datagrams_per_node_s: float
    trace: int


def spread(
    nodes: int, seed: int, params: Params = LAN, *, quiet: float = 3.0, patience: float = 40.0
) -> Spread:
    """A settled mesh in which one node publishes a record and another dies, at once."""
    sim = Simulation(nodes, seed=seed, params=params, network=bad_network())
    sim.start_all()
    sim.run(quiet)
    # Measure the cost of a mesh at rest, before the news; leave the first second out.
    update, death = Views(sim, 1, "updated", sim.now), Views(sim, 2, "dead", sim.now)
    false_deaths = 0

    def heard(viewer: int, change: Changed, now: float) -> None:
        nonlocal false_deaths
        update.heard(viewer, change, now)
        death.heard(viewer, change, now)
        false_deaths += change.event == "dead" and change.node != sim.nodes[2].id

    sim.on_change = heard
    start = sim.now
    sim.publish(1)
    sim.crash(2)
    sim.run(patience, lambda: len(death.times) >= round(0.99 * (nodes - 2)) and sim.now - start > 5)
    seconds = sim.now - 1000.0
    return Spread(
        update.when(0.99, nodes - 2), death.when(0.99, nodes - 2), false_deaths,
        sim.tally.bytes / nodes / seconds, sim.tally.datagrams / nodes / seconds, sim.trace,
    )  # fmt: skip


def among_the_dead(alive: int, dead: int, seed: int, *, patience: float = 60.0) -> tuple[float, float]:
    """A few alive among many who died long ago: one of the few publishes a record, and another dies. Return
    after how many seconds all the others knew the one and the other (infinite: not within ``patience``)."""
    sim = Simulation(alive + dead, seed=seed, network=bad_network())
    sim.start_all()
    for index in range(alive, alive + dead):
        sim.crash(index)
    for viewer in range(alive):
        sim.bury(viewer, range(alive, alive + dead))
    sim.run(3)
    update, death = Views(sim, 1, "updated", sim.now), Views(sim, 2, "dead", sim.now)

    def heard(viewer: int, change: Changed, now: float) -> None:
        update.heard(viewer, change, now)
        death.heard(viewer, change, now)

    sim.on_change = heard
    sim.publish(1)
    sim.crash(2)
    sim.run(patience, lambda: len(death.times) == alive - 1 and len(update.times) == alive - 2)
    return update.when(1, alive - 2), death.when(1, alive - 1)


@dataclass(frozen=True)
class Stalls:
    """One run of `stalls`: how often a node held a live one for dead, or suspect, in how many node hours."""

    false_deaths: int
    false_suspicions: int
    node_hours: float
    bytes_per_node_s: float


def stalls(
    nodes: int, seed: int, params: Params = LAN, *, seconds: float = 3600.0, share: float = 0.05,
    length: float = 2.0,
) -> Stalls:  # fmt: skip
    """At any time this share of the nodes, drawn at random, does not run; each stall takes so long."""
    sim = Simulation(nodes, seed=seed, params=params, network=bad_network())
    sim.start_all()
    deaths = suspicions = 0

    def heard(viewer: int, change: Changed, now: float) -> None:
        nonlocal deaths, suspicions
        deaths += change.event == "dead"
        suspicions += change.event == "suspected"

    sim.on_change = heard
    gap = length / (nodes * share)

    def next_stall() -> None:
        sim.stall(int(sim.rng.random() * nodes), length)
        sim.later(sim.rng.expovariate(1 / gap), next_stall)

    sim.later(sim.rng.expovariate(1 / gap), next_stall)
    sim.run(seconds)
    return Stalls(deaths, suspicions, nodes * seconds / 3600, sim.tally.bytes / nodes / seconds)


def partition(
    nodes: int, seed: int, *, cut_for: float = 600.0, share: float = 0.6, params: Params = LAN
) -> float:
    """Cut a mesh in two, and return how long after the cut's end all agree again (infinite: never)."""
    sim = Simulation(nodes, seed=seed, params=params, network=bad_network())
    sim.start_all()
    sim.run(5)
    border = round(nodes * share)
    sim.network.cut = lambda a, b: (a < border) != (b < border)
    sim.run(cut_for)
    if any(sim.state(0, i) == 1 for i in range(border, nodes)):
        raise AssertionError("the cut was not noticed")
    sim.network.cut = None
    start = sim.now
    return sim.now - start if sim.run(120, sim.agreed) else float("inf")


def mass_restart(nodes: int, seed: int, *, params: Params = LAN, roster: bool = False) -> float:
    """Crash all, start all within a second with what each kept on disk; return how long until all agree.
    ``roster`` (see `Simulation.restart_from`) matters in a mesh of more members than a node keeps claims
    of."""
    return restarted(nodes, seed, params=params, roster=roster)[0]


def restarted(
    nodes: int, seed: int, *, params: Params = LAN, roster: bool = False, every: float = 2.0
) -> tuple[float, Simulation]:
    """`mass_restart`, and the mesh that came of it."""
    sim = Simulation(nodes, seed=seed, params=params, network=bad_network())
    sim.start_all()
    sim.run(3)
    kept = {}
    for node in sim.nodes:
        assert node.member is not None
        kept[node.index] = node.member.snapshot()
        sim.crash(node.index)
    sim.run(5)
    start = sim.now
    sim.restart_from(kept, within=1.0, roster=roster)
    sim.run(1.0)
    assert len(sim.running()) == nodes
    agreed = sim.run(180, sim.agreed, every=every)
    return (sim.now - start if agreed else float("inf")), sim


def through(sim: Simulation, viewer: int, of: int) -> tuple[bytes, ...]:
    """The members by way of which one node shows that it reaches another."""
    member = sim.nodes[viewer].member
    view = None if member is None else member.member(sim.nodes[of].id)
    return () if view is None else view.through


def half_of(nodes: int) -> Callable[[int, int], bool]:
    """Node 0 is reached by the lower half of the others only."""
    return lambda a, b: min(a, b) == 0 and max(a, b) > nodes // 2


def star(_: int) -> Callable[[int, int], bool]:
    """All reach node 0, and nobody else."""
    return lambda a, b: 0 not in (a, b)


def ring(nodes: int) -> Callable[[int, int], bool]:
    """Each reaches its two neighbours."""
    return lambda a, b: (a - b) % nodes not in (1, nodes - 1)


def chain(_: int) -> Callable[[int, int], bool]:
    """Each reaches those before and after it."""
    return lambda a, b: abs(a - b) != 1


def bridge(nodes: int) -> Callable[[int, int], bool]:
    """Two halves that have nothing in common but node 0."""
    return lambda a, b: 0 not in (a, b) and (a <= nodes // 2) != (b <= nodes // 2)


SHAPES: dict[str, tuple[Callable[[int], Callable[[int, int], bool]], int]] = {
    "half": (half_of, 10), "star": (star, 8), "ring": (ring, 6), "chain": (chain, 5), "bridge": (bridge, 9),
}  # fmt: skip


@dataclass(frozen=True)
class Partly:
    """One run of `partly`. ``deaths`` are members wrongly held for dead, by when and by whom."""

    deaths: list[tuple[float, int, int]]
    suspicions: int
    returns: int
    incarnation: int
    unseen: list[tuple[int, int]]
    """Pairs that do not reach each other, and of which the first does not show by way of whom it does."""
    found_dead: dict[int, float]
    """After the end, when node 1 dies: who knew after how many seconds."""
    bytes_per_node_s: float
    events: dict[str, int]


def partly(
    shape: str, seed: int, *, nodes: int = 0, seconds: float = 600.0, params: Params = LAN, dies: int = 1,
    patience: float = 60.0,
) -> Partly:  # fmt: skip
    """A mesh in which all reach all loses most of its ways, so that members reach some others only by way of
    helpers. After so many seconds a member dies."""
    make, usual = SHAPES[shape]
    nodes = nodes or usual
    sim = Simulation(nodes, seed=seed, params=params, network=bad_network())
    sim.start_all()
    sim.run(5)
    cut = sim.network.cut = make(nodes)
    start, counts = sim.now, Counter[str]()
    deaths: list[tuple[float, int, int]] = []

    def heard(viewer: int, change: Changed, now: float) -> None:
        counts[change.event] += 1
        if change.event == "dead":
            deaths.append((round(now - start, 1), viewer, sim.index[change.node]))

    sim.on_change = heard
    sent = sim.tally.bytes
    sim.run(seconds)
    rate = (sim.tally.bytes - sent) / nodes / seconds
    pairs = [(a, b) for a in range(nodes) for b in range(nodes) if a != b and cut(a, b)]
    unseen = [(a, b) for a, b in pairs if not through(sim, a, b)]
    most = max(node.member.incarnation for node in sim.nodes if node.member is not None)
    wrong = list(deaths)
    views = Views(sim, dies, "dead", sim.now)
    sim.on_change = views.heard
    sim.crash(dies)
    sim.run(patience)
    return Partly(
        wrong, counts["suspected"], counts["returned"], most, unseen, views.times, rate, dict(counts)
    )
