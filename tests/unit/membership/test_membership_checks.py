# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a node asks out of turn: each member once, whatever is said of it, while there is a reason."""

import random
from collections import Counter

from phantommesh.membership import messages
from phantommesh.membership.effects import Effect, FetchRecord, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import MAX_EVENTS, State, accusation, encode, make_key
from phantommesh.membership.presets import LAN
from phantommesh.membership.table import Snapshot
from tests.simulation.gossip_sim import claim, node_id, record_hash
from tests.unit.membership.test_membership import HERE, NOW, A, B, C, Driver, alive, changes, gossip, sends

PACE = 1 / LAN.checks_per_second


def large(members: int) -> Membership:
    """Node A, which knows so many, itself among them."""
    return Membership(
        node=A, generation=1, record_seq=1, record_hash=record_hash(0, 1), rng=random.Random(1), now=NOW,
        known=Snapshot(map(claim, range(members))),
    )  # fmt: skip


def said_of(events: list[bytes]) -> list[bytes]:
    """The datagrams that it takes to say all this."""
    return [gossip(*events[i : i + MAX_EVENTS]) for i in range(0, len(events), MAX_EVENTS)]


def pinged(effects: list[Effect]) -> Counter[bytes | object]:
    """How often each member was asked."""
    return Counter(to for message, to in sends(effects) if message.kind == messages.PING)


def test_a_restart_that_many_tell_of_is_looked_at_once() -> None:
    """Each told one had its own turn, 10 ms of it: with 400 members the queue was half burnt by them."""
    restarted = range(2, 60)
    driver = Driver(large(60), set(map(node_id, range(1, 60))))
    for datagram in said_of(
        [accusation(node_id(i), claim(i)[messages.KEY], State.SUSPECT, C) for i in restarted]
    ):
        driver.feed(datagram)
    for _ in range(10):
        for datagram in said_of([alive(node_id(i), 2, digest=record_hash(i, 1)) for i in restarted]):
            driver.feed(datagram)
    driver.feed(gossip(alive(B, 2, digest=record_hash(1, 1))))
    driver.run(59 * PACE + 0.1)
    asked = pinged(driver.seen)
    assert set(asked) == set(map(node_id, range(1, 60)))  # all within the time that asking each once takes
    assert sum(asked.values()) <= 59 + 3  # and the members whose turn came meanwhile


def test_a_check_that_is_moot_takes_no_turn() -> None:
    """All but the last answer something else first: so the last is asked at once."""
    members = range(1, 51)
    driver = Driver(large(51), set())
    for datagram in said_of([alive(node_id(i), 2, digest=record_hash(i, 1)) for i in members]):
        driver.feed(datagram)
    probing = driver.member._probing
    for i in members[:-1]:
        probing.rumours.answered(node_id(i), alive(node_id(i), 2, digest=record_hash(i, 1)))
    assert pinged(driver.run(2.5 * PACE))[node_id(50)] == 1


def test_neither_the_accused_nor_the_returned_wait_for_all_of_the_others() -> None:
    """Whoever holds the key can say that everybody is back: the accused one is second, all the same."""
    driver = Driver(large(200), set())
    verdicts = driver.member._probing.verdicts
    for i in range(2, 200):
        verdicts.ask_whether_back(node_id(i), make_key(2, 0))
    verdicts.check_soon(verdicts.open(B, claim(1)[messages.KEY], C, State.SUSPECT))
    assert pinged(driver.run(3 * PACE))[B] == 1
    for i in range(2, 200):
        verdicts.clear(node_id(i), "refuted")
        verdicts.check_soon(verdicts.open(node_id(i), claim(i)[messages.KEY], C, State.SUSPECT))
    verdicts.clear(B, "refuted")
    verdicts.ask_whether_back(B, make_key(2, 0))
    assert pinged(driver.run(3 * PACE))[B] >= 1


def test_what_waits_is_bounded_by_the_members() -> None:
    driver = Driver(large(30), set())
    verdicts = driver.member._probing.verdicts
    for generation in range(2, 40):
        for i in range(1, 30):
            verdicts.ask_whether_back(node_id(i), make_key(generation, 0))
            verdicts.ask_soon(node_id(i))
    assert len(verdicts._checks) <= 29
    driver.member.expel(node_id(29), NOW)
    assert node_id(29) not in pinged(driver.run(1))


def test_an_unanswered_quick_check_makes_a_thorough_one_and_no_accusation() -> None:
    """At 10 % loss 7 in 1,000 quick ones of live members go unanswered, and a whole mesh asked about each."""
    driver = Driver(large(20), set(map(node_id, range(1, 20))))
    driver.run(30)
    driver.answers.discard(B)
    driver.member._probing.verdicts.failed(B, thorough=False)
    effects = driver.run(0.4)
    assert changes(effects, B) == []
    assert any(m.kind == messages.PING_REQ and m.target == B for m, _ in sends(effects))
    assert "suspected" in changes(driver.run(2), B)  # that too went unanswered


