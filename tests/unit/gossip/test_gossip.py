# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership behind its envelope: two nodes in memory, and what strangers and insiders may send them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.gossip.envelope import FORMAT, MAX_PAYLOAD, OVERHEAD, Envelope
from phantommesh.gossip.machine import (
    AMPLIFIED,
    KIND,
    SHORT,
    STRANGE_BURST,
    STRANGE_RATE,
    AskKeys,
    Datagram,
    Effect,
    Gossip,
)
from phantommesh.membership.effects import Changed, FetchRecord
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import (
    GOSSIP,
    MAX_MESSAGE,
    PING,
    PING_REQ,
    QUERY,
    Errand,
    State,
    encode,
)
from phantommesh.trust.groupkey import GroupKey, Keyring
from phantommesh.trust.identity import NodeId

KEY = GroupKey(1, bytes(32), 0, b"k" * 32, b"", b"")
NEXT = GroupKey(2, bytes(32), 0, b"n" * 32, b"", b"")
HOMES = {
    name: (Address(f"192.0.2.{i}", 51800), Address(f"198.51.100.{i}", 51800))
    for i, name in enumerate("abcd", 1)
}
ELSEWHERE = Address("203.0.113.9", 4000)


def node_id(name: str) -> NodeId:
    return NodeId(name.encode() * 16)


class End:
    """One node, with a ring of its own."""

    def __init__(self, name: str, *keys: GroupKey, homes: Mapping[str, tuple[Address, ...]] = HOMES) -> None:
        self.id, self.now = node_id(name), 1000.0
        self.ring = Keyring()
        for key in keys:
            self.ring.install(key, self.now)
        self.digest = b"digest 1"
        self.homes = {node_id(n): a for n, a in homes.items()}
        self.revoked: set[NodeId] = set()
        self.in_use: list[bytes] = []
        self.membership = Membership(
            node=self.id, generation=1, record_seq=1, record_hash=bytes(16), rng=Random(7), now=self.now
        )
        self.envelope = Envelope(
            self.id, self.ring, start=1, revoked=self.revoked, digest=lambda: self.digest,
        )  # fmt: skip
        self.gossip = Gossip(
            self.membership, self.envelope, where=self.where, digest=lambda: self.digest,
            in_use=self.in_use.append,
        )  # fmt: skip

    def where(self, who: NodeId) -> tuple[Address, ...]:
        return self.homes.get(who, ())

    def knows(self, *names: str) -> End:
        for name in names:
            self.gossip.seal(self.membership.verified(node_id(name), 1, bytes(16), self.now), self.now)
        return self

    def tick(self, seconds: float = 1.0) -> list[Effect]:
        """Let time pass, and return all that was wanted meanwhile."""
        end, out = self.now + seconds, list[Effect]()
        while (due := max(self.now, self.gossip.deadline)) <= end:
            self.now = due
            out += self.gossip.tick(due)
        self.now = end
        return out

    def take(self, datagram: bytes, source: Address) -> list[Effect]:
        return self.gossip.receive(datagram, source, self.now)


def pass_on(ends: Mapping[str, End], seconds: float) -> list[tuple[str, bytes, Address]]:
    """Let nodes talk over a perfect network. Return what came: to whom, the datagram, its source."""
    came = []
    for _ in range(round(seconds / 0.1)):
        under_way = [(name, effect) for name, end in ends.items() for effect in end.tick(0.1)]
        while under_way:
            name, effect = under_way.pop(0)
            if isinstance(effect, Datagram):
                to = next(other for other in ends if effect.to in HOMES[other])
                came.append((to, effect.data, HOMES[name][0]))
                under_way += [(to, answer) for answer in ends[to].take(effect.data, HOMES[name][0])]
    return came


def sent(effects: list[Effect], to: str) -> list[Datagram]:
    return [e for e in effects if isinstance(e, Datagram) and e.to in HOMES[to]]


