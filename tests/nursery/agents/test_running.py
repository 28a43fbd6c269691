# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents in a whole node: what they do is done, and what is wrong with one harms nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import trio
from msgspec import structs

from phantommesh.agents.actions import Action, Ban, Raise, ReplaceKey, Restart, Rotate, Weigh
from phantommesh.agents.base import (
    Agent,
    AgentName,
    Evidence,
    Expectation,
    Observation,
    Outcome,
    Proposal,
    Subject,
)
from phantommesh.agents.council import BUDGET, FIRST_BENCH, Order, Seat
from phantommesh.agents.ledger import DecisionLine, Line, OutcomeLine, StartLine
from phantommesh.config.agents import AgentsSection
from phantommesh.config.sections import Config
from phantommesh.nursery.agents import hands, running
from phantommesh.nursery.keeping import ledger
from phantommesh.nursery.keeping.decisions import asked
from phantommesh.nursery.node import Node
from phantommesh.nursery.parts import Parts
from phantommesh.state.files import StateError
from tests.support.loopback import PATIENCE, join, make_authority, make_invite, serving, until


class Seen(msgspec.Struct, frozen=True):
    at: float = 0.0


async def look(parts: Parts) -> Seen:
    return Seen(trio.current_time())


class Scripted(Agent[Seen]):
    """Does at each look what its script says."""

    every = 0.05

    def __init__(self, act: Callable[[Observation[Seen]], Iterable[Proposal]]) -> None:
        self.act = act

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        return self.act(observation)

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        return 1.0


class Omniscient(Scripted):
    name: ClassVar[AgentName] = "omniscient"


class Nexus(Scripted):
    name: ClassVar[AgentName] = "nexus"
    wakes = frozenset({"health.*"})


class Cipher(Scripted):
    name: ClassVar[AgentName] = "cipher"


def proposal(name: AgentName, action: Action, subject: Subject, at: float, **more: Any) -> Proposal:
    fields: dict[str, Any] = {
        "evidence": (Evidence("figure", 2.0, 1.0),), "expects": None, "until": at + 60.0, "why": "a test",
    } | more  # fmt: skip
    return Proposal(agent=name, subject=subject, action=action, **fields)


def finding(name: AgentName, at: float, rule: str = "too-hot") -> Proposal:
    found = Raise(rule=rule, severity="high", text="it is too hot", fix="open a window")
    return proposal(name, found, Subject("rule", rule), at)


def seat(node: Node, *agents: Scripted) -> None:
    """Put agents of a test into a node, and pause its own."""
    for other in node.parts.council.seats.values():
        other.phase = "paused"
    for one in agents:
        node.parts.council.seats[one.name] = Seat(one, "running", trio.current_time())
        node.agents.looks[one.name] = look
        node.agents.makers[one.name] = partial(_again, one)


def _again(one: Scripted, _settings: AgentsSection) -> Scripted:
    return type(one)(one.act)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    make_authority(tmp_path)
    return tmp_path


async def test_a_finding_is_a_fault_while_it_is_proposed(at: Path) -> None:
    hot = [True]

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        now = seen.at.now
        return [structs.replace(finding("omniscient", now), until=now + 0.3)] if hot[0] else []

    async with serving(at, lambda node: seat(node, Omniscient(act))) as node:
        await until(lambda: "agent-finding" in node.reporter.readiness(node.reporter.faults()).codes)
        (fault,) = [one for one in node.reporter.faults() if one.code == "agent-finding"]
        assert (fault.severity, fault.subject, fault.fix) == ("high", "too-hot", "open a window")
        hot[0] = False
        await until(lambda: all(one.code != "agent-finding" for one in node.reporter.faults()))


async def test_a_service_is_started_again_and_what_came_of_that_is_known(at: Path) -> None:
    outcomes: list[Outcome] = []

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        outcomes.extend(seen.outcomes)
        effect = Expectation("lag", "at_most", 2.0, 0.1)
        return [
            proposal("omniscient", Restart(name), Subject("service", name), seen.at.now, expects=effect)
            for name in ("topology", "no-such")
        ]

    async with serving(at, lambda node: seat(node, Omniscient(act))) as node:
        await until(lambda: len(outcomes) >= 2)
        found = {one.proposal.subject.name: one for one in outcomes}
        assert found["topology"].met is True and not found["topology"].error
        assert found["no-such"].met is None and "no-such" in found["no-such"].error
        assert node.parts.metrics.service_restarts.labels("topology")._value.get() == 1


