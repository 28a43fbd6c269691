# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership's parts by themselves: formats, the table, the queue of news, health."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phantommesh.membership import messages
from phantommesh.membership.broadcasts import Broadcasts, retransmit_limit
from phantommesh.membership.effects import FetchRecord
from phantommesh.membership.health import Awareness, RoundTrips, suspicion_time
from phantommesh.membership.machine import Membership
from phantommesh.membership.merging import SLICE
from phantommesh.membership.messages import (
    MAX_EVENTS,
    MAX_MESSAGE,
    Event,
    GossipError,
    State,
    SyncKind,
    decode_sync_untrusted,
    decode_untrusted,
    encode,
    encode_events,
    make_key,
)
from phantommesh.membership.presets import LAN, MEMBERLIST_LAN, PRESETS, Params
from phantommesh.membership.table import Down, Snapshot, Table
from tests.simulation.gossip_sim import claim, node_id


def event(index: int, incarnation: int = 0) -> bytes:
    return Event(node_id(index), 1, incarnation, State.ALIVE, 1, bytes(16)).encode()


def test_an_event_has_48_bytes_and_reads_back() -> None:
    value = Event(b"n" * 16, 2**48 - 1, 2**24 - 1, State.LEFT, 2**48 - 1, b"h" * 16)
    assert len(value.encode()) == 48
    assert Event.of(value.encode()) == value


def test_a_sync_that_names_a_node_twice_is_none() -> None:
    """Each newer claim was a change, an event and a line in the log: 65,536 of one member in one message."""
    twice = [event(1), event(2), event(1, incarnation=7)]
    with pytest.raises(GossipError, match="twice"):
        decode_sync_untrusted(messages.encode_events(SyncKind.DIFFERENCE, b"s" * 16, [0], twice))


def test_keys_order_by_generation_then_incarnation() -> None:
    keys = [make_key(g, i) for g in (0, 1, 255, 256, 2**40) for i in (0, 1, 255, 256, 2**24 - 1)]
    assert keys == sorted(keys)


def test_a_full_datagram_leaves_room_for_the_envelope() -> None:
    full = encode(messages.GOSSIP, bytes(8), b"s" * 16, bytes(16), [event(i) for i in range(MAX_EVENTS)])
    assert len(full) <= MAX_MESSAGE == 1232 - 64
    assert len(full) + 48 > MAX_MESSAGE
    assert len(decode_untrusted(full).events) == MAX_EVENTS == 23


GOOD = encode(messages.PING, b"12345678", b"s" * 16, b"t" * 16, [event(1), event(2)], wait_ms=7)


def test_a_datagram_reads_back() -> None:
    message = decode_untrusted(GOOD)
    assert message == (messages.PING, 7, b"12345678", b"s" * 16, b"t" * 16, [event(1), event(2)], b"")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"", "length"),
        (GOOD[:-1], "length"),
        (GOOD[:43], "length"),
        (GOOD + event(3) * 22, "length"),
        (b"\x02" + GOOD[1:], "version"),
        (GOOD[:1] + b"\x00" + GOOD[2:], "kind"),
        (GOOD[:1] + b"\x09" + GOOD[2:], "kind"),
        (GOOD[:1] + b"\x08" + GOOD[2:], "length"),  # no proof in it
        (GOOD[:12] + bytes(16) + GOOD[28:], "sender"),
        (GOOD[:69] + b"\x00" + GOOD[70:], "state"),
        (GOOD[: 69 + 48] + b"\x05" + GOOD[70 + 48 :], "state"),
    ],
)
def test_bad_datagrams_are_refused(bad: bytes, why: str) -> None:
    with pytest.raises(GossipError) as caught:
        decode_untrusted(bad)
    assert caught.value.args[0] == why


def test_sync_messages_read_back() -> None:
    digest = decode_sync_untrusted(messages.encode_digest(b"s" * 16, list(range(256)), event(1)))
    assert (digest.kind, digest.hashes, digest.events) == (SyncKind.DIGEST, tuple(range(256)), [event(1)])
    rest = decode_sync_untrusted(
        messages.encode_events(SyncKind.REST, b"s" * 16, [0, 7, 8, 255], [event(1), event(2)])
    )
    assert (rest.kind, rest.buckets, rest.events) == (SyncKind.REST, [0, 7, 8, 255], [event(1), event(2)])


@pytest.mark.parametrize("cut", [0, 1, 21, 22, 100, 2117])
def test_short_sync_messages_are_refused(cut: int) -> None:
    whole = messages.encode_digest(b"s" * 16, [0] * 256, event(1))
    with pytest.raises(GossipError):
        decode_sync_untrusted(whole[:cut])
    with pytest.raises(GossipError):
        decode_sync_untrusted(whole + b"x")


