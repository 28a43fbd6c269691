# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's leases: what is forwarded, for whom, and until when."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from phantommesh.endpoint import Address
from phantommesh.routing.leases import BOUND, LIFE, TAGS, WINDOW, Grant, Leases, Refusal, Terms
from phantommesh.trust.identity import NodeId

A, B, C, D = (NodeId(bytes((n,)) * 16) for n in range(1, 5))
AT = {
    A: Address("192.0.2.1", 40001),
    B: Address("192.0.2.2", 40002),
    C: Address("192.0.2.3", 40003),
    D: Address("2001:db8::4", 40004),
}


def counting() -> Callable[[int], bytes]:
    """Random bytes that never repeat."""
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def make(
    terms: Terms = Terms(rate=1_000_000, quota=1_000_000),
    permit: Callable[[NodeId, NodeId], bool] = lambda one, two: True,
    refuses: Callable[[Address], bool] = lambda place: False,
) -> Leases:
    return Leases(terms, permit, refuses, counting())


def granted(leases: Leases, asker: NodeId, peer: NodeId, now: float = 0.0, dimension: int = 0) -> Grant:
    grant = leases.ask(asker, peer, dimension, now, tagging=True)
    assert isinstance(grant, Grant)
    return grant


def whole(leases: Leases, one: NodeId, two: NodeId, now: float = 0.0, dimension: int = 0) -> None:
    first, second = granted(leases, one, two, now, dimension), granted(leases, two, one, now, dimension)
    leases.bind(first.ticket, AT[one], now)
    leases.bind(second.ticket, AT[two], now)


def ways(leases: Leases, now: float) -> set[tuple[Address, int, Address]]:
    return {(each.source, each.tag, each.target) for each in leases.forwards(now)}


def test_a_lease_is_forwarded_once_both_ends_have_asked_and_are_bound() -> None:
    leases = make()
    first = granted(leases, A, B)
    assert first.waiting
    assert leases.bind(first.ticket, AT[A], 0.0) is False
    assert not leases.forwards(0.0)
    second = granted(leases, B, A)
    assert not second.waiting
    assert not leases.forwards(0.0)
    assert leases.bind(second.ticket, AT[B], 0.0) is True
    assert ways(leases, 0.0) == {(AT[A], 0, AT[B]), (AT[B], 0, AT[A])}


def test_one_end_alone_binds_no_address_for_the_other() -> None:
    """A member may not have a relay send to an address that did not ask."""
    leases = make()
    first = granted(leases, A, B)
    second = granted(leases, A, B)
    assert first.ticket == second.ticket
    leases.bind(first.ticket, AT[A], 0.0)
    leases.bind(first.ticket, AT[C], 0.0)
    assert not leases.forwards(0.0)


def test_a_pair_no_longer_permitted_ends_at_once() -> None:
    out: set[NodeId] = set()
    leases = make(permit=lambda one, two: not {one, two} & out)
    whole(leases, A, B)
    whole(leases, B, C)
    out.add(A)
    assert {AT[A]} & {each.source for each in leases.forwards(0.0)} == set()
    assert leases.recheck(0.0) == [(A, B)]
    assert ways(leases, 0.0) == {(AT[B], 1, AT[C]), (AT[C], 1, AT[B])}
    assert leases.ask(A, B, 0, 0.0, tagging=True) is Refusal.NOT_PERMITTED


def test_leases_of_one_member_in_one_dimension_differ_by_their_tag() -> None:
    leases = make()
    assert granted(leases, A, B).tag == 0
    assert granted(leases, A, C).tag == 1
    assert granted(leases, B, C).tag == 2
    assert granted(leases, A, C, dimension=1).tag == 0
    leases.leave(A, B, 0)
    assert granted(leases, A, B).tag == 0


def test_a_member_that_cannot_tag_has_one_lease_in_a_dimension() -> None:
    leases = make()
    assert isinstance(leases.ask(A, B, 0, 0.0, tagging=False), Grant)
    assert leases.ask(A, C, 0, 0.0, tagging=False) is Refusal.UNTAGGED
    granted(leases, C, A)
    assert leases.ask(A, C, 0, 0.0, tagging=False) is Refusal.UNTAGGED
    assert isinstance(leases.ask(A, C, 1, 0.0, tagging=False), Grant)


def test_an_address_that_may_not_be_sent_to_is_not_bound() -> None:
    refused = {AT[A]}
    leases = make(refuses=lambda place: place in refused)
    first, second = granted(leases, A, B), granted(leases, B, A)
    assert leases.bind(first.ticket, AT[A], 0.0) is None
    refused.clear()
    leases.bind(first.ticket, AT[A], 0.0)
    leases.bind(second.ticket, AT[B], 0.0)
    assert leases.forwards(0.0)
    refused.add(AT[B])  # the host has got that network since
    assert not leases.forwards(0.0)


def test_a_leg_is_unbound_unless_challenges_come_back() -> None:
    leases = make()
    whole(leases, A, B)
    assert leases.deadline == BOUND
    assert leases.forwards(BOUND - 1)
    assert not leases.forwards(BOUND)


def test_a_lease_ends_when_nobody_asks_for_it() -> None:
    leases = make()
    whole(leases, A, B)
    leases.tick(LIFE - 1)
    assert len(leases) == 1
    leases.tick(LIFE)
    assert len(leases) == 0
    assert leases.deadline == float("inf")


def test_an_address_and_tag_belong_to_who_has_shown_them_last() -> None:
    leases = make()
    whole(leases, A, B)
    first = granted(leases, C, D)
    leases.bind(first.ticket, AT[A], 1.0)
    assert not leases.forwards(1.0)


def test_addresses_of_two_families_are_not_joined() -> None:
    leases = make()
    whole(leases, A, D)
    assert not leases.forwards(0.0)


