# SPDX-License-Identifier: GPL-3.0-or-later
"""APEX: which proposals are carried out.

A subject has one lasting action at a time, the standing one, and belongs to its agent. Of several agents that
want a subject, the first by `base.PRECEDENCE` gets it, and takes it from one that comes later there. An
agent's action that is done once leaves the agent's own standing action, and ends that of any other. After an
action the same agent leaves the subject alone for the action's ``rests``, and only renews what stands:
nothing oscillates. The operator waits for nobody and rests never; the operator's last word counts. Nothing is
carried out without evidence, outside the bounds of `actions.check`, or by an agent that does not own the kind
of action.

What holds, and `tests/unit/agents/test_apex.py` attacks:

- **Order.** The verdicts on one batch do not depend on its order. Proposals that are judged one by one at one
  moment leave the same standing actions as in one batch, in any order, while no agent is at the bound of its
  rate or of its standing actions. At one moment a subject has one winner: one agent.
- **Nothing starves.** An agent that proposes for a subject at least every `GAP` seconds, within its own rate
  and bounds and while it does not rest there, is accepted at the latest ``PATIENCE + 8 (TURN + GAP) + GAP``
  seconds after it was first kept from the subject, unless an action of the operator stands there. What it
  does then stands for `TURN`, or until its end, before others than the operator may end it. (Of those that
  have waited for `PATIENCE` the one that waits longest goes before all others. Of the eight others each can
  be ahead once, and waits anew after that.)
- **Memory.** Every table is bounded for each agent by itself: a flood of one takes no place of another.
- **Budgets.** Rate and standing actions are bounded for each agent and kind of action: whoever has an agent
  do much of one kind, as an attacker can by coming from many networks, keeps it from nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from phantommesh.agents import actions
from phantommesh.agents.base import RANK, AgentName, Proposal, Reason, Subject, Verdict
from phantommesh.rates import Rates

# Tuning.
PATIENCE: Final = (
    600.0  # s that an agent is kept from a subject until it goes first; ten times the longest cadence
)
TURN: Final = 60.0  # s that an agent which went first keeps the subject; one look of the longest cadence
GAP: Final = 150.0  # s without a proposal after which an agent no longer waits: two of the rarest looks
LONGEST: Final = 86_400.0  # s that an action of an agent stands without being proposed again
MOST_STANDING: Final = 512  # lasting actions of one agent and kind: that many bans are a flood of their own
MOST_OF_OPERATOR: Final = 8192  # the same of the operator: what a person may have a script do
MOST_REMEMBERED: Final = 1024  # subjects of one agent whose waiting or rest is remembered
RATE, BURST = 2.0, 64.0  # accepted proposals of one agent and kind, a second and at once: a look at all peers
FAILED_REST: Final = 10.0  # s after an action that could not be carried out, at least

_Turn: TypeAlias = tuple[int, int]
_Budget: TypeAlias = tuple[AgentName, type[actions.Action]]
Key = TypeVar("Key")
_FIRST: Final = 1, 0  # who went first keeps its place before the next that waits
_KEPT: Final = frozenset[Reason]({"held", "outranked"})
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Standing:
    """A lasting action that is in force; ``since`` on the node's clock. Its proposal says until when.
    ``first``: its agent had waited, and went first."""

    proposal: Proposal
    since: float
    first: bool = False

    def turn(self, now: float) -> _Turn:
        """What is smaller has the subject."""
        first = self.first and now < self.since + TURN
        return _FIRST if first else _turn(self.proposal.agent)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and the lasting action that had to give way to it, if one did."""

    verdict: Verdict
    displaced: Standing | None = None


