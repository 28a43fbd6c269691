# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the agents: a task for each, which looks when it is the agent's turn, and one that does what is
accepted. `agents/council.py` decides; here is what waits.

An agent harms nobody but itself. What it raises benches it. Its look runs in a thread: one that takes more
than its budget of CPU is benched, one that does not come back is left behind, stopped if that can be, and a
fresh instance takes its place. See `jobs`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import trio

from phantommesh.agents.actions import Ban
from phantommesh.agents.base import Agent, AgentName, Subject
from phantommesh.agents.council import BUDGET, Order
from phantommesh.agents.everyone import MAKERS, follow, phase_of
from phantommesh.config.agents import AgentsSection
from phantommesh.errors import PhantomMeshError
from phantommesh.management.events import EventLog, Filter
from phantommesh.management.views import Event
from phantommesh.nursery import unexpected
from phantommesh.nursery.agents import hands
from phantommesh.nursery.agents.jobs import Job, collections_measured
from phantommesh.nursery.agents.looks import LOOKS, Look
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import Due, moment
from phantommesh.nursery.keeping.decisions import kind_of, log
from phantommesh.nursery.parts import Parts
from phantommesh.rates import Bucket

# Tuning.
HANG = 1.0  # s after which a look that has used up its budget of CPU runs in a loop: 20 budgets
BLOCKED = 5.0  # s after which a look that has used less is blocked, and does not merely wait for a core
LOOK_AGAIN = 0.05  # s between looks at a thread that is late
VIEW = 5.0  # s that an agent's view of the node may take to be built; it may read files
MOST_ABANDONED = 4  # threads left behind; with more, the agent sits out until the operator resumes it
WAKES, WAKES_AT_ONCE = 5.0, 20.0  # looks of one agent that events cause, a second and at once
MOST_EVENTS = 256  # kept for one agent between two looks; older ones are in the log
CLOSING = 2.0  # s to lift what stands when the node stops

ALL: Final = Filter()


