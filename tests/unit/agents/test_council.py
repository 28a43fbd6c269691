# SPDX-License-Identifier: GPL-3.0-or-later
"""The council under attack by its agents: what they do wrong is theirs, and what is done is what stands."""

from collections.abc import Callable, Iterable
from itertools import count, repeat
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from phantommesh.agents import actions, council
from phantommesh.agents.actions import Action, Ban, Cover, Quarantine, Raise, Rotate, Weigh
from phantommesh.agents.base import Agent, AgentName, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.agents.council import Council, Minutes
from phantommesh.node.steps import Moment

PEER = Subject("peer", "a")


class Scripted(Agent[None]):
    """Returns what the test says."""

    every = 1.0

    def __init__(self, name: AgentName) -> None:
        self.name = name  # type: ignore[misc]
        self.says: Callable[[Observation[None]], Iterable[Any]] = lambda seen: []
        self.value: float | None = 1.0
        self.outcomes: list[object] = []

    def observe(self, observation: Observation[None]) -> Iterable[Proposal]:
        self.outcomes += observation.outcomes
        return self.says(observation)

    def measure(self, seen: None, proposal: Proposal) -> float | None:
        return self.value


class Bench:
    """A council of scripted agents, and its clock."""

    def __init__(self, *names: AgentName) -> None:
        traces = count(1)
        self.agents = {name: Scripted(name) for name in names}
        self.council = Council(self.agents.values(), trace=lambda: f"t{next(traces)}", now=0.0)
        self.now = 0.0

    def look(self, name: AgentName, *says: Any, seconds: float = 0.001) -> Minutes:
        self.agents[name].says = lambda seen: says
        at = Moment(self.now, 1e9 + self.now)
        made = self.council.look(name, None, (), at)()
        return self.council.looked(name, made, seconds, at)

    def said(self, minutes: Minutes) -> list[str]:
        return [one.verdict.reason for one in minutes.decisions]


def proposal(agent: AgentName, action: Action, subject: Subject = PEER, **changes: Any) -> Proposal:
    whole: dict[str, Any] = {"evidence": (Evidence("what", 2.0, 1.0),), "expects": None, "until": 500.0}
    return Proposal(agent=agent, subject=subject, action=action, why="so", **(whole | changes))


def raised(name: str, agent: AgentName = "stream", **changes: Any) -> Proposal:
    return proposal(agent, Raise(name, "low", "text", "fix"), Subject("rule", name), **changes)


SOON = Expectation("what", "at_most", 1.0, 2.0)


def test_an_effect_is_measured_when_its_time_has_come_and_the_agent_hears_of_it() -> None:
    bench = Bench("cipher")
    (order,) = bench.look("cipher", proposal("cipher", Rotate("a"), expects=SOON)).orders
    bench.now = 1.0
    assert bench.look("cipher").outcomes == []
    bench.now = 2.0
    (outcome,) = bench.look("cipher").outcomes
    assert (outcome.trace, outcome.measured, outcome.met) == (order.trace, 1.0, True)
    bench.look("cipher")
    assert bench.agents["cipher"].outcomes == [outcome]


@pytest.mark.parametrize(("value", "met"), [(1.5, False), (None, None), (float("nan"), None)])
def test_an_effect_that_did_not_come_or_cannot_be_read_is_not_called_met(
    value: float | None, met: bool | None
) -> None:
    bench = Bench("cipher")
    bench.agents["cipher"].value = value
    bench.look("cipher", proposal("cipher", Rotate("a"), expects=SOON))
    bench.now = 3.0
    (outcome,) = bench.look("cipher").outcomes
    assert outcome.met is met


def test_a_measure_that_comes_far_too_late_says_nothing() -> None:
    bench = Bench("cipher")
    bench.look("cipher", proposal("cipher", Rotate("a"), expects=SOON))
    bench.council.pause("cipher", 1.0)
    bench.now = 2.0 + council.LATE
    bench.council.resume("cipher", bench.now)
    (outcome,) = bench.look("cipher").outcomes
    assert (outcome.met, outcome.measured) == (None, None)
    assert outcome.error.startswith("not measured")


def test_what_was_looked_at_before_a_pause_is_not_done_after() -> None:
    bench = Bench("cipher")
    agent, at = bench.agents["cipher"], Moment(0.0, 0.0)
    agent.says = lambda seen: [proposal("cipher", Rotate("a"))]
    made = bench.council.look("cipher", None, (), at)()
    bench.council.pause("cipher", 0.0)
    minutes = bench.council.looked("cipher", made, 0.001, at)
    assert (minutes.orders, bench.said(minutes)) == ([], ["paused"])