@dataclass(slots=True)
class _Won:
    """Who has a subject at the moment that is being judged, and by which proposals: a lasting one (True) and
    one that is done once (False)."""

    agent: AgentName
    turn: _Turn
    waited: _Wait | None
    by: dict[bool, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Wait:
    since: float
    last: float


@dataclass(slots=True)
class _Memory:
    """What is remembered of one agent, by subject: since when it waits, and until when it rests; that by
    ``""`` for all lasting actions, which exclude each other, and else by the kind of action."""

    waits: dict[Subject, _Wait] = field(default_factory=dict)
    rests: dict[tuple[Subject, str], float] = field(default_factory=dict)


class Apex:
    """The judge, and what stands."""

    def __init__(self) -> None:
        self.frozen = False
        """On the operator's word: what stands may be renewed, and nothing new is accepted but the operator's
        own proposals."""
        self._standing: dict[Subject, Standing] = {}
        self._counts = Counter[_Budget]()
        self._memory: dict[AgentName, _Memory] = {}
        self._rates = Rates[_Budget](RATE, BURST)
        self._moment = float("-inf")
        self._won: dict[Subject, _Won] = {}

    def standing(self) -> Iterator[Standing]:
        """All lasting actions in force."""
        return iter(self._standing.values())

    def at(self, subject: Subject) -> Standing | None:
        """What stands for a subject."""
        return self._standing.get(subject)

    def count(self, agent: AgentName) -> int:
        """How many lasting actions of an agent are in force."""
        return sum(number for (whose, _), number in self._counts.items() if whose == agent)

    def next_lapse(self) -> float:
        """The moment, on the node's clock, at which `lapse` has something to return."""
        return min((one.proposal.until for one in self._standing.values()), default=float("inf"))

    def lapse(self, now: float) -> list[Standing]:
        """Let go of what has expired, and return that."""
        return self._end([one for one in self._standing.values() if one.proposal.until <= now], now)

    def withdraw(self, agent: AgentName, now: float, subject: Subject | None = None) -> list[Standing]:
        """Let go of all that stands for an agent, or of one subject of the agent, and return that."""
        return self._end(
            [
                one
                for one in self._standing.values()
                if one.proposal.agent == agent and subject in (None, one.proposal.subject)
            ],
            now,
        )

    def failed(self, proposal: Proposal, now: float) -> None:
        """An accepted action could not be carried out: it does not stand, and its agent tries again after a
        rest."""
        stands = self._standing.get(proposal.subject)
        if stands is not None and (stands.proposal.agent, stands.proposal.action) == (
            proposal.agent,
            proposal.action,
        ):
            self._remove(stands)
        self._rest(proposal, now, FAILED_REST)

    def judge(self, proposals: Iterable[Proposal], now: float) -> list[Judgement]:
        """Judge proposals that are made at the same time. The order in which they are given says nothing."""
        if now != self._moment:
            self._moment, self._won = now, {}
        ordered = [(self._turn_of(one, now), _encode(one), one) for one in proposals]
        ordered.sort(key=lambda one: one[:2])
        return [self._judge(one, turn, key, now) for turn, key, one in ordered]

    def foresee(self, proposal: Proposal, now: float) -> Verdict:
        """What a dry run shows: why the proposal would be refused as things stand, or that all that is in its
        way is the dry run. Nothing is changed, and rates are not looked at."""
        stands = self._stands(proposal.subject, now)
        if (why := self._inadmissible(proposal, now)) is not None:
            return Verdict(proposal=proposal, reason=why)
        holder = proposal.agent if stands is None else stands.proposal.agent
        if (
            stands is not None
            and holder != proposal.agent
            and self._turn_of(proposal, now) > stands.turn(now)
        ):
            return Verdict(proposal=proposal, reason="held", by=holder)
        if self._resting(proposal, now):
            return Verdict(proposal=proposal, reason="cooling-down")
        return Verdict(proposal=proposal, reason="dry-run")

    # One proposal.

    def _judge(self, proposal: Proposal, turn: _Turn, key: bytes, now: float) -> Judgement:
        judged = self._rule(proposal, turn, key, now)
        reason, agent, subject = judged.verdict.reason, proposal.agent, proposal.subject
        if reason in ("accepted", "renewed"):
            won, waited = self._won.get(subject), self._of(agent).waits.pop(subject, None)
            if won is None or won.agent != agent:
                won = self._won[subject] = _Won(agent, _FIRST if turn[0] == 1 else turn, waited)
            won.by[_lasts(proposal)] = key
        elif reason in _KEPT and judged.verdict.by != agent:
            self._wait(agent, subject, now)
        return judged

    def _rule(self, proposal: Proposal, turn: _Turn, key: bytes, now: float) -> Judgement:
        def refused(reason: Reason, by: AgentName | None = None) -> Judgement:
            return Judgement(Verdict(proposal=proposal, reason=reason, by=by))

        if (why := self._inadmissible(proposal, now)) is not None:
            return refused(why)
        agent, subject, lasts = proposal.agent, proposal.subject, _lasts(proposal)
        operator = agent == "operator"
        won, stands = self._won.get(subject), self._stands(subject, now)
        if won is not None and won.agent != agent and turn > won.turn:
            return refused("outranked", won.agent)
        best = won.by.get(lasts) if won is not None and won.agent == agent and not operator else None
        if best is not None and key >= best:
            return refused("outranked", agent)
        if stands is not None and stands.proposal.agent != agent and turn > stands.turn(now):
            return refused("held", stands.proposal.agent)
        if stands is not None and stands.proposal.agent == agent and lasts:
            if _same(stands.proposal, proposal):
                self._standing[subject] = replace(stands, proposal=proposal)
                return Judgement(Verdict(proposal=proposal, reason="renewed"))
            # What came at this very moment is still being chosen.
            if not operator and stands.since != now and now < stands.since + stands.proposal.action.rests:
                return refused("cooling-down")
        if self.frozen and not operator:
            return refused("frozen")
        if self._resting(proposal, now):
            return refused("cooling-down")
        budget = _budget(proposal)
        more = lasts and (stands is None or _budget(stands.proposal) != budget)
        if more and self._counts[budget] >= (MOST_OF_OPERATOR if operator else MOST_STANDING):
            return refused("too-many")
        if not operator and not self._rates.allow(budget, now):
            return refused("too-many")
        return self._accept(proposal, turn, now)

    def _accept(self, proposal: Proposal, turn: _Turn, now: float) -> Judgement:
        verdict, lasts = Verdict(proposal=proposal, reason="accepted"), _lasts(proposal)
        displaced = self._standing.get(proposal.subject)
        if displaced is not None and displaced.proposal.agent == proposal.agent and not lasts:
            displaced = None
        if displaced is not None:
            self._remove(displaced)
            loser = displaced.proposal.agent
            if loser != proposal.agent and displaced.since == now:  # as if it had come second
                won = self._won.get(proposal.subject)
                if won is not None and won.agent == loser and won.waited is not None:
                    self._of(loser).waits[proposal.subject] = won.waited
                self._wait(loser, proposal.subject, now)
            elif loser != proposal.agent and lasts:
                self._rest(displaced.proposal, now)
        if lasts:
            self._counts[_budget(proposal)] += 1
            self._standing[proposal.subject] = Standing(proposal, now, first=turn[0] == 1)
        else:
            self._rest(proposal, now)
        return Judgement(verdict, displaced)

    def _inadmissible(self, proposal: Proposal, now: float) -> Reason | None:
        if proposal.until <= now or not isfinite(proposal.until):
            return "expired"
        if not proposal.evidence or not all(isfinite(one.value) for one in proposal.evidence):
            return "no-evidence"
        if proposal.agent == "operator":
            return None
        if not isinstance(proposal.action, actions.OF.get(proposal.agent, ())):
            return "not-its-action"
        if not _is_about(proposal.action, proposal.subject):
            return "not-its-subject"
        return "out-of-bounds" if proposal.until > now + LONGEST or actions.check(proposal.action) else None

    # What is remembered.

    def _stands(self, subject: Subject, now: float) -> Standing | None:
        stands = self._standing.get(subject)
        return stands if stands is not None and stands.proposal.until > now else None

    def _turn_of(self, proposal: Proposal, now: float) -> _Turn:
        """What is smaller goes first: the operator, then who has waited longest, then by precedence."""
        mine = self._waited(proposal.agent, proposal.subject, now)
        if mine is None or now - mine[0] < PATIENCE:
            return _turn(proposal.agent)
        others = (self._waited(agent, proposal.subject, now) for agent in self._memory)
        longest = min(one for one in others if one is not None)
        return _turn(proposal.agent, first=longest == mine)

    def _waited(self, agent: AgentName, subject: Subject, now: float) -> tuple[float, int] | None:
        """Since when an agent waits for a subject, and its rank; None where it does not."""
        wait = self._of(agent).waits.get(subject)
        return (wait.since, RANK[agent]) if wait is not None and now - wait.last <= GAP else None

    def _of(self, agent: AgentName) -> _Memory:
        return self._memory.setdefault(agent, _Memory())

    def _wait(self, agent: AgentName, subject: Subject, now: float) -> None:
        waits = self._of(agent).waits
        known = waits.pop(subject, None)
        since = now if known is None or now - known.last > GAP else known.since
        waits[subject] = _Wait(since, now)
        _forget(waits)

    def _resting(self, proposal: Proposal, now: float) -> bool:
        return now < self._of(proposal.agent).rests.get(_rest_of(proposal), now)

    def _rest(self, proposal: Proposal, now: float, least: float = 0.0) -> None:
        seconds = max(least, proposal.action.rests)
        if proposal.agent == "operator" or not seconds:
            return
        rests = self._of(proposal.agent).rests
        before = rests.pop(_rest_of(proposal), now)
        rests[_rest_of(proposal)] = max(before, now + seconds)
        _forget(rests)

    def _end(self, gone: list[Standing], now: float) -> list[Standing]:
        for one in gone:
            self._remove(one)
            self._rest(one.proposal, now)
        return gone

    def _remove(self, one: Standing) -> None:
        del self._standing[one.proposal.subject]
        self._counts[_budget(one.proposal)] -= 1


def _turn(agent: AgentName, *, first: bool = False) -> _Turn:
    rank = RANK[agent]
    return (0 if rank == 0 else 1 if first else 2), rank


def _is_about(action: actions.Action, subject: Subject) -> bool:
    """Whether the subject is what the action is done to: else what excludes each other could both stand."""
    match action:
        case actions.Ban(network):
            return subject == Subject("address", network)
        case actions.Rotate(peer) | actions.Quarantine(peer) | actions.Cover(peer):
            return subject == Subject("peer", peer)
        case actions.ReplaceKey(dimension):
            return subject == Subject("dimension", str(dimension))
        case actions.Weigh(peer, dimension):
            return subject == Subject("path", f"{peer}/{dimension}")
        case actions.Deal(flow, peer) | actions.Pin(flow, peer):
            return subject.kind == "flow" and subject.name in (flow, f"{peer}/{flow}")
        case actions.Tune(parameter):
            return subject == Subject("parameter", parameter)
        case actions.Restart(service):
            return subject == Subject("service", service)
        case actions.Throttle(address):
            return subject == Subject("service", f"dns/{address}")
        case actions.Mend(rule):
            return subject == Subject("rule", rule)
        case _:
            return True


def _budget(proposal: Proposal) -> _Budget:
    return proposal.agent, type(proposal.action)


def _lasts(proposal: Proposal) -> bool:
    return isinstance(proposal.action, actions.LASTING)


def _rest_of(proposal: Proposal) -> tuple[Subject, str]:
    return proposal.subject, "" if _lasts(proposal) else type(proposal.action).__name__


def _same(stands: Proposal, proposal: Proposal) -> bool:
    """Whether a proposal asks for what stands. A finding stays the same while its figures move."""
    before, after = stands.action, proposal.action
    if isinstance(before, actions.Raise) and isinstance(after, actions.Raise):
        return (before.rule, before.severity) == (after.rule, after.severity)
    return before == after


def _forget(kept: dict[Key, Any]) -> None:
    """Forget the oldest entries past `MOST_REMEMBERED`."""
    while len(kept) > MOST_REMEMBERED:
        del kept[next(iter(kept))]