class Agents:
    """The agents of one node. ``looks`` and ``makers`` are by name."""

    def __init__(
        self,
        parts: Parts,
        looks: Mapping[AgentName, Look] = LOOKS,
        makers: Mapping[AgentName, Callable[[AgentsSection], Agent[Any]]] = MAKERS,
    ) -> None:
        self._parts, self.looks, self.makers = parts, dict(looks), dict(makers)
        self._council, self._decisions = parts.council, parts.decisions
        self._ears: _Ears
        self._abandoned: list[Job] = []
        self._threads = trio.CapacityLimiter(len(LOOKS) + MOST_ABANDONED + 1)
        self._waiting: dict[Subject, deque[tuple[Order, float]]] = {}
        self._lapses = Due(self._council.apex.next_lapse)
        self._decisions.stands = self._lapses.look

    def services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The services of the node that run the agents. Call this once."""
        seats = self._council.seats
        self._ears = _Ears(self._parts.events, {name: seat.agent.wakes for name, seat in seats.items()})
        self._decisions.changed = self._ears.nudge
        turns = {f"agent-{name}": partial(self._run, name) for name in seats}
        self._threads.total_tokens = len(turns) + MOST_ABANDONED + 1
        return {"agent-hands": self._carry_out, "agent-lapses": self._lapse, **turns}

    def reload(self, before: AgentsSection, now: AgentsSection) -> None:
        """Follow an edited configuration. An agent whose settings are as they were stays as it is, and one
        that the operator paused by hand stays paused."""
        for name in self._council.seats:
            if getattr(before, name) != getattr(now, name):
                self._council.anew(name, self._make(name))
            was, phase = phase_of(before, name), phase_of(now, name)
            by_hand = self._council.seats[name].phase == "paused" and was != "paused"
            if phase != was and not by_hand:
                moment = trio.current_time()
                self._decisions.order(follow(self._council, name, now, moment), moment)
                self._decisions.phase(name, "paused" if phase == "paused" else "back", "by the configuration")

    async def close(self) -> None:
        """Lift what stands, at the node's end."""
        now = trio.current_time()
        with trio.move_on_after(CLOSING):
            for order in self._council.close(now):
                if not isinstance(
                    order.proposal.action, Ban
                ):  # the kernel ends bans, and the next run goes on
                    await self._carry(order, now)

    # Looking.

    async def _run(self, name: AgentName) -> None:
        council = self._council
        while True:
            began = await self._turn(name)
            benched = council.seats[name].phase == "benched"
            if council.looks(name, trio.current_time()):
                if benched:
                    self._decisions.phase(name, "back")
                await self._look(name, began)

    async def _turn(self, name: AgentName) -> float:
        """Wait until it is the agent's turn. Return when began what it looks for: an event, or its time."""
        council, ear = self._council, self._ears.of[name]
        await trio.lowlevel.checkpoint()
        while True:
            now = trio.current_time()
            due = council.due(name, now)
            if ear.events and council.seats[name].phase in ("running", "dry-run"):
                due = min(due, now + ear.pace.wait(now))
            if due <= now:
                if ear.events:
                    ear.pace.take(now)
                    return ear.since
                return now
            with trio.move_on_at(due):
                await ear.bell.wait()

    async def _look(self, name: AgentName, began: float) -> None:
        council, parts = self._council, self._parts
        self._reap()
        events = self._ears.of[name].take()
        try:
            with trio.fail_after(VIEW):
                seen = await self.looks[name](parts)
        except Exception as error:
            unexpected.note("an agent's view of the node failed", error, agent=name)
            self._failed(name, f"its view of the node failed ({type(error).__name__})")
            return
        job = Job(council.look(name, seen, events, moment()))
        if not await self._did(job):
            self._abandon(name, job)
        elif job.error is not None:
            unexpected.note("an agent failed", job.error, agent=name)
            self._failed(name, f"it raised {type(job.error).__name__}")
        elif job.look is not None:
            minutes = council.looked(name, job.look, job.seconds, moment())
            self._decisions.take(minutes, began)
            self._say_if_benched(name)

    async def _did(self, job: Job) -> bool:
        """Do a look's work in a thread. False where it does not come back."""
        with trio.move_on_after(HANG):
            await trio.to_thread.run_sync(job, abandon_on_cancel=True, limiter=self._threads)
            return True
        patience = trio.current_time() + BLOCKED - HANG
        while not job.ended:
            if job.used() > BUDGET or trio.current_time() >= patience:
                return False
            await trio.sleep(LOOK_AGAIN)
        return True

    def _reap(self) -> None:
        """Forget the threads that have come back, and try again to stop the others."""
        if self._abandoned:
            self._abandoned = [one for one in self._abandoned if not one.ended]
            for job in self._abandoned:
                job.stop()

    def _abandon(self, name: AgentName, job: Job) -> None:
        self._abandoned.append(job)
        self._reap()
        many = len(self._abandoned) > MOST_ABANDONED
        self._failed(
            name,
            f"a look did not come back; with {len(self._abandoned)} threads that hang it stays out"
            if many
            else "a look did not come back",
            for_good=many,
        )

    def _failed(self, name: AgentName, why: str, *, for_good: bool = False) -> None:
        """Bench an agent, and put a fresh instance in its place: nobody knows what state it is in."""
        self._council.failed(name, why, trio.current_time(), for_good=for_good)
        self._council.anew(name, self._make(name))
        self._parts.metrics.agent_restarts.labels(name).inc()
        self._say_if_benched(name)

    def _make(self, name: AgentName) -> Agent[Any]:
        return self.makers[name](self._parts.config.agents)

    def _say_if_benched(self, name: AgentName) -> None:
        seat = self._council.seats[name]
        if seat.phase == "benched":
            self._decisions.phase(name, "benched", seat.why)

    # Doing.

    async def _lapse(self) -> None:
        """Lift what has lapsed, until cancelled."""
        while True:
            await self._lapses.sleep()
            now = trio.current_time()
            self._decisions.order(self._council.lapse(now), now)

    async def _carry_out(self) -> None:
        """Carry out orders, until cancelled: those on one subject one after the other, others at once."""
        self._waiting.clear()
        with collections_measured():
            async with trio.open_nursery() as nursery:
                while True:
                    order, began = await self._decisions.next()
                    subject = order.proposal.subject
                    if (line := self._waiting.get(subject)) is not None:
                        line.append((order, began))
                    else:
                        self._waiting[subject] = deque([(order, began)])
                        nursery.start_soon(self._carry_line, subject)

    async def _carry_line(self, subject: Subject) -> None:
        line = self._waiting[subject]
        while line:
            await self._carry(*line[0])
            line.popleft()
        del self._waiting[subject]

    async def _carry(self, order: Order, began: float) -> None:
        proposal, error = order.proposal, ""
        about = {"agent": proposal.agent, "action": kind_of(proposal), "subject": str(proposal.subject)}
        try:
            await hands.carry_out(self._parts, order)
        except PhantomMeshError as failure:
            error = str(failure)
            log.warning("not done", **about, lift=order.lift, error=error, fix=failure.fix, trace=order.trace)
        except Exception as failure:  # of the action alone
            error = f"it failed in a way that nobody expected ({type(failure).__name__})"
            unexpected.note("an action failed", failure, **about)
        if not order.lift:
            self._decisions.take(self._council.carried(order.trace, error), began)
            if not error:
                waited = trio.current_time() - began
                self._parts.metrics.agent_response_seconds.labels(proposal.agent).observe(waited)


class _Ear:
    """What one agent has heard. ``since``: when the first event came that it has not looked at."""

    def __init__(self, wakes: frozenset[str]) -> None:
        self.bell = Bell()
        self.events = deque[Event](maxlen=MOST_EVENTS)
        self.since = 0.0
        self.pace = Bucket(WAKES, WAKES_AT_ONCE, trio.current_time())
        self._wanted = Filter.parse(",".join(sorted(wakes))) if wakes else None

    def hear(self, event: Event) -> None:
        """Keep an event if the agent asked for its type, and wake it."""
        if self._wanted is None or not self._wanted.wants(event.type):
            return
        if not self.events:
            self.since = trio.current_time()
        self.events.append(event)
        self.bell.ring()

    def take(self) -> list[Event]:
        """The events since the last look."""
        taken = list(self.events)
        self.events.clear()
        return taken


class _Ears:
    """Gives each event to the agents that asked for its type."""

    def __init__(self, log: EventLog, wakes: Mapping[AgentName, frozenset[str]]) -> None:
        self.of = {name: _Ear(wanted) for name, wanted in wakes.items()}
        self._log, self._place = log, log.last
        log.wakes.add(self._hear)

    def nudge(self, name: AgentName) -> None:
        """An agent's turn may be another than before."""
        self.of[name].bell.ring()

    def _hear(self) -> None:
        batch = self._log.read(self._place, ALL, MOST_EVENTS)
        self._place = batch.place
        for event in batch.events:
            for ear in self.of.values():
                ear.hear(event)