def test_what_failed_has_an_outcome_does_not_stand_and_is_tried_again() -> None:
    bench = Bench("fortress")
    ban = proposal("fortress", Ban("192.0.2.1", 60.0), Subject("address", "192.0.2.1"), expects=SOON)
    (order,) = bench.look("fortress", ban).orders
    (outcome,) = bench.council.carried(order.trace, "no room").outcomes
    assert (outcome.trace, outcome.error) == (order.trace, "no room")
    assert list(bench.council.apex.standing()) == []
    bench.now = 20.0
    minutes = bench.look("fortress", ban)
    assert (bench.said(minutes), minutes.outcomes) == (["accepted"], [])
    assert bench.council.carried(order.trace, "again").outcomes == []


def test_a_dry_run_says_what_would_become_of_a_proposal_and_does_nothing() -> None:
    bench = Bench("fortress", "cipher", "phantom")
    bench.look("cipher", proposal("cipher", Quarantine("a", 60.0)))
    bench.council.resume("phantom", 0.0, dry_run=True)
    bench.council.resume("fortress", 0.0, dry_run=True)
    held = bench.look("phantom", proposal("phantom", Cover("a", 5.0)))
    assert [(one.verdict.reason, one.verdict.by) for one in held.decisions] == [("held", "cipher")]
    assert bench.said(bench.look("fortress", raised("r", "fortress"))) == ["dry-run"]
    wide = proposal("fortress", Ban("0.0.0.0/0", 60.0), Subject("address", "0.0.0.0/0"))
    assert bench.said(bench.look("fortress", wide)) == ["out-of-bounds"]
    assert [one.proposal.agent for one in bench.council.apex.standing()] == ["cipher"]


def test_failures_without_end_only_bench_the_agent() -> None:
    bench = Bench("cipher")
    for _ in range(1200):  # 2 ** 1200 is no float
        bench.council.failed("cipher", "it raised", bench.now)
        assert bench.council.due("cipher", bench.now) <= bench.now + council.LONGEST_BENCH
    bench.now += council.LONGEST_BENCH
    assert bench.council.looks("cipher", bench.now)


BIG = Evidence("x" * council.MOST_OF_ONE, 1.0)


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        "ban everybody",
        msgspec.structs.replace(raised("r"), until="soon"),
        msgspec.structs.replace(raised("r"), agent="root"),
        msgspec.structs.replace(raised("r"), evidence=(BIG,)),
        msgspec.structs.replace(raised("r"), subject=None),
        msgspec.structs.replace(raised("r"), action=object()),
    ],
)
def test_nonsense_is_an_error_of_the_agents_own_look(nonsense: Any) -> None:
    bench = Bench("stream")
    bench.agents["stream"].says = lambda seen: [nonsense]
    with pytest.raises((TypeError, ValueError)):
        bench.council.look("stream", None, (), Moment(0.0, 0.0))()


def test_a_flood_anothers_name_and_a_slow_look_bench_and_order_nothing() -> None:
    for says, seconds in (
        (repeat(raised("r")), 0.001),
        ([raised("r", "fortress")], 0.001),
        ([raised("r")], council.BUDGET + 0.01),
    ):
        bench = Bench("stream")
        bench.agents["stream"].says = lambda seen, says=says: says  # type: ignore[misc]
        made = bench.council.look("stream", None, (), Moment(0.0, 0.0))()
        minutes = bench.council.looked("stream", made, seconds, Moment(0.0, 0.0))
        assert bench.council.seats["stream"].phase == "benched"
        assert (minutes.orders, minutes.decisions) == ([], [])


def test_the_outcomes_and_decisions_of_one_agent_are_not_lost_in_anothers_flood() -> None:
    bench = Bench("cipher", "stream")
    bench.look("cipher", proposal("cipher", Rotate("a"), expects=Expectation("what", "at_most", 1.0, 1000.0)))
    recorded = 0
    for n in range(300):
        bench.now = float(n)
        never = Expectation("what", "at_most", 1.0, 1e6)
        flood = [raised(f"{n} {i}", until=n + 0.5, expects=never) for i in range(30)]
        recorded += len(bench.look("stream", *flood).decisions)
    seat = bench.council.seats["stream"]
    assert len(seat.pending) == council.MOST_PENDING
    assert len(seat.refusals) <= council.MOST_REFUSALS
    assert recorded <= 2 * 64 + 2.5 * 300
    assert any(one.verdict.proposal.agent == "cipher" for one in bench.council.decisions)
    bench.now = 1000.0
    (outcome,) = bench.look("cipher").outcomes
    assert outcome.met is True


def test_a_refusal_that_keeps_coming_back_is_recorded_once_a_minute_with_its_number() -> None:
    bench = Bench("stream")
    empty = raised("r", evidence=())
    told = []
    for n in range(121):
        bench.now = float(n)
        told += [one.times for one in bench.look("stream", empty).decisions]
    assert told == [1, 60, 60]


