# SPDX-License-Identifier: GPL-3.0-or-later
"""Meshes of real memberships over bad networks: how fast news spreads, whether anybody is wronged, whether
all heals.

Times are virtual. A run that fails prints the command that replays it.
"""

from __future__ import annotations

import random
import statistics
import zlib

import pytest

from phantommesh.membership.messages import State
from phantommesh.membership.presets import LAN, LOCAL, MEMBERLIST_LAN, WAN, Params
from phantommesh.membership.table import Snapshot
from tests.simulation import gossip_scenarios as scenarios
from tests.simulation.gossip_sim import Network, Simulation, claim, record_hash


@pytest.fixture(autouse=True)
def replay(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Say how to run a failing case again: every seed is in its name."""
    print(f"replay: python -m pytest '{request.node.nodeid}'")


def mesh(nodes: int, seed: int, params: Params = LAN, network: Network | None = None) -> Simulation:
    sim = Simulation(nodes, seed=seed, params=params, network=network or scenarios.bad_network())
    sim.start_all()
    return sim


@pytest.mark.parametrize(("nodes", "update", "death"), [(100, 2.0, 5.0), (1000, 2.0, 7.0)])
def test_news_spreads_in_time(nodes: int, update: float, death: float) -> None:
    runs = [scenarios.spread(nodes, seed) for seed in range(10 if nodes < 1000 else 2)]
    assert statistics.median(r.update_p99 for r in runs) <= update
    assert statistics.median(r.dead_p99 for r in runs) <= death
    assert sum(r.false_deaths for r in runs) == 0


def test_memberlists_defaults_behave_like_memberlist() -> None:
    """With 100 members: about a second and a half to notice, 8 s of suspicion, and the spread of the news."""
    runs = [scenarios.spread(100, seed, MEMBERLIST_LAN) for seed in range(5)]
    assert 8.5 < statistics.median(r.dead_p99 for r in runs) < 12


@pytest.mark.parametrize("seed", range(2))
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    first, second = (scenarios.spread(50, seed) for _ in range(2))
    assert first == second
    assert scenarios.spread(50, seed + 100).trace != first.trace


@pytest.mark.parametrize("seed", range(2))
def test_stalled_nodes_are_not_held_for_dead(seed: int) -> None:
    result = scenarios.stalls(40, seed, seconds=300)
    assert result.false_suspicions > 0
    assert result.false_deaths == 0


def test_a_small_mesh_buries_nobody_who_was_stalled_either() -> None:
    """A stall of 2 s is longer than the shortest suspicion that ten members would come to by themselves."""
    result = scenarios.stalls(10, 1, seconds=120, share=0.1)
    assert result.false_suspicions > 50  # they were noticed
    assert result.false_deaths == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_partition_heals(seed: int) -> None:
    assert scenarios.partition(25, seed, cut_for=120) <= 30


def test_a_larger_partition_heals() -> None:
    assert scenarios.partition(60, 0, cut_for=60) <= 30


@pytest.mark.parametrize("seed", range(2))
def test_after_a_mass_restart_each_asks_each_about_once(seed: int) -> None:
    """Before, they agreed after 9 to 15 s: a last node held an old claim, with no case and no news left about
    it."""
    nodes = 60
    took, sim = scenarios.restarted(nodes, seed, every=0.5)
    assert took <= 6.5
    pings = [node.member.counts()["ping"][0] for node in sim.nodes if node.member is not None]
    probes = 2 * took / LAN.probe_interval  # those whose turn came, with what was lost and asked again
    assert sum(pings) / nodes <= 1.5 * nodes + probes
    assert max(pings) <= 2 * nodes + 2 * probes


def test_a_mass_restart_with_all_records_on_disk_converges() -> None:
    """A node keeps the claims of 256 others; here of 12. It knows the others by their records alone."""
    sim = Simulation(40, seed=1, network=scenarios.bad_network())
    kept = {i: [claim((i + step) % 40) for step in range(1, 13)] for i in range(40)}
    for node in sim.nodes:
        node.generation = 1  # they have run before
    sim.restart_from(kept, within=1.0, roster=True)
    sim.run(1.0)
    assert sim.run(9.0, sim.agreed)


@pytest.mark.parametrize("seed", range(3))
def test_few_among_many_dead_hear_as_soon_as_without_them(seed: int) -> None:
    """Five alive, 1,000 dead: an update took 16 s and a death 43 (medians), for draws that hit the dead."""
    update, death = scenarios.among_the_dead(5, 300, seed)
    assert update <= 0.5
    assert death <= 1.5 * 4.7


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_off_node_is_dead_and_comes_back(seed: int) -> None:
    sim = mesh(10, seed)
    sim.run(5)
    sim.network.cut = lambda a, b: 3 in (a, b)
    sim.run(60)
    assert all(sim.state(i, 3) is State.DEAD for i in range(10) if i != 3)
    sim.network.cut = None
    assert sim.run(30, sim.agreed)


@pytest.mark.parametrize("seed", range(4))
def test_a_node_that_was_cut_off_soon_trusts_itself_again(seed: int) -> None:
    """A node that doubts itself asks seldom and waits long: that would hide a death for half a minute."""
    sim = Simulation(10, seed=seed, params=LAN, network=scenarios.bad_network())
    sim.start_all()
    sim.run(5)
    sim.network.cut = lambda a, b: (a == 3) != (b == 3)
    sim.run(30)
    node = sim.nodes[3].member
    assert node is not None and node._core.health.score == LAN.awareness_max - 1
    sim.network.cut = None
    sim.run(4)
    assert node._core.health.score == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_link_that_works_one_way_only_kills_nobody(seed: int) -> None:
    sim = mesh(12, seed)
    deaths: list[bytes] = []
    sim.on_change = lambda _, change, now: deaths.append(change.node) if change.event == "dead" else None
    sim.network.cut = lambda a, b: (a, b) in ((1, 2), (5, 2), (7, 8))
    sim.run(120)
    assert deaths == []
    sim.network.cut = None
    assert sim.run(30, sim.agreed)


@pytest.mark.parametrize("seed", range(3))
def test_a_crashed_node_is_dead_and_welcome_again(seed: int) -> None:
    sim = mesh(10, seed)
    sim.run(3)
    sim.crash(4)
    assert sim.run(6, lambda: all(sim.state(i, 4) is State.DEAD for i in range(10) if i != 4))
    sim.start(4, seeds=(sim.nodes[0].address,))
    assert sim.run(5, sim.agreed, every=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_quick_restart_is_seen_as_one(seed: int) -> None:
    sim = mesh(10, seed)
    sim.run(3)
    restarted = set()
    sim.on_change = lambda viewer, change, now: restarted.add(viewer) if change.event == "restarted" else None
    sim.crash(4)
    sim.start(4, seeds=(sim.nodes[0].address,))
    assert sim.run(10, sim.agreed)
    assert restarted == set(range(10)) - {4}


@pytest.mark.parametrize("seed", range(3))
def test_a_leaving_node_is_gone_at_once_and_not_dead(seed: int) -> None:
    sim = mesh(20, seed)
    sim.run(3)
    sim.leave(4)
    assert sim.run(4, lambda: all(sim.state(i, 4) is State.LEFT for i in range(20) if i != 4))
    sim.start(4, seeds=(sim.nodes[0].address,))
    assert sim.run(5, sim.agreed)


@pytest.mark.parametrize("generation", [0, 1])
def test_a_member_that_died_before_this_node_heard_of_it_is_dead_here_too(generation: int) -> None:
    """This node has the member's record only, or its claim from before its last start. The others saw the
    member die later."""
    sim = Simulation(8, seed=1, network=scenarios.bad_network())
    sim.nodes[4].generation = 1
    sim.start_all()
    sim.run(3)
    sim.crash(0)
    sim.crash(4)
    sim.run(10)
    old = sim.nodes[4].id + generation.to_bytes(6) + bytes(3) + b"\1" + (1).to_bytes(6) + record_hash(4, 1)
    claims = [claim(i) for i in range(8) if i not in (0, 4)]
    sim.start(0, known=Snapshot([*claims, old]), seeds=(sim.nodes[1].address,))
    assert sim.run(30, lambda: sim.state(0, 4) is State.DEAD)
    assert sim.run(10, sim.agreed)


@pytest.mark.parametrize("seed", range(2))
def test_strangers_with_one_seed_find_each_other(seed: int) -> None:
    sim = Simulation(30, seed=seed, network=scenarios.bad_network())
    sim.start_all(known=False)
    assert sim.run(20, sim.agreed)


@pytest.mark.parametrize("params", [LAN, WAN, LOCAL])
def test_every_preset_finds_a_death_on_its_network(params: Params) -> None:
    delay = (0.05, 0.12) if params is WAN else (0.0001, 0.001) if params is LOCAL else (0.002, 0.01)
    sim = mesh(20, 1, params, Network(loss=0.02, delay=delay))
    sim.run(20)
    assert sim.agreed()
    sim.crash(3)
    assert sim.run(15, lambda: all(sim.state(i, 3) is State.DEAD for i in range(20) if i != 3))


@pytest.mark.parametrize("seed", range(12))
def test_any_mix_of_faults_heals(seed: int) -> None:
    """Random crashes, restarts, stalls, cuts, clock steps, news and leaves; then peace, and one view."""
    rng = random.Random(zlib.crc32(b"chaos %d" % seed))
    nodes = rng.randrange(3, 12)
    network = Network(
        loss=rng.random() * 0.25, duplicate=rng.random() * 0.3, delay=(0.001, rng.random() * 0.2)
    )
    sim = mesh(nodes, seed, network=network)
    for _ in range(25):
        index = rng.randrange(nodes)
        running = sim.nodes[index].member is not None
        match rng.randrange(8):
            case 0 if running and len(sim.running()) > 1:
                sim.crash(index)
            case 1 if not running:
                sim.start(index, seeds=tuple(node.address for node in sim.nodes))
            case 2:
                sim.stall(index, rng.random() * 8)
            case 3:
                group = {i for i in range(nodes) if rng.random() < 0.5}
                network.cut = lambda a, b, group=group: (a in group) != (b in group)
            case 4:
                pairs = {(rng.randrange(nodes), rng.randrange(nodes)) for _ in range(nodes)}
                network.cut = lambda a, b, pairs=pairs: (a, b) in pairs
            case 5 if running:
                sim.step_clock(index, rng.uniform(-7200, 7200))
            case 6 if running:
                sim.publish(index)
            case _:
                network.cut = None
        sim.run(rng.random() * 15)
    network.cut, network.loss = None, min(network.loss, 0.1)
    sim.run(10)
    for index in range(nodes):
        if sim.nodes[index].member is None:
            sim.start(index, seeds=tuple(node.address for node in sim.nodes))
    assert sim.run(90, sim.agreed)
