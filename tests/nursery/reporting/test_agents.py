# SPDX-License-Identifier: GPL-3.0-or-later
"""What a whole node shows of its agents, and what the operator's word does to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from phantommesh.agents.actions import Quarantine, Raise
from phantommesh.agents.base import Evidence, Observation, Proposal, Subject
from phantommesh.management.events import Filter
from phantommesh.management.finding import UnknownMemberError
from tests.nursery.agents.test_running import Cipher, Nexus, Omniscient, Seen, finding, seat
from tests.support.loopback import make_authority, serving, until

PEER = Subject("peer", "aaaa")
ALL = Filter()


def twice(seen: Observation[Seen]) -> Iterable[Proposal]:
    return [finding("omniscient", seen.at.now), finding("omniscient", seen.at.now, "too-cold")]


async def test_agents_decisions_and_incidents_of_a_node_and_who_is_paused(tmp_path: Path) -> None:
    make_authority(tmp_path)
    quiet = Nexus(lambda seen: [])

    async with serving(tmp_path, lambda node: seat(node, Omniscient(twice), quiet)) as node:
        reporter = node.reporter
        await until(lambda: len(reporter.decisions(0, 10, agent="omniscient", accepted=True)) == 2)
        first, second = reporter.decisions(0, 10, agent="omniscient", accepted=True)
        assert first.text == "omniscient reported too-cold (high): it is too hot: figure 2 over 1"
        assert [one.seq for one in reporter.decisions(first.seq, 1)] == [second.seq]
        detail = reporter.agent("omniscient")
        assert (detail.agent.phase, detail.agent.standing, len(detail.standing)) == ("running", 2, 2)
        glance = reporter.status().agents
        assert glance is not None and glance.accepted >= 2
        others = set(glance.paused)  # that the test paused itself
        assert "omniscient" not in others

        paused = reporter.pause_agent("omniscient")
        assert (paused.lifted, paused.agents[0].phase) == (2, "paused")
        assert list(node.parts.council.apex.standing()) == []
        glance = reporter.status().agents
        assert glance is not None and set(glance.paused) - others == {"omniscient"}
        (dry,) = reporter.resume_agent("nexus", trying=True).agents
        assert dry.phase == "dry-run"

        reporter.pause_agent("apex")
        reporter.resume_agent("omniscient", trying=False)
        await until(
            lambda: any(one.result == "frozen" for one in reporter.decisions(0, 100, agent="omniscient"))
        )
        assert reporter.agents()[0].phase == "paused"
        reporter.resume_agent("apex", trying=False)
        await until(lambda: reporter.agent("omniscient").agent.standing == 2)
        with pytest.raises(UnknownMemberError):
            reporter.pause_agent("nobody")
        assert (await reporter.memory()).patterns == 0
        assert {event.type for event in node.parts.events.read(0, ALL, 500).events} >= {
            "agent.decided",
            "agent.paused",
            "agent.back",
        }


async def test_what_two_agents_do_about_one_peer_is_one_incident_of_the_node(tmp_path: Path) -> None:
    make_authority(tmp_path)

    def stale(seen: Observation[Seen]) -> Iterable[Proposal]:
        found = Raise("stale", "high", "the link is stale", "wait")
        return [of("cipher", found, seen)]

    def dark(seen: Observation[Seen]) -> Iterable[Proposal]:
        found = Raise("dark", "high", "the path is dark", "wait")
        return [msgspec.structs.replace(of("omniscient", found, seen), subject=Subject("rule", "dark"))]

    def of(name: str, action: Raise, seen: Observation[Seen]) -> Proposal:
        return Proposal(
            agent=name,  # type: ignore[arg-type]
            subject=PEER, action=action, evidence=(Evidence("age_s", 190.0, 150.0),), expects=None,
            until=seen.at.now + 60.0, why="so", incident=PEER.name,
        )  # fmt: skip

    async with serving(tmp_path, lambda node: seat(node, Cipher(stale), Omniscient(dark))) as node:
        await until(lambda: bool(node.reporter.incidents()))
        (incident,) = node.reporter.incidents()
        assert (incident.state, incident.about, sorted(incident.agents)) == (
            "open",
            ["aaaa"],
            ["cipher", "omniscient"],
        )
        assert sorted(incident.story) == [
            "cipher reported stale (high): the link is stale: age_s 190 over 150",
            "omniscient reported dark (high): the path is dark: age_s 190 over 150",
        ]


async def test_an_action_that_fails_says_so_and_is_no_longer_in_force(tmp_path: Path) -> None:
    make_authority(tmp_path)

    def act(seen: Observation[Seen]) -> Iterable[Proposal]:
        action = Quarantine("no node id", 60.0)
        return [
            Proposal(
                agent="cipher", subject=Subject("peer", action.peer), action=action, expects=None,
                evidence=(Evidence("age_s", 190.0),), until=seen.at.now + 60.0, why="so",
            )
        ]  # fmt: skip

    async with serving(tmp_path, lambda node: seat(node, Cipher(act))) as node:
        await until(lambda: any(one.outcome for one in node.reporter.decisions(0, 10)))
        (one,) = node.reporter.decisions(0, 10, accepted=True)
        assert one.outcome is not None and one.outcome.text.startswith("failed: ")
        assert node.reporter.agent("cipher").agent.failed == 1
        assert node.reporter.agent("cipher").standing == []