async def test_an_event_wakes_an_agent(at: Path) -> None:
    heard: list[str] = []

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        heard.extend(one.type for one in seen.events)
        return []

    nexus = Nexus(act)
    nexus.every = 3600.0
    async with serving(at, lambda node: seat(node, nexus)) as node:
        await until(lambda: node.parts.council.seats["nexus"].looks == 1)
        node.parts.events.publish("health.degraded", None, {})
        node.parts.events.publish("peer.updated", None, {})
        await until(lambda: "health.degraded" in heard)
        assert "peer.updated" not in heard


def raising(seen: object) -> Iterable[Proposal]:
    raise RuntimeError("nobody expected this")


def looping(seen: object) -> Iterable[Proposal]:
    while True:
        pass


def swallowing(seen: object) -> Iterable[Proposal]:
    while True:
        try:
            time.sleep(0.0)
        except Exception:
            continue


def blocking(seen: object) -> Iterable[Proposal]:
    time.sleep(4.0)
    return []


def busy(seen: object) -> Iterable[Proposal]:
    end = time.thread_time() + 2 * BUDGET
    while time.thread_time() < end:
        pass
    return []


def endless(seen: Observation[Seen]) -> Iterator[Proposal]:
    number = 0
    while True:
        number += 1
        yield finding("cipher", seen.at.now, f"rule-{number}")


