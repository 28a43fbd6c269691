# SPDX-License-Identifier: GPL-3.0-or-later
"""APEX under attack: order, one winner, the operator, starvation, evidence, bounds, memory."""

from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phantommesh.agents import actions, apex
from phantommesh.agents.actions import Action, Ban, Cover, Quarantine, Raise, Rotate, Tune, Weigh
from phantommesh.agents.apex import Apex, Judgement, Standing
from phantommesh.agents.base import PRECEDENCE, AgentName, Evidence, Proposal, Subject

PEER = Subject("peer", "a")
SHARED = Subject("rule", "shared")
AGENTS = PRECEDENCE[1:]
FEW = settings(max_examples=60)  # each plays a history


def raised(rule: str, severity: Any = "low") -> Raise:
    return Raise(rule=rule, severity=severity, text="text", fix="fix")


def proposal(
    agent: AgentName, action: Action, subject: Subject = PEER, *, until: float = 1e4, **changes: Any
) -> Proposal:
    whole: dict[str, Any] = {"evidence": (Evidence("what", 2.0, 1.0),), "expects": None, "why": "so"}
    return Proposal(agent=agent, subject=subject, action=action, until=until, **(whole | changes))


def reasons(judged: list[Judgement]) -> list[str]:
    return [one.verdict.reason for one in judged]


def one(judge: Apex, wanted: Proposal, now: float = 0.0) -> str:
    (judged,) = judge.judge([wanted], now)
    return judged.verdict.reason


def stands(judge: Apex) -> dict[Subject, Proposal]:
    return {one.proposal.subject: one.proposal for one in judge.standing()}


# --- proposals of any kind ---

PATH, KNOB, FLOW = Subject("path", "a/1"), Subject("parameter", "p"), Subject("flow", "f")
WANTED: list[tuple[Action, Subject]] = [
    (raised("r1"), SHARED), (raised("r2", "high"), SHARED), (raised("r1"), PEER),
    (Rotate("a"), PEER), (Quarantine("a", 60.0), PEER), (Quarantine("a", 70.0), PEER),
    (Cover("a", 1.0), PEER), (Cover("a", 2.0), PEER), (Weigh("a", 1, 0.5), PATH),
    (Weigh("a", 1, 0.6), PATH), (Tune("p", 1.0), KNOB),
    (actions.Deal("f", "a", dealt=True), FLOW), (actions.Pin("f", "a", 1), FLOW),
    (actions.Mend("shared"), SHARED),
]  # fmt: skip
UNWANTED: list[tuple[Action, Subject]] = [
    (Quarantine("a", 4000.0), PEER), (Weigh("a", 9, 0.5), Subject("path", "a/9")), (Rotate("b"), PEER),
    (Tune("p", float("nan")), KNOB), (Ban("0.0.0.0/0", 60.0), Subject("address", "0.0.0.0/0")),
]  # fmt: skip
GOOD = [
    (agent, action, subject)
    for agent in PRECEDENCE
    for action, subject in WANTED
    if agent == "operator" or isinstance(action, actions.OF[agent])
]
BAD = [
    (agent, action, subject)
    for agent in AGENTS
    for action, subject in WANTED + UNWANTED
    if (agent, action, subject) not in GOOD
]
UNTIL = [5.0, 1200.0, 3000.0, 7000.0, 7000.0, 1e5, float("inf")]
EVIDENCE = [(Evidence("what", 2.0),)] * 7 + [(), (Evidence("what", float("nan")),)]


@st.composite
def made(draw: st.DrawFn) -> Proposal:
    """Most of them admissible, so that they contend."""
    agent, action, subject = draw(st.sampled_from(GOOD * 3 + BAD))
    until, evidence = draw(st.sampled_from(UNTIL)), draw(st.sampled_from(EVIDENCE))
    return proposal(agent, action, subject, until=until, evidence=evidence)


PROPOSALS = made()
BATCHES = st.lists(PROPOSALS, max_size=6)
HISTORIES = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 12.0, 100.0, 149.0, 700.0]), BATCHES), max_size=9)


