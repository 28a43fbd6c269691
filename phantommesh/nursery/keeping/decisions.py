# SPDX-License-Identifier: GPL-3.0-or-later
"""What was decided: counted, told, written down, and handed over to be carried out. The operator's word comes
in here, too.

`nursery/agents/running.py` brings what agents propose, and takes the orders. `keep` writes: a crash loses at
most the last second, and a full disk stops nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from phantommesh import __version__
from phantommesh.agents.actions import Action
from phantommesh.agents.base import AgentName, Evidence, Proposal, Subject
from phantommesh.agents.council import Council, Decision, Minutes, Order, Phase
from phantommesh.agents.ledger import Line, MissedLine, decision_line, outcome_line
from phantommesh.management.events import EventLog
from phantommesh.management.metrics import Metrics
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.ledger import Ledger
from phantommesh.nursery.keeping.saver import Patience
from phantommesh.rates import Rates
from phantommesh.state.files import StateError

# Tuning.
EVENT_RATE, EVENT_BURST = 1.0, 64.0  # decisions of one agent that are told, a second and at once
MOST_WHY: Final = 300  # characters of a reason in an event
GATHER = 0.5  # s that lines wait for others: with the disk's own time, less than the second that may be lost
AT_ONCE = 256  # lines that one write has
MOST_LINES = 4096  # that wait for the disk
ONCE = 60.0  # s in which what is done once would lapse if it stood
LAST = 2.0  # s for the last write when the node stops

log = structlog.get_logger("phantommesh.agents")


class Decisions:
    """The council's decisions on their way to the record and to the hands."""

    def __init__(self, council: Council, metrics: Metrics, events: EventLog, directory: Path) -> None:
        """``directory``: where the record is, which need not be there yet."""
        self.council = council
        self.disk = Patience(log, "the record of decisions")
        self.dropped = Counter[str]()
        self._ledger = Ledger(directory)
        self._begun = False
        self._lines = deque[Line]()
        self._missed = 0
        self._written = Bell()
        self.changed: Callable[[AgentName], None] = lambda name: None
        """Called when the operator pauses or resumes an agent: it may be its turn now."""
        self.stands: Callable[[], None] = lambda: None
        """Called when something may lapse at another time than before."""
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
            self._note(decision_line(one, at.now))
        for outcome in minutes.outcomes:
            self._note(outcome_line(outcome, at.wall))
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

    def _note(self, line: Line) -> None:
        if len(self._lines) >= MOST_LINES:
            self._lines.popleft()
            self._missed += 1
            self.dropped["decisions-unwritten"] += 1
        self._lines.append(line)
        self._written.ring()

    async def keep(self) -> None:
        """Write what is decided, until cancelled; then once more."""
        try:
            while True:
                async with self.disk.patiently():
                    await self.save()
                if self.disk.problem is None and not self._lines:
                    await self._written.wait()
                    await trio.sleep(GATHER)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + LAST, shield=True), suppress(StateError):
                await self.save()

    async def save(self) -> None:
        """Write what has not been written. It is on disk then. Raises StateError."""
        if not self._begun:
            run, wall = self._events.run, moment().wall
            torn = await trio.to_thread.run_sync(self._ledger.begin, wall, run, __version__)
            self._begun = True
            if torn:
                log.warning("the end of the record of decisions was torn and is dropped", bytes=torn)
        while self._lines:
            missed = self._missed
            lines = [self._lines.popleft() for _ in range(min(len(self._lines), AT_ONCE))]
            if missed:
                lines.insert(0, MissedLine(prev="", at=moment().wall, lines=missed))
            try:
                await trio.to_thread.run_sync(self._ledger.write, lines)
                self._missed -= missed
            except StateError:
                self._lines.extendleft(reversed(lines[bool(missed) :]))
                raise

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
        }  # fmt: skip
        if untold := self._untold.pop(agent, 0):
            data["untold"] = untold
        self._events.publish("agent.decided", None, data)


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
