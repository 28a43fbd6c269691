# SPDX-License-Identifier: GPL-3.0-or-later
"""Which paths VELOCITY leaves, when it takes them back, and which flows it has dealt."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.agents import actions
from phantommesh.agents.actions import Deal, Weigh
from phantommesh.agents.base import Observation, Proposal
from phantommesh.agents.council import Council
from phantommesh.agents.velocity import BUSY_EVERY, IDLE_EVERY, OWN_PAUSE, Nominee, PeerSeen, Seen, Velocity
from phantommesh.config.agents import VelocitySection
from phantommesh.node.steps import Moment
from phantommesh.paths.quickest import Candidate

GOOD = Candidate(True, rtt=0.02, least=0.019)
LATE = Candidate(True, rtt=0.09, least=0.1, rose=0.08)
LOSSY = Candidate(True, rtt=0.02, least=0.019, loss=0.06, lossy=True, doubted=True)


def peer(*paths: Candidate, in_order: bool = True, **other: object) -> PeerSeen:
    filled = (*paths, *(GOOD,) * (7 - len(paths)))
    return replace(PeerSeen("peer", in_order, 50_000.0, filled), **other)  # type: ignore[arg-type]


def look(agent: Velocity, now: float, *peers: PeerSeen) -> list[Proposal]:
    return list(agent.observe(Observation(Moment(now, now), Seen(peers))))


def left(proposals: list[Proposal]) -> list[int]:
    found = [one.action for one in proposals if isinstance(one.action, Weigh)]
    return [action.dimension for action in found if not action.factor]


def test_a_lossy_path_is_left_with_evidence_and_what_is_expected() -> None:
    agent = Velocity()
    (one,) = look(agent, 0.0, peer(LOSSY))
    assert one.action == Weigh(peer="peer", dimension=0, factor=0.0) and str(one.subject) == "path peer/0"
    assert one.evidence and one.expects is not None and one.expects.what == "lossy_paths"
    assert agent.measure(Seen((peer(LOSSY),)), one) == 0.0
    assert agent.measure(Seen((peer(LOSSY, LOSSY),)), one) == 1.0


def test_a_late_path_is_left_where_order_is_kept_and_nowhere_else() -> None:
    assert left(look(Velocity(), 0.0, peer(LATE))) == [0]
    assert left(look(Velocity(), 0.0, peer(LATE, in_order=False))) == []
    assert left(look(Velocity(), 0.0, peer(replace(LATE, rose=0.03)))) == []
    assert left(look(Velocity(), 0.0, peer(*[LATE] * 7))) == [], "none of the others is better"


def test_a_path_is_taken_back_when_it_was_sound_for_long_enough_and_later_each_time() -> None:
    agent, now = Velocity(), 0.0
    for hold in (5.0, 10.0, 20.0):
        assert left(look(agent, now, peer(LOSSY))) == [0]
        now += 4.0
        assert left(look(agent, now, peer())) == [0], "it has to be sound for a while"
        assert left(look(agent, now + hold - 0.1, peer())) == [0]
        assert left(look(agent, now + hold, peer())) == []
        now += hold + Weigh.rests


def test_doubt_and_lateness_put_the_return_off() -> None:
    agent = Velocity()
    look(agent, 0.0, peer(LATE))
    for second in range(5, 60, 5):
        assert left(look(agent, float(second), peer(replace(LATE, rose=0.0)))) == [0], "late as before"
    assert left(look(agent, 60.0, peer())) == [0]
    assert left(look(agent, 64.0, peer(replace(GOOD, doubted=True)))) == [0]
    assert left(look(agent, 66.0, peer())) == [0]
    assert left(look(agent, 71.0, peer())) == []


def test_a_path_late_by_its_own_traffic_is_taken_back_at_once_and_lateness_waits() -> None:
    agent = Velocity()
    assert left(look(agent, 0.0, peer(LATE))) == [0]
    assert left(look(agent, 1.0, peer())) == []
    assert left(look(agent, 2.0, peer(LATE))) == [] == left(look(agent, 3.0, peer(GOOD, LATE)))
    assert left(look(agent, 4.0, peer(GOOD, LOSSY))) == [1], "loss is another matter"
    assert left(look(agent, 2.0 + OWN_PAUSE, peer(LATE, LOSSY))) == [1, 0]


def test_no_more_paths_are_left_than_may_be_and_never_the_last_sound_one() -> None:
    assert len(left(look(Velocity(), 0.0, peer(*[LOSSY] * 6)))) == VelocitySection().most_left
    assert left(look(Velocity(), 0.0, peer(*[LOSSY] * 7))) == []
    none = Velocity(VelocitySection(most_left=0))
    assert left(look(none, 0.0, peer(LOSSY))) == []


def test_what_the_splitter_names_is_dealt_and_renewed_while_it_is() -> None:
    agent = Velocity()
    (one,) = look(agent, 0.0, peer(nominee=Nominee(17, 1e6, 3, 0.1, 0.0)))
    assert one.action == Deal(flow="17", peer="peer", dealt=True) and str(one.subject) == "flow peer/17"
    assert one.expects is not None and one.expects.value == 1.1 * 50_000
    assert agent.measure(Seen((peer(rate=60_000.0),)), one) == 60_000.0
    (again,) = look(agent, 0.5, peer(dealt=frozenset({17})))
    assert again.action == one.action and again.until > one.until
    assert look(agent, 1.0, peer()) == []


def test_a_peer_that_is_gone_is_forgotten_and_cannot_be_measured() -> None:
    agent = Velocity()
    (one,) = look(agent, 0.0, peer(LOSSY))
    assert agent.every == BUSY_EVERY
    assert look(agent, 1.0) == [] and agent.left("peer") == frozenset() and agent.every == IDLE_EVERY
    assert agent.measure(Seen(), one) is None


times = st.floats(0.0, 1.0, allow_nan=False)
candidates = st.builds(
    Candidate,
    st.booleans(), st.none() | times, times, times, st.none() | times, times, st.booleans(), st.booleans(),
    st.booleans(),
)  # fmt: skip


@given(st.lists(st.tuples(st.floats(0.01, 100.0), st.lists(candidates, min_size=7, max_size=7)), max_size=20))
def test_whatever_is_seen_proposals_are_admissible_and_a_sound_path_stays(
    looks: list[tuple[float, list[Candidate]]],
) -> None:
    agent, now = Velocity(), 0.0
    for passed, paths in looks:
        now += passed
        before = agent.left("peer")
        found = look(agent, now, peer(*paths))
        fresh = set(left(found)) - before
        assert len(left(found)) <= VelocitySection().most_left
        assert all(one.evidence and one.until > now and not actions.check(one.action) for one in found)
        stays = [i for i, one in enumerate(paths) if i not in left(found) and one.usable and not one.lossy]
        assert not fresh or stays


def test_a_path_that_is_taken_back_is_free_before_another_is_left() -> None:
    """Found by `tests.simulation.council_sim`: four paths of a peer were left for some seconds."""
    agent, numbers = Velocity(VelocitySection(return_seconds=1.0)), itertools.count()
    council = Council([agent], trace=lambda: str(next(numbers)), now=0.0)
    gone = set[int]()
    for now, paths in ((0.0, (LOSSY,) * 3), (1.0, (GOOD,)), (2.5, (GOOD, GOOD, GOOD, LOSSY, LOSSY, LOSSY))):
        at = Moment(now, now)
        minutes = council.looked(
            "velocity", council.look("velocity", Seen((peer(*paths),)), (), at)(), 0.0, at
        )
        for order in minutes.orders:
            assert isinstance(order.proposal.action, Weigh)
            (gone.discard if order.lift else gone.add)(order.proposal.action.dimension)
            assert len(gone) <= 3, now
    assert gone == {3, 4, 5}


def test_a_lossy_path_that_became_late_meanwhile_is_not_taken_back_to_be_left_again() -> None:
    """Found by `benchmarks.day`: it was taken back at the end of its loss, and left as late right after."""
    agent = Velocity()
    assert left(look(agent, 0.0, peer(LOSSY))) == [0]
    for now in (1.0, 10.0, 20.0):
        assert left(look(agent, now, peer(LATE))) == [0], "late"
        assert left(look(agent, now + 1.0, peer(replace(LATE, rose=0.03)))) == [0], "late still"
    assert left(look(agent, 30.0, peer())) == [0] and left(look(agent, 35.0, peer())) == []


def test_a_lossy_path_is_taken_back_late_where_that_is_no_reason_to_leave_it() -> None:
    for paths, in_order in (((LATE,), False), ((LATE,) * 7, True)):
        agent = Velocity()
        assert left(look(agent, 0.0, peer(LOSSY))) == [0]
        look(agent, 1.0, peer(*paths, in_order=in_order))
        assert left(look(agent, 6.0, peer(*paths, in_order=in_order))) == []


def test_what_ails_a_path_while_it_rests_after_its_return_is_no_reason_when_that_is_over() -> None:
    """Found by `benchmarks.day`: APEX refused for ten seconds, and then let go what was sound again."""
    agent = Velocity()
    assert left(look(agent, 0.0, peer(LOSSY))) == [0]
    assert left(look(agent, 1.0, peer())) == [0] and left(look(agent, 6.0, peer())) == []
    for now in (7.0, 15.9):
        assert left(look(agent, now, peer(LOSSY))) == []
    assert left(look(agent, 16.0, peer())) == [] and left(look(agent, 17.0, peer(LOSSY))) == [0]


def test_a_path_late_as_soon_as_traffic_is_back_is_late_by_that_traffic() -> None:
    agent = Velocity()
    assert left(look(agent, 0.0, peer(LOSSY))) == [0]
    assert left(look(agent, 1.0, peer())) == [0] and left(look(agent, 6.0, peer())) == []
    for now in (6.5, 20.0, 6.4 + OWN_PAUSE):
        assert left(look(agent, now, peer(LATE))) == [], now
    assert left(look(agent, 6.5 + OWN_PAUSE, peer(LATE))) == [0]
    other = Velocity()
    assert left(look(other, 0.0, peer(LOSSY))) == [0]
    assert left(look(other, 1.0, peer())) == [0] and left(look(other, 6.0, peer())) == []
    assert left(look(other, 16.0, peer(LATE))) == [0], "late a while after that, it is the path's"
