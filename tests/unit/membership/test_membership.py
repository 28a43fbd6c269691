# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's membership, and small meshes: what each event does, and who is believed."""

import math
import random
from functools import partial

import pytest

from phantommesh.endpoint import Address
from phantommesh.membership import messages
from phantommesh.membership.effects import Changed, Effect, FetchRecord, Persist, Send, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import (
    NOBODY,
    Errand,
    Event,
    Message,
    State,
    accusation,
    decode_untrusted,
    encode,
    make_key,
)
from phantommesh.membership.presets import LAN, MEMBERLIST_LAN, Params
from phantommesh.membership.reach import proof
from phantommesh.membership.table import EMPTY, Snapshot
from phantommesh.membership.verdicts import UNPROVED
from tests.simulation.gossip_sim import Network, Simulation, agree, claim, node_id, record_hash

A, B, C, D = (node_id(i) for i in range(4))
HERE = Address("192.0.2.7", 51800)
NOW = 100.0


def make(
    known: int = 4, *, params: Params = LAN, generation: int = 1, seeds: tuple[Address, ...] = (),
    goodbyes: list[bytes] | None = None,
) -> Membership:  # fmt: skip
    """Node A, which knows the first so many nodes."""
    return Membership(
        node=A, generation=generation, record_seq=1, record_hash=record_hash(0, 1), rng=random.Random(1),
        now=NOW, params=params, seeds=seeds, known=Snapshot(map(claim, range(known))) if known else EMPTY,
        agree=partial(agree, A), goodbyes=goodbyes or (),
    )  # fmt: skip


def gossip(*events: bytes, sender: bytes = B) -> bytes:
    return encode(messages.GOSSIP, bytes(8), sender, NOBODY, list(events))


def alive(
    node: bytes, generation: int = 1, incarnation: int = 0, seq: int = 1, digest: bytes = b"h" * 16
) -> bytes:
    return Event(node, generation, incarnation, State.ALIVE, seq, digest).encode()


def sends(effects: list[Effect]) -> list[tuple[Message, bytes | Address]]:
    return [(decode_untrusted(e.datagram), e.to) for e in effects if isinstance(e, Send)]


def changes(effects: list[Effect], node: bytes) -> list[str]:
    return [e.event for e in effects if isinstance(e, Changed) and e.node == node]


class Driver:
    """Runs one membership by hand; ``answers`` are the members that answer pings."""

    def __init__(self, member: Membership, answers: set[bytes]) -> None:
        self.member, self.now, self.answers = member, NOW, answers
        self.seen: list[Effect] = []
        self.says: dict[bytes, bytes] = {}  # what each says of itself
        self.accuse: dict[bytes, set[bytes]] = {}  # whom each accuses when asked

    def feed(self, datagram: bytes, source: Address = HERE) -> list[Effect]:
        return self._take(self.member.receive(datagram, source, self.now))

    def _take(self, effects: list[Effect]) -> list[Effect]:
        self.seen += effects
        for message, to in sends(effects):
            if isinstance(to, bytes) and to in self.answers:
                own = self.says.get(to) or alive(to, digest=record_hash(1, 1))
                if message.kind == messages.PING:
                    self.feed(encode(messages.ACK, message.nonce, to, to, [own]))
                elif message.kind == messages.PING_REQ and message.target == to:
                    errand = Errand.of(message.extra)
                    secret = agree(to, errand.asker, errand.nonce[0])
                    code = proof(secret, errand.asker, to, errand.nonce, own)
                    self.feed(encode(messages.CARRIED, message.nonce, to, to, [own], extra=code))
                elif message.kind == messages.QUERY:
                    said = [
                        accusation(e[:16], e[16:25], State.DEAD, to) if e[:16] in self.accuse.get(to, ()) else
                        alive(e[:16]) for e in message.events
                    ]  # fmt: skip
                    self.feed(encode(messages.ANSWER, message.nonce, to, A, [own, *said]))
        return effects

    def run(self, seconds: float) -> list[Effect]:
        end, start = self.now + seconds, len(self.seen)
        while self.member.deadline <= end:
            self.now = max(self.now, self.member.deadline)
            self._take(self.member.tick(self.now))
        self.now = end
        return self.seen[start:]


