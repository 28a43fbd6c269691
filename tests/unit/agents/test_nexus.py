# SPDX-License-Identifier: GPL-3.0-or-later
"""NEXUS's policy: when a node drains by itself, and what does not agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.agents.actions import Drain, Raise, check
from phantommesh.agents.base import Observation, Proposal
from phantommesh.agents.nexus import DRIFT, EVERY, FEWEST, READY, UNREADY, Member, Nexus, Seen
from phantommesh.config.agents import NexusSection
from phantommesh.config.sections import Config, NodeSection, PathsSection
from phantommesh.node.policy import AGREED, differing, policy
from phantommesh.node.steps import Moment

Said = Literal["", "operator", "nexus"]
SAID: tuple[Said, ...] = ("", "operator", "nexus")

WELL = Seen(region="eu", version="1.0", ready=True)
OURS = tuple(range(len(AGREED)))


def member(name: str, **more: object) -> Member:
    fields: dict[str, object] = {
        "region": "eu", "version": "1.0", "draining": False, "answers": True, "policy": OURS,
    }  # fmt: skip
    return Member(name=name, **(fields | more))  # type: ignore[arg-type]


class Run:
    """The agent at its pace."""

    def __init__(self, **section: object) -> None:
        self.agent, self.now = Nexus(NexusSection(**section)), 0.0  # type: ignore[arg-type]

    def look(self, seen: Seen, after: float = EVERY) -> list[Proposal]:
        self.now += after
        return list(self.agent.observe(Observation(Moment(self.now, 1e9), seen)))

    def drains(self, seen: Seen, after: float = EVERY) -> bool:
        return any(isinstance(one.action, Drain) for one in self.look(seen, after))

    def rules(self, seen: Seen, after: float = EVERY) -> set[str]:
        return {one.action.rule for one in self.look(seen, after) if isinstance(one.action, Raise)}


def test_a_node_that_is_not_ready_for_a_while_drains_until_it_was_ready_for_a_while() -> None:
    run, ill = Run(), replace(WELL, ready=False)
    assert not run.drains(WELL)
    assert [run.drains(ill) for _ in range(8)] == [False] * 6 + [True] * 2
    held = replace(ill, draining="nexus")
    assert run.drains(held)
    again = replace(WELL, draining="nexus")
    assert [run.drains(again) for _ in range(8)] == [True] * 6 + [False] * 2
    assert UNREADY == READY == 6 * EVERY


def test_it_does_not_drain_beside_another_of_the_region_nor_where_that_is_switched_off() -> None:
    ill = replace(WELL, ready=False)
    beside = replace(ill, members=(member("b", draining=True),))
    elsewhere = replace(ill, members=(member("b", draining=True, region="us"),))
    for seen, wanted in ((beside, False), (elsewhere, True)):
        run = Run()
        run.look(seen)
        assert run.drains(seen, 2 * UNREADY) is wanted
    run = Run(drain_unready=False)
    run.look(ill)
    assert not run.drains(ill, 2 * UNREADY)


def test_it_does_not_touch_what_the_operator_began() -> None:
    run, seen = Run(), replace(WELL, ready=False, draining="operator")
    run.look(seen)
    assert not run.drains(seen, 2 * UNREADY)


def test_what_the_operator_took_back_it_leaves_at_work_until_the_cause_comes_anew() -> None:
    run, ill = Run(), replace(WELL, ready=False)
    run.look(ill)
    (proposal,) = [one for one in run.look(ill, UNREADY) if isinstance(one.action, Drain)]
    assert run.agent.holds(replace(ill, draining="nexus"), proposal)
    back = run.now + 1.0
    taken = replace(ill, taken_back=back)
    assert not any(run.drains(taken) for _ in range(50))
    assert not run.agent.holds(taken, proposal)
    # A moment of readiness is not the end of the cause.
    well = replace(WELL, taken_back=back)
    assert not run.drains(well) and not run.drains(taken) and not run.drains(taken, 2 * UNREADY)
    assert not run.drains(well) and not run.drains(well, READY)
    assert not run.drains(taken) and run.drains(taken, UNREADY)
    assert run.agent.holds(taken, proposal)
    # Another word of the operator's counts as the first did.
    assert not run.drains(replace(taken, draining="nexus", taken_back=run.now))


def test_versions_may_differ_for_as_long_as_a_rollout_takes() -> None:
    run = Run(skew_hours=1.0)
    mixed = replace(WELL, members=(member("b", version="1.1"), member("c")))
    assert run.rules(mixed) == run.rules(mixed, 3500.0) == set()
    assert run.rules(mixed, 200.0) == {"version-skew"}
    gone = replace(WELL, members=(member("b", version="1.1", answers=False), member("c")))
    assert run.rules(gone) == set()
    assert run.rules(mixed) == set()  # it begins anew


def test_a_file_that_is_not_in_force_is_told_once_somebody_had_the_time_to_reload() -> None:
    run = Run()
    drift = replace(WELL, drift=("gossip.seeds",))
    assert run.rules(drift) == set()
    assert run.rules(drift, DRIFT) == {"config-drift"}
    assert run.rules(WELL) == set()
    broken = replace(WELL, unusable=True)
    run.look(broken)
    (found,) = run.look(broken, DRIFT)
    assert isinstance(found.action, Raise) and found.action.severity == "medium"


def test_a_setting_that_most_members_have_otherwise_is_named() -> None:
    other = (99, *OURS[1:])
    run = Run()

    def seen(same: int, differ: int) -> Seen:
        members = [member(f"s{i}") for i in range(same)] + [
            member(f"d{i}", policy=other) for i in range(differ)
        ]
        return replace(WELL, policy=OURS, members=tuple(members))

    assert run.rules(seen(0, FEWEST - 1)) == set()
    assert run.rules(seen(2, 2)) == set()
    (found,) = run.look(seen(1, 3))
    assert isinstance(found.action, Raise)
    assert found.action.rule == "policy-drift" and AGREED[0] in found.action.text
    silent = [member(f"x{i}", policy=()) for i in range(5)]
    assert run.rules(replace(WELL, policy=OURS, members=tuple(silent))) == set()


def test_two_that_drain_in_one_region_are_told() -> None:
    seen = replace(WELL, draining="operator", members=(member("b", draining=True),))
    assert Run().rules(seen) == {"two-draining"}
    assert Run().rules(replace(seen, region="us")) == set()


def test_what_a_record_says_of_settings_shows_which_differ_and_no_more() -> None:
    one = Config(NodeSection(name="a", mesh="m"))
    other = msgspec.structs.replace(one, paths=PathsSection(port=one.paths.port + 1))
    assert differing(policy(one), policy(other)) == ("paths.port",)
    assert differing(policy(one), policy(one)) == ()
    assert differing(policy(one), policy(one)[:2]) == differing((), policy(one)) == ()
    assert all(0 <= part < 2**16 for part in policy(one))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(SAID)), max_size=60))
def test_it_turns_at_most_once_within_its_patience(looks: list[tuple[bool, Said]]) -> None:
    """Whatever comes and goes, the record does not change with it."""
    run, turns = Run(), list[float]()
    drains = False
    for ready, said in looks:
        draining: Said = "nexus" if drains else said if said != "nexus" else ""
        now = run.look(replace(WELL, ready=ready, draining=draining))
        assert all(check(one.action) == "" and one.evidence for one in now)
        after = any(isinstance(one.action, Drain) for one in now)
        if after != drains:
            turns.append(run.now)
        drains = after
    assert all(b - a >= min(UNREADY, READY) for a, b in pairwise(turns))
