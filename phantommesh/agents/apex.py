# SPDX-License-Identifier: GPL-3.0-or-later
"""APEX: which proposals are carried out.

A subject has one action at a time, the standing one. Of several agents that want a subject, the first by
`base.PRECEDENCE` gets it, and takes it from one that comes later there. So what stands in the end does not
depend on the order in which agents speak. An agent that was kept from a subject for `PATIENCE` goes first
once, before all but the operator: nobody starves. After an action the same agent leaves the subject alone for
the action's ``rests``, and only renews what stands: nothing oscillates. The operator waits for nobody and
rests never. Nothing is carried out without evidence, outside the bounds of `actions.check`, or by an agent
that does not own the kind of action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

import msgspec

from phantommesh.agents import actions
from phantommesh.agents.base import RANK, AgentName, Proposal, Reason, Subject, Verdict
from phantommesh.rates import Rates

# Tuning.
PATIENCE: Final = (
    600.0  # s that an agent is kept from a subject until it goes first; ten times the longest cadence
)
MOST_STANDING: Final = 512  # lasting actions of one agent: a ban list of that length is a flood of its own
MOST_WAITING: Final = 1024  # agents and subjects whose waiting or rest is remembered
RATE, BURST = 2.0, 64.0  # accepted proposals of one agent, a second and at once: one look may see all peers

_KEPT: Final = frozenset[Reason]({"held", "outranked"})
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Standing:
    """A lasting action that is in force; ``since`` on the node's clock. Its proposal says until when."""

    proposal: Proposal
    since: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the lasting action that had to give way to it, if one did."""

    verdict: Verdict
    displaced: Standing | None = None


class Apex:
    """The judge, and what stands."""

    def __init__(self) -> None:
        self.frozen = False
        """On the operator's word: nothing but the operator's own proposals is accepted."""
        self._standing: dict[Subject, Standing] = {}
        self._rests: dict[tuple[AgentName, Subject], float] = {}
        self._waits: dict[tuple[AgentName, Subject], float] = {}
        self._rates = Rates[AgentName](RATE, BURST)

    def standing(self) -> Iterator[Standing]:
        """All lasting actions in force."""
        return iter(self._standing.values())

    def at(self, subject: Subject) -> Standing | None:
        """What stands for a subject."""
        return self._standing.get(subject)

    def next_lapse(self) -> float:
        """The moment, on the node's clock, at which `lapse` has something to return."""
        return min((one.proposal.until for one in self._standing.values()), default=float("inf"))

    def lapse(self, now: float) -> list[Standing]:
        """Let go of what has expired, and return that."""
        gone = [one for one in self._standing.values() if one.proposal.until <= now]
        for one in gone:
            self._end(one, now)
        return gone

    def withdraw(self, agent: AgentName, now: float, subject: Subject | None = None) -> list[Standing]:
        """Let go of all that stands for an agent, or of one subject of the agent, and return that."""
        gone = [
            one
            for one in self._standing.values()
            if one.proposal.agent == agent and subject in (None, one.proposal.subject)
        ]
        for one in gone:
            self._end(one, now)
        return gone

    def _end(self, one: Standing, now: float) -> None:
        proposal = one.proposal
        del self._standing[proposal.subject]
        self._rest(proposal, now)

    def _rest(self, proposal: Proposal, now: float) -> None:
        if proposal.agent != "operator" and proposal.action.rests:
            _remember(self._rests, (proposal.agent, proposal.subject), now + proposal.action.rests)

    def judge(self, proposals: Iterable[Proposal], now: float) -> list[Judgement]:
        """Judge proposals that are made at the same time. The order in which they are given says nothing."""
        ordered = sorted(proposals, key=lambda one: (one.subject, self._turn(one, now), _encode(one)))
        counts = Counter(one.proposal.agent for one in self._standing.values())
        judged, winner = list[Judgement](), dict[Subject, AgentName]()
        for proposal in ordered:
            taken = winner.get(proposal.subject)
            one = self._judge(proposal, taken, counts, now)
            if one.verdict.reason in ("accepted", "renewed"):
                winner[proposal.subject] = proposal.agent
            which = proposal.agent, proposal.subject
            if one.verdict.reason in _KEPT:
                if which not in self._waits:
                    _remember(self._waits, which, now)
            elif one.verdict.accepted:
                self._waits.pop(which, None)
            judged.append(one)
        return judged

    def _turn(self, proposal: Proposal, now: float) -> tuple[int, int]:
        """What is smaller goes first."""
        rank = RANK.get(proposal.agent, len(RANK))
        return (0 if rank == 0 else 1 if self._waited(proposal, now) else 2), rank

    def _waited(self, proposal: Proposal, now: float) -> bool:
        return now - self._waits.get((proposal.agent, proposal.subject), now) >= PATIENCE

    def _judge(
        self, proposal: Proposal, taken: AgentName | None, counts: Counter[AgentName], now: float
    ) -> Judgement:
        def refused(reason: Reason, by: AgentName | None = None) -> Judgement:
            return Judgement(Verdict(proposal=proposal, reason=reason, by=by))

        if (why := self._inadmissible(proposal, now)) is not None:
            return refused(why)
        if taken is not None:
            return refused("outranked", taken)
        stands = self._standing.get(proposal.subject)
        if stands is not None and stands.proposal.until <= now:
            stands = None
        if stands is not None:
            holder = stands.proposal.agent
            if holder == proposal.agent and _same(stands.proposal, proposal):
                self._standing[proposal.subject] = replace(stands, proposal=proposal)
                return Judgement(Verdict(proposal=proposal, reason="renewed"))
            if holder != proposal.agent and self._turn(proposal, now) > self._turn(stands.proposal, now):
                return refused("held", holder)
            if (
                holder == proposal.agent
                and now < stands.since + stands.proposal.action.rests
                and holder != "operator"
            ):
                return refused("cooling-down")
        if now < self._rests.get((proposal.agent, proposal.subject), now):
            return refused("cooling-down")
        lasting = isinstance(proposal.action, actions.LASTING)
        if proposal.agent != "operator":
            if lasting and counts[proposal.agent] >= MOST_STANDING:
                return refused("too-many")
            if not self._rates.allow(proposal.agent, now):
                return refused("too-many")
        displaced = self._standing.pop(proposal.subject, None)
        if displaced is not None:
            counts[displaced.proposal.agent] -= 1
            if displaced.proposal.agent != proposal.agent:
                self._rest(displaced.proposal, now)
        if lasting:
            counts[proposal.agent] += 1
            self._standing[proposal.subject] = Standing(proposal, now)
        else:
            self._rest(proposal, now)
        return Judgement(Verdict(proposal=proposal, reason="accepted"), displaced)

    def _inadmissible(self, proposal: Proposal, now: float) -> Reason | None:
        if proposal.until <= now or not isfinite(proposal.until):
            return "expired"
        if not proposal.evidence or not all(isfinite(one.value) for one in proposal.evidence):
            return "no-evidence"
        if proposal.agent == "operator":
            return None
        if self.frozen:
            return "frozen"
        if not isinstance(proposal.action, actions.OF.get(proposal.agent, ())):
            return "not-its-action"
        return "out-of-bounds" if actions.check(proposal.action) else None


def _same(stands: Proposal, proposal: Proposal) -> bool:
    """Whether a proposal asks for what stands. A finding stays the same while its figures move."""
    before, after = stands.action, proposal.action
    if isinstance(before, actions.Raise) and isinstance(after, actions.Raise):
        return (before.rule, before.severity) == (after.rule, after.severity)
    return before == after


def _remember(
    kept: dict[tuple[AgentName, Subject], float], which: tuple[AgentName, Subject], moment: float
) -> None:
    """Keep a moment, and forget the oldest entries past `MOST_WAITING`."""
    kept.pop(which, None)
    kept[which] = moment
    while len(kept) > MOST_WAITING:
        del kept[next(iter(kept))]
