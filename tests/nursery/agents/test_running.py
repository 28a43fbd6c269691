# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents in a whole node: what they do is done, and what is wrong with one harms nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import trio

from phantommesh.agents.actions import Action, Ban, Raise, ReplaceKey, Restart, Weigh
from phantommesh.agents.base import Agent, AgentName, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.agents.council import BUDGET, FIRST_BENCH, Seat
from phantommesh.nursery.agents import running
from phantommesh.nursery.node import Node
from phantommesh.nursery.parts import Parts
from tests.support.loopback import make_authority, serving, until


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
    for one in agents:
        node.parts.council.seats[one.name] = Seat(one, "running", trio.current_time())
        node.agents.looks[one.name] = look
        node.agents.makers[one.name] = lambda settings, one=one: type(one)(one.act)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    make_authority(tmp_path)
    return tmp_path


async def test_a_finding_is_a_fault_while_it_is_proposed(at: Path) -> None:
    hot = [True]

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        now = seen.at.now
        return [msgspec.structs.replace(finding("omniscient", now), until=now + 0.3)] if hot[0] else []

    async with serving(at, lambda node: seat(node, Omniscient(act))) as node:
        await until(lambda: "agent-finding" in node.reporter.readiness(node.reporter.faults()).codes)
        (fault,) = [one for one in node.reporter.faults() if one.code == "agent-finding"]
        assert (fault.severity, fault.subject, fault.fix) == ("high", "too-hot", "open a window")
        hot[0] = False
        await until(lambda: all(one.code != "agent-finding" for one in node.reporter.faults()))


async def test_a_service_is_started_again_and_what_came_of_that_is_known(at: Path) -> None:
    outcomes: list[object] = []

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        outcomes.extend(seen.outcomes)
        effect = Expectation("lag", "at_most", 2.0, 0.1)
        return [
            proposal("omniscient", Restart(name), Subject("service", name), seen.at.now, expects=effect)
            for name in ("loop-lag", "no-such")
        ]

    async with serving(at, lambda node: seat(node, Omniscient(act))) as node:
        await until(lambda: len(outcomes) >= 2)
        found = {one.proposal.action.service: one for one in outcomes}  # type: ignore[attr-defined]
        assert found["loop-lag"].met is True and not found["loop-lag"].error
        assert found["no-such"].met is None and "no-such" in found["no-such"].error
        assert node.parts.metrics.service_restarts.labels("loop-lag")._value.get() == 1


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
    return [msgspec.structs.replace(finding("cipher", seen.at.now), why="x" * 1_000_000)]


def anothers(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [finding("operator", seen.at.now)]


def of_no_type(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [finding("cipher", "soon")] if isinstance(seen.at, str) else [_wrong(seen.at.now)]


def _wrong(now: float) -> Proposal:
    return msgspec.structs.replace(finding("cipher", now), until="never", subject="everything")


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
            msgspec.structs.replace(finding("cipher", now), evidence=()),
            msgspec.structs.replace(finding("cipher", now, "late"), until=now - 1.0),
        ]

    async with serving(at, lambda node: seat(node, Cipher(act))) as node:
        await until(lambda: node.parts.council.seats["cipher"].looks > 2)
        reasons = [one.verdict.reason for one in node.parts.council.decisions]
        assert sorted(reasons) == sorted(
            ["out-of-bounds", "not-its-action", "not-its-action", "no-evidence", "expired"]
        )
        assert node.parts.council.seats["cipher"].benched == 0
        assert list(node.parts.council.apex.standing()) == []