def test_two_members_find_each_other_alive() -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    changes = []
    for _ in range(3):
        for one, other, source in ((a, b, HOMES["a"][0]), (b, a, HOMES["b"][0])):
            for datagram in sent(one.tick(0.2), "ab"[one is a]):
                changes += [e for e in other.take(datagram.data, source) if isinstance(e, Changed)]
    assert a.membership.state(b.id) is b.membership.state(a.id) is State.ALIVE
    assert a.gossip.heard_at > 0
    assert a.in_use[0] == KEY.id
    assert all(change.event == "restarted" for change in changes)  # from no generation to the first


def test_nothing_is_sent_before_there_is_a_key() -> None:
    a = End("a").knows("b")
    assert not any(isinstance(effect, Datagram) for effect in a.tick(3))
    assert a.gossip.drops["gossip-unkeyed"] > 0


def test_a_silent_member_is_tried_at_each_of_its_addresses() -> None:
    a = End("a", KEY).knows("b")
    assert {datagram.to for datagram in sent(a.tick(1), "b")} == set(HOMES["b"])


def test_and_one_that_was_heard_only_where_it_was() -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    ping = sent(b.tick(1), "a")[0]
    a.now = b.now
    a.take(ping.data, HOMES["b"][1])
    assert {datagram.to for datagram in sent(a.tick(0.9), "b")} == {HOMES["b"][1]}


def test_a_member_of_the_mesh_cannot_draw_anothers_gossip_to_itself() -> None:
    """It can seal in the other's name, but from an address that the other's record does not name."""
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    pings = sent(b.tick(1), "a")
    a.now = b.now
    a.take(pings[0].data, HOMES["b"][1])
    a.take(pings[1].data, ELSEWHERE)
    assert {datagram.to for datagram in sent(a.tick(0.9), "b")} == {HOMES["b"][1]}


def test_who_has_no_address_is_where_it_speaks_from() -> None:
    homes = {"a": HOMES["a"]}
    a, b = End("a", KEY, homes=homes).knows("b"), End("b", KEY).knows("a")
    a.tick(1)
    assert a.gossip.drops["gossip-nowhere"] > 0
    a.take(sent(b.tick(1), "a")[0].data, ELSEWHERE)
    assert ELSEWHERE in {e.to for e in a.tick(1) if isinstance(e, Datagram)}


def test_no_number_shuts_a_member_out() -> None:
    """A member sends one datagram in another's name, with the greatest number there is, from its address."""
    names = "abcd"
    ends = {name: End(name, KEY).knows(*names.replace(name, "")) for name in names}
    forger = End("d", KEY).envelope
    forger._start, forger._count = 2**32 - 1, 2**64 - 1
    forged = forger.seal(KIND, encode(GOSSIP, bytes(8), node_id("d"), bytes(16), []))
    for name in "abc":
        ends[name].take(forged, HOMES["d"][0])
    pass_on(ends, 20.0)
    for name in "abc":
        assert ends[name].membership.state(node_id("d")) is State.ALIVE
        assert ends[name].gossip.drops["gossip-replay"] == 0
        ends[name].take(forged, HOMES["d"][0])
        assert ends[name].gossip.drops["gossip-replay"] == 1


def test_what_was_recorded_long_ago_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if it were not known again: all that was said for 20 s, once more, in disorder."""
    monkeypatch.setattr("phantommesh.gossip.envelope.SEEN", 1)
    monkeypatch.setattr(Envelope, "_remember", lambda *_: None)
    ends = {name: End(name, KEY).knows(*"abc".replace(name, "")) for name in "abc"}
    recorded = pass_on(ends, 20.0)
    before = {name: end.membership.snapshot() for name, end in ends.items()}
    Random(1).shuffle(recorded)
    changes = [e for name, data, source in recorded for e in ends[name].take(data, source)]
    assert not [effect for effect in changes if isinstance(effect, Changed)]
    assert {name: end.membership.snapshot() for name, end in ends.items()} == before
    pass_on(ends, 10.0)
    assert all(
        end.membership.state(node_id(other)) is State.ALIVE for end in ends.values() for other in "abc"
    )


def test_what_an_outsider_recorded_is_answered_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much came since: here far more than is known without a filter, and each at a forged address."""
    monkeypatch.setattr("phantommesh.gossip.envelope.SEEN", 16)
    ends = {name: End(name, KEY).knows(*"abc".replace(name, "")) for name in "abc"}
    recorded = pass_on(ends, 20.0)
    assert len(recorded) > 100
    answers = [
        effect
        for name, data, _ in recorded
        for effect in ends[name].take(data, ELSEWHERE)
        if isinstance(effect, Datagram)
    ]
    assert answers == []