def test_a_spent_quota_ends_the_lease_and_asking_again_does_not_help() -> None:
    leases = make(Terms(rate=1000, quota=1000))
    whole(leases, A, B)
    one, two = sorted(each.number for each in leases.forwards(0.0))
    assert leases.account({one: 400, two: 500}, 1.0) == []
    leases.begun([two])
    assert leases.account({one: 450, two: 50}, 2.0) == [(A, B)]
    assert leases.relayed == 1000
    assert leases.ask(A, B, 0, 3.0, tagging=True) is Refusal.SPENT
    assert isinstance(leases.ask(A, B, 0, 1.0 + WINDOW, tagging=True), Grant)


def test_ending_a_lease_is_no_way_around_its_quota() -> None:
    leases = make(Terms(rate=1000, quota=1000))
    whole(leases, A, B)
    one, two = sorted(each.number for each in leases.forwards(0.0))
    leases.account({one: 400, two: 0}, 1.0)
    leases.leave(A, B, 0)
    leases.account({one: 1000, two: 0}, 2.0)
    assert leases.ask(A, B, 0, 3.0, tagging=True) is Refusal.SPENT


def test_a_full_relay_gives_way_to_pairs_only_where_one_end_never_asked() -> None:
    leases = make(Terms(rate=1, quota=1, most=2))
    whole(leases, A, B)
    granted(leases, A, C)
    granted(leases, B, C)
    assert len(leases) == 2
    granted(leases, C, B)
    assert leases.ask(C, D, 0, 0.0, tagging=True) is Refusal.FULL


def test_one_member_has_so_many_leases_at_most() -> None:
    leases = make(Terms(rate=1, quota=1, of_member=1))
    granted(leases, A, B)
    assert leases.ask(C, A, 0, 0.0, tagging=True) is Refusal.MEMBER_FULL


def test_tags_run_out() -> None:
    leases = make(Terms(rate=1, quota=1, of_member=1000))
    for n in range(TAGS):
        granted(leases, A, NodeId(n.to_bytes(16, "big")))
    assert leases.ask(A, B, 0, 0.0, tagging=True) is Refusal.TAGS_FULL


MEMBERS = st.sampled_from((A, B, C, D))
PLACES = st.sampled_from([*AT.values(), Address("192.0.2.9", 1), Address("192.0.2.9", 2)])


class LeasesMachine(RuleBasedStateMachine):
    """What is forwarded is what a plain model of asking, binding and banning allows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.out: set[NodeId] = set()
        self.leases = make(
            Terms(rate=1, quota=10_000, most=4),
            permit=lambda one, two: not {one, two} & self.out,
        )
        self.asked: dict[tuple[NodeId, NodeId, int], float] = {}
        self.returned: dict[bytes, tuple[Address, float]] = {}
        self.tickets: dict[tuple[NodeId, NodeId, int], bytes] = {}

    @rule(asker=MEMBERS, peer=MEMBERS, dimension=st.integers(0, 1), tagging=st.booleans())
    def ask(self, asker: NodeId, peer: NodeId, dimension: int, tagging: bool) -> None:
        result = self.leases.ask(asker, peer, dimension, self.now, tagging=tagging)
        if isinstance(result, Grant):
            assert asker != peer
            assert not {asker, peer} & self.out
            assert tagging or result.tag == 0
            self.asked[asker, peer, dimension] = self.now
            self.tickets[asker, peer, dimension] = result.ticket

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), place=PLACES)
    def bind(self, data: st.DataObject, place: Address) -> None:
        leg = data.draw(st.sampled_from(sorted(self.tickets)))
        if self.leases.bind(self.tickets[leg], place, self.now) is not None:
            self.returned[self.tickets[leg]] = place, self.now

    @rule(seconds=st.sampled_from((0.5, BOUND / 2, BOUND, LIFE)), tick=st.booleans())
    def wait(self, seconds: float, tick: bool) -> None:
        self.now += seconds
        if tick:
            self.leases.tick(self.now)
            assert self.leases.deadline > self.now

    @rule(member=MEMBERS)
    def ban(self, member: NodeId) -> None:
        self.out ^= {member}
        self.leases.recheck(self.now)

    @rule(asker=MEMBERS, peer=MEMBERS, dimension=st.integers(0, 1))
    def leave(self, asker: NodeId, peer: NodeId, dimension: int) -> None:
        self.leases.leave(asker, peer, dimension)

    @rule(size=st.integers(0, 6000))
    def count_bytes(self, size: int) -> None:
        self.leases.account({each.number: size for each in self.leases.forwards(self.now)}, self.now)

    @invariant()
    def forwards_what_was_asked_and_returned(self) -> None:
        forwards = self.leases.forwards(self.now)
        keys = [(each.source, each.tag) for each in forwards]
        assert len(set(keys)) == len(keys)
        assert len({each.number for each in forwards}) == len(keys)
        both = {(each.source, each.tag, each.target) for each in forwards}
        assert both == {(target, tag, source) for source, tag, target in both}
        allowed = set()
        for (one, two, dimension), then in self.asked.items():
            back = self.asked.get((two, one, dimension))
            if back is None or {one, two} & self.out or self.now - min(then, back) >= LIFE:
                continue
            ends = [
                self.returned.get(self.tickets[leg]) for leg in ((one, two, dimension), (two, one, dimension))
            ]
            if all(end is not None and self.now - end[1] < BOUND for end in ends):
                allowed.add(tuple(end[0] for end in ends if end is not None))
        assert {(each.source, each.target) for each in forwards} <= allowed

    @invariant()
    def keeps_its_limit(self) -> None:
        assert len(self.leases) <= 4


TestLeases = LeasesMachine.TestCase
TestLeases.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