def test_what_has_expired_is_lifted_before_anything_is_judged() -> None:
    """Else it would depend on whether the lifting or the look comes first if an agent rests."""
    bench = Bench("phantom")
    bench.look("phantom", proposal("phantom", Cover("a", 1.0), until=5.0))
    bench.now = 6.0
    minutes = bench.look("phantom", proposal("phantom", Cover("a", 2.0)))
    assert [one.lift for one in minutes.orders] == [True]
    assert bench.said(minutes) == ["cooling-down"]


# --- what is ordered is what stands ---

NAMES: tuple[AgentName, ...] = ("cipher", "phantom", "velocity", "stream")
PATH = Subject("path", "a/1")
CHOICE: list[tuple[AgentName, Action, Subject]] = [
    ("cipher", Quarantine("a", 60.0), PEER),
    ("cipher", Quarantine("a", 90.0), PEER),
    ("cipher", Rotate("a"), PEER),
    ("phantom", Cover("a", 1.0), PEER),
    ("phantom", Weigh("a", 1, 0.5), PATH),
    ("velocity", Weigh("a", 1, 0.0), PATH),
    ("stream", Raise("r", "low", "text", "fix"), Subject("rule", "r")),
]
OF_OPERATOR: list[tuple[Action, Subject]] = [
    (Rotate("a"), PEER),
    (Quarantine("a", 5.0), PEER),
    (Weigh("a", 1, 2.0), PATH),
]


class World(RuleBasedStateMachine):
    """A host that does what is ordered, or fails at it. What it has is what the council thinks stands."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(*NAMES)
        self.done: dict[Subject, Action] = {}

    def carry(self, minutes: Minutes, *, fails: bool = False) -> None:
        for order in minutes.orders:
            wanted = order.proposal
            if order.lift:
                assert self.done.pop(wanted.subject) == wanted.action
                continue
            if fails:
                after = self.bench.council.carried(order.trace, "broken")
                assert after.outcomes
                for lift in after.orders:  # what was to be replaced may be there still
                    self.done.pop(lift.proposal.subject, None)
            else:
                assert not self.bench.council.carried(order.trace).outcomes
                if isinstance(wanted.action, actions.LASTING):
                    self.done[wanted.subject] = wanted.action

    @rule(
        picks=st.lists(st.tuples(st.integers(0, len(CHOICE) - 1), st.sampled_from([3.0, 50.0, 700.0]))),
        fails=st.booleans(),
    )
    def look(self, picks: list[tuple[int, float]], fails: bool) -> None:
        for name in NAMES:
            wanted = [
                proposal(name, CHOICE[n][1], CHOICE[n][2], until=self.bench.now + stands)
                for n, stands in picks
                if CHOICE[n][0] == name
            ]
            if self.bench.council.looks(name, self.bench.now):
                self.carry(self.bench.look(name, *wanted), fails=fails)

    @rule(pick=st.sampled_from(OF_OPERATOR), fails=st.booleans())
    def operate(self, pick: tuple[Action, Subject], fails: bool) -> None:
        wanted = proposal("operator", *pick, until=self.bench.now + 20.0)
        minutes = self.bench.council.operate(wanted, Moment(self.bench.now, 0.0))
        assert self.bench.said(minutes) in (["accepted"], [])  # or it stands already
        self.carry(minutes, fails=fails)

    @rule(seconds=st.sampled_from([0.1, 4.0, 30.0, 100.0, 650.0]), lapses=st.booleans())
    def wait(self, seconds: float, lapses: bool) -> None:
        self.bench.now += seconds
        if lapses:
            self.carry(Minutes(orders=self.bench.council.lapse(self.bench.now)))

    @rule(name=st.sampled_from(NAMES), dry=st.booleans())
    def resume(self, name: AgentName, dry: bool) -> None:
        self.carry(Minutes(orders=self.bench.council.resume(name, self.bench.now, dry_run=dry)))

    @rule(name=st.sampled_from(NAMES))
    def pause(self, name: AgentName) -> None:
        self.carry(Minutes(orders=self.bench.council.pause(name, self.bench.now)))
        assert all(one.proposal.agent != name for one in self.bench.council.apex.standing())

    @rule(name=st.sampled_from(NAMES))
    def fail(self, name: AgentName) -> None:
        self.bench.council.failed(name, "it raised", self.bench.now)

    @invariant()
    def what_was_done_is_what_stands(self) -> None:
        standing = {one.proposal.subject: one.proposal.action for one in self.bench.council.apex.standing()}
        assert standing == self.done
        assert self.bench.council._traces.keys() == standing.keys()
        assert not self.bench.council._carrying


World.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestWorld = World.TestCase
