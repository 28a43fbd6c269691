# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents, their decisions, incidents and the memory of threats, as the API shows them; and the operator's
word on who pauses and who goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import cleandoc
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import islice
from math import isfinite
from typing import Final, Literal

import msgspec
import trio

from phantommesh.agents import incidents as synthesis
from phantommesh.agents.apex import Apex, Standing
from phantommesh.agents.base import PRECEDENCE, AgentName, Expectation
from phantommesh.agents.council import Decision, Seat
from phantommesh.agents.incidents import Incident
from phantommesh.agents.telling import Name, came, deed, told
from phantommesh.management.agentview import (
    AgentDetail,
    AgentsGlance,
    AgentsResult,
    AgentView,
    DecisionView,
    EvidenceView,
    ExpectedView,
    HinterRow,
    IncidentView,
    MemoryView,
    OutcomeView,
    PatternView,
    StandingView,
)
from phantommesh.management.finding import MAX_SHOWN, UnknownMemberError
from phantommesh.moments import rfc3339
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.decisions import Concluded, kind_of
from phantommesh.nursery.parts import Parts
from phantommesh.trust.certificates import Member
from phantommesh.trust.identity import format_node_id

APEX: Final = "apex"
ALL: Final = "all"
LATEST: Final = 10  # decisions that one agent is shown with
MOST_SHOWN: Final = 64  # lasting actions that one agent is shown with, and strongest patterns


def agents(parts: Parts) -> list[AgentView]:
    """All agents in the order of precedence, APEX first."""
    now, seats = trio.current_time(), parts.council.seats
    return [_apex(parts, now), *(_agent(parts, seats[name], now) for name in PRECEDENCE if name in seats)]


def glance(parts: Parts) -> AgentsGlance:
    """The agents in short, for `status`."""
    seats = parts.council.seats
    of: dict[str, list[str]] = {}
    for name in (name for name in PRECEDENCE if name in seats):
        of.setdefault(seats[name].phase, []).append(name)
    return AgentsGlance(
        running=len(of.get("running", ())),
        total=len(seats),
        dry_run=of.get("dry-run", []),
        paused=of.get("paused", []),
        benched=of.get("benched", []),
        accepted=parts.decisions.accepted,
        frozen=parts.council.apex.frozen,
    )


def agent(parts: Parts, wanted: str) -> AgentDetail:
    """One agent. Raises UnknownMemberError."""
    now, name = trio.current_time(), name_of(parts)
    if wanted == APEX:
        return AgentDetail(
            agent=_apex(parts, now),
            policy=_policy(Apex),
            standing=_standing(parts, list(parts.council.apex.standing()), now, name),
            decisions=_latest(parts, lambda one: True, name),
        )
    seat = _seat(parts, wanted)
    own = [one for one in parts.council.apex.standing() if one.proposal.agent == seat.agent.name]
    return AgentDetail(
        agent=_agent(parts, seat, now),
        policy=_policy(type(seat.agent)),
        standing=_standing(parts, own, now, name),
        decisions=_latest(parts, lambda one: one.verdict.proposal.agent == seat.agent.name, name),
    )


def decisions(
    parts: Parts,
    after: int,
    limit: int,
    *,
    agent: str | None = None,
    accepted: bool = False,
    newest: bool = False,
) -> list[DecisionView]:
    """At most so many decisions of this run with a number above ``after``: the oldest of these, or the
    newest. Oldest first. Raises UnknownMemberError for an agent that there is not."""
    if agent is not None and agent != PRECEDENCE[0]:
        _seat(parts, agent)
    name = name_of(parts)
    wanted = (
        one
        for one in (reversed(parts.council.decisions) if newest else parts.council.decisions)
        if one.seq > after
        and agent in (None, one.verdict.proposal.agent)
        and (one.verdict.accepted or not accepted)
    )
    found = [_decision(parts, one, name) for one in islice(wanted, limit)]
    return found[::-1] if newest else found


def incidents(parts: Parts) -> list[IncidentView]:
    """All incidents, by when they began."""
    found, name = parts.decisions.incidents, name_of(parts)
    found.tick(moment().wall, parts.council.standing_traces())
    return [_incident(one, name) for one in found.all()]


