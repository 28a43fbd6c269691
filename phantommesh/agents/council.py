# SPDX-License-Identifier: GPL-3.0-or-later
"""All agents of one node together, without I/O: whose turn it is, what is judged, carried out, measured and
remembered. A node's `nursery/agents` and the simulator run this same code.

The caller asks `due` when an agent looks next, and calls what `look` returns: in a thread, under the budget.
It gives what came of that to `looked` or `failed`, carries out the orders that it gets, and says so by
`carried`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Any, Final, Literal

import msgspec

from phantommesh.agents import actions
from phantommesh.agents.apex import Apex, Judgement, Standing
from phantommesh.agents.base import (
    PRECEDENCE,
    Agent,
    AgentName,
    Observation,
    Outcome,
    Proposal,
    Subject,
    Verdict,
)
from phantommesh.management.views import Event
from phantommesh.node.steps import Moment
from phantommesh.rates import Rates

# Tuning.
BUDGET: Final = 0.05  # s that one look may take; the longest pause of the node's loop that nobody notices
MOST_PROPOSALS: Final = 64  # of one look; more is a flood, and the look counts as a failure
FIRST_BENCH, LONGEST_BENCH = 10.0, 600.0  # s that a failing agent sits out, twice as long each time
GOOD_LOOKS: Final = 20  # looks in order after which an agent's earlier failures are forgotten
KEPT: Final = 1024  # decisions in memory; the file has more
MOST_PENDING: Final = 128  # actions of one agent whose outcome is to be measured
LATE: Final = 120.0  # s after which a measure says nothing of the action any more: two of the rarest looks
MOST_CARRYING: Final = 4096  # orders that are being carried out
SAY_AGAIN: Final = 60.0  # s after which a refusal that keeps coming back is recorded again
REFUSALS, REFUSALS_AT_ONCE = 0.5, 64.0  # of one agent that are recorded, a second and at once
MOST_REFUSALS: Final = 256  # of one agent that are known, so as not to be recorded again

MOST_BYTES: Final = 65_536  # of one look's proposals, encoded: 64 of 1 KB
MOST_OF_ONE: Final = 4096  # bytes of one proposal, encoded

Phase = Literal["running", "dry-run", "paused", "benched"]


class NonsenseError(ValueError):
    """An agent returned what is no proposal, or too much of it."""


_encode = msgspec.msgpack.Encoder().encode
_PROPOSALS: Final = msgspec.msgpack.Decoder(list[Proposal])
_FLOATS: Final = msgspec.msgpack.Decoder(dict[str, float | None])


def _copied(proposals: list[Proposal]) -> list[Proposal]:
    """Return proposals that are what their types say, and that the agent cannot change any more. Raises what
    msgspec does where they are not, and NonsenseError."""
    encoded = _encode(proposals)
    if len(encoded) > MOST_BYTES:
        raise NonsenseError(f"proposals of {len(encoded)} bytes")
    if len(encoded) > MOST_OF_ONE and any(len(_encode(one)) > MOST_OF_ONE for one in proposals):
        raise NonsenseError(f"a proposal of more than {MOST_OF_ONE} bytes")
    return _PROPOSALS.decode(encoded)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision on record. ``seq`` counts from 1 in each run; ``at`` in Unix seconds; ``seconds`` from the
    look to the verdict. ``times``: refusals like it since the last that was recorded."""

    seq: int
    at: float
    trace: str
    verdict: Verdict
    seconds: float
    times: int = 1


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do now: carry out the action of a proposal, or lift it."""

    trace: str
    proposal: Proposal
    lift: bool = False


@dataclass(slots=True)
class Seat:
    """How one agent stands. ``since``: when its phase began; ``why`` it is benched; times on the node's
    clock; ``slowest`` and ``last`` in seconds a look."""

    agent: Agent[Any]
    phase: Phase = "running"
    since: float = 0.0
    why: str = ""
    until: float = float("inf")
    resume_as: Phase = "running"
    looked: float = float("-inf")
    last: float = 0.0
    slowest: float = 0.0
    looks: int = 0
    failures: int = 0
    benched: int = 0
    good: int = 0
    proposals: int = 0
    accepted: int = 0
    refused: int = 0
    met: int = 0
    unmet: int = 0
    failed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    pending: list[_Pending] = field(default_factory=list)
    refusals: dict[tuple[str, str, str], _Refusal] = field(default_factory=dict)


@dataclass(slots=True)
class _Pending:
    """An action whose outcome is still to be measured."""

    trace: str
    proposal: Proposal
    due: float


@dataclass(slots=True)
class _Refusal:
    said: float
    times: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What an agent returned: proposals, and by trace the measures of actions whose time had come."""

    proposals: list[Proposal]
    measured: dict[str, float | None]