def test_a_ping_is_answered_where_it_came_from_with_our_own_event_first() -> None:
    member = make()
    ((answer, to),) = sends(member.receive(encode(messages.PING, b"nonce678", B, A, []), HERE, NOW))
    assert to == HERE
    assert (answer.kind, answer.nonce, answer.sender) == (messages.ACK, b"nonce678", A)
    assert Event.of(answer.events[0])[:4] == (A, 1, 0, State.ALIVE)


def test_a_ping_for_another_is_not_answered() -> None:
    member = make()
    assert not member.receive(encode(messages.PING, bytes(8), B, C, []), HERE, NOW)
    assert member.drops["target"] == 1


def test_junk_is_counted_and_never_raises() -> None:
    member = make()
    assert member.receive(b"junk", HERE, NOW) == []
    assert member.receive(gossip(sender=A), HERE, NOW) == []
    assert member.drops == {"length": 1, "sender": 1}


def test_nothing_is_sent_to_an_address_that_a_datagram_names() -> None:
    driver = Driver(make(), {B, C, D})
    driver.feed(
        gossip(alive(B, 1, 3), accusation(C, make_key(1, 0), State.SUSPECT, D)), Address("203.0.113.9", 9)
    )
    assert all(isinstance(to, bytes) for _, to in sends(driver.run(10)))


def test_an_update_is_passed_on_and_its_record_fetched() -> None:
    member = make()
    effects = member.receive(gossip(alive(C, 1, 1, 2, b"n" * 16)), HERE, NOW, at_home=True)
    assert FetchRecord(C, 2, b"n" * 16, B) in effects
    assert changes(effects, C) == ["updated"]
    passed = [e for m, _ in sends(member.tick(NOW + 0.2)) for e in m.events]
    assert alive(C, 1, 1, 2, b"n" * 16) in passed


def test_an_older_event_changes_nothing() -> None:
    member = make()
    member.receive(gossip(alive(C, 1, 5)), HERE, NOW)
    assert member.receive(gossip(alive(C, 1, 4), alive(C, 0, 9)), HERE, NOW) == []
    view = member.member(C)
    assert view is not None
    assert view.incarnation == 5


def test_a_record_that_is_not_newer_than_the_verified_one_is_not_fetched() -> None:
    member = make()
    member.verified(C, 9, b"v" * 16, NOW)
    effects = member.receive(gossip(alive(C, 1, 1, 2, b"n" * 16)), HERE, NOW)
    assert not [e for e in effects if isinstance(e, FetchRecord)]


def test_an_unknown_node_is_a_member_only_once_its_record_is_verified() -> None:
    member, e = make(), node_id(9)
    effects = member.receive(gossip(alive(e, 3, 2, 1, record_hash(9, 1))), HERE, NOW, at_home=True)
    assert effects == [FetchRecord(e, 1, record_hash(9, 1), B)]
    assert member.state(e) is None
    assert changes(member.verified(e, 1, record_hash(9, 1), NOW), e) == ["joined"]
    assert member.state(e) is State.ALIVE


def test_unknown_nodes_are_remembered_within_bounds() -> None:
    member = make()
    for i in range(300):
        member.receive(gossip(*[alive(node_id(1000 + 20 * i + j)) for j in range(20)]), HERE, NOW)
    assert len(member) == 4
    assert len(member._probing.claims.unknown) == 4096


