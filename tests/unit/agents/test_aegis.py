# SPDX-License-Identifier: GPL-3.0-or-later
from itertools import count

import msgspec

from phantommesh.agents import actions
from phantommesh.agents.actions import MOST_TEXT, Mend, Raise
from phantommesh.agents.aegis import AGAIN, EVERY, LASTS, Aegis
from phantommesh.agents.base import Observation, Proposal
from phantommesh.agents.council import Council
from phantommesh.hostcheck.seen import CopySeen, FileSeen, HostSeen
from phantommesh.node.steps import Moment

CLEAN = HostSeen(now=1.8e9, uid=0)
KEY = FileSeen(path="/s/node.key", role="state-file", kind="file", mode=0o644, uid=0, gid=0, secret=True)
OPEN = msgspec.structs.replace(CLEAN, files=(KEY,))
DEBUG = msgspec.structs.replace(CLEAN, wireguard_debug=True)


def look(agent: Aegis, seen: HostSeen, at: float = 100.0) -> list[Proposal]:
    return list(agent.observe(Observation(Moment(at, 1.8e9 + at), seen)))


def test_a_finding_is_raised_with_evidence_and_stands_until_it_is_not_found_again() -> None:
    [one] = look(Aegis(every=60.0), OPEN)
    assert (
        isinstance(one.action, Raise) and one.action.rule == "key-open" and one.action.severity == "critical"
    )
    assert one.evidence[0].value == 1.0 and one.evidence[0].source == "/s/node.key"
    assert one.until == 100.0 + LASTS * 60.0 and actions.check(one.action) == ""
    assert look(Aegis(), CLEAN) == []


def test_it_looks_again_within_a_minute_while_something_is_found() -> None:
    agent = Aegis()
    assert look(agent, CLEAN) == [] and agent.every == EVERY
    [one] = look(agent, OPEN)
    assert agent.every == AGAIN and one.until == 100.0 + LASTS * AGAIN
    assert look(agent, CLEAN) == [] and agent.every == EVERY
    quick = Aegis(every=20.0)
    look(quick, OPEN)
    assert quick.every == 20.0


def test_many_findings_of_a_rule_are_one_proposal_and_a_long_path_fits() -> None:
    files = tuple(msgspec.structs.replace(KEY, path="/" + "x" * 3000 + str(i)) for i in range(50))
    [one] = look(Aegis(), msgspec.structs.replace(CLEAN, files=files))
    assert isinstance(one.action, Raise) and "49 more" in one.action.text
    assert actions.check(one.action) == "" and len(one.action.fix) <= MOST_TEXT


def test_a_path_of_four_bytes_a_character_fits_what_a_proposal_may_have() -> None:
    """Any user may leave such a file; a proposal of more than 4096 bytes would bench the agent."""
    copy = CopySeen("/tmp/" + "\U0001f600" * 400, "a node's node.key", 0o644)
    council = Council([Aegis()], trace=lambda: "t", now=0.0)
    seen = msgspec.structs.replace(CLEAN, copies=(copy,))
    [one] = council.look("aegis", seen, (), Moment(1.0, 1e9))().proposals
    assert one.subject.name == "key-copy-open"


def test_a_safe_fix_is_proposed_only_where_allowed_and_only_once() -> None:
    assert isinstance(look(Aegis(), OPEN)[0].action, Raise)
    agent = Aegis(mend=True)
    [first] = look(agent, OPEN)
    assert first.action == Mend("key-open") and first.expects is not None
    assert agent.measure(OPEN, first) == 1.0 and agent.measure(CLEAN, first) == 0.0
    assert isinstance(look(agent, OPEN)[0].action, Raise)  # it did not help
    assert look(agent, CLEAN) == []
    assert look(agent, OPEN)[0].action == Mend("key-open")  # another time


def test_what_has_no_safe_fix_is_raised_though_mending_is_allowed() -> None:
    assert isinstance(look(Aegis(mend=True), DEBUG)[0].action, Raise)
    foreign = msgspec.structs.replace(KEY, uid=9, path="/s/root.key")
    both = msgspec.structs.replace(CLEAN, files=(KEY, foreign))
    assert all(isinstance(one.action, Raise) for one in look(Aegis(mend=True), both))


def test_the_council_carries_out_what_it_proposes() -> None:
    traces = count()
    council = Council([Aegis(every=60.0, mend=True)], trace=lambda: str(next(traces)), now=0.0)
    seen = msgspec.structs.replace(OPEN, wireguard_debug=True)
    at = Moment(1.0, 1.8e9)
    minutes = council.looked("aegis", council.look("aegis", seen, (), at)(), 0.001, at)
    assert {type(one.proposal.action) for one in minutes.orders} == {Mend, Raise}
    later = Moment(1.0 + 61.0, 1.8e9 + 61.0)
    minutes = council.looked("aegis", council.look("aegis", CLEAN, (), later)(), 0.001, later)
    lifted = council.lapse(1.0 + LASTS * 60.0)
    assert [one.proposal.subject.name for one in lifted if one.lift] == ["wireguard-kernel-debug"]
    last = Moment(122.0, 1.8e9 + 122.0)
    minutes.outcomes += council.looked(
        "aegis", council.look("aegis", CLEAN, (), last)(), 0.001, last
    ).outcomes
    assert [one.met for one in minutes.outcomes] == [True]
