# SPDX-License-Identifier: GPL-3.0-or-later
"""What was decided: counted, told, written down, and handed over to be carried out. The operator's word comes
in here, too.

`nursery/agents/running.py` brings what agents propose, and takes the orders. `keep` writes: a crash loses at
most the last second, and a full disk stops nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from phantommesh.agents.actions import Action
from phantommesh.agents.base import AgentName, Evidence, Outcome, Proposal, Subject
from phantommesh.agents.council import KEPT, Council, Decision, Minutes, Order, Phase
from phantommesh.agents.incidents import Incidents
from phantommesh.agents.ledger import decision_line, outcome_line
from phantommesh.agents.telling import came, told
from phantommesh.management.events import EventLog
from phantommesh.management.metrics import Metrics
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.journal import Journal
from phantommesh.nursery.keeping.ledger import Ledger
from phantommesh.nursery.keeping.saver import Patience
from phantommesh.rates import Rates

# Tuning.
EVENT_RATE, EVENT_BURST = 1.0, 64.0  # decisions of one agent that are told, a second and at once
MOST_WHY: Final = 300  # characters of a reason in an event
MOST_SENTENCE: Final = 600  # characters of a decision or outcome in an event
GATHER = 0.5  # s that lines wait for others: with the disk's own time, less than the second that may be lost
ONCE = 60.0  # s in which what is done once would lapse if it stood

log = structlog.get_logger("phantommesh.agents")


class Concluded(NamedTuple):
    """An outcome, and when it was known in Unix seconds."""

    outcome: Outcome
    at: float


class Decisions:
    """The council's decisions on their way to the record and to the hands."""

    def __init__(self, council: Council, metrics: Metrics, events: EventLog, directory: Path) -> None:
        """``directory``: where the record is, which need not be there yet."""
        self.council = council
        self.incidents = Incidents()
        self.outcomes: dict[str, Concluded] = {}
        """By trace, of the latest `KEPT` decisions that have one."""
        self.accepted = 0
        self.frozen_since = trio.current_time()
        """When APEX was frozen or freed, or the start."""
        self._journal = Journal(
            log, "the record of decisions", Ledger(directory), run=events.run, gather=GATHER,
            reason="decisions-unwritten",
        )  # fmt: skip
        self.changed: Callable[[AgentName], None] = lambda name: None
        """Called when the operator pauses or resumes an agent: it may be its turn now."""
        self.stands: Callable[[], None] = lambda: None
        """Called when something may lapse at another time than before."""
        self.words: Callable[[Decision], str] = lambda one: told(one.verdict, str)
        """A decision as a sentence; set this where members' names are known."""
        self._metrics, self._events = metrics, events
        self._orders: deque[tuple[Order, float]] = deque()
        self._bell = Bell()
        self._told = Rates[AgentName](EVENT_RATE, EVENT_BURST)
        self._untold = Counter[AgentName]()

    def take(self, minutes: Minutes, began: float) -> None:
        """Take what was decided on something that began, on trio's clock, at ``began``."""
        at = moment()
        for one in minutes.decisions:
            self._tell(one)
            self._journal.add(decision_line(one, at.now))
            self.accepted += one.verdict.accepted
            self.incidents.decided(one)
        for outcome in minutes.outcomes:
            self._journal.add(outcome_line(outcome, at.wall))
            self._conclude(outcome, at.wall)
        self.order(minutes.orders, began)

    def order(self, orders: Sequence[Order], began: float) -> None:
        """Have these carried out."""
        if orders:
            self._orders.extend((one, began) for one in orders)
            self._bell.ring()
            self.stands()

    async def next(self) -> tuple[Order, float]:
        """The next order, and when began what led to it. Waits for one."""
        while not self._orders:
            await self._bell.wait()
        return self._orders.popleft()

    # The record.

    @property
    def disk(self) -> Patience:
        """What the disk refuses of the record."""
        return self._journal.disk

    @property
    def dropped(self) -> Counter[str]:
        """Counts of what was decided and is not on record, by reason."""
        return self._journal.dropped

    async def keep(self) -> None:
        """Write what is decided, until cancelled; then once more."""
        await self._journal.keep()

    # The operator's word.

    def operate(self, proposals: Iterable[Proposal]) -> None:
        """Have done what the operator asks for: see `asked`."""
        at = moment()
        for one in proposals:
            self.take(self.council.operate(one, at), at.now)

    def pause(self, name: AgentName) -> None:
        """Stop an agent, and lift what stands for it."""
        now = trio.current_time()
        self.order(self.council.pause(name, now), now)
        self.phase(name, "paused")

    def resume(self, name: AgentName, *, dry_run: bool = False) -> None:
        """Let an agent go on, or only say what it would do."""
        now = trio.current_time()
        self.order(self.council.resume(name, now, dry_run=dry_run), now)
        self.phase(name, "back")

    def freeze(self, *, on: bool) -> None:
        """Have nothing new accepted but the operator's word, and what stands go on; or end that."""
        if self.council.apex.frozen != on:
            self.council.apex.frozen, self.frozen_since = on, trio.current_time()
            what = "paused" if on else "back"
            log.info(f"agent {what}", agent="apex", why="")
            phase: Phase = "paused" if on else "running"
            self._events.publish(f"agent.{what}", None, {"agent": "apex", "phase": phase, "why": ""})

    def phase(self, name: AgentName, what: str, why: str = "") -> None:
        """Tell that an agent is ``paused``, ``benched`` or ``back``."""
        say = log.warning if what == "benched" else log.info
        say(f"agent {what}", agent=name, why=why)
        phase: Phase = self.council.seats[name].phase
        self._events.publish(f"agent.{what}", None, {"agent": name, "phase": phase, "why": why})
        self.changed(name)

    def _tell(self, one: Decision) -> None:
        proposal, reason = one.verdict.proposal, one.verdict.reason
        agent, action = proposal.agent, kind_of(proposal)
        self._metrics.agent_decisions.labels(agent, action, reason).inc(one.times)
        if one.verdict.accepted:
            log.info(
                "decided", agent=agent, action=action, subject=str(proposal.subject), why=proposal.why,
                trace=one.trace,
            )  # fmt: skip
        if not self._told.allow(agent, trio.current_time()):
            self._untold[agent] += 1
            return
        data: dict[str, object] = {
            "agent": agent, "action": action, "subject": str(proposal.subject), "result": reason,
            "why": proposal.why[:MOST_WHY], "trace": one.trace, "seq": one.seq,
            "text": self.words(one)[:MOST_SENTENCE],
        }  # fmt: skip
        if untold := self._untold.pop(agent, 0):
            data["untold"] = untold
        self._events.publish("agent.decided", None, data)

    def _conclude(self, outcome: Outcome, at: float) -> None:
        self.outcomes[outcome.trace] = Concluded(outcome, at)
        while len(self.outcomes) > KEPT:
            del self.outcomes[next(iter(self.outcomes))]
        self.incidents.came(outcome, at)
        proposal = outcome.proposal
        if not self._told.allow(proposal.agent, trio.current_time()):
            self._untold[proposal.agent] += 1
            return
        data: dict[str, object] = {
            "agent": proposal.agent, "action": kind_of(proposal), "subject": str(proposal.subject),
            "met": outcome.met, "trace": outcome.trace, "text": came(outcome)[:MOST_SENTENCE],
        }  # fmt: skip
        self._events.publish("agent.outcome", None, data)


def asked(subject: Subject, action: Action, why: str, uid: int | None, *, lasts: float = ONCE) -> Proposal:
    """The operator's word as a proposal. ``uid``: the user who asks; None: it came over TCP, and the token
    that it needed is all that is known. ``lasts``: seconds for which a lasting action stands."""
    who = Evidence("asked", 1.0, source="api") if uid is None else Evidence("uid", uid, source="api")
    until = trio.current_time() + lasts
    return Proposal(
        agent="operator", subject=subject, action=action, evidence=(who,), expects=None, until=until, why=why
    )


def kind_of(proposal: Proposal) -> str:
    """What kind of action is proposed, by its tag."""
    return str(proposal.action.__struct_config__.tag)
