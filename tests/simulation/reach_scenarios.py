# SPDX-License-Identifier: GPL-3.0-or-later
"""Trials of members that do not answer where their records say: behind a NAT, roamed, with their control port
blocked, or started anew. As in `full_scenarios`."""

from __future__ import annotations

from collections.abc import Callable

from phantommesh.membership.messages import State
from phantommesh.membership.signs import Way
from tests.simulation.full_nat import Nat
from tests.simulation.full_scenarios import deaths, mesh, settle
from tests.simulation.full_sim import Simulation
from tests.simulation.full_views import lacking, spread, unkeyed
from tests.simulation.full_wireguard import Kernel, carries


def ways(sim: Simulation, index: int) -> dict[str, Way]:
    """How the others reach a node."""
    node_id = sim.machines[index].identity.node_id
    others = (process for process in sim.running() if process.machine.index != index)
    return {process.machine.name: process.membership.way(node_id) for process in others}


def all_find(sim: Simulation, index: int, way: Way) -> Callable[[], bool]:
    """Whether all others reach a node this way."""
    return lambda: set(ways(sim, index).values()) == {way}


def known_dead(sim: Simulation, index: int, seconds: float) -> None:
    """Assert that within so many seconds all others hold a node for dead."""
    views = [process.membership for process in sim.running()]
    node_id = sim.machines[index].identity.node_id
    assert sim.run(seconds, lambda: all(v.state(node_id) is State.DEAD for v in views), every=0.2)


def behind_a_nat(seed: int, nodes: int) -> Simulation:
    """A node moves behind a NAT, where it is not reached at its record's address, and nothing but gossip says
    that it lives. It is dead to nobody; all find it where it was heard, also after the NAT has forgotten
    everything. News comes to all, from it and to it. Its real death is known."""
    sim = mesh(seed, nodes)
    dead, last = deaths(sim), nodes - 1
    nat = Nat("203.0.113.1", {last})
    sim.network.nats.append(nat)
    assert sim.run(40, all_find(sim, last, Way.ELSEWHERE)), ways(sim, last)
    sim.publish(last, "from inside")
    # Nobody can fetch it there: it comes when the node compares tables, with one member every 10 s.
    assert sim.run(40, lambda: spread(sim, last)), f"{lacking(sim, last)} lack its record"
    sim.publish(1, "from outside")
    assert sim.run(15, lambda: spread(sim, 1)), f"{lacking(sim, 1)} lack another's"
    nat.reboot()
    sim.run(90)
    assert not dead, dead
    assert all_find(sim, last, Way.ELSEWHERE)(), ways(sim, last)
    sim.network.nats.clear()
    assert sim.run(40, all_find(sim, last, Way.DIRECT)), ways(sim, last)
    sim.network.nats.append(nat)
    sim.run(30)
    sim.crash(last)
    known_dead(sim, last, 20)
    return sim


def told_of_its_nat(seed: int, nodes: int) -> Simulation:
    """A node behind a NAT hears within few probes where others find it, and again after the NAT was started
    anew: nothing else would tell it. Nodes at home hear nothing."""
    sim = mesh(seed, nodes)
    last = nodes - 1
    nat = Nat("203.0.113.1", {last})
    sim.network.nats.append(nat)

    def told(port: int) -> bool:
        process = sim.machines[last].process
        return process is not None and any(place.endswith(f":{port}") for _, place in process.hints)

    assert sim.run(10, lambda: told(40_000), every=0.1)
    sim.run(60)  # however often: few hints in a row are followed
    nat.reboot()
    assert sim.run(5, lambda: told(40_001), every=0.1)
    others = [process for process in sim.running() if process.machine.index != last]
    assert not any(process.hints for process in others)
    return sim


