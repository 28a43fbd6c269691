# SPDX-License-Identifier: GPL-3.0-or-later
"""Relays and frames over TCP between two nodes that no direct way joins: what fails, what takes its place.

All bounds are of virtual time.
"""

from __future__ import annotations

import random

import pytest

from phantommesh.dimensions import DIMENSIONS
from phantommesh.routing.ways import Kind, Way
from phantommesh.trust.identity import NodeId
from tests.simulation.ways_sim import A, B, P, Q, World, endpoint

SEEDS = pytest.mark.parametrize("seed", range(2))


def relayed(seed: int, *relays: NodeId) -> World:
    """A pair that has found its relays."""
    world = World(seed, relays=relays or (P, Q))
    world.run(10.0)
    assert world.both(Kind.RELAYED)
    gap, lost = world.watch(5.0)
    assert gap < 0.2 and lost == 0.0
    return world


def over(world: World) -> set[bytes]:
    """The relays that either end uses."""
    return world.ends[A].over | world.ends[B].over


def relays_carry(world: World) -> None:
    """Traffic flows over relays. Single dimensions may still be on their way to one: an end that left a relay
    unheard is told of its lease again once the leg that it left is over."""
    gap, lost = world.watch(20.0)
    assert gap < 0.5 and lost < 0.01
    assert all(end.kinds.count(Kind.RELAYED) >= 4 for end in world.ends.values())


@SEEDS
def test_two_relays_carry_different_dimensions_and_both_ends_agree(seed: int) -> None:
    world = relayed(seed)
    used = [[way.relay for way in end.ways.taken(end.peer) if way] for end in world.ends.values()]
    assert used[0] == used[1] and sorted(map(used[0].count, (P, Q))) == [3, 4]


@SEEDS
def test_a_relay_that_dies_costs_no_silence_and_the_other_takes_all(seed: int) -> None:
    world = relayed(seed)
    del world.relays[P]
    gap, _ = world.watch(6.0)
    assert gap < 1.0 and over(world) == {Q} and world.both(Kind.RELAYED)
    assert world.watch(10.0)[1] == 0.0


@SEEDS
def test_a_relay_that_is_revoked_is_left_at_the_next_look(seed: int) -> None:
    world = relayed(seed)
    world.revoked.add(P)
    world.run(1.5)
    assert P not in over(world)
    gap, _ = world.watch(6.0)
    assert gap < 1.0 and over(world) == {Q} and world.both(Kind.RELAYED)


@SEEDS
def test_frames_over_tcp_take_the_place_of_the_last_relay_until_it_is_back(
    seed: int,
) -> None:
    world = relayed(seed, P)
    del world.relays[P]
    gap, _ = world.watch(10.0)
    assert gap < 6.0 and world.both(Kind.FRAMED)
    assert world.watch(5.0)[1] == 0.0
    world.start_relay(P)
    gap, _ = world.watch(60.0)
    assert gap < 0.5 and world.both(Kind.RELAYED) and world.line is None


@pytest.mark.parametrize(("seed", "blocked"), [(0, {B}), (0, {A, B})])
def test_udp_that_is_blocked_and_freed(seed: int, blocked: set[NodeId]) -> None:
    """At one end, or everywhere: no relay serves, so frames do; afterwards relays do again."""
    world = relayed(seed)
    world.no_udp = set(blocked)
    gap, _ = world.watch(10.0)
    assert gap < 6.0 and world.both(Kind.FRAMED)
    assert world.watch(20.0)[1] < 0.001  # trials lose nothing
    assert sum(end.calls for end in world.ends.values()) == 1
    world.no_udp.clear()
    gap, lost = world.watch(60.0)
    assert gap < 4.0 and lost < 0.05  # a trial that finds nothing, at most
    relays_carry(world)
    assert world.line is None


@SEEDS
def test_a_direct_way_takes_the_relays_place_and_wireguard_follows(seed: int) -> None:
    world = relayed(seed)
    world.direct = True
    for end, after in ((world.ends[A], 0.0), (world.ends[B], 0.3)):
        world.run(after)
        for i in range(DIMENSIONS):
            end.ways.offer(end.peer, i, Way(Kind.DIRECT, endpoint(end.peer, i)))
        end.point()
    gap, lost = world.watch(20.0)
    assert gap < 0.2 and lost <= 0.001
    for end in world.ends.values():  # WireGuard itself has left the relays
        assert end.at == [endpoint(end.peer, i) for i in range(DIMENSIONS)]
    assert world.both(Kind.DIRECT) and not any(len(leases) for leases in world.leases.values())


def switch(world: World, relay: NodeId) -> None:
    """End a relay, or start it."""
    if relay in world.relays:
        del world.relays[relay]
    else:
        world.start_relay(relay)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happened_before_a_pair_finds_its_ways_again(seed: int) -> None:
    world, chance = relayed(seed), random.Random(seed)
    for _ in range(6):
        match chance.randrange(4):
            case 0:
                switch(world, chance.choice([P, Q]))
            case 1:
                world.no_udp = set(chance.sample([A, B], chance.randint(0, 2)))
            case 2:
                world.revoked = set(chance.sample([P, Q], chance.randint(0, 2)))
            case _:
                world.tcp = chance.random() < 0.5
                if not world.tcp:
                    world.hang_up()
        world.run(chance.uniform(0.5, 12.0))
    for relay in {P, Q} - world.relays.keys():
        world.start_relay(relay)
    world.tcp = True
    world.no_udp.clear()
    world.revoked.clear()
    world.run(60.0)
    relays_carry(world)