def test_an_accusation_of_us_is_refuted_with_a_higher_incarnation() -> None:
    member = make()
    member.receive(gossip(accusation(A, make_key(1, 4), State.SUSPECT, B)), HERE, NOW)
    assert member.incarnation == 5
    assert member.health == 1
    spread = [Event.of(e) for m, _ in sends(member.tick(NOW + 0.2)) for e in m.events]
    assert (A, 1, 5, State.ALIVE) in [e[:4] for e in spread]


def test_an_old_accusation_of_an_earlier_life_is_ignored() -> None:
    member = make(generation=3)
    member.receive(gossip(accusation(A, make_key(2, 9), State.DEAD, B)), HERE, NOW)
    assert (member.generation, member.incarnation) == (3, 0)


def test_our_generation_leaps_over_one_said_of_us_but_not_without_bounds() -> None:
    member = make()
    effects = member.receive(gossip(alive(A, 7, 3)), HERE, NOW)
    assert Persist(7) in effects
    assert (member.generation, member.incarnation) == (7, 4)
    member.receive(gossip(alive(A, 2**48 - 1, 0)), HERE, NOW + 60)
    member.receive(gossip(alive(A, 8, 0), alive(A, 9, 0)), HERE, NOW + 5)
    assert member.generation == 7
    assert member.drops["generation"] == 3


def test_the_last_incarnation_leads_to_a_new_generation() -> None:
    member = make()
    effects = member.receive(gossip(alive(A, 1, 2**24 - 1)), HERE, NOW)
    assert Persist(2) in effects
    assert (member.generation, member.incarnation) == (2, 0)


def test_the_accused_is_told_first() -> None:
    driver = Driver(make(), {C, D})
    effects = driver.run(6)
    told = [m for m, to in sends(effects) if to == B and m.kind == messages.PING and m.events]
    assert any(e[:16] == B and e[messages.STATE] == State.SUSPECT for m in told for e in m.events[:1])


def test_a_member_that_answers_nobody_is_dead_when_enough_others_say_so() -> None:
    driver = Driver(make(), {C, D})
    driver.accuse = {C: {B}, D: {B}}
    assert changes(driver.run(20), B) == ["suspected", "dead"]
    assert driver.member.state(B) is State.DEAD


def test_one_other_that_agrees_is_not_enough() -> None:
    driver = Driver(make(), {C, D})
    driver.accuse = {C: {B}}
    assert changes(driver.run(UNPROVED - 10), B) == ["suspected"]
    assert driver.member.state(B) is State.SUSPECT
    # The other one says that it is there, and has not carried a proof of it for a minute.
    assert changes(driver.run(30), B) == ["dead"]


def test_with_one_other_to_ask_its_word_is_enough_and_with_none_our_own() -> None:
    driver = Driver(make(3), {C})
    driver.run(20)
    assert driver.member.state(B) is State.SUSPECT
    driver.accuse = {C: {B}}
    driver.run(20)
    assert driver.member.state(B) is State.DEAD
    alone = Driver(make(2), set())
    alone.run(20)
    assert alone.member.state(B) is State.DEAD


def test_a_rumour_of_death_makes_us_ask_and_an_answer_ends_it() -> None:
    driver = Driver(make(), {B, C, D})
    for accuser in (C, D, node_id(8), node_id(9)):
        driver.feed(gossip(accusation(B, make_key(1, 0), State.DEAD, accuser), sender=accuser))
    assert driver.member.state(B) is State.SUSPECT
    assert "dead" not in changes(driver.run(30), B)
    assert driver.member.state(B) is State.ALIVE


def test_a_rumour_of_leaving_is_checked_too() -> None:
    driver = Driver(make(), {B, C, D})
    driver.feed(gossip(Event(B, 1, 1, State.LEFT, 1, bytes(16)).encode()))
    driver.run(10)
    assert driver.member.state(B) is State.ALIVE
    driver.says[B] = Event(B, 1, 1, State.LEFT, 1, bytes(16)).encode()
    driver.feed(gossip(driver.says[B]))
    assert changes(driver.run(10), B) == ["left"]