@pytest.mark.parametrize("kind", [PING, PING_REQ, QUERY])
def test_who_asks_from_an_unproved_address_gets_little(kind: int) -> None:
    """An insider can ask in any name, from an address that it forges: the answers go to whatever machine is
    there."""
    a, sealer = End("a", KEY).knows("b", "c"), End("b", KEY)
    news = [
        node_id(n) + (1).to_bytes(6) + bytes(3) + bytes([State.ALIVE]) + bytes(22) for n in "defghijklmnop"
    ]
    sent = received = 0
    for i in range(2000):
        for one in news:
            a.membership._core.queue.put(one)  # there is always something to tell
        extra = Errand(node_id("b"), i.to_bytes(8), 1).encode() if kind == PING_REQ else b""
        target = node_id("c" if kind == PING_REQ else "a")
        asked = encode(kind, i.to_bytes(8), node_id("b"), target, [], 10, extra)
        datagram = sealer.envelope.seal(KIND, asked)
        sent += len(datagram)
        for effect in a.take(datagram, ELSEWHERE) + a.gossip.tick(a.now):
            if isinstance(effect, Datagram) and effect.to == ELSEWHERE:
                assert len(effect.data) <= AMPLIFIED * len(datagram)
                received += 1
    assert received <= STRANGE_BURST + STRANGE_RATE
    if kind == PING:
        assert received == STRANGE_BURST
        at_home = a.take(
            sealer.envelope.seal(KIND, encode(PING, bytes(8), node_id("b"), node_id("a"), [])), HOMES["b"][0]
        )
        [answer] = [effect for effect in at_home if isinstance(effect, Datagram)]
        assert answer.to == HOMES["b"][0] and len(answer.data) > SHORT + OVERHEAD


@pytest.mark.parametrize("source", [HOMES["b"][0], ELSEWHERE])
def test_what_is_said_in_a_members_name_counts_as_its_own_only_from_its_address(source: Address) -> None:
    a = End("a", KEY).knows("b")
    claim = node_id("x") + (1).to_bytes(6) + bytes(3) + bytes([State.ALIVE]) + (1).to_bytes(6) + bytes(16)
    said = encode(GOSSIP, bytes(8), node_id("b"), bytes(16), [claim])
    effects = a.take(End("b", KEY).envelope.seal(KIND, said), source)
    [wanted] = [effect for effect in effects if isinstance(effect, FetchRecord)]
    assert wanted.source == (source if source == ELSEWHERE else node_id("b"))


def test_junk_makes_a_node_ask_ever_more_seldom_while_others_are_heard() -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    junk = End("b", NEXT).envelope.seal(KIND, b"")
    asked = []
    for _ in range(600):
        pass_on({"a": a, "b": b}, 0.5)
        if AskKeys(None, b"") in a.take(junk, ELSEWHERE):
            asked.append(a.now)
            a.gossip.asked(b"", news=False)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses == pytest.approx([6, 12, 24, 48, 60, 60, 60], abs=0.6)
    a.now += 30.0  # now nobody else is heard
    assert a.take(junk, ELSEWHERE) == [AskKeys(None, b"")]


def test_a_datagram_in_anothers_name_inside_its_own_envelope_is_dropped() -> None:
    a, c = End("a", KEY).knows("b", "c"), End("c", KEY)
    forger = End("b", KEY).knows("a")
    ping = sent(forger.tick(1), "a")[0].data
    payload = End("d", KEY).envelope.open(ping).payload
    before = a.membership.counts()
    assert a.take(c.envelope.seal(KIND, payload), HOMES["c"][0]) == []
    assert a.gossip.drops == {"gossip-impostor": 1}
    assert a.membership.counts() == before


