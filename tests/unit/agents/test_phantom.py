# SPDX-License-Identifier: GPL-3.0-or-later
"""PHANTOM's policy: nothing unless asked for, whom it covers and for how long, hops, and the finding."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.agents import actions
from phantommesh.agents.actions import Cover, Raise, ReplaceKey
from phantommesh.agents.apex import Apex
from phantommesh.agents.base import Observation, Proposal
from phantommesh.agents.phantom import (
    ACTIVE,
    CLEARS,
    HOP_APART,
    IDLE_EVERY,
    LINGERS,
    MOST_PEERS,
    ONE_UPLINK,
    PeerSeen,
    Phantom,
    Seen,
)
from phantommesh.config.agents import PhantomSection
from phantommesh.node.steps import Moment

RATE = 20_000.0
ASKED = PhantomSection(cover_bytes_per_second=RATE, cover_peer_bytes_per_second=8_000.0)
BUSY = PeerSeen("a", private=True, rate=ACTIVE, hosts=3)


def look(agent: Phantom, now: float, *peers: PeerSeen, ages: tuple[float | None, ...] = ()) -> list[Proposal]:
    return list(agent.observe(Observation(Moment(now, now), Seen(peers, ages))))


def covers(found: list[Proposal]) -> dict[str, float]:
    return {one.action.peer: one.action.bytes_per_s for one in found if isinstance(one.action, Cover)}


def test_nothing_is_done_unless_an_operator_asks() -> None:
    agent = Phantom()
    assert look(agent, 0.0, BUSY, ages=(1e9,) * 7) == []
    assert agent.every == IDLE_EVERY


def test_a_private_peer_is_covered_while_it_has_traffic_and_a_little_longer() -> None:
    agent = Phantom(ASKED)
    quiet = replace(BUSY, rate=0.0)
    assert covers(look(agent, 0.0, quiet)) == {}
    (found,) = look(agent, 1.0, BUSY)
    assert found.action == Cover("a", 8_000.0) and agent.holds(Seen((BUSY,)), found)
    assert covers(look(agent, LINGERS, quiet)) == {"a": 8_000.0}
    assert covers(look(agent, LINGERS + 1.0, quiet)) == {}
    assert not agent.holds(Seen((quiet,)), found)


def test_a_peer_that_has_gone_is_covered_no_more() -> None:
    agent = Phantom(ASKED)
    assert covers(look(agent, 0.0, BUSY))
    assert look(agent, 1.0) == []


def test_the_rate_does_not_follow_the_traffic() -> None:
    agent = Phantom(ASKED)
    rates = {covers(look(agent, now, replace(BUSY, rate=ACTIVE * 10**now)))["a"] for now in range(6)}
    assert rates == {8_000.0}


@pytest.mark.parametrize(("whom", "wanted"), [("private", {"a"}), ("all", {"a", "b"})])
def test_who_is_covered(whom: str, wanted: set[str]) -> None:
    agent = Phantom(msgspec.structs.replace(ASKED, cover_peers=whom))
    assert covers(look(agent, 0.0, BUSY, PeerSeen("b", private=False, rate=1e6))).keys() == wanted


def test_the_busiest_are_covered_where_there_are_many_and_stay_so() -> None:
    agent = Phantom(ASKED)
    many = [PeerSeen(f"{i:02}", private=True, rate=ACTIVE + i) for i in range(2 * MOST_PEERS)]
    first = covers(look(agent, 0.0, *many)).keys()
    assert first == {one.node_id for one in many[MOST_PEERS:]}
    turned = [replace(one, rate=1e6 - one.rate) for one in many]
    assert covers(look(agent, 1.0, *turned)).keys() == first


@given(
    st.builds(
        PhantomSection,
        cover_bytes_per_second=st.floats(0, 1e6),
        cover_peer_bytes_per_second=st.floats(1000, 125_000),
        cover_peers=st.sampled_from(["private", "all"]),
        hop_hours=st.floats(0, 8760),
    ),
    st.lists(
        st.builds(PeerSeen, st.sampled_from("abcdef"), st.booleans(), st.floats(0, 1e9), st.integers(0, 7)),
        max_size=6,
        unique_by=lambda one: one.node_id,
    ),
    st.lists(st.none() | st.floats(0, 1e9), max_size=7),
)
def test_whatever_it_sees_it_proposes_nothing_out_of_bounds(
    settings: PhantomSection, peers: list[PeerSeen], ages: list[float | None]
) -> None:
    agent, judge = Phantom(settings), Apex()
    for now in (0.0, 20.0, 700.0):
        found = look(agent, now, *peers, ages=tuple(ages))
        assert {one.verdict.reason for one in judge.judge(found, now)} <= {"accepted", "renewed"}
        for one in found:
            assert actions.check(one.action) == ""
            if isinstance(one.action, Cover):
                assert one.action.bytes_per_s <= settings.cover_bytes_per_second
        judge.lapse(now + 5.0)


def test_the_outcome_is_the_cover_that_was_sent() -> None:
    agent = Phantom(ASKED)
    (found,) = look(agent, 0.0, BUSY)
    assert found.expects is not None
    assert not found.expects.met(agent.measure(Seen((BUSY,)), found) or 0.0)
    sent = agent.measure(Seen((replace(BUSY, cover=100_000),)), found)
    assert sent is not None and found.expects.met(sent)
    assert agent.measure(Seen(), found) is None


def test_a_dimension_hops_when_its_key_is_old_one_at_a_time() -> None:
    agent = Phantom(PhantomSection(hop_hours=1.0))
    (found,) = look(agent, 0.0, ages=(3601.0, None, 9000.0, 1000.0))
    assert found.action == ReplaceKey(2)
    assert look(agent, HOP_APART - 1.0, ages=(4200.0, None, 9600.0, 1600.0)) == [], "also where it failed"
    (found,) = look(agent, HOP_APART, ages=(4200.0, None, HOP_APART, 1600.0))
    assert found.action == ReplaceKey(0) and agent.measure(Seen(key_ages=(7.0,)), found) == 7.0


def test_a_dimension_does_not_hop_soon_after_another_whatever_replaced_that_and_before_a_restart() -> None:
    """Found by `benchmarks.day`: a node that began anew forgot that it had just replaced another key."""
    fresh = Phantom(PhantomSection(hop_hours=1.0))
    assert look(fresh, 0.0, ages=(4200.0, HOP_APART - 1.0)) == []
    (found,) = look(fresh, 1.0, ages=(4201.0, HOP_APART))
    assert found.action == ReplaceKey(0)


def test_private_traffic_to_one_host_is_told() -> None:
    agent = Phantom()
    exposed = PeerSeen("a", private=True, hosts=1)
    (found,) = look(agent, 0.0, exposed, PeerSeen("b", private=False, hosts=1), replace(exposed, hosts=0))
    assert isinstance(found.action, Raise) and found.action.rule == ONE_UPLINK
    assert " 1 of this node's peers" in found.action.text
    assert agent.holds(Seen((exposed,)), found)


def test_the_finding_stands_while_a_peer_moves_and_goes_a_while_after() -> None:
    """Found by `benchmarks.day`: a peer that moved had two hosts for a minute, and the finding flapped."""
    agent, exposed = Phantom(), PeerSeen("a", private=True, hosts=1)
    (found,) = look(agent, 0.0, exposed)
    (again,) = look(agent, CLEARS - 1.0, replace(exposed, hosts=2))
    assert again.action == found.action and agent.holds(Seen(), found)
    assert look(agent, CLEARS, replace(exposed, hosts=2)) == [] and not agent.holds(Seen(), found)