def test_a_death_rumour_is_enough_only_for_memberlist() -> None:
    member = make(params=MEMBERLIST_LAN)
    effects = member.receive(gossip(accusation(B, make_key(1, 0), State.DEAD, C)), HERE, NOW)
    assert changes(effects, B) == ["dead"]


def test_wireguard_traffic_keeps_a_suspicion_silent_and_later_traffic_ends_it() -> None:
    driver = Driver(make(), {C, D})
    driver.member.traffic_seen(B, NOW)
    effects = driver.feed(gossip(accusation(B, make_key(1, 0), State.SUSPECT, C)))
    assert changes(effects, B) == []
    assert driver.member.state(B) is State.ALIVE
    driver.accuse = {C: {B}, D: {B}}
    for _ in range(30):
        driver.run(1)
        driver._take(driver.member.traffic_seen(B, driver.now))
    assert "vetoed" in changes(driver.seen, B)
    assert "dead" not in changes(driver.seen, B)
    driver.run(20)
    assert driver.member.state(B) is State.DEAD


def test_traffic_of_a_dead_member_has_it_asked() -> None:
    driver = Driver(make(), {C, D})
    driver.accuse = {C: {B}, D: {B}}
    driver.run(20)
    driver.answers.add(B)
    driver.now += 3
    driver._take(driver.member.traffic_seen(B, driver.now))
    driver.run(1)
    assert driver.member.state(B) is State.ALIVE


def test_a_newer_claim_of_a_dead_member_has_it_asked_and_only_its_answer_brings_it_back() -> None:
    driver = Driver(make(), {C, D})
    driver.accuse = {C: {B}, D: {B}}
    driver.run(20)
    driver.feed(gossip(alive(B, 2, 0)))
    driver.run(10)
    assert driver.member.state(B) is State.DEAD
    driver.answers.add(B)
    driver.says[B] = alive(B, 2, 0)
    driver.feed(gossip(alive(B, 2, 0)))
    driver.run(3)
    assert changes(driver.seen, B)[:4] == ["suspected", "dead", "returned", "restarted"]
    view = driver.member.member(B)
    assert view is not None
    assert (view.state, view.generation) == (State.ALIVE, 2)


def test_a_new_generation_is_believed_from_the_member_itself() -> None:
    driver = Driver(make(), {B, C, D})
    driver.answers.remove(B)
    driver.feed(gossip(alive(B, 50, 0)))
    driver.run(0.4)
    driver.answers.add(B)
    view = driver.member.member(B)
    assert view is not None
    assert view.generation == 1
    driver.says[B] = alive(B, 2, 0)
    driver.feed(gossip(alive(B, 2, 0)))
    driver.run(3)  # the question about the other generation has to end first
    assert "restarted" in changes(driver.seen, B)
    view = driver.member.member(B)
    assert view is not None
    assert view.generation == 2


def test_an_ack_counts_only_with_the_nonce_and_from_the_member_asked() -> None:
    driver = Driver(make(2), set())
    pings = [m for m, to in sends(driver.run(0.6)) if m.kind == messages.PING]
    assert pings
    driver.feed(encode(messages.ACK, b"guessed!", B, B, [alive(B)]))
    driver.feed(encode(messages.ACK, pings[0].nonce, C, C, [alive(C)]))
    assert driver.member.drops == {"nonce": 1, "impostor": 1}
    driver.run(5)
    assert driver.member.state(B) is not State.ALIVE


def test_an_answer_counts_only_from_the_judge_that_was_asked() -> None:
    driver = Driver(make(), {C, D})
    accusing = [accusation(B, make_key(1, 0), State.DEAD, d) for d in (C, D)]
    for _ in range(200):
        for m, to in sends(driver.run(0.1)):
            if m.kind == messages.QUERY:
                for sender in (C, D):
                    driver.feed(encode(messages.ANSWER, b"guessed!", sender, A, [alive(sender), *accusing]))
                if to == C:  # answers in D's name, and with two voices in its own
                    driver.feed(encode(messages.ANSWER, m.nonce, D, A, [alive(D), *accusing]))
                    driver.feed(encode(messages.ANSWER, m.nonce, C, A, [alive(C), *accusing]))
    assert driver.member.state(B) is State.SUSPECT