def test_another_kind_of_payload_is_dropped() -> None:
    a, b = End("a", KEY), End("b", KEY)
    a.take(b.envelope.seal(KIND + 9, bytes(100)), HOMES["b"][0])
    assert a.gossip.drops == {"gossip-kind": 1}


def test_other_revocations_or_keys_are_asked_for_now_and_then() -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    b.digest = b"digest 2"
    asked = []
    for _ in range(10):
        for datagram in sent(b.tick(0.2), "a"):
            asked += [e for e in a.take(datagram.data, HOMES["b"][0]) if isinstance(e, AskKeys)]
        a.tick(0.2)
    assert asked[0] == AskKeys(b.id, b"digest 2")
    assert 1 <= len(asked) <= 2  # in two seconds
    assert not a.gossip.moot(asked[0])
    a.digest = b"digest 2"  # another member gave it
    assert a.gossip.moot(asked[0])


@pytest.mark.parametrize("news", [True, False])
def test_a_digest_that_held_nothing_new_is_not_asked_about_again(news: bool) -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    b.digest = b"digest 2"
    datagrams = sent(b.tick(10), "a")
    assert AskKeys(b.id, b"digest 2") in a.take(datagrams[0].data, HOMES["b"][0])
    a.gossip.asked(b"digest 2", news=news)
    a.now += 5
    again = a.take(datagrams[1].data, HOMES["b"][0])
    assert (AskKeys(b.id, b"digest 2") in again) is news
    a.gossip.asked(b"digest 3", news=True)  # then it may have become news
    a.now += 5
    assert AskKeys(b.id, b"digest 2") in a.take(datagrams[2].data, HOMES["b"][0])


def test_what_no_key_opens_makes_a_node_ask_anybody_but_seldom() -> None:
    a, b = End("a", KEY).knows("b"), End("b", NEXT).knows("a")
    datagrams = sent(b.tick(5), "a")
    asked = [e for d in datagrams for e in a.take(d.data, ELSEWHERE)]
    assert len(datagrams) > 5 and asked == [AskKeys(None, b"")]
    assert a.gossip.drops["gossip-key"] == len(datagrams)


def test_a_revoked_member_is_not_heard() -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    a.revoked.add(b.id)
    for datagram in sent(b.tick(2), "a"):
        assert a.take(datagram.data, HOMES["b"][0]) == []
    assert set(a.gossip.drops) == {"gossip-revoked"}


def test_who_is_forgotten_leaves_nothing_behind() -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY).knows("a")
    a.take(sent(b.tick(1), "a")[0].data, HOMES["b"][0])
    assert a.gossip._routes
    a.gossip.forget(set())
    assert not a.gossip._routes and not a.gossip._asked_at


def test_a_full_message_fits_its_envelope() -> None:
    assert MAX_MESSAGE <= MAX_PAYLOAD


@given(st.binary(max_size=1400) | st.binary(max_size=1300).map(lambda tail: bytes([FORMAT]) + tail))
def test_junk_is_counted_and_nothing_else(junk: bytes) -> None:
    a = End("a", KEY).knows("b")
    assert all(isinstance(effect, AskKeys) for effect in a.take(junk, ELSEWHERE))
    assert a.gossip.drops.total() == 1


@given(st.binary(max_size=MAX_MESSAGE), st.integers(0, 255))
def test_what_an_insider_seals_raises_nothing(payload: bytes, kind: int) -> None:
    a, b = End("a", KEY).knows("b"), End("b", KEY)
    data = b.envelope.seal(kind, payload[:12] + b.id + payload[28:] if len(payload) >= 28 else payload)
    assert len(data) <= OVERHEAD + MAX_MESSAGE
    a.take(data, HOMES["b"][0])
    a.tick(1)