def after(history: list[tuple[float, list[Proposal]]]) -> tuple[Apex, float]:
    """A judge with a past, in which everything lapsed at its time."""
    judge, now = Apex(), 0.0
    for pause, batch in history:
        now += pause
        judge.lapse(now)
        judge.judge(batch, now)
    judge.lapse(now + 1.0)
    return judge, now + 1.0


def admissible(wanted: Proposal, now: float) -> bool:
    """By other words than the judge's."""
    if not now < wanted.until < float("inf") or not wanted.evidence:
        return False
    if any(each.value != each.value for each in wanted.evidence):
        return False
    if wanted.agent == "operator":
        return True
    return (wanted.agent, wanted.action, wanted.subject) in GOOD and wanted.until <= now + apex.LONGEST


def keyed(judged: list[Judgement]) -> list[bytes]:
    return sorted(msgspec.json.encode(each.verdict) for each in judged)


# --- order ---


@FEW
@given(HISTORIES, BATCHES, st.randoms(use_true_random=False))
def test_the_verdicts_on_a_batch_do_not_depend_on_its_order(
    history: list[tuple[float, list[Proposal]]], batch: list[Proposal], chance: Any
) -> None:
    judge, now = after(history)
    other, shuffled = deepcopy(judge), list(batch)
    chance.shuffle(shuffled)
    assert keyed(judge.judge(batch, now)) == keyed(other.judge(shuffled, now))
    assert stands(judge) == stands(other)


TWO_OF_ONE_AGENT = [proposal("phantom", Cover("a", rate)) for rate in (1.0, 2.0)]
A_DEED_AND_A_STATE = [
    proposal("phantom", Cover("a", 1.0)),
    proposal("cipher", Rotate("a")),
    proposal("cipher", Quarantine("a", 60.0)),
]


@FEW
@given(HISTORIES, BATCHES, st.randoms(use_true_random=False))
@example([], A_DEED_AND_A_STATE, None)
@example([], TWO_OF_ONE_AGENT, None)
@example([], list(reversed(TWO_OF_ONE_AGENT)), None)
def test_one_by_one_at_one_moment_the_same_stands_in_the_end(
    history: list[tuple[float, list[Proposal]]], batch: list[Proposal], chance: Any
) -> None:
    # Of the operator the last word counts, so there is one for a subject here.
    of_operator = {each.subject: each for each in batch if each.agent == "operator"}
    batch = [each for each in batch if each.agent != "operator"] + list(of_operator.values())
    judge, now = after(history)
    singly, shuffled = deepcopy(judge), list(batch)
    shuffled.reverse() if chance is None else chance.shuffle(shuffled)
    judge.judge(batch, now)
    for each in shuffled:
        singly.judge([each], now)
    assert stands(judge) == stands(singly)


@FEW
@given(HISTORIES, BATCHES)
def test_a_subject_has_one_winner(history: list[tuple[float, list[Proposal]]], batch: list[Proposal]) -> None:
    judge, now = after(history)
    judged = judge.judge(batch, now)
    for subject in {each.subject for each in batch}:
        won = [
            each.verdict.proposal
            for each in judged
            if each.verdict.proposal.subject == subject and each.verdict.reason in ("accepted", "renewed")
        ]
        assert len({each.agent for each in won}) <= 1
        if not any(each.agent == "operator" for each in won):
            assert sum(isinstance(each.action, actions.LASTING) for each in won) <= 1
            assert len(won) <= 2


@FEW
@given(HISTORIES, BATCHES)
def test_the_operator_wins(history: list[tuple[float, list[Proposal]]], batch: list[Proposal]) -> None:
    judge, now = after(history)
    for each in judge.judge(batch, now):
        verdict = each.verdict
        if verdict.proposal.agent == "operator":
            assert verdict.accepted or verdict.reason == "renewed" or not admissible(verdict.proposal, now)
    of_operator = [each for each in batch if each.agent == "operator" and admissible(each, now)]
    for wanted in of_operator:
        if isinstance(wanted.action, actions.LASTING):
            assert stands(judge)[wanted.subject].agent == "operator"


