# SPDX-License-Identifier: GPL-3.0-or-later
"""OMNISCIENT's policy: what is wedged and what is merely late, and findings that do not flicker."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.agents.actions import Raise, Restart, check
from phantommesh.agents.base import Observation, Proposal
from phantommesh.agents.omniscient import (
    CALM,
    DISK,
    ENDS,
    GRACE,
    JUMP,
    JUMP_TOLD,
    LAG,
    LONGEST_REST,
    OFTEN,
    SLOW_LOOKS,
    STANDS,
    WITHIN,
    Member,
    Omniscient,
    Seen,
    Service,
    Vitals,
)
from phantommesh.node.steps import Moment

WELL = Vitals(lag=0.0, tasks=50, memory=80 * 2**20, descriptors=50, limit=1024, free=10 * DISK)


class Run:
    """The agent, looking once a second."""

    def __init__(self) -> None:
        self.agent, self.now = Omniscient(), 100.0
        self.look(Seen((), WELL))

    def look(self, seen: Seen, after: float = 1.0) -> list[Proposal]:
        self.now += after
        return list(self.agent.observe(Observation(Moment(self.now, 1e9 + self.now), seen)))

    def service(self, due: float, **more: float) -> Seen:
        return Seen((Service("gossip", due, **more),), WELL)  # type: ignore[arg-type]


def rules(proposals: list[Proposal]) -> set[str]:
    return {one.action.rule for one in proposals if isinstance(one.action, Raise)}


def restarted(proposals: list[Proposal]) -> list[str]:
    return [one.action.service for one in proposals if isinstance(one.action, Restart)]


def test_a_service_overdue_by_the_grace_is_restarted_and_one_that_is_less_late_is_not() -> None:
    run = Run()
    assert not run.look(run.service(run.now + 1.0 - GRACE))
    assert restarted(run.look(run.service(run.now + 0.9 - GRACE))) == ["gossip"]
    assert not run.look(run.service(float("inf")))


def test_a_service_that_was_late_before_and_came_gets_more_time() -> None:
    run = Run()
    assert not run.look(run.service(run.now - 5.0, slowest=3.0))
    assert restarted(run.look(run.service(run.now - 9.0, slowest=3.0)))


@pytest.mark.parametrize(("after", "lag"), [(10.0, 0.0), (1.0, 5.0)])
def test_no_service_is_wedged_where_the_whole_process_was_held_up(after: float, lag: float) -> None:
    run = Run()
    seen = replace(run.service(run.now - 60.0), vitals=replace(WELL, lag=lag))
    assert not restarted(run.look(seen, after))
    assert restarted(run.look(run.service(run.now - 60.0)))  # it had its chance to turn


def test_restarts_that_do_not_help_come_ever_more_seldom_and_are_a_finding_that_stands() -> None:
    run, at, found = Run(), list[float](), list[set[str]]()
    for _ in range(3600):
        proposals = run.look(run.service(run.now - 60.0))
        at += [run.now] * len(restarted(proposals))
        found.append(rules(proposals))
    gaps = [b - a for a, b in pairwise(at)]
    assert gaps == [Restart.rests * 2.0**i + 1.0 for i in range(5)] + [LONGEST_REST + 1.0] * (len(gaps) - 5)
    assert len(at) == 10  # 116 an hour without the growing rest
    third = int(at[OFTEN - 1] - at[0])
    assert not any(found[:third]) and all(one == {"service-wedged"} for one in found[third:])
    assert "gossip is wedged: it was restarted 10 times" in run.look(run.service(run.now - 60.0))[0].why


def test_a_service_that_was_well_for_ten_minutes_begins_anew() -> None:
    run = Run()
    looks = [run.look(run.service(run.now - 60.0)) for _ in range(100)]
    assert rules(looks[-1]) == {"service-wedged"}
    found = [rules(run.look(run.service(run.now + 1.0))) for _ in range(int(WITHIN) + 1)]
    assert found[:-1] == [{"service-wedged"}] * int(WITHIN) and not found[-1]
    assert restarted(run.look(run.service(run.now - 60.0)))
    again = [restarted(run.look(run.service(run.now - 60.0))) for _ in range(31)]
    assert again == [[]] * 30 + [["gossip"]]


def test_a_service_that_does_not_end_is_a_finding_and_is_not_restarted_again() -> None:
    run = Run()
    began = run.now
    for _ in range(int(ENDS)):
        assert not run.look(run.service(began - 60.0, ending=began))
    found = run.look(run.service(began - 60.0, ending=began))
    assert rules(found) == {"service-wedged"} and not restarted(found)


@pytest.mark.parametrize(
    ("rule", "wrong", "between"),
    [
        ("memory-high", {"memory": 600 * 2**20}, {"memory": 500 * 2**20}),
        ("descriptors-high", {"descriptors": 900}, {"descriptors": 700}),
        ("tasks-many", {"tasks": 6000}, {"tasks": 4500}),
        ("disk-low", {"free": DISK // 2}, {"free": DISK + DISK // 10}),
    ],
)
def test_a_finding_comes_at_its_bound_and_goes_when_all_was_well_for_a_while(
    rule: str, wrong: dict[str, int], between: dict[str, int]
) -> None:
    run = Run()

    def look(values: dict[str, int]) -> set[str]:
        return rules(run.look(Seen((), replace(WELL, **values))))

    assert look(between) == set()
    assert look(wrong) == {rule}
    for _ in range(60):
        assert look(between) == {rule}  # within the bound, and not well yet
    for _ in range(int(CALM)):
        assert look({}) == {rule}
    assert look({}) == set()


def test_a_lag_counts_when_it_comes_again_and_again() -> None:
    run = Run()
    slow = Seen((), replace(WELL, lag=2 * LAG))
    assert not rules(run.look(slow))
    run.look(Seen((), WELL))
    found = [rules(run.look(slow)) for _ in range(SLOW_LOOKS)]
    assert found == [set(), set(), {"loop-slow"}]


def test_a_lag_is_told_by_the_looks_that_it_rests_on_and_not_by_the_last_one() -> None:
    run = Run()

    def look(lag: float) -> Proposal | None:
        return next(iter(run.look(Seen((), replace(WELL, lag=lag)))), None)

    looks = [look(lag) for lag in (2 * LAG, 4 * LAG, 3 * LAG, 0.01)]
    for told in looks[SLOW_LOOKS - 1 :]:
        assert told is not None and f"by up to {4 * LAG:.2f} s" in told.why
        assert told.evidence[0].value == 4 * LAG
    while look(0.0) is not None:
        pass
    # Another time, which has nothing to do with the first.
    told = [look(2 * LAG) for _ in range(SLOW_LOOKS)][-1]
    assert told is not None and told.evidence[0].value == 2 * LAG


def test_a_jump_of_the_clock_is_told_for_a_while() -> None:
    run = Run()
    assert not rules(run.look(Seen((), replace(WELL, jump=JUMP / 2))))
    assert rules(run.look(Seen((), replace(WELL, jump=-3600.0)))) == {"clock-jumped"}
    assert rules(run.look(Seen((), WELL), JUMP_TOLD - 1.0)) == {"clock-jumped"}
    assert not rules(run.look(Seen((), WELL), 2.0))


def test_the_mesh_is_degraded_when_a_third_of_it_is_and_nodes_that_drain_do_not_count() -> None:
    run = Run()

    def look(gone: int, ill: int, drained: int) -> set[str]:
        members = [Member(f"g{i}", False, 0, False) for i in range(gone)]
        members += [Member(f"i{i}", True, 1, False) for i in range(ill)]
        members += [Member(f"d{i}", False, 2, True) for i in range(drained)]
        members += [Member(f"w{i}", True, 0, False) for i in range(9 - len(members))]
        return rules(run.look(Seen((), WELL, tuple(members))))

    assert look(1, 1, 5) == set()
    assert look(2, 1, 0) == {"mesh-degraded"}


@given(
    st.lists(
        st.builds(
            Vitals,
            lag=st.floats(0, 10),
            tasks=st.integers(0, 10_000),
            jump=st.floats(-1e6, 1e6),
            memory=st.none() | st.integers(0, 2**40),
            descriptors=st.none() | st.integers(0, 10**6),
            limit=st.none() | st.integers(0, 10**6),
            free=st.none() | st.integers(0, 2**50),
        ),
        max_size=20,
    ),
    st.floats(0, 5),
)
def test_whatever_is_seen_each_proposal_is_admissible(vitals: list[Vitals], after: float) -> None:
    run = Run()
    for one in vitals:
        for proposal in run.look(replace(run.service(run.now - 3.0), vitals=one), after):
            assert check(proposal.action) == ""
            assert proposal.evidence and run.now < proposal.until <= run.now + STANDS
