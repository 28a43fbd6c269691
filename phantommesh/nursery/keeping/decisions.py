# SPDX-License-Identifier: GPL-3.0-or-later
"""What was decided: counted, told, and handed over to be carried out. The operator's word comes in here, too.

`nursery/agents/running.py` brings what agents propose, and takes the orders.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from phantommesh.agents.base import AgentName, Proposal
from phantommesh.agents.council import Council, Decision, Minutes, Order, Phase
from phantommesh.management.events import EventLog
from phantommesh.management.metrics import Metrics
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import moment
from phantommesh.rates import Rates

# Tuning.
EVENT_RATE, EVENT_BURST = 1.0, 64.0  # decisions of one agent that are told, a second and at once

log = structlog.get_logger("phantommesh.agents")


class Decisions:
    """The council's decisions on their way to the record and to the hands."""

    def __init__(self, council: Council, metrics: Metrics, events: EventLog) -> None:
        self.council = council
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
        for one in minutes.decisions:
            self._tell(one)
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

    # The operator's word.

    def operate(self, proposals: Sequence[Proposal]) -> None:
        """Have done what the operator asks for."""
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


MOST_WHY: Final = 300  # characters of a reason in an event


def kind_of(proposal: Proposal) -> str:
    """What kind of action is proposed, by its tag."""
    return str(proposal.action.__struct_config__.tag)