@FEW
@given(HISTORIES, BATCHES)
def test_nothing_is_accepted_without_evidence_or_outside_the_bounds(
    history: list[tuple[float, list[Proposal]]], batch: list[Proposal]
) -> None:
    judge, now = after(history)
    for each in judge.judge(batch, now):
        if each.verdict.reason in ("accepted", "renewed"):
            assert admissible(each.verdict.proposal, now)
    for standing in judge.standing():
        assert standing.proposal.evidence
        assert standing.proposal.until > now


@FEW
@given(HISTORIES)
def test_an_agent_does_not_flip_a_subject_before_its_rest_is_over(
    history: list[tuple[float, list[Proposal]]],
) -> None:
    judge, now, ended = Apex(), 0.0, dict[tuple[AgentName, Subject], tuple[float, float]]()
    for pause, batch in history:
        now += pause
        gone = judge.lapse(now)
        for each in gone:
            ended[each.proposal.agent, each.proposal.subject] = now, each.proposal.action.rests
        for judgement in judge.judge(batch, now):
            wanted = judgement.verdict.proposal
            lasts = isinstance(wanted.action, actions.LASTING)
            if judgement.verdict.accepted and lasts and wanted.agent != "operator":
                at, rests = ended.get((wanted.agent, wanted.subject), (float("-inf"), 0.0))
                assert now >= at + rests


# --- single cases ---


def test_a_higher_agent_takes_a_subject_and_a_lower_one_is_told_who_has_it() -> None:
    judge = Apex()
    assert one(judge, proposal("velocity", raised("r"), SHARED)) == "accepted"
    (taken,) = judge.judge([proposal("cipher", raised("r"), SHARED)], 1.0)
    assert taken.verdict.accepted
    assert taken.displaced is not None
    assert taken.displaced.proposal.agent == "velocity"
    (kept,) = judge.judge([proposal("stream", raised("r"), SHARED)], 2.0)
    assert (kept.verdict.reason, kept.verdict.by) == ("held", "cipher")


def test_who_proposes_twice_for_a_subject_does_not_wait_for_itself() -> None:
    """Else the agent would go before FORTRESS after a while."""
    judge = Apex()
    two = [proposal("stream", raised(rule), SHARED) for rule in ("r1", "r2")]
    for now in range(0, 1000, 10):
        judge.judge(two, float(now))
    assert one(judge, proposal("fortress", raised("r"), SHARED), 1000.0) == "accepted"
    assert reasons(judge.judge(two, 1001.0)) == ["held", "held"]


def test_a_deed_leaves_what_stands_for_the_same_agent_and_ends_what_stands_for_another() -> None:
    judge = Apex()
    both = [proposal("cipher", Quarantine("a", 60.0)), proposal("cipher", Rotate("a"))]
    assert reasons(judge.judge(both, 0.0)) == ["accepted", "accepted"]
    assert reasons(judge.judge(both, 1.0)) == ["renewed", "cooling-down"]
    assert reasons(judge.judge(both, 40.0)) == ["renewed", "accepted"]
    (by_hand,) = judge.judge([proposal("operator", Rotate("a"))], 41.0)
    assert by_hand.displaced is not None
    assert judge.at(PEER) is None


def test_what_stands_is_renewed_and_the_newest_word_says_until_when() -> None:
    judge = Apex()
    assert one(judge, proposal("phantom", Cover("a", 5.0), until=50.0)) == "accepted"
    assert one(judge, proposal("phantom", Cover("a", 5.0), until=70.0), 1.0) == "renewed"
    assert judge.next_lapse() == 70.0
    assert one(judge, proposal("phantom", Cover("a", 6.0)), 2.0) == "cooling-down"
    assert one(judge, proposal("phantom", Cover("a", 5.0), until=4.0), 3.0) == "renewed"
    assert [each.proposal.agent for each in judge.lapse(4.0)] == ["phantom"]
    assert one(judge, proposal("phantom", Cover("a", 5.0)), 5.0) == "cooling-down"
    assert one(judge, proposal("phantom", Cover("a", 5.0)), 14.0) == "accepted"