def test_a_relay_asks_for_us_and_says_when_nobody_answers() -> None:
    driver = Driver(make(), {B})
    errand = Errand(D, b"question", 4).encode()
    effects = driver.feed(encode(messages.PING_REQ, b"theirs78", D, B, [], wait_ms=200, extra=errand))
    (passed_on, first), (relayed, to) = sends(effects)[0], sends(driver.seen)[-1]
    assert first == B
    assert Errand.of(passed_on.extra) == (D, b"question", 3)
    assert passed_on.nonce not in (b"theirs78", b"question")
    assert (relayed.kind, relayed.nonce, relayed.target, to) == (messages.CARRIED, b"theirs78", B, HERE)
    assert relayed.extra == proof(agree(B, D, b"question"[0]), D, B, b"question", relayed.events[0])
    driver.feed(encode(messages.PING_REQ, b"again678", D, C, [], wait_ms=200, extra=errand))
    nacks = [(m, to) for m, to in sends(driver.run(0.3)) if m.kind == messages.NACK]
    assert [(m.nonce, m.target, to) for m, to in nacks] == [(b"again678", C, HERE)]


def test_a_stalled_node_blames_nobody_for_its_own_absence() -> None:
    driver = Driver(make(), {B, C, D})
    driver.run(5.1)
    member = driver.member
    driver.now += 30
    effects = member.tick(driver.now)
    assert not [e for e in effects if isinstance(e, Changed)]
    assert member.health >= 1
    assert member.deadline > driver.now - 1


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_stepped_clock_stops_nothing(step: float) -> None:
    driver = Driver(make(), {B, C, D})
    driver.run(5)
    driver.now += step
    driver.member.tick(driver.now)
    effects = driver.run(5)
    assert not changes(effects, B)
    assert sum(m.kind == messages.PING for m, _ in sends(effects)) >= 5


def test_seeds_are_tried_for_ever() -> None:
    driver = Driver(make(0, seeds=(HERE,)), set())
    driver.run(3600)
    tried = [m for m, to in sends(driver.run(3600)) if to == HERE and m.kind == messages.PING]
    assert len(tried) > 100
    assert all(m.target == NOBODY for m in tried)


def test_whoever_answers_at_a_seeds_address_is_synced_with() -> None:
    driver = Driver(make(0, seeds=(HERE,)), set())
    (ping, _), *_ = sends(driver.run(1))
    effects = driver.feed(encode(messages.ACK, ping.nonce, B, B, [claim(1)]))
    assert Sync(HERE) in effects
    assert FetchRecord(B, 1, record_hash(1, 1), HERE) in effects


def test_the_dead_are_retried() -> None:
    driver = Driver(make(2), set())
    driver.run(20)
    assert driver.member.state(B) is State.DEAD
    tried = [m for m, to in sends(driver.run(600)) if to == B]
    assert len(tried) > 20


def test_the_dead_are_purged_after_three_days_and_no_sooner() -> None:
    slow = Params(probe_interval=60, sync_interval=600, retry_interval=600, seed_interval=600)
    driver = Driver(make(2, params=slow), set())
    driver.run(1200)
    assert driver.member.state(B) is State.DEAD
    driver.run(71.5 * 3600)
    assert driver.member.state(B) is State.DEAD
    assert "purged" in changes(driver.run(3600), B)
    assert driver.member.state(B) is None


