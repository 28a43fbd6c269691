# SPDX-License-Identifier: GPL-3.0-or-later
"""What a member carries for others, how much of it, and which members are homes."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control import messages
from phantommesh.link import wire
from phantommesh.link.wire import Kind, Mode
from phantommesh.node.carrying import (
    AT_ONCE,
    EACH,
    HOMES,
    IN_ALL,
    MEMBER,
    PAIR,
    REST,
    SLOW,
    Carrier,
    Homes,
)
from phantommesh.records.roster import Entry
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import NodeId

ME, A, B, C, D = (NodeId(bytes((n,)) * 16) for n in range(5))
GOOD = wire.CookieRequest(Mode.MEMBER, b"12345678", A).encode(b"k" * 32)
LONG = wire.fragments(Kind.INIT, Mode.MEMBER, b"12345678", bytes(wire.INIT_SIZE))[0].encode(
    b"k" * 32, b"c" * 16
)
ENROL = wire.CookieRequest(Mode.ENROL, b"12345678", A).encode(b"k" * 32)


def carrier(*standing: NodeId) -> Carrier:
    members = set(standing or (ME, A, B, C, D))
    return Carrier(ME, lambda: members, 0.0)


def test_a_handshake_between_two_members_is_carried() -> None:
    assert carrier().carry(A, B, [GOOD, LONG], 0.0) == [GOOD, LONG]
    assert carrier().take(A, B, [GOOD, LONG], 0.0) == [GOOD, LONG]
    assert carrier().take(A, A, [GOOD], 0.0) == [GOOD]  # a home may be one of the ends


@pytest.mark.parametrize(
    "junk", [b"", b"\x01", b"\x02" + GOOD[1:], ENROL, GOOD[:-1], GOOD + b"\0", b"\x44" * 64, bytes(1500)]
)
def test_nothing_else_is_carried(junk: bytes) -> None:
    one = carrier()
    assert one.carry(A, B, [junk, GOOD], 0.0) == [GOOD]
    assert one.take(A, B, [junk, GOOD], 0.0) == [GOOD]
    assert one.dropped == {"carry-malformed": 2}


def test_nothing_is_carried_for_or_to_a_node_that_is_no_member_or_is_revoked() -> None:
    one = carrier(ME, A, B)
    for origin, to in ((A, C), (C, A), (A, A), (A, ME), (ME, A)):
        assert one.carry(origin, to, [GOOD], 0.0) == []
        assert not one.passes(origin, to, 100, 0.0)
    for by, origin in ((A, C), (C, A), (A, ME)):
        assert one.take(by, origin, [GOOD], 0.0) == []
    assert one.dropped == {"carry-standing": 10, "carried-standing": 3}


def test_one_member_that_floods_does_not_use_up_what_others_may_send_to_the_same_one() -> None:
    one = carrier()
    flooded = one.carry(A, B, [LONG] * 10_000, 0.0)
    assert sum(len(d) + EACH for d in flooded) <= PAIR[1]
    assert one.carry(C, B, [LONG] * 8, 0.0) == [LONG] * 8
    assert one.carry(A, C, [LONG] * 8, 0.0) == [LONG] * 8


def test_a_carrier_that_makes_up_origins_gets_no_more_than_its_own_share() -> None:
    members = {NodeId(n.to_bytes(16)) for n in range(1, 2000)} | {ME, A, B}
    one = Carrier(ME, lambda: members, 0.0)
    taken = sum(len(one.take(A, origin, [LONG] * 4, 0.0)) for origin in sorted(members - {ME}))
    assert taken * (len(LONG) + EACH) <= MEMBER[1]
    assert one.take(B, C, [GOOD], 0.0) == [] and one.take(B, A, [GOOD], 0.0) == [GOOD]


class Sent(NamedTuple):
    origin: NodeId
    to: NodeId
    often: int
    wait: float


SENT = st.builds(
    Sent, st.sampled_from((A, B, C, D)), st.sampled_from((A, B, C, D)), st.integers(1, 200), st.floats(0, 30)
)


@given(st.lists(SENT, max_size=60))
def test_no_pair_and_no_member_ever_gets_more_than_its_limit(sent: list[Sent]) -> None:
    one, now = carrier(), 0.0
    pairs, out, into = Counter[tuple[bytes, bytes]](), Counter[bytes](), Counter[bytes]()
    for origin, to, often, wait in sent:
        now += wait
        size = sum(EACH + len(d) for d in one.carry(origin, to, [LONG] * often, now))
        pairs[origin, to] += size
        out[origin] += size
        into[to] += size
    assert all(size <= PAIR[1] + PAIR[0] * now + 1 for size in pairs.values())
    assert all(size <= MEMBER[1] + MEMBER[0] * now + 1 for size in (*out.values(), *into.values()))
    assert sum(into.values()) <= IN_ALL[1] + IN_ALL[0] * now + 1


@given(st.lists(st.binary(max_size=1300), max_size=8))
def test_no_bytes_raise(datagrams: list[bytes]) -> None:
    one = carrier()
    assert len(one.carry(A, B, datagrams, 0.0)) + one.dropped.total() == len(datagrams)
    assert len(one.take(A, B, datagrams, 0.0)) + one.dropped.total() <= 2 * len(datagrams)


def test_frames_count_both_ways() -> None:
    one, frames = carrier(), 0
    while one.passes(A, B, 100, 0.0):
        one.passed_back(A, B, messages.MAX_PASSED, 0.0)
        frames += 1
    assert 2 <= frames <= 6
    assert one.passes(C, B, 100, 0.0)


@given(st.binary(max_size=200))
def test_a_request_is_read_or_refused(data: bytes) -> None:
    for kind, who in (("carry", "to"), ("carried", "origin"), ("pass", "to"), ("passed", "origin")):
        forged = {"type": kind, who: data, "datagrams": [data], "line": data, "frame": data}
        packed = msgspec.msgpack.encode(forged)
        if len(data) != 16:
            with pytest.raises(messages.ControlError):
                messages.decode_request_untrusted(packed)


def test_a_request_has_so_many_datagrams_of_such_a_length() -> None:
    good = messages.Carry(A, (b"x",) * messages.MAX_CARRIED)
    assert messages.decode_request_untrusted(messages.encode(good)) == good
    for datagrams in ((), (b"",), (b"x" * 1233,), (b"x",) * (messages.MAX_CARRIED + 1)):
        with pytest.raises(messages.ControlError):
            messages.decode_request_untrusted(messages.encode(messages.Carry(A, datagrams)))


class _Member(NamedTuple):
    node_id: NodeId
    role: Role


class _Entry(NamedTuple):
    member: _Member


def entries(*members: NodeId, authorities: tuple[NodeId, ...] = ()) -> list[Entry]:
    roles = {m: Role.AUTHORITY if m in authorities else Role.NODE for m in members}
    return cast("list[Entry]", [_Entry(_Member(m, role)) for m, role in roles.items()])


def test_all_rank_the_others_alike_and_authorities_first() -> None:
    everyone = entries(D, B, ME, C, A, authorities=(D, C))
    assert Homes(ME).ranked(everyone) == [C, D, A, B]
    assert Homes(C).ranked(everyone) == [D, ME, A, B]


def test_one_that_does_not_answer_keeps_nobody_waiting() -> None:
    homes, ranked = Homes(ME), [A, B, C, D]
    assert homes.look(ranked, [], {}, 0.0).call == [A, B]
    move = homes.look(ranked, [], {A: 0.0, B: 0.0}, 0.1)
    assert (move.call, move.due) == ([], SLOW)
    assert homes.look(ranked, [], {A: 0.0, B: 0.0}, SLOW).call == [C, D]
    move = homes.look(ranked, [C, D], {A: 0.0, B: 0.0}, 1.0)
    assert (move.call, move.give_back) == ([], [])
    # The better ones answer in the end: the others get theirs back.
    assert homes.look(ranked, [A, B, C, D], {}, 2.0).give_back == [C, D]


def test_one_that_cannot_be_called_is_asked_seldom() -> None:
    homes, now, tries = Homes(ME), 0.0, 0
    while now < 3600:
        move = homes.look([A, B, C], [B, C], {}, now)
        assert len(move.call) <= 1 and not move.give_back
        if move.call:
            tries += 1
            homes.failed(A, now)
        now = max(now + 0.01, homes.look([A, B, C], [B, C], {}, now).due)
    assert tries <= 7 + 3600 / REST[1]
    homes.lives(A)
    homes.retain({B})
    assert homes.look([A, B, C], [B, C], {}, now).call == [A]


@given(
    st.lists(st.sampled_from(range(20)), unique=True, max_size=20),
    st.sets(st.integers(0, 19)),
    st.dictionaries(st.integers(0, 19), st.floats(0, 10)),
)
def test_few_are_called_at_once_and_never_one_twice(
    order: list[int], live: set[int], trying: dict[int, float]
) -> None:
    def of(number: int) -> NodeId:
        return NodeId(bytes((number,)) * 16)

    homes = Homes(ME)
    begun = {of(n): at for n, at in trying.items() if n not in live}
    move = homes.look([of(n) for n in order], [of(n) for n in live], begun, 10.0)
    assert len(move.call) <= HOMES
    assert len(begun) + len(move.call) <= max(AT_ONCE, len(begun))
    assert not set(move.call) & ({of(n) for n in live} | begun.keys())
    kept = {of(n) for n in live} - set(move.give_back)
    assert len(kept) >= min(HOMES, len(live))
    assert move.due > 10.0