def test_frozen_renews_what_stands_and_accepts_nothing_new() -> None:
    judge = Apex()
    assert one(judge, proposal("phantom", Cover("a", 5.0), until=50.0)) == "accepted"
    judge.frozen = True
    assert one(judge, proposal("phantom", Cover("a", 5.0), until=70.0), 1.0) == "renewed"
    assert one(judge, proposal("cipher", Rotate("b"), Subject("peer", "b")), 1.0) == "frozen"
    assert one(judge, proposal("operator", Rotate("a")), 2.0) == "accepted"


def test_what_could_not_be_carried_out_does_not_stand_and_is_tried_again_after_a_rest() -> None:
    judge, ban = Apex(), proposal("fortress", Ban("192.0.2.1", 60.0), Subject("address", "192.0.2.1"))
    assert one(judge, ban) == "accepted"
    judge.failed(ban, 0.0)
    assert list(judge.standing()) == []
    assert one(judge, ban, 1.0) == "cooling-down"
    assert one(judge, ban, apex.FAILED_REST) == "accepted"


def test_an_agent_bans_at_most_so_many_and_lets_nothing_stand_for_ever() -> None:
    judge = Apex()
    bans = [
        proposal("fortress", Ban(address, 60.0), Subject("address", address))
        for address in (f"10.0.{n >> 8}.{n & 255}" for n in range(apex.MOST_STANDING + 1))
    ]
    assert [one(judge, ban, float(n)) for n, ban in enumerate(bans)][-1] == "too-many"
    assert judge.count("fortress") == apex.MOST_STANDING
    assert one(judge, msgspec.structs.replace(bans[0], until=1e7), 1.0) == "out-of-bounds"


def test_bans_without_end_keep_fortress_from_no_shedding_and_no_finding() -> None:
    """Whoever has many networks makes as many bans as he likes: they use up the bans' own places and rate."""
    judge, now = Apex(), 0.0
    wanted = proposal("fortress", actions.Shed(200.0), Subject("service", "control"))
    finding = proposal("fortress", raised("threat-flood"), Subject("rule", "threat-flood"))
    for n in range(apex.MOST_STANDING + 32):
        block = f"2001:db8:0:{n:x}::/64"
        judge.judge([proposal("fortress", Ban(block, 60.0), Subject("address", block))], now := now + 0.5)
    many = [
        proposal(
            "fortress", Ban(f"2001:db8:1:{n:x}::/64", 60.0), Subject("address", f"2001:db8:1:{n:x}::/64")
        )
        for n in range(32)
    ]
    judged = judge.judge([*many, wanted, finding], now)
    got = {type(one.verdict.proposal.action): one.verdict.reason for one in judged}
    assert got == {Ban: "too-many", actions.Shed: "accepted", Raise: "accepted"}
    assert judge.count("fortress") == apex.MOST_STANDING + 2


def test_a_burst_is_bounded() -> None:
    judge = Apex()
    many = [proposal("cipher", Rotate(str(n)), Subject("peer", str(n))) for n in range(100)]
    assert reasons(judge.judge(many, 0.0)).count("accepted") == apex.BURST


# --- starvation ---

LATEST = apex.PATIENCE + 8 * (apex.TURN + apex.GAP) + apex.GAP
CONTENDERS = st.lists(
    st.tuples(st.sampled_from(AGENTS), st.lists(st.floats(5.0, apex.GAP), min_size=1, max_size=7)),
    unique_by=lambda each: each[0],
    min_size=2,
    max_size=9,
)