def test_an_expelled_node_is_not_heard_of_again() -> None:
    member = make()
    assert changes(member.expel(B, NOW), B) == ["expelled"]
    effects = member.receive(gossip(alive(B, 5, 0)), HERE, NOW)
    effects += member.receive(gossip(alive(B, 5, 0), sender=C), HERE, NOW)
    effects += member.verified(B, 4, bytes(16), NOW)
    assert member.state(B) is None
    assert effects == []


def test_a_leaving_node_says_so_and_stays_to_confirm_it() -> None:
    member = make()
    effects = member.leave(NOW)
    assert member.left_at is not None
    assert member.left_at > NOW + 1
    effects += member.tick(NOW + 0.1)
    assert any(e[:16] == A and e[messages.STATE] == State.LEFT for m, _ in sends(effects) for e in m.events)
    ((answer, _),) = sends(member.receive(encode(messages.PING, bytes(8), B, A, []), HERE, NOW + 0.2))
    assert Event.of(answer.events[0]).state is State.LEFT


def test_a_sync_makes_two_tables_one() -> None:
    one = make(2)
    other = Membership(
        node=B, generation=1, record_seq=1, record_hash=record_hash(1, 1), rng=random.Random(2), now=NOW,
        known=Snapshot([claim(1), claim(2), claim(3)]),
    )  # fmt: skip
    reply, effects = other.sync_answer(one.sync_open(NOW), A, NOW)
    assert {e.node for e in effects if isinstance(e, FetchRecord)} == {A}
    closing, effects = one.sync_close(reply, B, NOW)
    assert {e.node for e in effects if isinstance(e, FetchRecord)} == {C, D}
    other.sync_finish(closing, A, NOW)
    for member, missing in ((one, (2, 3)), (other, (0,))):
        for index in missing:
            member.verified(node_id(index), 1, record_hash(index, 1), NOW)
    reply, _ = other.sync_answer(one.sync_open(NOW), A, NOW)
    assert len(reply) == len(messages.encode_events(messages.SyncKind.DIFFERENCE, B, [], []))


def test_bad_sync_bytes_raise_one_error() -> None:
    member = make()
    for step in (member.sync_answer, member.sync_close, member.sync_finish):
        with pytest.raises(messages.GossipError):
            step(b"junk", B, NOW)
    with pytest.raises(messages.GossipError, match="kind"):
        member.sync_close(member.sync_open(NOW), A, NOW)
    with pytest.raises(messages.GossipError, match="impostor"):  # the channel's other end is somebody else
        make(2).sync_answer(member.sync_open(NOW), B, NOW)


def test_a_snapshot_is_what_the_next_start_needs() -> None:
    member = make()
    kept = member.snapshot()
    assert {raw[:16] for raw in kept} == {B, C, D}
    assert Snapshot(kept).claims[B] == claim(1)


def test_numbers_that_do_not_fit_are_refused() -> None:
    member = make()
    with pytest.raises(ValueError):
        member.publish(2**48, bytes(16), NOW)
    with pytest.raises(ValueError):
        member.verified(B, 1, b"short", NOW)
    with pytest.raises(ValueError):
        make(generation=2**48)


def test_a_quiet_mesh_knows_when_it_is_next_due() -> None:
    assert math.isfinite(make(0).deadline)


def test_a_small_mesh_counts_its_datagrams() -> None:
    sim = Simulation(3, network=Network())
    sim.start_all()
    sim.run(10)
    member = sim.nodes[0].member
    assert member is not None
    counts = member.counts()
    assert counts["ping"][0] >= 15
    assert counts["ack"][1] == counts["ping"][0]
    assert member.round_trip(node_id(1)) is not None


def test_a_member_that_left_is_no_dead_one_after_a_restart() -> None:
    left = claim(1)[:25] + bytes((int(State.LEFT),)) + claim(1)[26:]
    member = make(0, goodbyes=[left])
    assert member.state(B) is State.LEFT
    assert member.goodbyes() == [left] and member.snapshot() == []
    member.verified(B, 1, bytes(16), NOW)  # its record is in the roster still
    assert member.state(B) is State.LEFT