def test_tables_with_the_same_claims_have_the_same_digest_whatever_the_way() -> None:
    shared = Table(Snapshot(claim(i) for i in range(50)))
    grown = Table()
    for i in reversed(range(50)):
        grown.put(event(i, 3))
        grown.put(claim(i))
    assert grown.hashes() == shared.hashes()
    grown.put_down(node_id(7), Down(State.DEAD, make_key(1, 0), 0.0))
    assert grown.hashes() != shared.hashes()
    grown.raise_up(node_id(7))
    assert grown.hashes() == shared.hashes()


def test_a_snapshot_is_never_changed() -> None:
    snapshot = Snapshot(claim(i) for i in range(3))
    first, second = Table(snapshot), Table(snapshot)
    first.put(event(0, 9))
    first.remove(node_id(1))
    first.put_down(node_id(2), Down(State.DEAD, make_key(1, 0), 0.0))
    first.put(event(3))
    assert list(first) == [node_id(0), node_id(2), node_id(3)]
    assert (len(first), first.live, len(second), second.live) == (3, 2, 3, 3)
    assert second.get(node_id(0)) == claim(0)
    assert second.get(node_id(1)) == claim(1)
    first.put(event(1, 1))
    assert len(first) == 4
    assert first.get(node_id(1)) == event(1, 1)


def test_a_snapshot_holds_live_claims_only() -> None:
    with pytest.raises(ValueError):
        Snapshot([claim(1)[:-1]])
    with pytest.raises(ValueError):
        Snapshot([messages.accusation(node_id(1), make_key(1, 0), State.DEAD, node_id(2))])


