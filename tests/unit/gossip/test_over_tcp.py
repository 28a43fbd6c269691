# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip by a member's connection for frames, where no UDP passes."""

from __future__ import annotations

from phantommesh.endpoint import Address
from phantommesh.gossip.machine import SHORT, Datagram
from phantommesh.membership.effects import Send
from phantommesh.membership.messages import State
from phantommesh.trust.identity import NodeId
from tests.unit.gossip.test_gossip import ELSEWHERE, HOMES, KEY, End, node_id, sent

LINE = Address("192.0.2.77", 40001, "tcp")  # in nobody's record: a NAT's, or a proxy's


def framed() -> tuple[End, End, list[NodeId]]:
    """Two ends that know each other and have a connection; and of whom the first is told that UDP came."""
    a, b, told = End("a", KEY).knows("b"), End("b", KEY).knows("a"), list[NodeId]()
    for one, other in ((a, b), (b, a)):
        one.gossip.over_tcp = lambda member, other=other: LINE if member == other.id else None  # type: ignore[misc]
    a.gossip.by_udp = told.append
    return a, b, told


def pass_on(a: End, b: End, seconds: float, *, udp: bool) -> None:
    """Let two ends talk by their connection, and by UDP if that passes."""
    for _ in range(round(seconds / 0.1)):
        under_way = [(one, other, e) for one, other in ((a, b), (b, a)) for e in one.tick(0.1)]
        while under_way:
            one, other, effect = under_way.pop(0)
            if not isinstance(effect, Datagram):
                continue
            answers = []
            if effect.to == LINE:
                answers = other.gossip.receive(effect.data, LINE, other.now, member=one.id)
            elif udp:
                answers = other.take(effect.data, HOMES["a" if one.id == node_id("a") else "b"][0])
            under_way += [(other, one, answer) for answer in answers]


def test_members_with_a_connection_are_alive_to_each_other_though_no_udp_passes() -> None:
    a, b, told = framed()
    pass_on(a, b, 120.0, udp=False)
    assert a.membership.state(b.id) is b.membership.state(a.id) is State.ALIVE
    assert not told
    silence = a.membership.silence(b.id, a.now)
    assert silence is not None and silence < 30.0


def test_udp_is_used_beside_the_connection_and_told_of_where_it_passes() -> None:
    a, b, told = framed()
    assert sent(a.tick(1.0), "b")
    pass_on(a, b, 5.0, udp=True)
    assert set(told) == {b.id}


def test_a_connection_is_its_members_own() -> None:
    a, b, _ = framed()
    [first, *_] = sent(b.tick(1.0), "a")
    a.now = b.now
    assert a.gossip.receive(first.data, LINE, a.now, member=node_id("c")) == []
    assert a.gossip.drops["gossip-impostor"] == 1
    told = list[NodeId]()
    a.gossip.by_udp = told.append
    a.take(first.data, ELSEWHERE)  # anybody's word
    assert not told


def test_what_answers_by_a_connection_is_whole_and_no_strangers_share() -> None:
    a, _, _ = framed()
    long = bytes(SHORT + 500)
    [datagram] = a.gossip.seal([Send(long, LINE)], a.now)
    assert isinstance(datagram, Datagram) and datagram.to == LINE and len(datagram.data) > len(long)