@dataclass(slots=True)
class Minutes:
    """What has come of a look: decisions and outcomes for the record, and orders."""

    decisions: list[Decision] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)


class Council:
    """The agents of a node, and their judge."""

    def __init__(
        self, agents: Iterable[Agent[Any]], *, trace: Callable[[], str], now: float, dry_run: bool = False
    ) -> None:
        self.apex = Apex()
        phase: Phase = "dry-run" if dry_run else "running"
        self.seats = {one.name: Seat(one, phase, now, resume_as=phase) for one in agents}
        self.decisions: deque[Decision] = deque(maxlen=KEPT)
        self._trace, self._seq = trace, 0
        self._traces: dict[Subject, str] = {}  # of what stands
        self._carrying: dict[str, tuple[Proposal, float]] = {}
        self._said = Rates[AgentName](REFUSALS, REFUSALS_AT_ONCE)

    # Whose turn it is.

    def due(self, name: AgentName, now: float) -> float:
        """The moment of an agent's next look; infinity while it is paused."""
        seat = self.seats[name]
        match seat.phase:
            case "paused":
                return float("inf")
            case "benched":
                return max(now, seat.until)
            case _:
                return max(now, seat.looked + seat.agent.every)

    def looks(self, name: AgentName, now: float) -> bool:
        """Whether the agent may look now: an event wakes no agent that is paused or sits out. A benched one
        whose time has come is back."""
        seat = self.seats[name]
        if seat.phase == "benched" and now >= seat.until:
            self._enter(seat, seat.resume_as, now)
        return seat.phase in ("running", "dry-run")

    def look(self, name: AgentName, seen: object, events: Sequence[Event], at: Moment) -> Callable[[], Look]:
        """Return the work of one look. It touches the agent alone, so that it may run in a thread."""
        seat = self.seats[name]
        seat.looked = at.now
        outcomes, seat.outcomes = tuple(seat.outcomes), []
        observation = Observation(at, seen, tuple(events), outcomes)
        agent, due = seat.agent, [one for one in seat.pending if one.due <= at.now < one.due + LATE]

        def work() -> Look:
            # One more than may be: an agent may go on for ever.
            proposals = list(islice(agent.observe(observation), MOST_PROPOSALS + 1))
            measured = {one.trace: agent.measure(seen, one.proposal) for one in due}
            return Look(_copied(proposals), _FLOATS.decode(_encode(measured)))

        return work

    # What came of a look.

    def looked(self, name: AgentName, look: Look, seconds: float, at: Moment) -> Minutes:
        """Judge what an agent proposes after a look that took so many seconds, and settle what its earlier
        actions came to."""
        seat, minutes, proposals = self.seats[name], Minutes(), look.proposals
        seat.looks, seat.last = seat.looks + 1, seconds
        seat.slowest = max(seat.slowest, seconds)
        if seconds > BUDGET:
            self._bench(seat, f"a look took {seconds * 1000:.0f} ms of {BUDGET * 1000:.0f}", at.now)
            return minutes
        if len(proposals) > MOST_PROPOSALS or any(one.agent != name for one in proposals):
            flood = len(proposals) > MOST_PROPOSALS
            self._bench(
                seat, f"more than {MOST_PROPOSALS} proposals" if flood else "a proposal of another's", at.now
            )
            return minutes
        seat.good += 1
        if seat.good >= GOOD_LOOKS:
            seat.failures = 0
        seat.proposals += len(proposals)
        minutes.outcomes = self._settle(seat, look.measured, at.now)
        if seat.phase == "running":
            self._rule(minutes, proposals, seconds, at)
        else:  # it may have been paused while it looked
            for one in proposals:
                verdict = self.apex.foresee(one, at.now)
                if seat.phase == "paused":
                    verdict = Verdict(proposal=one, reason="paused")
                self._refuse(minutes, verdict, seconds, at)
        return minutes

    def failed(self, name: AgentName, why: str, now: float, *, for_good: bool = False) -> None:
        """An agent raised, or did not come back: it sits out for a while, or until the operator resumes it
        (``for_good``)."""
        seat = self.seats[name]
        seat.looks += 1
        self._bench(seat, why, now)
        if for_good and seat.phase == "benched":
            seat.until = float("inf")

    def operate(self, proposal: Proposal, at: Moment) -> Minutes:
        """Take the operator's word, which always wins."""
        minutes = Minutes()
        self._rule(minutes, [proposal], 0.0, at)
        return minutes

    def lapse(self, now: float) -> list[Order]:
        """Lift what has expired."""
        return [self._lift(one) for one in self.apex.lapse(now)]

    def carried(self, trace: str, error: str = "") -> Minutes:
        """An order was carried out, or failed. What failed does not stand, and that is its outcome. It is
        lifted all the same: it may be half done, and what it replaced may be there still."""
        minutes, known = Minutes(), self._carrying.pop(trace, None)
        if known is None or not error:
            return minutes
        proposal, now = known
        self.apex.failed(proposal, now)
        if self._traces.get(proposal.subject) == trace:
            del self._traces[proposal.subject]
            minutes.orders = [Order(trace=trace, proposal=proposal, lift=True)]
        minutes.outcomes = [Outcome(trace=trace, proposal=proposal, measured=None, met=None, error=error)]
        if (seat := self.seats.get(proposal.agent)) is not None:
            seat.pending = [one for one in seat.pending if one.trace != trace]
            seat.failed += 1
            seat.outcomes = [*seat.outcomes, *minutes.outcomes][-MOST_PENDING:]
        return minutes

    # On the operator's word.

    def pause(self, name: AgentName, now: float) -> list[Order]:
        """Stop an agent, and lift what stands for it."""
        seat = self.seats[name]
        self._enter(seat, "paused", now)
        return [self._lift(one) for one in self.apex.withdraw(name, now)]

    def resume(self, name: AgentName, now: float, *, dry_run: bool = False) -> list[Order]:
        """Let an agent go on, or only say what it would do; then what stands for it is lifted."""
        seat = self.seats[name]
        seat.failures = seat.good = 0
        seat.resume_as = "dry-run" if dry_run else "running"
        self._enter(seat, seat.resume_as, now)
        return [self._lift(one) for one in self.apex.withdraw(name, now)] if dry_run else []

    def anew(self, name: AgentName, agent: Agent[Any]) -> None:
        """Put a fresh agent in the place of one that may still be running somewhere."""
        self.seats[name].agent = agent

    def close(self, now: float) -> list[Order]:
        """Stop all agents, and lift all that stands: the node ends."""
        for seat in self.seats.values():
            self._enter(seat, "paused", now)
        return [self._lift(one) for name in PRECEDENCE for one in self.apex.withdraw(name, now)]

    # The inside.

    def _enter(self, seat: Seat, phase: Phase, now: float) -> None:
        seat.phase, seat.since, seat.why, seat.until = phase, now, "", float("inf")

    def _bench(self, seat: Seat, why: str, now: float) -> None:
        seat.failures, seat.benched, seat.good = seat.failures + 1, seat.benched + 1, 0
        seat.looked = now
        if seat.phase == "paused":
            return
        self._enter(seat, "benched", now)
        seat.why = why
        seat.until = now + min(LONGEST_BENCH, FIRST_BENCH * 2.0 ** min(seat.failures - 1, 16))

    def _rule(self, minutes: Minutes, proposals: Sequence[Proposal], seconds: float, at: Moment) -> None:
        minutes.orders += self.lapse(at.now)
        for one in self.apex.judge(proposals, at.now):
            verdict = one.verdict
            if verdict.accepted:
                self._accept(minutes, one, seconds, at)
            elif verdict.reason != "renewed":
                self._refuse(minutes, verdict, seconds, at)

    def _accept(self, minutes: Minutes, one: Judgement, seconds: float, at: Moment) -> None:
        proposal, trace = one.verdict.proposal, self._trace()
        lasts = isinstance(proposal.action, actions.LASTING)
        if (gone := one.displaced) is not None and not (
            lasts and type(gone.proposal.action) is type(proposal.action)
        ):
            minutes.orders.append(self._lift(gone))
        if lasts:
            self._traces[proposal.subject] = trace
        minutes.decisions.append(self._record(one.verdict, trace, seconds, at))
        minutes.orders.append(Order(trace=trace, proposal=proposal))
        self._carrying[trace] = proposal, at.now
        while len(self._carrying) > MOST_CARRYING:
            del self._carrying[next(iter(self._carrying))]
        if (seat := self.seats.get(proposal.agent)) is None:
            return
        seat.accepted += 1
        if (expects := proposal.expects) is not None:
            if len(seat.pending) >= MOST_PENDING:
                minutes.outcomes.append(
                    _unmeasured(seat.pending.pop(0), "too many others were to be measured")
                )
            seat.pending.append(_Pending(trace, proposal, at.now + expects.within))

    def _refuse(self, minutes: Minutes, verdict: Verdict, seconds: float, at: Moment) -> None:
        proposal = verdict.proposal
        if (seat := self.seats.get(proposal.agent)) is None:
            minutes.decisions.append(self._record(verdict, self._trace(), seconds, at))
            return
        seat.refused += 1
        which = str(proposal.subject), type(proposal.action).__name__, verdict.reason
        known = seat.refusals.pop(which, None)
        new = known is None or at.now >= known.said + SAY_AGAIN
        if not (new and self._said.allow(proposal.agent, at.now)):
            known = known or _Refusal(float("-inf"))
            known.times += 1
            seat.refusals[which] = known
        else:
            times = 1 if known is None else known.times + 1
            seat.refusals[which] = _Refusal(at.now)
            minutes.decisions.append(self._record(verdict, self._trace(), seconds, at, times))
        while len(seat.refusals) > MOST_REFUSALS:
            del seat.refusals[next(iter(seat.refusals))]

    def _record(self, verdict: Verdict, trace: str, seconds: float, at: Moment, times: int = 1) -> Decision:
        self._seq += 1
        made = Decision(seq=self._seq, at=at.wall, trace=trace, verdict=verdict, seconds=seconds, times=times)
        self.decisions.append(made)
        return made

    def _lift(self, one: Standing) -> Order:
        trace = self._traces.pop(one.proposal.subject, "")
        return Order(trace=trace, proposal=one.proposal, lift=True)

    def _settle(self, seat: Seat, measured: Mapping[str, float | None], now: float) -> list[Outcome]:
        """Say what this agent's actions came to whose time has come."""
        found, left = list[Outcome](), list[_Pending]()
        for one in seat.pending:
            expects = one.proposal.expects
            if one.trace in measured:
                value = measured[one.trace]
                value = None if value is None or not isfinite(value) else value
                met = None if value is None or expects is None else expects.met(value)
                found.append(Outcome(trace=one.trace, proposal=one.proposal, measured=value, met=met))
                seat.met += met is True
                seat.unmet += met is False
            elif now >= one.due + LATE:
                found.append(_unmeasured(one, "the agent did not look in time"))
            else:
                left.append(one)
        seat.pending = left
        seat.outcomes = [*seat.outcomes, *found][-MOST_PENDING:]
        return found


def _unmeasured(one: _Pending, why: str) -> Outcome:
    return Outcome(
        trace=one.trace, proposal=one.proposal, measured=None, met=None, error=f"not measured: {why}"
    )