def test_probes_go_round_a_shuffled_list() -> None:
    table, rng = Table(Snapshot(claim(i) for i in range(10))), random.Random(1)
    for i in range(10, 20):
        table.put(event(i))
    everyone = {node_id(i) for i in range(20)}
    rounds = [[table.next_probe(rng) for _ in range(20)] for _ in range(3)]
    assert all(set(one) == everyone for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


def test_who_joins_during_a_round_is_probed_in_it() -> None:
    table, rng = Table(Snapshot(claim(i) for i in range(10))), random.Random(1)
    seen = [table.next_probe(rng) for _ in range(4)]
    table.put(event(10))
    seen += [table.next_probe(rng) for _ in range(7)]
    assert set(seen) == {node_id(i) for i in range(11)}


def test_news_is_sent_so_often_and_then_no_more() -> None:
    queue = Broadcasts()
    queue.put(event(1))
    assert [queue.take(23, 3, 8) for _ in range(4)] == [[event(1)]] * 3 + [[]]
    assert len(queue) == 0


def test_newer_news_takes_the_place_of_older() -> None:
    queue = Broadcasts()
    queue.put(event(1))
    queue.take(23, 1, 8)
    queue.put(event(1, 5))
    assert queue.take(23, 1, 8) == [event(1, 5)]


def test_the_least_sent_go_first_but_the_oldest_are_not_starved() -> None:
    queue = Broadcasts()
    queue.put(event(0))
    queue.take(8, 1, 12)
    sent = 0
    for flood in range(1, 100):
        for i in range(8):
            queue.put(event(flood * 8 + i))
        packet = queue.take(8, 1, 12)
        assert len(packet) == len(set(packet)) == 8
        sent += event(0) in packet
    assert sent == 11


def test_the_retransmit_limit_grows_with_the_logarithm() -> None:
    assert [retransmit_limit(4, n) for n in (0, 1, 9, 10, 99, 100, 9999)] == [4, 4, 4, 8, 8, 12, 16]


def test_suspicion_shortens_with_confirmations() -> None:
    times = [suspicion_time(2.0, 12.0, c, 2) for c in range(3)]
    assert times[0] == 12.0
    assert times[2] == 2.0
    assert 2.0 < times[1] < 12.0
    assert suspicion_time(2.0, 12.0, 0, 0) == 2.0


def test_awareness_stays_in_its_bounds() -> None:
    awareness = Awareness(8)
    awareness.adjust(-3)
    assert awareness.scale == 1
    awareness.adjust(100)
    assert awareness.scale == 8


def test_the_timeout_follows_the_round_trip() -> None:
    trips = RoundTrips()
    assert trips.timeout(b"a", 0.02, 0.5) == 0.5
    for _ in range(50):
        trips.measured(b"a", 0.001)
        trips.measured(b"b", 0.1)
    assert trips.timeout(b"a", 0.02, 0.5) == 0.02
    assert 0.1 < trips.timeout(b"b", 0.02, 0.5) < 0.15
    assert trips.smoothed(b"c") is None
    assert 0.02 <= trips.timeout(b"c", 0.02, 0.5) <= 0.5


def test_nobody_is_purged_before_three_days() -> None:
    assert all(params.purge >= 72 * 3600 for params in PRESETS.values())
    with pytest.raises(ValueError):
        Params(purge=3600)


def test_memberlists_defaults_are_as_documented() -> None:
    p = MEMBERLIST_LAN
    assert (p.probe_interval, p.probe_timeout, p.gossip_interval, p.gossip_nodes) == (1.0, 0.5, 0.2, 3)
    assert (p.suspicion_mult, p.suspicion_max, p.retransmit_mult, p.indirect, p.awareness_max) == (
        4,
        6,
        4,
        3,
        8,
    )
    assert not p.verify
    assert LAN.verify


def test_a_large_sync_is_taken_in_a_slice_at_a_time() -> None:
    """Before: 65,536 events at once held the node for seconds."""
    told = [event(i) for i in range(5000)]
    me = Membership(
        node=b"m" * 16, generation=1, record_seq=1, record_hash=bytes(16), rng=random.Random(1), now=0.0
    )
    answer = encode_events(SyncKind.DIFFERENCE, b"p" * 16, [], told)
    _, effects = me.sync_close(answer, b"p" * 16, 0.0)
    wanted = [effect for effect in effects if isinstance(effect, FetchRecord)]
    assert len(wanted) == SLICE
    now, most = 0.0, 0
    while len(wanted) < len(told):
        now = max(now, me.deadline)
        came = [effect for effect in me.tick(now) if isinstance(effect, FetchRecord)]
        most = max(most, len(came))
        wanted += came
    assert now < 1.0
    assert most <= SLICE + 8  # and those asked for again


def test_draws_and_probes_hit_the_living_only() -> None:
    """Five alive among 1,000 dead: a death was known after 40 s instead of 5, for draws that hit the dead."""
    table, rng = Table(Snapshot(claim(i) for i in range(500))), random.Random(1)
    for i in range(500, 1005):
        table.put(event(i))
    for i in range(1000):
        table.put_down(node_id(i), Down(State.DEAD, make_key(1, 0), 0.0))
    living = {node_id(i) for i in range(1000, 1005)}
    assert {table.random(rng) for _ in range(100)} == living
    assert all({table.next_probe(rng) for _ in range(5)} == living for _ in range(3))


def test_a_table_of_which_all_came_and_went_keeps_few_slots() -> None:
    table = Table()
    for i in range(1000):
        table.put(event(i))
        table.remove(node_id(i))
    assert len(table) == 0
    assert len(table._added) <= 200
    assert table.random(random.Random(1)) is None
    assert table.next_probe(random.Random(1)) is None


class TableMachine(RuleBasedStateMachine):
    """A table beside a plain model of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table(Snapshot(claim(i) for i in range(4)))
        self.alive = {node_id(i) for i in range(4)}
        self.dead: set[bytes] = set()
        self.rng = random.Random(1)

    nodes = st.integers(0, 8).map(node_id)

    @rule(index=st.integers(0, 8), incarnation=st.integers(0, 3))
    def put(self, index: int, incarnation: int) -> None:
        self.table.put(event(index, incarnation))
        if node_id(index) not in self.dead:
            self.alive.add(node_id(index))

    @rule(node=nodes)
    def die(self, node: bytes) -> None:
        if node in self.alive | self.dead:
            self.table.put_down(node, Down(State.DEAD, make_key(1, 0), 0.0))
            self.alive.discard(node)
            self.dead.add(node)

    @rule(node=nodes)
    def come_back(self, node: bytes) -> None:
        if node in self.dead:
            self.table.raise_up(node)
            self.dead.discard(node)
            self.alive.add(node)

    @rule(node=nodes)
    def go(self, node: bytes) -> None:
        self.table.remove(node)
        self.alive.discard(node)
        self.dead.discard(node)

    @rule()
    def clear(self) -> None:
        self.table._clear()

    @rule(times=st.integers(1, 12))
    def probe(self, times: int) -> None:
        for _ in range(times):
            node = self.table.next_probe(self.rng)
            assert (node in self.alive) if self.alive else node is None

    @invariant()
    def counts(self) -> None:
        assert self.table.live == len(self.alive)
        assert len(self.table) == len(self.alive | self.dead)
        assert set(self.table) == self.alive | self.dead
        assert set(self.table.within(range(256))) == self.alive | self.dead
        node = self.table.random(self.rng)
        assert (node in self.alive) if self.alive else node is None

    @rule()
    def a_round_has_each_once(self) -> None:
        """The rest of the round that is under way, and then one whole round."""
        rest = self.table._living.count - self.table._living._round
        for _ in range(rest):
            self.table.next_probe(self.rng)
        one = [self.table.next_probe(self.rng) for _ in self.alive]
        assert set(one) == self.alive


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