def two_behind_nats(seed: int, nodes: int) -> Simulation:
    """Two nodes behind NATs of their own reach each other by way of the others, and others as themselves."""
    sim = mesh(seed, nodes)
    dead = deaths(sim)
    sim.network.nats += [Nat("203.0.113.1", {nodes - 1}), Nat("203.0.113.2", {nodes - 2})]
    sim.run(150)
    assert not dead, dead
    return sim


def blocked(seed: int, nodes: int) -> Simulation:
    """UDP to and from a node's control port is dropped, and no data flows; only the paths' probes pass. The
    node is dead to nobody, and it holds nobody for dead: its traffic flows. Its real death is known."""
    sim = mesh(seed, nodes, probes=True)
    dead, mute = deaths(sim), 3
    sim.network.deaf = lambda a, b: mute in (a, b)
    assert sim.run(60, all_find(sim, mute, Way.TRAFFIC)), ways(sim, mute)
    sim.publish(mute, "over a channel")
    assert sim.run(40, lambda: spread(sim, mute)), f"{lacking(sim, mute)} lack its record"
    sim.run(120)
    assert not dead, dead
    sim.network.deaf = None
    settle(sim, 60)
    assert sim.run(60, all_find(sim, mute, Way.DIRECT)), ways(sim, mute)
    sim.network.deaf = lambda a, b: mute in (a, b)
    sim.run(60)
    sim.crash(mute)
    known_dead(sim, mute, 90)
    return sim


def reboot(sim: Simulation, index: int, seconds: float) -> None:
    """End a node's process and its interfaces, and start it a while later."""
    sim.crash(index)
    sim.machines[index].kernel = Kernel()
    sim.run(seconds)
    sim.start(index)


def silences(sim: Simulation, index: int, seconds: float) -> dict[str, float]:
    """How many seconds pass from now until traffic flows again between a node and each other one."""
    start, me = sim.now, sim.machines[index]
    found: dict[str, float] = {}

    def all_back() -> bool:
        for machine in sim.machines:
            if machine is not me and machine.name not in found and carries(me, machine, sim.now):
                found[machine.name] = round(sim.now - start, 1)
        return len(found) == len(sim.machines) - 1

    sim.run(seconds, all_back, every=0.1)
    return found


def restarted(seed: int, nodes: int) -> Simulation:
    """Nodes lose all in a restart, one outside of a NAT and one behind it. The others key them at once:
    traffic flows again within seconds, and not at the next epoch."""
    sim = mesh(seed, nodes, probes=True)
    dead, last = deaths(sim), nodes - 1
    sim.network.nats.append(Nat("203.0.113.1", {last}))
    sim.run(60)
    for index, away in ((2, 3.0), (last, 3.0), (2, 40.0), (last, 40.0)):
        dead.clear()
        reboot(sim, index, away)
        found = silences(sim, index, 200)
        print(f"n{index} away for {away} s: silent for {found}")
        assert len(found) == nodes - 1 and max(found.values()) <= QUICK, found
        sim.run(30)
    return sim


def ipv6(seed: int, nodes: int) -> Simulation:
    """All name an IPv6 address, and an IPv4 address after it. IPv6 is switched off at one node, then at all
    (one starts anew then), and on again. Nobody is held for dead, links are keyed on, news get through."""
    sim = mesh(seed, nodes, probes=True, dual=True)
    dead, one, everybody = deaths(sim), 2, set(range(nodes))
    for turn, without in enumerate(({one}, everybody, {one}, set[int]())):
        sim.network.without_ipv6 = without
        for process in sim.running():
            process.links.rotate(None, process.now)
        sim.publish(one, f"turn {turn}")
        assert sim.run(20, lambda: spread(sim, one)), f"{lacking(sim, one)} lack its record"
        sim.run(130)  # every link's keys are renewed at least once
        assert not unkeyed(sim), unkeyed(sim)
        assert not dead, dead
        if without is everybody:
            reboot(sim, one, 3.0)
            found = silences(sim, one, 200)
            assert len(found) == nodes - 1 and max(found.values()) <= QUICK, found
    return sim


