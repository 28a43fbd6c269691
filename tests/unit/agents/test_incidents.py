# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions of several agents about one thing are one incident, and nothing else is."""

from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.agents import incidents
from phantommesh.agents.actions import Action, Ban, Quarantine, Raise, Weigh
from phantommesh.agents.base import AgentName, Evidence, Expectation, Outcome, Proposal, Subject, Verdict
from phantommesh.agents.council import Decision
from phantommesh.agents.incidents import QUIET, WINDOW, Incidents, story, title

NAMES = {"id-db": "db", "id-web": "web"}
AT = {"192.0.2.7": "id-db"}
STALE = Expectation("psk_age_s", "at_most", 120.0, 5.0)


def name(node: str) -> str:
    return NAMES.get(node, node)


def known(address: str) -> str:
    return AT.get(address, address)


class Record:
    """Decisions with numbers of their own."""

    def __init__(self) -> None:
        self.numbers = count(1)

    def __call__(
        self,
        agent: AgentName,
        action: Action,
        subject: Subject,
        at: float,
        *,
        accepted: bool = True,
        **more: Any,
    ) -> Decision:
        fields: dict[str, Any] = {"evidence": (Evidence("packets_s", 900.0, 50.0),), "expects": None} | more
        proposal = Proposal(agent=agent, subject=subject, action=action, until=1e9, why="so", **fields)
        verdict = Verdict(proposal=proposal, reason="accepted" if accepted else "held")
        seq = next(self.numbers)
        return Decision(seq=seq, at=at, trace=f"t{seq}", verdict=verdict, seconds=0.0)


def flood(record: Record, at: float) -> Decision:
    return record("fortress", Ban("192.0.2.7", 600.0), Subject("address", "192.0.2.7"), at)


def stale(record: Record, at: float, peer: str = "id-db", **more: Any) -> Decision:
    return record("cipher", Quarantine(peer, 60.0), Subject("peer", peer), at, **more)


def dark(record: Record, at: float, peer: str = "id-db") -> Decision:
    return record("velocity", Weigh(peer, 3, 0.0), Subject("path", f"{peer}/3"), at)


def test_a_flood_a_stale_link_and_a_dark_path_are_one_incident_with_one_story() -> None:
    record, found = Record(), Incidents(known)
    assert found.decided(flood(record, 0.0)) is None
    decision = stale(record, 20.0, expects=STALE)
    opened = found.decided(decision)
    assert opened is not None
    assert found.decided(dark(record, 45.0)) is opened
    outcome = Outcome(trace=decision.trace, proposal=decision.verdict.proposal, measured=0.3, met=True)
    assert found.came(outcome, 50.0) is opened
    assert found.all() == [opened]
    assert (
        title(opened, name) == "fortress and cipher and velocity acted on 192.0.2.7, db (open, 50s up to now)"
    )
    assert story(opened, name) == [
        "fortress banned 192.0.2.7 for 10m: packets_s 900 over 50",
        "cipher quarantined the link with db for 60s: packets_s 900 over 50 -> psk_age_s 0.3, as expected",
        "velocity left dimension 3 to db: packets_s 900 over 50",
        "of 1 effects that were measured 1 came as expected",
    ]


def test_one_agent_another_peer_a_refusal_or_a_later_day_make_no_incident() -> None:
    record, found = Record(), Incidents(known)
    for decision in (
        stale(record, 0.0),
        stale(record, 1.0),
        dark(record, 2.0, "id-web"),
        record("velocity", Weigh("id-db", 3, 0.0), Subject("path", "id-db/3"), 3.0, accepted=False),
        dark(record, 2.0 + WINDOW),
        record("aegis", Raise("swap", "low", "text", "fix"), Subject("rule", "swap"), 3.0),
    ):
        assert found.decided(decision) is None
    assert found.all() == []


def test_a_decision_with_keys_of_two_groups_joins_them() -> None:
    record, found = Record(), Incidents()
    found.decided(flood(record, 0.0))
    found.decided(stale(record, 1.0))
    joined = record("velocity", Weigh("id-db", 3, 0.0), Subject("path", "id-db/3"), 2.0, incident="192.0.2.7")
    incident = found.decided(joined)
    assert incident is not None
    assert [fact.agent for fact in incident.facts] == ["fortress", "cipher", "velocity"]
    assert found.all() == [incident]


def test_an_incident_ends_when_it_is_quiet_and_nothing_of_it_stands() -> None:
    record, found = Record(), Incidents(known)
    ban = flood(record, 0.0)
    found.decided(ban)
    incident = found.decided(stale(record, 1.0))
    assert incident is not None
    assert found.tick(QUIET) == []
    assert found.tick(1.0 + QUIET, {ban.trace}) == []
    assert found.tick(2.0 + QUIET) == [incident]
    assert incident.closed == 2.0 + QUIET
    assert found.decided(dark(record, 3.0 + QUIET)) is None
    assert found.all() == [incident]


KINDS = st.sampled_from(["flood", "stale", "dark", "web", "both", "outcome", "tick"])


@given(st.lists(st.tuples(KINDS, st.sampled_from([0.0, 10.0, 100.0, 130.0, 400.0])), max_size=60))
def test_each_decision_is_in_one_group_and_each_key_leads_to_an_open_one(
    steps: list[tuple[str, float]],
) -> None:
    record, found, now, last = Record(), Incidents(known), 0.0, None
    for kind, pause in steps:
        now += pause
        match kind:
            case "flood":
                last = flood(record, now)
            case "stale":
                last = stale(record, now)
            case "dark":
                last = dark(record, now)
            case "web":
                last = dark(record, now, "id-web")
            case "both":
                last = stale(record, now, "id-web", incident="192.0.2.7")
            case "outcome" if last is not None:
                proposal = last.verdict.proposal
                found.came(Outcome(trace=last.trace, proposal=proposal, measured=None, met=None), now)
                continue
            case _:
                found.tick(now)
                continue
        found.decided(last)
        traces = [fact.decision.trace for one in found._open.values() for fact in one.facts]
        assert len(traces) == len(set(traces))
        assert found._facts.keys() == set(traces)
        assert all(found._open[group].keys.keys() >= {key} for key, group in found._of.items())
        assert all(len(one.agents) > 1 for one in found.all())


def test_all_of_it_is_bounded() -> None:
    record, found = Record(), Incidents()
    for n in range(3 * incidents.MOST_OPEN):
        for agent in ("a", "b"):
            action, subject = Weigh(f"p{n}", 1, 0.0), Subject("path", f"p{n}/1")
            found.decided(record("velocity" if agent == "a" else "phantom", action, subject, float(n)))
    for n in range(3 * incidents.MOST_FACTS):
        found.decided(record("cipher", Quarantine("x", 1.0), Subject("peer", "x"), 1e3, incident=f"key{n}"))
    assert len(found._open) == incidents.MOST_OPEN
    assert len(found._closed) == incidents.MOST_CLOSED
    (big,) = [one for one in found._open.values() if one.more]
    assert (len(big.facts), len(big.keys)) == (incidents.MOST_FACTS, incidents.MOST_KEYS)
    assert big.more == 2 * incidents.MOST_FACTS
    assert len(found._of) <= incidents.MOST_OPEN * incidents.MOST_KEYS
    assert len(found._facts) == sum(len(one.facts) for one in found._open.values())