def test_a_verified_record_has_nobody_asked() -> None:
    """With all records on disk everybody asked everybody at a start: a million checks in a mesh of 1,000."""
    member = large(1)
    effects: list[Effect] = []
    for i in range(1, 300):
        effects += member.verified(node_id(i), 1, record_hash(i, 1), NOW)
    assert sends(effects) == []
    assert len(member._probing.verdicts._checks) == 0


def test_whoever_is_asked_out_of_turn_hears_of_us() -> None:
    driver = Driver(large(3), {B, C})
    driver.run(30)  # by then our own start is no news any more
    ((ping, to), *_) = sends(driver.feed(gossip(alive(B, 2))))
    assert (ping.kind, to) == (messages.PING, B)
    assert ping.events[0] == driver.member._core.own


def test_a_member_whose_return_nobody_confirms_is_looked_for_thoroughly() -> None:
    """It is known in an old generation, and news does not come twice: it could be wrong for minutes."""
    driver = Driver(large(6), set(map(node_id, range(2, 6))))
    driver.feed(gossip(alive(B, 2)))
    driver.run(2)
    assert B in driver.member._probing.verdicts.cases
    driver.answers.add(B)
    driver.says[B] = alive(B, 2, digest=record_hash(1, 1))
    driver.run(1.5)
    view = driver.member.member(B)
    assert view is not None
    assert view.generation == 2


def test_a_return_disqualifies_no_relay_and_no_judge() -> None:
    """After a mass restart it is said of all: no relay was asked for anybody."""
    driver = Driver(large(8), set())
    verdicts = driver.member._probing.verdicts
    for i in range(2, 8):
        verdicts.ask_whether_back(node_id(i), make_key(2, 0))
    verdicts.failed(B, thorough=False)
    effects = driver.run(0.45)
    assert any(m.kind == messages.PING_REQ and m.target == B for m, _ in sends(effects))


def syncs(effects: list[Effect]) -> int:
    return sum(isinstance(effect, Sync) for effect in effects)


def differs(member: Membership, now: float) -> None:
    """Another member compares tables, and holds other things."""
    member.sync_answer(messages.encode_digest(B, [1] * messages.BUCKETS, claim(1)), B, now)


def test_a_young_node_compares_again_soon_after_a_difference_and_else_not() -> None:
    driver = Driver(large(4), {B, C, node_id(3)})
    assert syncs(driver.run(3)) == 1  # the first comes soon
    assert syncs(driver.run(7)) == 0  # without a difference the next does not
    driver.run(10)
    differs(driver.member, driver.now)
    assert syncs(driver.run(11.5)) >= 3
    assert syncs(driver.run(60)) <= 8
    differs(driver.member, driver.now)  # it is young no more
    assert syncs(driver.run(12.5)) <= 2


def test_whoever_is_told_of_differences_without_end_compares_three_times_as_often_at_most() -> None:
    driver = Driver(large(4), {B, C, node_id(3)})
    done = 0
    for _ in range(200):
        differs(driver.member, driver.now)
        done += syncs(driver.run(0.3))
    assert done <= 60 / (0.3 * LAN.sync_interval * 0.75) + 1


def test_a_forgotten_member_that_comes_back_unchanged_is_heard_of() -> None:
    """Its claim equals the one that this node started from; a cut of four days changes nothing about it."""
    member = large(4)
    member._probing.verdicts.forget(B, "purged")
    member._core.flush()
    assert changes(member.verified(B, 1, record_hash(1, 1), NOW), B) == ["joined"]
    member._probing.verdicts.forget(B, "purged")
    member._core.flush()
    effects = member.receive(gossip(claim(1)), HERE, NOW)
    assert [type(effect) for effect in effects] == [FetchRecord]


def test_accusing_everyone_again_and_again_has_each_asked_as_often_as_it_can_answer() -> None:
    """The work that a flood of accusations makes is the pace of checks, and what waits is the members."""
    members = range(1, 40)
    driver = Driver(large(40), set(map(node_id, members)))
    for _ in range(50):
        for i in range(0, len(members), MAX_EVENTS):
            events = [
                accusation(node_id(m), claim(m)[messages.KEY], State.SUSPECT, C)
                for m in members[i : i + MAX_EVENTS]
            ]
            driver.feed(encode(messages.GOSSIP, bytes(8), C, messages.NOBODY, events))
        driver.run(0.1)
        assert len(driver.member._probing.verdicts._checks) <= 39
    assert sum(pinged(driver.seen).values()) <= 5 * LAN.checks_per_second + 5 * 4