async def memory(parts: Parts) -> MemoryView:
    """The memory of threats, and what others hint."""
    kept = await parts.memory.summary(MOST_SHOWN)
    hints, name = parts.memory.hints.summary(moment().wall), name_of(parts)
    return MemoryView(
        patterns=kept.patterns, most_patterns=kept.places, bytes=kept.bytes, most_bytes=kept.most_bytes,
        evicted=kept.evicted,
        strongest=[
            PatternView(
                kind=key.kind, source=key.source, target=key.target, signature=key.signature,
                strength=one.strength, times=one.times, useful=one.useful, false=one.false,
                first=rfc3339(one.first), last=rfc3339(one.last), priority=one.priority,
            )
            for key, one in kept.strongest
        ],
        hinted=hints.hinted, own_hints=hints.own, hints_taken=hints.taken, hints_dropped=hints.dropped,
        hinters=[
            HinterRow(
                name=name(one.node), node_id=one.node, weight=one.weight, confirmed=one.confirmed,
                refuted=one.refuted, hints=one.hints, hops=one.hops,
                liar_until=rfc3339(one.liar_until) if one.liar_until > moment().wall else None,
            )
            for one in hints.hinters
        ],
    )  # fmt: skip


def pause(parts: Parts, wanted: str, *, dry_run: bool) -> AgentsResult:
    """Stop an agent, or all, and lift what stands for it. Paused, APEX freezes what stands. A dry run changes
    nothing. Raises UnknownMemberError."""
    named = _named(parts, wanted)
    lifted = sum(parts.council.apex.count(name) for name in named if name != APEX)
    for name in () if dry_run else named:
        if name == APEX:
            parts.decisions.freeze(on=True)
        else:
            parts.decisions.pause(name)
    return _result(parts, wanted, lifted, dry_run=dry_run)


def resume(parts: Parts, wanted: str, *, trying: bool, dry_run: bool) -> AgentsResult:
    """Let an agent, or all, go on, or only say what they would do (``trying``). With all, APEX accepts again,
    too. A dry run changes nothing. Raises UnknownMemberError."""
    named, lifted = _named(parts, wanted), 0
    if trying:
        lifted = sum(parts.council.apex.count(name) for name in named if name != APEX)
    if dry_run:
        return _result(parts, wanted, lifted, dry_run=True)
    if wanted == ALL and not trying:
        parts.decisions.freeze(on=False)
    for name in named:
        if name == APEX:
            parts.decisions.freeze(on=False)
        else:
            parts.decisions.resume(name, dry_run=trying)
    return _result(parts, wanted, lifted)


def known(parts: Parts) -> Callable[[str], str]:
    """Give the node id of the member that WireGuard sees at an address or in a network; else that itself."""

    def whose(key: str) -> str:
        try:
            block = ip_network(key)
        except ValueError:
            return key
        member = next(members_at(parts, block), None)
        return key if member is None else format_node_id(member.node_id)

    return whose


def members_at(parts: Parts, block: IPv4Network | IPv6Network) -> Iterator[Member]:
    """Yield the members that WireGuard sees at an address of a network, each once."""
    for entry in parts.peers.entries:
        wg_keys = parts.peers.wg_keys_of(entry)
        for name, wg_key in zip(parts.names, wg_keys, strict=True):
            device = parts.reconciler.actual.get(name)
            peer = None if device is None else device.peers.get(wg_key)
            if peer is not None and peer.endpoint is not None and ip_address(peer.endpoint.host) in block:
                yield entry.member
                break


def synthesise(parts: Parts) -> None:
    """Have incidents and sentences know members by their addresses and names."""
    parts.decisions.incidents.known = known(parts)
    parts.decisions.words = lambda one: told(one.verdict, name_of(parts))


def name_of(parts: Parts) -> Name:
    """Names of members by node id."""
    names = {format_node_id(entry.member.node_id): entry.member.name for entry in parts.peers.entries}
    return lambda key: names.get(key, key)


# The inside.


def _seat(parts: Parts, wanted: str) -> Seat:
    for name, seat in parts.council.seats.items():
        if name == wanted:
            return seat
    there = ", ".join([APEX, *parts.council.seats])
    raise UnknownMemberError(f"no such agent: {wanted[:MAX_SHOWN]!r}", fix=f"give one of {there}")


def _named(parts: Parts, wanted: str) -> list[AgentName | Literal["apex"]]:
    if wanted == ALL:
        return list(parts.council.seats)
    if wanted == APEX:
        return [APEX]
    return [_seat(parts, wanted).agent.name]


def _result(parts: Parts, wanted: str, lifted: int, *, dry_run: bool = False) -> AgentsResult:
    shown = [one for one in agents(parts) if wanted in (ALL, one.name)]
    return AgentsResult(agents=shown, lifted=lifted, dry_run=dry_run)


