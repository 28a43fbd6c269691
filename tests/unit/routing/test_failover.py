# SPDX-License-Identifier: GPL-3.0-or-later
"""Which router carries a prefix, by what the routers say and when."""

from __future__ import annotations

import math
from ipaddress import IPv4Network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phantommesh.routing.failover import ALONE, CALM, HOLD, MOST_ALONE, MOST_HOLD, PACE, SILENCE, Failover
from phantommesh.routing.prefixes import Taken
from phantommesh.wireguard.device import Network

LAN, OTHER = IPv4Network("192.168.50.0/24"), IPv4Network("10.9.0.0/16")
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


class Run:
    """A failover with routers that answer each question, as ``works`` says; silent ones are not there."""

    def __init__(self, *taken: Taken) -> None:
        self.now, self.works = 0.0, dict[bytes, tuple[Network, ...]]()
        self.failover, self.moves = Failover(), 0
        self.failover.take(taken, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.failover.deadline <= end:
            self.now = max(self.now, self.failover.deadline)
            asked, moved = self.failover.due(self.now)
            self.moves += moved
            for router in asked:
                if router in self.works:
                    self.moves += self.failover.answered(router, self.works[router], self.now)
        self.now = end

    @property
    def carrier(self) -> bytes | None:
        return self.failover.carried.get(LAN)


def test_nobody_carries_a_prefix_before_a_router_says_that_its_route_works() -> None:
    run = Run(Taken(LAN, (A, B)))
    assert run.carrier is None
    run.works = {A: (), B: (OTHER,)}
    run.run(31.0)
    assert run.carrier is None


def test_the_first_in_order_carries() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(1.0)
    assert run.carrier == A


def test_a_route_that_nobody_else_carries_comes_back_at_once_after_one_break() -> None:
    run = Run(Taken(LAN, (A,)), Taken(OTHER, (A, B)))
    run.works = {A: (LAN,)}
    run.run(60.0)
    run.works = {A: ()}
    run.run(1.0)
    assert run.carrier is None
    run.works = {A: (LAN,)}
    run.run(2 * PACE)
    assert run.carrier == A


def test_a_router_that_says_yes_and_no_in_turn_moves_little_also_where_nobody_stands_in() -> None:
    """Each change has this node change its interfaces, rules and routes: a router could have one made with
    each of its answers, three a second."""
    run = Run(Taken(LAN, (A,)), Taken(OTHER, (A, B)))
    for i in range(200):
        run.works = {A: (LAN,) if i % 2 else ()}
        run.run(PACE)
    assert run.moves <= 4
    begun = run.moves
    for i in range(60):  # nor with breaks as long as its waits
        run.works = {A: (LAN,) if i % 2 else ()}
        run.run(MOST_ALONE + 2 * PACE)
    assert run.moves - begun <= 60
    run.works = {A: (LAN,)}
    run.run(MOST_ALONE + 2 * PACE)
    assert run.carrier == A


def test_a_router_that_falls_silent_loses_the_prefix_to_its_twin() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(1.2)
    del run.works[A]
    run.run(SILENCE * PACE)
    assert run.carrier == B
    assert SILENCE * PACE + PACE <= 3.0


def test_a_router_that_says_goodbye_loses_the_prefix_at_once() -> None:
    run = Run(Taken(LAN, (A, B)), Taken(OTHER, (A,)))
    run.works = {A: (LAN, OTHER), B: (LAN,)}
    run.run(1.2)
    assert run.failover.carried == {LAN: A, OTHER: A}
    run.works = {B: (LAN,)}
    assert run.failover.gone(A, run.now) and run.failover.carried == {LAN: B}
    assert not run.failover.gone(A, run.now) and not run.failover.gone(C, run.now)
    run.works = {A: (LAN, OTHER), B: (LAN,)}  # it starts again
    run.run(2 * PACE)
    assert run.failover.carried == {LAN: B, OTHER: A}  # and waits where another one carries
    run.run(HOLD)
    assert run.failover.carried == {LAN: A, OTHER: A}


def test_a_router_that_lives_and_whose_link_is_dead_loses_it_with_the_next_answer() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(1.2)
    run.works[A] = ()
    run.run(PACE)
    assert run.carrier == B


def test_a_prefix_that_nobody_carries_has_no_router() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(1.2)
    run.works = {B: ()}
    run.run(3.0)
    assert run.carrier is None
    run.works = {B: (LAN,)}
    run.run(PACE)
    assert run.carrier == B


def test_one_router_of_two_prefixes_may_carry_one_of_them() -> None:
    run = Run(Taken(LAN, (A, B)), Taken(OTHER, (A, B)))
    run.works = {A: (OTHER,), B: (LAN, OTHER)}
    run.run(1.0)
    assert run.failover.carried == {LAN: B, OTHER: A}


def test_the_better_router_takes_a_prefix_back_after_a_while() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(5.0)
    del run.works[A]
    run.run(5.0)
    assert run.carrier == B
    run.works[A] = (LAN,)
    run.run(HOLD - 0.1)
    assert run.carrier == B
    run.run(PACE + 0.2)
    assert run.carrier == A


def test_how_each_router_stands_is_told() -> None:
    run = Run(Taken(LAN, (A, B, C)), Taken(OTHER, (A,)))
    run.works = {A: (LAN,), B: ()}
    run.run(1.0)
    first, second, third = run.failover.standing(LAN, run.now)
    assert (first.lives, first.works, first.carries, first.hold) == (True, True, True, 0.0)
    assert (second.lives, second.works, second.carries) == (True, False, False)
    assert (third.lives, third.works, third.silence) == (False, False, SILENCE * PACE)
    run.works = {B: (LAN,)}
    run.run(2.0)
    assert run.carrier == B
    assert run.failover.standing(LAN, run.now)[0].hold == HOLD
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(2.0)
    back, held, _ = run.failover.standing(LAN, run.now)
    assert (back.works, back.carries, held.carries, held.back_at) == (True, False, True, math.inf)
    run.run(back.back_at - run.now - 0.01)
    assert run.carrier == B
    run.run(0.02)
    assert run.carrier == A
    assert run.failover.standing(IPv4Network("192.0.2.0/24"), run.now) == ()


def test_a_router_that_never_broke_takes_its_place_at_once() -> None:
    """Both have just been taken, and the second was the first to answer."""
    run = Run(Taken(LAN, (A, B)))
    run.works = {B: (LAN,)}
    run.run(1.0)
    assert run.carrier == B
    run.works[A] = (LAN,)
    run.run(PACE)
    assert run.carrier == A


def test_a_link_that_flaps_moves_traffic_ever_more_seldom() -> None:
    """Up for a little longer than the hold, then down for a second, for an hour."""
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(1.0)
    run.moves = 0
    for _ in range(int(3600 / (HOLD + 4.0))):
        run.works[A] = ()
        run.run(1.0)
        run.works[A] = (LAN,)
        run.run(HOLD + 3.0)
    assert run.moves <= 5
    run.run(MOST_HOLD)
    assert run.carrier == A


def test_a_break_long_after_the_last_one_counts_as_the_first() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    for _ in range(5):
        run.run(CALM * HOLD + 1.0)
        run.works[A] = ()
        run.run(1.0)
        run.works[A] = (LAN,)
        run.run(HOLD + 1.0)
        assert run.carrier == A


def test_a_router_alone_is_asked_less() -> None:
    run = Run(Taken(LAN, (A,)))
    assert run.failover.due(0.0)[0] == [A]
    assert run.failover.deadline == ALONE
    run.failover.take([Taken(LAN, (A, B))], 0.0)
    assert run.failover.due(PACE)[0] == [A, B]


def test_lost_answers_now_and_then_move_nothing() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(1.0)
    run.moves = 0
    for _ in range(200):
        del run.works[A]
        run.run(3 * PACE)
        run.works[A] = (LAN,)
        run.run(PACE)
    assert run.moves == 0


def test_what_is_not_taken_is_not_asked_about() -> None:
    run = Run(Taken(LAN, (A,)))
    run.failover.take([], 0.0)
    assert run.failover.deadline == math.inf
    assert not run.failover.answered(A, [LAN], 1.0)
    assert run.failover.carried == {}


class Machine(RuleBasedStateMachine):
    """Routers that answer, fall silent and say anything, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.failover, self.now = Failover(), 0.0
        self.taken: dict[Network, tuple[bytes, ...]] = {}
        self.said: dict[bytes, tuple[float, frozenset[Network]]] = {}

    @rule(
        routers=st.dictionaries(
            st.sampled_from([LAN, OTHER]), st.lists(st.sampled_from([A, B, C]), unique=True, max_size=3)
        )
    )
    def take(self, routers: dict[Network, list[bytes]]) -> None:
        self.taken = {prefix: tuple(each) for prefix, each in routers.items()}
        self.failover.take([Taken(prefix, each) for prefix, each in self.taken.items()], self.now)

    @rule(router=st.sampled_from([A, B, C]), works=st.frozensets(st.sampled_from([LAN, OTHER])))
    def answer(self, router: bytes, works: frozenset[Network]) -> None:
        self.failover.answered(router, works, self.now)
        self.said[router] = self.now, works

    @rule(seconds=st.floats(0.0, 30.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.failover.due(self.now)

    @invariant()
    def carried_by_a_router_that_said_so_lately(self) -> None:
        for prefix, router in self.failover.carried.items():
            assert router in self.taken[prefix]
            when, works = self.said[router]
            assert prefix in works and self.now - when <= SILENCE * ALONE

    @invariant()
    def somebody_carries_what_somebody_can(self) -> None:
        """The newest answer says so, the router is taken for it since before, and waits no longer for what it
        broke before."""
        for prefix, routers in self.taken.items():
            for router in routers:
                known = self.failover._routers[router]
                up = self.now - known.up.get(prefix, math.inf)
                if known.lives(self.now) and up >= (MOST_ALONE if prefix in known.broke else 0.0):
                    assert prefix in self.failover.carried

    @invariant()
    def there_is_always_a_next_question(self) -> None:
        assert (self.failover.deadline < math.inf) == any(self.taken.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_router_that_is_about_to_go_gives_up_at_once_also_to_one_that_has_just_come_back() -> None:
    run = Run(Taken(LAN, (A, B)))
    run.works = {A: (LAN,), B: (LAN,)}
    run.run(60.0)
    for _ in range(2):  # the twin breaks, and comes back: it would have to wait
        run.works = {A: (LAN,)}
        run.run(2.0)
        run.works = {A: (LAN,), B: (LAN,)}
        run.run(2 * PACE)
    assert run.carrier == A
    assert run.failover.take([Taken(LAN, (B, A), frozenset({A}))], run.now)
    assert run.carrier == B
    run.works = {A: (LAN,)}
    run.run(3.0)
    assert run.carrier == A  # one that goes is better than none
    run.failover.take([Taken(LAN, (A, B))], run.now)
    assert run.carrier == A