def flooding(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [finding("cipher", seen.at.now, f"rule-{number}") for number in range(1000)]


def heavy(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [structs.replace(finding("cipher", seen.at.now), why="x" * 1_000_000)]


def anothers(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [finding("operator", seen.at.now)]


def of_no_type(seen: Observation[Seen]) -> Iterable[Proposal]:
    wrong: dict[str, Any] = {"until": "never", "subject": "everything"}
    return [structs.replace(finding("cipher", seen.at.now), **wrong)]


def of_no_proposals(seen: object) -> Iterable[Proposal]:
    return ["ban them all", None]  # type: ignore[list-item]


def of_nothing(seen: object) -> Iterable[Proposal]:
    return None  # type: ignore[return-value]


BAD = {
    "raises": raising,
    "loops": looping,
    "loops and swallows": swallowing,
    "is busy": busy,
    "goes on for ever": endless,
    "floods": flooding,
    "is heavy": heavy,
    "speaks for another": anothers,
    "has wrong types": of_no_type,
    "proposes no proposals": of_no_proposals,
    "returns nothing": of_nothing,
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_agent_harms_itself_alone(at: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sits out, another goes on looking and acting, and the node is up."""
    good = Nexus(lambda seen: [finding("nexus", seen.at.now)])
    async with serving(at, lambda node: seat(node, Cipher(BAD[what]), good)) as node:
        seats = node.parts.council.seats
        await until(lambda: seats["cipher"].phase == "benched")
        assert seats["cipher"].until - trio.current_time() <= FIRST_BENCH
        looks = seats["nexus"].looks
        await until(lambda: seats["nexus"].looks > looks + 3)
        assert seats["nexus"].benched == 0
        (fault,) = [one for one in node.reporter.faults() if one.code == "agent-finding"]
        assert fault.subject == "too-hot"
        assert not any(one.proposal.agent != "nexus" for one in node.parts.council.apex.standing())
        (said,) = [
            one for one in node.parts.events.read(0, running.ALL, 4096).events if one.type == "agent.benched"
        ]
        assert said.data["agent"] == "cipher"


async def test_a_look_that_blocks_is_left_behind(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BLOCKED", 1.5)
    good = Nexus(lambda seen: [])
    async with serving(at, lambda node: seat(node, Cipher(blocking), good)) as node:
        seats = node.parts.council.seats
        first = seats["cipher"].agent
        await until(lambda: seats["cipher"].phase == "benched")
        assert seats["cipher"].agent is not first
        assert seats["nexus"].looks > 3 and seats["nexus"].benched == 0


async def test_nonsense_is_refused_by_name(at: Path) -> None:
    """Outside the bounds, another's kind of action, no evidence: no bench, and nothing is done."""

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        now = seen.at.now
        return [
            proposal("cipher", ReplaceKey(99), Subject("dimension", "99"), now),
            proposal("cipher", Ban("192.0.2.1", 5.0), Subject("address", "192.0.2.1"), now),
            proposal("cipher", Weigh("x", 0, float("nan")), Subject("path", "x/0"), now),
            structs.replace(finding("cipher", now), evidence=()),
            structs.replace(finding("cipher", now, "late"), until=now - 1.0),
        ]

    async with serving(at, lambda node: seat(node, Cipher(act))) as node:
        await until(lambda: node.parts.council.seats["cipher"].looks > 2)
        reasons = [one.verdict.reason for one in node.parts.council.decisions]
        assert sorted(reasons) == sorted(
            ["out-of-bounds", "not-its-action", "not-its-action", "no-evidence", "expired"]
        )
        assert node.parts.council.seats["cipher"].benched == 0
        assert list(node.parts.council.apex.standing()) == []


async def test_dry_run_says_what_it_would_do(at: Path) -> None:
    async with serving(at, lambda node: seat(node, Omniscient(hot))) as node:
        node.parts.decisions.resume("omniscient", dry_run=True)
        made = node.parts.council.decisions
        await until(lambda: any(one.verdict.reason == "dry-run" for one in made))
        assert list(node.parts.council.apex.standing()) == []
        node.parts.decisions.resume("omniscient")
        await until(lambda: len(list(node.parts.council.apex.standing())) == 1)


def hot(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [finding("omniscient", seen.at.now)]


async def test_the_operator_pauses_and_resumes_an_agent(at: Path) -> None:
    async with serving(at, lambda node: seat(node, Omniscient(hot))) as node:
        council = node.parts.council
        await until(lambda: bool(list(council.apex.standing())))
        node.parts.decisions.pause("omniscient")
        assert list(council.apex.standing()) == []
        looks = council.seats["omniscient"].looks
        node.parts.events.publish("health.degraded", None, {})
        await trio.sleep(0.3)
        assert council.seats["omniscient"].looks <= looks + 1  # one may have been under way
        node.parts.decisions.resume("omniscient")
        await until(lambda: council.seats["omniscient"].looks > looks + 1)


async def test_a_look_that_was_under_way_when_its_agent_was_paused_counts_for_nothing(at: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(seen: Observation[Seen]) -> Iterable[Proposal]:
        began.set()
        go.wait(10.0)
        return hot(seen)

    async with serving(at, lambda node: seat(node, Omniscient(slow))) as node:
        await until(began.is_set)
        node.parts.decisions.pause("omniscient")
        go.set()
        await trio.sleep(0.3)
        assert list(node.parts.council.apex.standing()) == []


async def test_an_edited_configuration_is_followed(at: Path) -> None:
    async with serving(at, lambda node: seat(node, Omniscient(hot), Nexus(lambda seen: []))) as node:
        council, config = node.parts.council, node.parts.config
        first = council.seats["omniscient"].agent
        await until(lambda: bool(list(council.apex.standing())))

        def wanted(**changed: Any) -> Config:
            section = structs.replace(config.agents.omniscient, **changed)
            return structs.replace(config, agents=structs.replace(config.agents, omniscient=section))

        def phase(name: AgentName) -> str:
            return council.seats[name].phase

        node.reload(wanted(dry_run=True), {})
        assert phase("omniscient") == "dry-run" and list(council.apex.standing()) == []
        assert council.seats["omniscient"].agent is not first
        node.reload(wanted(enabled=False), {})
        assert phase("omniscient") == "paused"
        assert phase("nexus") == "running"
        assert node.parts.settings.waiting == ()
        node.reload(structs.replace(config, agents=structs.replace(config.agents, enabled=False)), {})
        assert phase("nexus") == "paused"
        node.reload(config, {})
        assert phase("nexus") == phase("omniscient") == "running"
        node.parts.decisions.pause("nexus")
        node.reload(structs.replace(config, agents=structs.replace(config.agents, dry_run=True)), {})
        assert phase("nexus") == "paused" and phase("omniscient") == "dry-run"


async def test_what_stands_is_lifted_when_the_node_stops(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried: list[Order] = []

    async def carry_out(parts: Parts, order: Order) -> None:
        carried.append(order)

    monkeypatch.setattr(hands, "carry_out", carry_out)
    async with serving(at, lambda node: seat(node, Omniscient(hot))):
        await until(lambda: bool(carried))
        assert [one.lift for one in carried] == [False]
    assert [one.lift for one in carried] == [False, True] and carried[1].trace == carried[0].trace


async def test_an_action_that_breaks_is_counted_against_itself(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(parts: Parts, order: Order) -> None:
        raise KeyError("nobody expected this")

    monkeypatch.setattr(hands, "carry_out", broken)
    outcomes: list[Outcome] = []

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        outcomes.extend(seen.outcomes)
        effect = Expectation("heat", "at_most", 2.0, 0.1)
        return [structs.replace(one, expects=effect) for one in hot(seen)]

    async with serving(at, lambda node: seat(node, Omniscient(act))) as node:
        await until(lambda: bool(outcomes))
        assert "KeyError" in outcomes[0].error and outcomes[0].met is None
        assert node.parts.council.seats["omniscient"].benched == 0
        assert node.parts.metrics.service_restarts.labels("agent-hands")._value.get() == 0


async def test_a_storm_of_events_is_looked_at_at_a_bounded_pace(at: Path) -> None:
    nexus = Nexus(lambda seen: [])
    nexus.every = 3600.0
    async with serving(at, lambda node: seat(node, nexus)) as node:
        began = trio.current_time()
        for _ in range(200):
            node.parts.events.publish("health.degraded", None, {})
            await trio.lowlevel.checkpoint()
        took = trio.current_time() - began
        assert node.parts.council.seats["nexus"].looks <= running.WAKES_AT_ONCE + running.WAKES * took + 2


async def test_with_too_many_threads_that_hang_an_agent_stays_out(
    at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MOST_ABANDONED", 0)
    monkeypatch.setattr(running, "BLOCKED", 1.2)
    async with serving(at, lambda node: seat(node, Cipher(blocking))) as node:
        seats = node.parts.council.seats
        await until(lambda: seats["cipher"].phase == "benched")
        assert seats["cipher"].until == float("inf") and "stays out" in seats["cipher"].why
        looks = seats["cipher"].looks
        node.parts.decisions.resume("cipher")
        await until(lambda: seats["cipher"].looks > looks)


async def test_decisions_and_outcomes_are_written_down(at: Path) -> None:
    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        effect = Expectation("heat", "at_most", 2.0, 0.1)
        return [structs.replace(one, expects=effect) for one in hot(seen)]

    async with serving(at, lambda node: seat(node, Omniscient(act))) as node:
        directory = node.parts.state.state.path / "decisions"
        await until(lambda: any(isinstance(one, OutcomeLine) for one in ledger.latest(directory, 9)))
        node.parts.decisions.operate(
            [asked(Subject("peer", "nobody"), Rotate("nobody"), "a rotation was asked for", 4711)]
        )
        last = node.parts.council.decisions[-1]
    lines = ledger.latest(directory, 99)
    assert isinstance(lines[0], StartLine) and lines[0].run == node.parts.events.run
    made = [one for one in lines if isinstance(one, DecisionLine)]
    assert made[0].action["do"] == "raise" and made[0].result == "accepted"
    (mine,) = [one for one in made if one.agent == "operator"]
    assert mine.trace == last.trace
    assert mine.evidence == [{"what": "uid", "value": 4711.0, "bound": None, "source": "api"}]
    (came,) = [one for one in lines if isinstance(one, OutcomeLine)][:1]
    assert came.trace == made[0].trace and came.met is True
    assert not ledger.check(directory).problem


async def test_a_full_disk_is_a_fault_and_stops_no_agent(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.nursery.keeping.saver.SAVE_AGAIN", 0.1)
    full = [True]
    write = ledger.Ledger.write

    def refuse(self: ledger.Ledger, lines: Sequence[Line]) -> None:
        if full[0]:
            raise StateError("No space left on device")
        write(self, lines)

    monkeypatch.setattr(ledger.Ledger, "write", refuse)
    async with serving(at, lambda node: seat(node, Omniscient(hot))) as node:
        await until(lambda: "state-not-written" in {one.code for one in node.reporter.faults()})
        looks = node.parts.council.seats["omniscient"].looks
        await until(lambda: node.parts.council.seats["omniscient"].looks > looks + 3)
        full[0] = False
        directory = node.parts.state.state.path / "decisions"
        await until(lambda: any(isinstance(one, DecisionLine) for one in ledger.latest(directory, 9)))
        await until(lambda: "state-not-written" not in {one.code for one in node.reporter.faults()})


async def test_a_rotation_of_the_operator_is_done_and_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "phantommesh.nursery.reporting.report.ROTATE_WAIT", PATIENCE
    )  # however slow the machine
    state = make_authority(tmp_path / "alpha")
    async with serving(tmp_path / "alpha") as alpha:
        await join(tmp_path / "beta", make_invite(state), "beta")
        async with serving(tmp_path / "beta"):
            await until(lambda: [link.state for link in alpha.reporter.links()] == ["fresh"])
            result = await alpha.reporter.rotate("beta", 4711)
            assert [one.result for one in result.rotations] == ["rotated"]
            decisions = [one.verdict for one in alpha.parts.council.decisions]
            (decided,) = [one for one in decisions if one.proposal.agent == "operator"]
            assert decided.accepted
            assert decided.proposal.evidence == (Evidence("uid", 4711, source="api"),)