@settings(max_examples=25)
@given(CONTENDERS)
@example([(agent, [apex.GAP]) for agent in AGENTS])
@example([(agent, [apex.GAP - 7 * rank, 31.0]) for rank, agent in enumerate(AGENTS)])
def test_nothing_starves(contenders: list[tuple[AgentName, list[float]]]) -> None:
    """All want one subject for good, each proposing at intervals of its own."""
    judge = Apex()
    due = {agent: 0.0 for agent, _ in contenders}
    kept = dict[AgentName, float]()
    accepted, steps = set[AgentName](), dict.fromkeys(due, 0)
    pauses = dict(contenders)
    while min(due.values()) < 4 * LATEST:
        agent = min(due, key=lambda name: (due[name], name))
        now = due[agent]
        reason = one(judge, proposal(agent, raised(agent), SHARED, until=now + 10 * apex.GAP), now)
        if reason in ("accepted", "renewed"):
            waited = now - kept.pop(agent, now)
            assert waited <= LATEST
            accepted.add(agent)
        else:
            assert reason in ("held", "outranked")
            kept.setdefault(agent, now)
            assert now - kept[agent] <= LATEST
        due[agent] += pauses[agent][steps[agent] % len(pauses[agent])]
        steps[agent] += 1
    assert accepted == due.keys()


def test_who_went_first_keeps_the_subject_for_a_turn_except_from_the_operator() -> None:
    judge, now = Apex(), 0.0
    high, low = (proposal(agent, raised(agent), SHARED) for agent in ("fortress", "genesis"))
    while one(judge, high, now) and one(judge, low, now) != "accepted":
        now += 10.0
    assert now >= apex.PATIENCE
    assert one(judge, high, now + apex.TURN - 1.0) == "held"
    assert one(deepcopy(judge), proposal("operator", raised("x"), SHARED), now + 1.0) == "accepted"
    assert one(judge, high, now + apex.TURN) == "accepted"
    assert one(judge, low, now + apex.TURN + 1.0) == "held"


def test_who_does_not_propose_does_not_wait() -> None:
    judge = Apex()
    assert one(judge, proposal("fortress", raised("f"), SHARED)) == "accepted"
    assert one(judge, proposal("genesis", raised("g"), SHARED), 1.0) == "held"
    assert one(judge, proposal("genesis", raised("g"), SHARED), apex.PATIENCE + 5.0) == "held"


# --- memory ---


def test_a_flood_of_one_agent_takes_no_memory_of_another() -> None:
    """STREAM is kept from far more subjects than are remembered, while GENESIS waits for one."""
    judge, got = Apex(), ""
    for now in (float(n) for n in range(int(apex.PATIENCE + apex.GAP))):
        judge.lapse(now)
        if now % 140 == 0:
            judge.judge([proposal("fortress", raised("f"), SHARED)], now)
            got = one(judge, proposal("genesis", raised("g"), SHARED), now)
        for agent in AGENTS[: AGENTS.index("stream")]:
            for n in (1, 2):
                subject = Subject("rule", f"{agent} {n} {now}")
                both = [proposal(name, raised("r"), subject, until=now + 0.5) for name in (agent, "stream")]
                judge.judge(both, now)
    assert got == "accepted"
    assert len(judge._of("stream").waits) == apex.MOST_REMEMBERED


def test_a_standing_has_its_turn_only_if_it_went_first() -> None:
    made = proposal("stream", raised("s"), SHARED)
    assert Standing(made, 0.0, first=True).turn(1.0) < Standing(made, 0.0).turn(1.0)


@pytest.mark.parametrize("agent", AGENTS)
def test_no_agent_does_what_is_not_its_own(agent: AgentName) -> None:
    for action, subject in WANTED:
        own = isinstance(action, actions.OF[agent])
        assert (one(Apex(), proposal(agent, action, subject)) == "not-its-action") != own


def test_an_action_is_done_to_its_subject() -> None:
    for agent, action, subject in GOOD:
        if not isinstance(action, Raise) and agent != "operator":
            aside = Subject(subject.kind, subject.name + "x")
            assert one(Apex(), proposal(agent, action, aside)) == "not-its-subject"
    restart = proposal("omniscient", actions.Restart("a"), Subject("service", "b"))
    assert one(Apex(), restart) == "not-its-subject"
