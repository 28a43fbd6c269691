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
from typing import Any, Final, Literal

import msgspec

from phantommesh.agents import actions
from phantommesh.agents.apex import Apex, Judgement, Standing
from phantommesh.agents.base import PRECEDENCE, Agent, AgentName, Observation, Outcome, Proposal, Verdict
from phantommesh.management.views import Event
from phantommesh.node.steps import Moment

# Tuning.
BUDGET: Final = 0.05  # s that one look may take; the longest pause of the node's loop that nobody notices
MOST_PROPOSALS: Final = 64  # of one look; more is a flood, and the look counts as a failure
FIRST_BENCH, LONGEST_BENCH = 10.0, 600.0  # s that a failing agent sits out, twice as long each time
GOOD_LOOKS: Final = 20  # looks in order after which an agent's earlier failures are forgotten
KEPT: Final = 1024  # decisions in memory; the file has more
MOST_PENDING: Final = 256  # actions whose outcome is to be measured
SAY_AGAIN: Final = 60.0  # s after which a refusal that keeps coming back is recorded again

MOST_BYTES: Final = 65_536  # of one look's proposals, encoded: 64 of 1 KB

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
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass(slots=True)
class _Pending:
    """An action whose outcome is still to be measured."""

    trace: str
    proposal: Proposal
    due: float
    error: str = ""


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
        self._traces: dict[tuple[AgentName, str, str], str] = {}
        self._pending: list[_Pending] = []
        self._refusals: dict[tuple[str, str, str, str], _Refusal] = {}

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
        agent, due = seat.agent, [one for one in self._due(name, at.now) if not one.error]

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
        if seat.phase == "dry-run":
            for one in proposals:
                self._refuse(minutes, Verdict(proposal=one, reason="dry-run"), seconds, at)
        else:
            self._rule(minutes, proposals, seconds, at)
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

    def carried(self, trace: str, error: str = "") -> None:
        """An order was carried out, or failed."""
        if error:
            for one in self._pending:
                if one.trace == trace:
                    one.error, one.due = error, float("-inf")

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
        """Lift all that stands: the node ends."""
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
        seat.until = now + min(LONGEST_BENCH, FIRST_BENCH * 2.0 ** (seat.failures - 1))

    def _rule(self, minutes: Minutes, proposals: Sequence[Proposal], seconds: float, at: Moment) -> None:
        for one in self.apex.judge(proposals, at.now):
            verdict = one.verdict
            if verdict.accepted:
                self._accept(minutes, one, seconds, at)
            elif verdict.reason != "renewed":
                self._refuse(minutes, verdict, seconds, at)

    def _accept(self, minutes: Minutes, one: Judgement, seconds: float, at: Moment) -> None:
        proposal, trace = one.verdict.proposal, self._trace()
        if (gone := one.displaced) is not None and type(gone.proposal.action) is not type(proposal.action):
            minutes.orders.append(self._lift(gone))
        if isinstance(proposal.action, actions.LASTING):
            self._traces[_key(proposal)] = trace
        minutes.decisions.append(self._record(one.verdict, trace, seconds, at))
        minutes.orders.append(Order(trace=trace, proposal=proposal))
        if (seat := self.seats.get(proposal.agent)) is not None:
            seat.accepted += 1
        if (expects := proposal.expects) is not None:
            if len(self._pending) >= MOST_PENDING:
                del self._pending[0]
            self._pending.append(_Pending(trace, proposal, at.now + expects.within))

    def _refuse(self, minutes: Minutes, verdict: Verdict, seconds: float, at: Moment) -> None:
        proposal = verdict.proposal
        if (seat := self.seats.get(proposal.agent)) is not None:
            seat.refused += 1
        which = proposal.agent, str(proposal.subject), type(proposal.action).__name__, verdict.reason
        known = self._refusals.pop(which, None)
        if known is not None and at.now < known.said + SAY_AGAIN:
            known.times += 1
            self._refusals[which] = known
            return
        times = 1 if known is None else known.times + 1
        self._refusals[which] = _Refusal(at.now)
        while len(self._refusals) > KEPT:
            del self._refusals[next(iter(self._refusals))]
        minutes.decisions.append(self._record(verdict, self._trace(), seconds, at, times))

    def _record(self, verdict: Verdict, trace: str, seconds: float, at: Moment, times: int = 1) -> Decision:
        self._seq += 1
        made = Decision(seq=self._seq, at=at.wall, trace=trace, verdict=verdict, seconds=seconds, times=times)
        self.decisions.append(made)
        return made

    def _lift(self, one: Standing) -> Order:
        trace = self._traces.pop(_key(one.proposal), "")
        return Order(trace=trace, proposal=one.proposal, lift=True)

    def _due(self, name: AgentName, now: float) -> list[_Pending]:
        return [one for one in self._pending if one.proposal.agent == name and one.due <= now]

    def _settle(self, seat: Seat, measured: Mapping[str, float | None], now: float) -> list[Outcome]:
        """Say what this agent's actions came to whose time has come."""
        found = list[Outcome]()
        for one in self._due(seat.agent.name, now):
            if one.trace not in measured and not one.error:
                continue  # its time came after the look began
            self._pending.remove(one)
            value, expects = measured.get(one.trace), one.proposal.expects
            met = None if value is None or expects is None else expects.met(value)
            found.append(
                Outcome(trace=one.trace, proposal=one.proposal, measured=value, met=met, error=one.error)
            )
            seat.met += met is True
            seat.unmet += met is False
        seat.outcomes = [*seat.outcomes, *found][-KEPT:]
        return found


def _key(proposal: Proposal) -> tuple[AgentName, str, str]:
    return proposal.agent, str(proposal.subject), type(proposal.action).__name__