def _apex(parts: Parts, now: float) -> AgentView:
    apex = parts.council.apex
    return AgentView(
        name=APEX,
        phase="paused" if apex.frozen else "running",
        since_s=max(0.0, now - parts.decisions.frozen_since),
        about=_about(Apex),
        accepted=parts.decisions.accepted,
        standing=sum(1 for _ in apex.standing()),
    )


def _agent(parts: Parts, seat: Seat, now: float) -> AgentView:
    one = seat.agent
    return AgentView(
        name=one.name, phase=seat.phase, since_s=max(0.0, now - seat.since), why=seat.why,
        back_in_s=max(0.0, seat.until - now) if isfinite(seat.until) else None,
        about=_about(type(one)), every_s=one.every, wakes=sorted(one.wakes), looks=seat.looks,
        look_s=seat.last, slowest_s=seat.slowest, benched=seat.benched, proposals=seat.proposals,
        accepted=seat.accepted, refused=seat.refused, failed=seat.failed, met=seat.met, unmet=seat.unmet,
        standing=parts.council.apex.count(one.name),
    )  # fmt: skip


def _policy(kind: type) -> str:
    return cleandoc(sys.modules[kind.__module__].__doc__ or kind.__doc__ or "")


def _about(kind: type) -> str:
    """The first sentence of an agent's policy."""
    return " ".join(_policy(kind).partition("\n\n")[0].split())


def _latest(parts: Parts, wanted: Callable[[Decision], bool], name: Name) -> list[DecisionView]:
    found = list(islice((one for one in reversed(parts.council.decisions) if wanted(one)), LATEST))
    return [_decision(parts, one, name) for one in reversed(found)]


def _standing(parts: Parts, found: Sequence[Standing], now: float, name: Name) -> list[StandingView]:
    newest = sorted(found, key=lambda one: -one.since)[:MOST_SHOWN]
    return [
        StandingView(
            subject=str(one.proposal.subject),
            action=kind_of(one.proposal),
            since_s=max(0.0, now - one.since),
            left_s=max(0.0, one.proposal.until - now),
            text=f"{one.proposal.agent} {' '.join(deed(one.proposal.action, name)[1:])}",
            why=one.proposal.why,
        )
        for one in newest
    ]


def _decision(parts: Parts, one: Decision, name: Name) -> DecisionView:
    verdict, proposal = one.verdict, one.verdict.proposal
    concluded = parts.decisions.outcomes.get(one.trace)
    return DecisionView(
        seq=one.seq, run=parts.events.run, time=rfc3339(one.at, milliseconds=True), trace=one.trace,
        agent=proposal.agent, action=kind_of(proposal), what=msgspec.to_builtins(proposal.action),
        subject=str(proposal.subject), result=verdict.reason, accepted=verdict.accepted, by=verdict.by,
        why=proposal.why,
        evidence=[
            EvidenceView(
                what=each.what, value=_finite(each.value), bound=_finite(each.bound), source=each.source
            )
            for each in proposal.evidence
        ],
        expects=_expected(proposal.expects), incident=proposal.incident, seconds=one.seconds,
        times=one.times, outcome=_outcome(concluded, one), text=told(verdict, name),
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _expected(one: Expectation | None) -> ExpectedView | None:
    if one is None:
        return None
    return ExpectedView(
        what=one.what, relation=one.relation, value=_finite(one.value), within_s=_finite(one.within)
    )


def _outcome(found: Concluded | None, decision: Decision) -> OutcomeView | None:
    if found is None:
        return None
    outcome, at = found
    return OutcomeView(
        time=rfc3339(at, milliseconds=True),
        after_s=round(max(0.0, at - decision.at), 3),
        measured=_finite(outcome.measured),
        met=outcome.met,
        error=outcome.error,
        text=came(outcome),
    )


def _incident(one: Incident, name: Name) -> IncidentView:
    return IncidentView(
        id=one.id,
        state="open" if one.closed is None else "closed",
        opened=rfc3339(one.opened),
        updated=rfc3339(one.updated),
        closed=None if one.closed is None else rfc3339(one.closed),
        about=list(dict.fromkeys(name(key) for key in one.keys)),
        agents=list(one.agents),
        decisions=[fact.decision.trace for fact in one.facts],
        more=one.more,
        title=synthesis.title(one, name),
        story=synthesis.story(one, name),
    )