def broken_from_the_start(seed: int, nodes: int) -> Simulation:
    """IPv6 leads nowhere from the first moment, and all name it first."""
    sim = Simulation(nodes, seed=seed, dual=True)
    sim.network.without_ipv6 = set(range(nodes))
    dead = deaths(sim)
    sim.start_all()
    settle(sim, 4)  # one attempt alone takes 5 s
    sim.run(60)
    assert not dead, dead
    return sim


def keyed_alike(sim: Simulation, a: int, b: int) -> bool:
    """Whether the link of two nodes is fresh at both ends, with the same PSKs in their interfaces."""
    return f"n{a}-n{b}" not in unkeyed(sim)


def alive_to_each_other(sim: Simulation) -> bool:
    """Whether all that run hold all others that run for alive."""
    running = sim.running()
    return all(a.membership.state(b.me) is State.ALIVE for a in running for b in running)


def carried(seed: int, nodes: int) -> Simulation:
    """A public node, and all others behind a NAT each, from the start. They have links with each other
    within seconds, and keep them for an hour, over many epochs. None is dead to any other. A node behind a
    NAT that starts anew is keyed by all within 3 s."""
    sim = Simulation(nodes, seed=seed, authorities=1)
    dead = deaths(sim)
    sim.network.nats += [Nat(f"203.0.113.{i}", {i}) for i in range(1, nodes)]
    sim.start_all()
    start = sim.now
    assert sim.run(SOON, lambda: not unkeyed(sim), every=0.1), unkeyed(sim)
    print(f"all keyed after {sim.now - start:.1f} s")
    sim.run(3600)
    assert not unkeyed(sim), unkeyed(sim)
    assert not dead, dead
    assert alive_to_each_other(sim)
    for away in (3.0, 40.0):
        for index in range(nodes):
            reboot(sim, index, away)
            start = sim.now
            assert sim.run(REKEYED if index else QUICK, lambda: not unkeyed(sim), every=0.1), unkeyed(sim)
            print(f"n{index} away for {away} s: keyed by all after {sim.now - start:.1f} s")
            sim.run(60)
            assert alive_to_each_other(sim)
    return sim


def home_dies(seed: int, nodes: int) -> Simulation:
    """Two public nodes, the others behind a NAT each. The first home of all dies: the links between those
    behind NATs go on, and it alone is dead to them. It comes back, and a node behind a NAT starts anew."""
    sim = Simulation(nodes, seed=seed)
    sim.network.nats += [Nat(f"203.0.113.{i}", {i}) for i in range(2, nodes)]
    sim.start_all()
    assert sim.run(SOON, lambda: not unkeyed(sim), every=0.1), unkeyed(sim)
    sim.crash(0)
    known_dead(sim, 0, 30)
    dead = deaths(sim)
    sim.run(300)
    assert not unkeyed(sim), unkeyed(sim)
    assert not dead, dead
    reboot(sim, nodes - 1, 3.0)
    assert sim.run(REKEYED, lambda: not unkeyed(sim), every=0.1), unkeyed(sim)
    sim.start(0)
    assert sim.run(QUICK, lambda: not unkeyed(sim), every=0.1), unkeyed(sim)
    return sim


SOON = 4.0  # s: a handshake with the home, a connection lent to it, and a handshake by way of it
REKEYED = 3.0  # s
QUICK = 20.0  # s: WireGuard itself waits 15 s until it begins a session anew that the other end has lost

SCENARIOS: dict[str, tuple[Callable[[int, int], Simulation], int]] = {
    "behind-a-nat": (behind_a_nat, 6), "two-behind-nats": (two_behind_nats, 6), "blocked": (blocked, 6),
    "told-of-its-nat": (told_of_its_nat, 5), "restarted": (restarted, 5), "ipv6": (ipv6, 5),
    "ipv6-leads-nowhere": (broken_from_the_start, 5), "carried": (carried, 3), "home-dies": (home_dies, 4),
}  # fmt: skip
