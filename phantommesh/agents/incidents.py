# SPDX-License-Identifier: GPL-3.0-or-later
"""Synthesis: what several agents did about one peer or address at about one time is one incident.

A flood (FORTRESS), a stale link (CIPHER) and a dark path (VELOCITY) become one story instead of three
decisions. Accepted decisions alone count. Each has keys: the incident that its agent names, and the peer or
address of its subject. Decisions that share a key within `WINDOW` belong together, and one that has keys of
two such groups joins these. A group is an incident as soon as two agents are in it. `Known` says which member
stands behind an address, so that the address's flood and the member's link have a key in common.

An incident is closed after `QUIET` seconds without news, if none of its actions stands any more.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from phantommesh.agents.base import AgentName, Outcome, Proposal, Subject
from phantommesh.agents.council import Decision
from phantommesh.agents.telling import Name, came, span, told

# Tuning.
WINDOW: Final = 120.0  # s between two decisions that belong together; two of the rarest looks
QUIET: Final = 300.0  # s without news after which an incident is over
MOST_OPEN: Final = 256  # groups that may become or are incidents; the one longest without news makes room
MOST_CLOSED: Final = 128  # incidents that are kept when they are over
MOST_FACTS: Final = 32  # of one group; later ones are counted
MOST_KEYS: Final = 32  # of one group

Known: TypeAlias = Callable[[str], str]
"""Gives the node id of the member that is seen at an address; the address itself where there is none."""


@dataclass(slots=True)
class Fact:
    """One accepted decision in an incident, and its outcome once that is known. ``at`` in Unix seconds."""

    decision: Decision
    outcome: Outcome | None = None

    @property
    def at(self) -> float:
        return self.decision.at

    @property
    def agent(self) -> AgentName:
        return self.decision.verdict.proposal.agent


@dataclass(slots=True)
class Incident:
    """A group of decisions. ``id`` is the trace of the first. ``more``: facts beyond those that are kept.
    ``closed`` None: it goes on. Times in Unix seconds."""

    id: str
    opened: float
    updated: float
    keys: dict[str, None]
    agents: dict[AgentName, None]
    facts: list[Fact] = field(default_factory=list)
    more: int = 0
    closed: float | None = None

    @property
    def shown(self) -> bool:
        """Whether several agents are in it."""
        return len(self.agents) > 1


class Incidents:
    """The incidents of one node."""

    def __init__(self, known: Known = lambda address: address) -> None:
        self.known = known
        self._open: dict[str, Incident] = {}  # the one longest without news first
        self._of: dict[str, str] = {}  # a key's group
        self._facts: dict[str, tuple[Incident, Fact]] = {}  # by trace, of open groups
        self._closed: dict[str, Incident] = {}

    def all(self) -> list[Incident]:
        """All incidents, open and over, by when they began."""
        found = [*self._closed.values(), *(one for one in self._open.values() if one.shown)]
        return sorted(found, key=lambda one: (one.opened, one.id))

    def decided(self, decision: Decision) -> Incident | None:
        """Take a decision. Return the incident that it opened or belongs to, if it does to one."""
        proposal = decision.verdict.proposal
        keys = self._keys(proposal)
        if not decision.verdict.accepted or not keys:
            return None
        now = decision.at
        group = self._group(keys, decision)
        if group is None:
            group = Incident(decision.trace, now, now, {}, {})
        self._open.pop(group.id, None)
        self._open[group.id] = group
        group.updated = max(group.updated, now)
        group.agents[proposal.agent] = None
        for key in keys:
            self._add_key(group, key)
        self._add(group, Fact(decision))
        while len(self._open) > MOST_OPEN:
            self._close(next(iter(self._open.values())), now)
        return group if group.shown else None

    def came(self, outcome: Outcome, at: float) -> Incident | None:
        """Take an outcome. Return the incident that it belongs to, if there is one."""
        found = self._facts.get(outcome.trace)
        if found is None:
            return None
        group, fact = found
        fact.outcome, group.updated = outcome, max(group.updated, at)
        self._open[group.id] = self._open.pop(group.id)
        return group if group.shown else None

    def tick(self, now: float, stands: Container[str] = ()) -> list[Incident]:
        """Close what is over, and return the incidents among that. ``stands``: the traces of what stands."""
        over = [
            one
            for one in self._open.values()
            if now >= one.updated + QUIET
            and not (one.shown and any(fact.decision.trace in stands for fact in one.facts))
        ]
        for one in over:
            self._close(one, now)
        return [one for one in over if one.shown]

    # The inside.

    def _keys(self, proposal: Proposal) -> list[str]:
        found = dict.fromkeys(key for key in (proposal.incident, _whose(proposal.subject)) if key)
        return list(dict.fromkeys([*found, *(self.known(key) for key in found)]))

    def _group(self, keys: list[str], decision: Decision) -> Incident | None:
        """The group that the decision belongs to; where its keys are of several, these become one."""
        ids = dict.fromkeys(self._of[key] for key in keys if key in self._of)
        groups = [one for one in map(self._open.__getitem__, ids) if decision.at <= one.updated + WINDOW]
        if not groups:
            return None
        first, *others = sorted(groups, key=lambda one: (one.opened, one.id))
        for other in others:
            self._join(first, other)
        return first

    def _join(self, first: Incident, other: Incident) -> None:
        del self._open[other.id]
        first.updated, first.more = max(first.updated, other.updated), first.more + other.more
        first.agents |= other.agents
        for key in other.keys:
            del self._of[key]
            self._add_key(first, key)
        for fact in other.facts:
            self._facts.pop(fact.decision.trace, None)
            self._add(first, fact)
        first.facts.sort(key=lambda one: (one.at, one.decision.seq))

    def _add_key(self, group: Incident, key: str) -> None:
        before = self._of.get(key)
        if before is not None and before != group.id:  # of a group that is too old to go on
            self._open[before].keys.pop(key, None)
        if key in group.keys or len(group.keys) < MOST_KEYS:
            group.keys[key] = None
            self._of[key] = group.id
        elif before is not None and before != group.id:
            del self._of[key]

    def _add(self, group: Incident, fact: Fact) -> None:
        if len(group.facts) >= MOST_FACTS:
            group.more += 1
            return
        group.facts.append(fact)
        self._facts[fact.decision.trace] = group, fact

    def _close(self, group: Incident, now: float) -> None:
        del self._open[group.id]
        for key in group.keys:
            del self._of[key]
        for fact in group.facts:
            self._facts.pop(fact.decision.trace, None)
        if group.shown:
            group.closed = now
            self._closed[group.id] = group
            while len(self._closed) > MOST_CLOSED:
                del self._closed[next(iter(self._closed))]


def _whose(subject: Subject) -> str:
    """The peer or address that a subject is of; empty where it is of neither."""
    match subject.kind:
        case "peer" | "address":
            return subject.name
        case "path" | "flow":
            return subject.name.partition("/")[0]
        case _:
            return ""


def title(incident: Incident, name: Name) -> str:
    """An incident in a line: who acted on what, and how long."""
    about = ", ".join(dict.fromkeys(name(key) for key in incident.keys))
    lasted = span(max(0.0, (incident.closed or incident.updated) - incident.opened))
    state = f"over after {lasted}" if incident.closed is not None else f"open, {lasted} up to now"
    return f"{' and '.join(incident.agents)} acted on {about} ({state})"


def story(incident: Incident, name: Name) -> list[str]:
    """An incident in sentences, from the evidence of its decisions: one each, and how it went."""
    lines = []
    for fact in incident.facts:
        line = told(fact.decision.verdict, name)
        if fact.outcome is not None and (fact.outcome.proposal.expects is not None or fact.outcome.error):
            line += f" -> {came(fact.outcome)}"
        lines.append(line)
    if incident.more:
        lines.append(f"and {incident.more} more decisions")
    known = [fact.outcome.met for fact in incident.facts if fact.outcome is not None]
    met, unmet = known.count(True), known.count(False)
    if met or unmet:
        lines.append(f"of {met + unmet} effects that were measured {met} came as expected")
    return lines
