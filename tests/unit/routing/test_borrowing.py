# SPDX-License-Identifier: GPL-3.0-or-later
"""Two members and relays, by a small loop that carries out the effects of both ends at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.routing.binding import Challenger, Datagram, Kind, encode
from phantommesh.routing.borrowing import ASKED, COST_EVERY, PATIENCE, Borrowing
from phantommesh.routing.choice import Need
from phantommesh.routing.leases import BOUND, Grant, Leases, Terms
from phantommesh.routing.legs import HURRY, AskCost, AskLease, Effect, LeaveLease, SendFromPort, Use
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId
from tests.unit.routing.test_leases import counting

A, B, P, Q, R = (NodeId(bytes((n,)) * 16) for n in (1, 2, 11, 12, 13))


@dataclass
class Net:
    """Relays with their round trips to both ends, and who is up. Each datagram and each answer arrives at
    once, or is lost where ``lose`` says so."""

    costs: dict[NodeId, float] = field(default_factory=lambda: {P: 0.01, Q: 0.02, R: 0.03})
    now: float = 0.0
    down: set[NodeId] = field(default_factory=set)
    closed: set[NodeId] = field(default_factory=set)  # their port is closed by a firewall
    lose: deque[bool] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.ends = {A: Borrowing(A), B: Borrowing(B)}
        self.used: dict[NodeId, dict[int, NodeId]] = {A: {}, B: {}}
        self.tags: dict[tuple[NodeId, int], int] = {}
        self.leases = {
            relay: Leases(Terms(rate=1, quota=1), lambda one, two: True, lambda place: False, counting())
            for relay in self.costs
        }
        self.challengers = {relay: Challenger(each, counting()) for relay, each in self.leases.items()}
        self.tickets: dict[tuple[NodeId, int], NodeId] = {}

    def start(self, *dimensions: int) -> None:
        for end, peer in ((A, B), (B, A)):
            self.do(end, self.ends[end].set_relays(self.costs, self.now))
            self.do(end, self.ends[end].want(peer, dimensions, self.now))

    def do(self, end: NodeId, effects: list[Effect]) -> None:
        peer = B if end is A else A
        machine = self.ends[end]
        for effect in effects:
            if isinstance(effect, Use):
                if effect.relay is None:
                    del self.used[end][effect.dimension]
                else:
                    self.used[end][effect.dimension] = effect.relay
                    self.tags[end, effect.dimension] = effect.tag
                continue
            relay = effect.relay
            if relay in self.down or (self.lose and self.lose.popleft()):
                if isinstance(effect, AskCost):
                    self.do(end, machine.cost(relay, peer, None, self.now))
                continue
            match effect:
                case AskCost():
                    self.do(end, machine.cost(relay, peer, self.costs[relay], self.now))
                case AskLease(dimension=dimension):
                    grant = self.leases[relay].ask(end, peer, dimension, self.now, tagging=True)
                    assert isinstance(grant, Grant)
                    if grant.waiting or end < peer:
                        self.do(peer, self.ends[peer].offered(relay, end, (dimension,), self.now))
                    self.do(end, machine.granted(
                        relay, peer, dimension, 51700, grant.tag, grant.ticket, grant.key, self.now
                    ))  # fmt: skip
                case LeaveLease(dimension=dimension):
                    self.leases[relay].leave(end, peer, dimension)
                case SendFromPort() if relay in self.closed:
                    pass
                case SendFromPort(dimension=dimension, datagram=datagram):
                    place = Address("192.0.2.1" if end is A else "192.0.2.2", 40000 + dimension)
                    heard = self.challengers[relay].receive(datagram, place, self.now)
                    if heard.answer is not None:
                        self.do(end, machine.receive(relay, peer, dimension, heard.answer, self.now))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := min(each.deadline for each in self.ends.values())) <= until:
            self.now = max(self.now, due)
            for end, machine in self.ends.items():
                self.do(end, machine.tick(self.now))
                assert machine.deadline > self.now
        self.now = until

    def works(self, dimension: int) -> bool:
        """Whether both ends use one relay there, which forwards."""
        relay = self.used[A].get(dimension)
        if relay is None or relay in self.down or self.used[B].get(dimension) != relay:
            return False
        tags = self.tags[A, dimension], self.tags[B, dimension]
        place = Address("192.0.2.1", 40000 + dimension)
        found = [each for each in self.leases[relay].forwards(self.now) if each.source == place]
        return [each.tag for each in found] == [tags[0]] and tags[0] == tags[1]

    def dark(self, seconds: int) -> None:
        """Let some time pass in which both ends see once a second that nothing comes through, where that is
        so."""
        for _ in range(seconds):
            for end, peer in ((A, B), (B, A)):
                for relay in set(self.used[end].values()):
                    if not all(self.works(i) for i in self.used[end]):
                        self.do(end, self.ends[end].failed(relay, peer, self.now))
            self.run(1.0)


def test_a_pair_goes_over_the_two_nearest_relays_within_two_seconds() -> None:
    net = Net()
    net.start(0, 1)
    net.run(2.0)
    assert net.works(0) and net.works(1)
    assert net.used[A] == {0: P, 1: Q}


def test_leases_are_kept_for_hours() -> None:
    net = Net()
    net.start(0, 1)
    net.run(2.0)
    for _ in range(100):
        net.run(60.0)
        assert net.works(0) and net.works(1)


@pytest.mark.parametrize("end", [A, B])
def test_an_end_that_starts_anew_finds_the_relay_again(end: NodeId) -> None:
    """The relay still holds its lease, so it seems to know of it."""
    net = Net(costs={P: 0.01})
    net.start(0, 1)
    net.run(30.0)
    peer = B if end is A else A
    net.ends[end], net.used[end] = Borrowing(end), {}
    net.dark(4)  # while it is away
    net.do(end, net.ends[end].set_relays(net.costs, net.now))
    net.do(end, net.ends[end].want(peer, (0, 1), net.now))
    net.dark(6)
    assert net.works(0) and net.works(1)


def test_the_only_relay_is_used_though_it_failed_a_moment_ago() -> None:
    """It was the peer that was away, perhaps."""
    net = Net(costs={P: 0.01})
    net.start(0)
    net.run(2.0)
    for end, peer in ((A, B), (B, A)):
        net.do(end, net.ends[end].failed(P, peer, net.now))
    net.run(1.0)
    net.start(0, 1)
    net.run(4.0)
    assert net.works(0) and net.works(1)


def test_an_end_that_is_slow_to_hear_of_a_lease_is_not_waited_for_much_longer() -> None:
    net = Net(costs={P: 0.01})
    net.do(A, net.ends[A].set_relays(net.costs, 0.0))
    net.do(A, net.ends[A].want(B, (0,), 0.0))
    net.run(12.0)  # B is not keyed yet
    net.do(B, net.ends[B].set_relays(net.costs, net.now))
    net.do(B, net.ends[B].want(A, (0,), net.now))
    net.do(B, net.ends[B].offered(P, A, (0,), net.now))
    net.run(2.0)
    assert net.works(0)


def test_a_relay_that_starts_anew_may_give_another_tag() -> None:
    net = Net(costs={P: 0.01})
    net.start(0, 1)
    net.run(30.0)
    leases = Leases(Terms(rate=1, quota=1), lambda one, two: True, lambda place: False, counting())
    net.leases[P], net.challengers[P] = leases, Challenger(leases, counting())
    for dimension in (0, 1):
        leases.ask(A, Q, dimension, net.now, tagging=True)  # another pair is first this time
    net.dark(5)
    assert net.works(0) and net.works(1)
    assert net.tags[A, 0] != 0


def test_a_relay_that_ends_is_replaced() -> None:
    net = Net()
    net.start(0, 1)
    net.run(2.0)
    net.down.add(P)
    for end in (A, B):  # their paths to the relay are dark
        left = {relay: cost for relay, cost in net.costs.items() if relay is not P}
        net.do(end, net.ends[end].set_relays(left, net.now))
    net.run(2.0)
    assert net.works(0) and net.works(1)
    assert P not in net.used[A].values()


def test_a_relay_that_no_longer_confirms_is_not_used() -> None:
    net = Net(costs={P: 0.01})
    net.start(0)
    net.run(2.0)
    net.down.add(P)
    net.run(BOUND)
    assert net.used == {A: {}, B: {}}
    net.down.clear()
    net.run(COST_EVERY + 2.0)
    assert net.works(0)


def test_a_direct_way_ends_the_lease_at_once() -> None:
    net = Net()
    net.start(0, 1)
    net.run(2.0)
    net.do(A, net.ends[A].want(B, (1,), net.now))
    assert net.used[A] == {1: Q}
    assert len(net.leases[P]) == 0
    net.do(A, net.ends[A].want(B, (), net.now))
    net.do(B, net.ends[B].want(A, (), net.now))
    assert all(len(each) == 0 for each in net.leases.values())
    assert net.ends[A].deadline == inf


def test_nobody_is_asked_without_need() -> None:
    net = Net()
    for end in (A, B):
        assert net.ends[end].set_relays(net.costs, 0.0) == []
        assert net.ends[end].deadline == inf


@given(st.lists(st.booleans(), max_size=200))
def test_whatever_is_lost_the_pair_comes_together(lost: list[bool]) -> None:
    net = Net(lose=deque(lost))
    net.start(0, 1)
    net.run(300.0)
    net.lose.clear()
    net.run(300.0)
    assert net.works(0) and net.works(1)


def test_a_move_to_another_relay_loses_nothing() -> None:
    """The lease before forwards until both ends use the new one, and some seconds more."""
    net = Net(costs={P: 0.01})
    net.start(0)
    net.run(2.0)
    assert net.works(0)
    net.costs[Q] = 0.001
    net.leases[Q] = Leases(Terms(rate=1, quota=1), lambda one, two: True, lambda place: False, counting())
    net.challengers[Q] = Challenger(net.leases[Q], counting())
    for end in (A, B):
        net.do(end, net.ends[end].set_relays(net.costs, net.now))
    for _ in range(400):
        net.run(0.25)
        for end in (A, B):
            used = net.used[end][0]
            assert Address("192.0.2.1", 40000) in {each.source for each in net.leases[used].forwards(net.now)}
    assert net.used == {A: {0: Q}, B: {0: Q}}
    assert len(net.leases[P]) == 0


def test_a_relay_through_which_nothing_comes_is_left() -> None:
    net = Net(costs={P: 0.01, Q: 0.02})
    net.start(0)
    net.run(2.0)
    assert net.used[A] == {0: P}
    net.down.add(P)
    for end, peer in ((A, B), (B, A)):
        net.do(end, net.ends[end].failed(P, peer, net.now))
    net.run(1.0)
    assert net.used == {A: {0: Q}, B: {0: Q}} and net.works(0)


def test_a_relay_whose_port_is_closed_is_given_up() -> None:
    net = Net(costs={P: 0.01, Q: 0.02})
    net.closed.add(P)
    net.start(0)
    net.run(PATIENCE + 2.0)
    assert net.used[A] == {0: Q} and net.works(0)


def test_the_other_end_follows_a_word_that_came_too_soon() -> None:
    net = Net()
    for end in (A, B):
        net.do(end, net.ends[end].set_relays(net.costs, net.now))
    net.do(A, net.ends[A].want(B, (0,), net.now))
    net.run(2.0)
    assert not net.used[A]
    net.do(B, net.ends[B].want(A, (0,), net.now))
    net.run(1.0)
    assert net.works(0)


def test_relays_are_not_asked_all_the_time_for_a_peer_that_none_reaches() -> None:
    net = Net()
    net.down |= {P, Q, R}
    asked = 0
    for end, peer in ((A, B), (B, A)):
        net.ends[end].set_relays(net.costs, 0.0)
        net.ends[end].want(peer, (0,), 0.0)
    for second in range(600):
        effects = net.ends[A].tick(float(second))
        asked += sum(isinstance(effect, AskCost) for effect in effects)
        for effect in effects:
            if isinstance(effect, AskCost):
                net.ends[A].cost(effect.relay, B, None, float(second))
    assert asked <= 3 * (30 + 600 / COST_EVERY)


def test_a_leg_without_a_ticket_is_not_bound_where_its_relay_fails() -> None:
    machine = Borrowing(A)
    machine.set_relays({P: 0.01}, 0.0)
    machine.want(B, (0, 1), 0.0)
    machine.tick(0.0)
    assert machine.cost(P, B, 0.01, 0.0) == [AskLease(P, B, 0), AskLease(P, B, 1)]
    effects = machine.failed(P, B, 0.1) + machine.tick(0.2)
    assert effects and not [one for one in effects if isinstance(one, SendFromPort)]


def test_a_leg_to_a_confined_peer_is_bound_a_while_after_it_counts_as_lent() -> None:
    for confined in ((B,), ()):
        machine = Borrowing(A, confined=confined.__contains__)
        machine.set_relays({P: 0.01}, 0.0)
        machine.want(B, (3,), 0.0)
        machine.tick(0.0)
        machine.cost(P, B, 0.01, 0.0)
        assert machine.lenders(B) == {}
        now = machine.granted(P, B, 3, 51810, 0, bytes(8), Secret(bytes(32)), 0.0)
        assert machine.lenders(B) == {3: frozenset({P})}
        later = machine.tick(HURRY)
        assert [len([one for one in found if isinstance(one, SendFromPort)]) for found in (now, later)] == [
            0 if confined else 1,
            1,
        ]
        machine.want(B, (), 1.0)
        machine.tick(1000.0)
        assert machine.lenders(B) == {}


class Lying(Net):
    """Q offers to nobody. But it tells B of leases that A has not asked for, and that it forwards them."""

    def do(self, end: NodeId, effects: list[Effect]) -> None:
        peer = B if end is A else A
        for effect in effects:
            if effect.relay != Q or isinstance(effect, Use):
                super().do(end, [effect])
            elif isinstance(effect, AskCost):
                super().do(end, self.ends[end].cost(Q, peer, None, self.now))
            elif isinstance(effect, AskLease):
                key = Secret(bytes(32))
                args = (Q, peer, effect.dimension, 1, 0, bytes(8), key, self.now)
                super().do(end, self.ends[end].granted(*args))
            elif isinstance(effect, SendFromPort) and self.now % 100 <= 20:
                seen = Address("192.0.2.2", 1)
                word = encode(Datagram(Kind.BOUND, bytes(8), seen=seen, forwarding=True), Secret(bytes(32)))
                super().do(end, self.ends[end].receive(Q, peer, effect.dimension, word, self.now))


def test_a_member_that_says_that_it_relays_parts_no_pair_for_long() -> None:
    net, dark, worked = Lying({P: 0.01, Q: 0.01}), 0.0, 0
    net.start(0)
    net.run(2.0)
    for step in range(8 * 900):
        net.now = 2.0 + step / 4
        if net.works(0):
            dark, worked = net.now, worked + 1
        elif net.now > dark + 3.0 and net.now % 1 == 0.0:  # what both drivers then report
            for end, peer in ((A, B), (B, A)):
                if 0 in net.used[end]:
                    net.do(end, net.ends[end].failed(net.used[end][0], peer, net.now))
        if net.now % 100 == 6.0:
            net.do(B, net.ends[B].offered(Q, A, (0,), net.now))
        for end, machine in net.ends.items():
            net.do(end, machine.tick(net.now))
    assert worked > 0.95 * 8 * 900


def test_the_relays_that_were_not_taken_are_told_too() -> None:
    net = Net()
    net.start(*range(7))
    net.run(2.0)
    found = net.ends[A].offered_for(B, net.now)
    assert [one.offer.relay for one in found] == [P, Q, R]
    assert [one.offer.cost for one in found] == pytest.approx([0.02, 0.04, 0.06])
    assert sorted([*found[0].dimensions, *found[1].dimensions]) == list(range(7)) and not found[2].dimensions
    assert net.ends[B].offered_for(A, net.now) == [], "the other end chooses"
    net.do(A, net.ends[A].failed(P, B, net.now))
    net.run(3.0)
    aside = {one.offer.relay: one.aside > 0 for one in net.ends[A].offered_for(B, net.now)}
    assert aside.get(P, True) and not aside[Q] and not aside[R]
    net.do(A, net.ends[A].want(B, (), net.now))
    assert net.ends[A].offered_for(B, net.now) == []


def test_a_relay_that_a_class_needs_is_asked_and_taken_though_others_are_nearer() -> None:
    near = [NodeId(bytes((20 + n,)) * 16) for n in range(ASKED + 2)]
    relays = {relay: 0.01 * (n + 1) for n, relay in enumerate(near)}
    machine = Borrowing(A, lambda peer: [Need(lambda relay: relay == near[-1])])
    machine.set_relays(relays, 0.0)
    machine.want(B, range(7), 0.0)
    asked = [one.relay for one in machine.tick(0.0) if isinstance(one, AskCost)]
    assert asked == [*near[:ASKED], near[-1]]
    effects = list[Effect]()
    for relay in asked:
        effects += machine.cost(relay, B, 0.01, 0.1)
    assert {one.relay for one in effects if isinstance(one, AskLease)} == {near[0], near[1], near[-1]}


def test_a_relay_that_is_about_to_go_is_left_for_another_without_a_moment_between() -> None:
    """P's and Q's legs move to R and to each other; each leg is kept until the new one forwards."""
    net = Net()
    net.start(0, 1)
    net.run(5.0)
    assert net.used[A] == {0: P, 1: Q}
    for end in (A, B):
        net.do(end, net.ends[end].set_relays(net.costs, net.now, {P}))
    for _ in range(100):
        net.run(0.1)
        assert net.used[A].keys() == net.used[B].keys() == {0, 1}
    assert P not in net.used[A].values() and net.works(0) and net.works(1)
    assert not net.leases[P].forwards(net.now)
    for end in (A, B):  # there is no other: one that goes is better than none
        net.do(end, net.ends[end].set_relays(net.costs, net.now, {P, Q, R}))
    net.run(10.0)
    assert net.works(0) and net.works(1)
