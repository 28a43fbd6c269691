# SPDX-License-Identifier: GPL-3.0-or-later
"""OMNISCIENT: the health of this node's services and of its process, and of the mesh as members share it.

**Inputs.** The pulse of each supervised service (when its next turn is due: `nursery/due.py`), the lag of
the node's loop, resident memory, file descriptors, tasks, jumps of the wall clock, free space of the state
directory; of each other member the state by gossip, and the health and draining of its record.

**Services.** A service is wedged if its turn is overdue by `GRACE`, or by `PATIENCE` times the longest delay
that a turn of it had within ten minutes, whichever is more, and the loop itself was not held up meanwhile:
then all services are late, and none is wedged. A pause of the whole process (a suspended machine, a stopped
process) counts as no service's delay. A look comes each second, so that a service with no delay of its own
is started again within 5 s of the moment at which its turn was due. From one restart to the next
`Restart.rests` have to pass, then twice as long each time, up to `LONGEST_REST`: what a restart does not
cure, another one seldom does. A service that was well for `WITHIN` begins anew. One that was restarted
`OFTEN` times without having been well for so long becomes a finding, and so does one that does not end, since
a task of it hangs in a thread: to restart the node is the operator's.

**Findings** stand while the measure is beyond its bound, and until it was within `BACK` times the bound for
`CALM` seconds, so that nothing flickers. The bounds, and where they come from:

- `loop-slow`: a lag over 0.25 s in each of 3 looks. Half of the gossip's probe interval: answers that come
  later begin to count as lost.
- `memory-high`: `memory_mb` of the configuration, 512: six times the budget of an idle node, 80 MB.
- `descriptors-high`: 80 % of the process's limit. At 100 % the next socket fails.
- `tasks-many`: 5,000. A choice: tasks are bounded part by part, so this means that some bound does not hold.
- `disk-low`: 64 MiB free. A choice: the state directory has to take a whole new roster beside the old one.
- `clock-jumped`: by 2 s between two looks; told for 10 minutes. Certificates and epochs are judged by it.
- `service-wedged`: 3 restarts, and never well for 10 minutes since the first; or 15 s without an end.
- `mesh-degraded`: a third of the members, two at least, gone or not well. Fewer are those members' own
  matter.

**Actions.** `Restart` of one service, `Raise`. **Bounds.** One restart of a service in 30 s, then in 60 s,
and so on up to one in 10 minutes. **Never**: it restarts no node, touches no peer, and judges no member alone
by what that one's record says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from phantommesh.agents.actions import Raise, Restart
from phantommesh.agents.base import (
    Agent,
    AgentName,
    Evidence,
    Expectation,
    Observation,
    Proposal,
    Subject,
    finding,
)
from phantommesh.config.agents import OmniscientSection

# Tuning.
EVERY: Final = 1.0  # s between looks
GRACE: Final = 2.0  # s that a turn may be overdue
PATIENCE: Final = 3.0  # times the longest delay of a service's turn of late
HELD: Final = 2.5  # times `EVERY` between two looks: then the process itself was held up
OFTEN: Final = 3  # restarts
WITHIN: Final = 600.0  # s that a service has to be well, for its restarts to be forgotten
LONGEST_REST: Final = 600.0  # s from one restart of a service to the next
ENDS: Final = 15.0  # s that a service may take to end
STANDS: Final = 15.0  # s that a finding stands without being renewed
BACK: Final = 0.8  # times the bound, within which a measure is well again
CALM: Final = 10.0  # s for which it has to be
LAG: Final = 0.25  # s
SLOW_LOOKS: Final = 3
DESCRIPTORS: Final = 0.8  # part of the limit
TASKS: Final = 5000
DISK: Final = 64 * 2**20  # bytes
JUMP: Final = 2.0  # s
JUMP_TOLD: Final = 600.0  # s
PART: Final = 1 / 3  # of the members, for the mesh to be degraded
LEAST: Final = 2  # members
MOST_SERVICES: Final = 128  # whose restarts are remembered

Rule = Literal[
    "loop-slow", "memory-high", "descriptors-high", "tasks-many", "disk-low", "clock-jumped",
    "service-wedged", "mesh-degraded",
]  # fmt: skip
OWN: Final = frozenset[Rule](
    {"loop-slow", "memory-high", "descriptors-high", "tasks-many", "disk-low", "service-wedged"}
)
"""The rules that are about this node itself, and more than passing."""

Severity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True, slots=True)
class Service:
    """One supervised service: when its turn was due, the longest delay of its own that a
    turn had of late, in seconds, and since when it is to end (None: it runs). Times on the node's clock."""

    name: str
    due: float
    slowest: float = 0.0
    ending: float | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class Vitals:
    """The process as measured of late. ``lag``: the longest delay of the loop in seconds since the last look;
    ``memory``, ``free`` in bytes; ``jump``: seconds by which the wall clock has jumped since the last look.
    None: not known."""

    lag: float
    tasks: int
    jump: float = 0.0
    memory: int | None = None
    descriptors: int | None = None
    limit: int | None = None
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One other member: whether it answers by gossip, and the health (0 sound, 1 degraded, 2 not ready) and
    draining of its record."""

    name: str
    answers: bool
    health: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What OMNISCIENT sees at one look."""

    services: tuple[Service, ...]
    vitals: Vitals
    members: tuple[Member, ...] = ()


@dataclass(slots=True)
class _Alarm:
    """One measure against its bound. ``since``: since when it is within the bound again."""

    on: bool = False
    since: float | None = None

    def look(self, value: float, bound: float, now: float, *, below: bool = False) -> bool:
        """Say whether the finding stands. ``below``: the bound is a floor."""
        wrong = value < bound if below else value > bound
        well = value > bound / BACK if below else value < bound * BACK
        if wrong:
            self.on, self.since = True, None
        elif self.on and well:
            self.since = now if self.since is None else self.since
            self.on = now - self.since < CALM
        else:
            self.since = None
        return self.on


@dataclass(slots=True)
class _Past:
    """What is remembered of a service that was restarted: how often, when last, and when it was last seen
    wedged."""

    restarts: int = 0
    last: float = float("-inf")
    wedged: float = float("-inf")

    def rest(self) -> float:
        """The seconds from the last restart that have to pass before the next."""
        return min(LONGEST_REST, Restart.rests * 2.0 ** min(self.restarts - 1, 16))


class Omniscient(Agent[Seen]):
    """The agent of one node."""

    name: ClassVar[AgentName] = "omniscient"
    wakes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, section: OmniscientSection | None = None) -> None:
        section = OmniscientSection() if section is None else section
        self.every = EVERY
        self._memory = section.memory_mb * 2**20
        self._looked = float("-inf")
        self._alarms: dict[Rule, _Alarm] = {}
        self._past: dict[str, _Past] = {}
        self._slow = 0  # looks in a row that found the loop late
        self._worst = 0.0  # s that it was held up, since it was last well
        self._jumped: tuple[float, float] | None = None  # when, and by how much

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        """Restart what is wedged, and say what is wrong."""
        seen, now = observation.seen, observation.at.now
        held = now - self._looked > HELD * EVERY
        self._looked = now
        if not held:  # else no service had its chance to turn
            yield from self._services(seen, now)
        yield from self._process(seen.vitals, now)
        yield from self._mesh(seen.members, now)

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        """How many seconds a service that was restarted is overdue; None where it is no more."""
        service = next((one for one in seen.services if one.name == proposal.subject.name), None)
        if proposal.subject.kind != "service" or service is None:
            return None
        return 0.0 if service.ending is None else ENDS

    # ---- services ----

    def _services(self, seen: Seen, now: float) -> Iterator[Proposal]:
        if seen.vitals.lag > GRACE / 2:
            return
        for one in seen.services:
            past = self._past.get(one.name)
            if one.ending is not None:
                if now - one.ending > ENDS:
                    yield self._wedged(one, Evidence("ending_s", now - one.ending, ENDS, "supervisor"),
                                       "it does not end", now)  # fmt: skip
                continue
            grace = max(GRACE, PATIENCE * one.slowest)
            overdue = now - one.due
            if overdue > grace:
                past = self._past_of(one.name) if past is None else past
                past.wedged = now
                if now - past.last > past.rest():
                    past.restarts, past.last = past.restarts + 1, now
                    yield self._restart(one, overdue, grace, now)
            elif past is not None and now - past.wedged > WITHIN:
                del self._past[one.name]
                continue
            if past is not None and past.restarts >= OFTEN:
                yield self._wedged(one, Evidence("restarts", past.restarts, OFTEN - 1, "supervisor"),
                                   f"it was restarted {past.restarts} times", now)  # fmt: skip

    def _past_of(self, name: str) -> _Past:
        past = self._past[name] = _Past()
        while len(self._past) > MOST_SERVICES:
            del self._past[next(iter(self._past))]
        return past

    def _restart(self, one: Service, overdue: float, grace: float, now: float) -> Proposal:
        return Proposal(
            agent="omniscient",
            subject=Subject("service", one.name),
            action=Restart(one.name),
            evidence=(Evidence("overdue_s", round(overdue, 3), round(grace, 3), "pulse"),),
            expects=Expectation("ending_s", "at_most", 0.0, within=5.0),
            until=now + EVERY,
            why=f"the service {one.name} has not turned for {overdue:.1f} s beyond the time that it named",
        )

    def _wedged(self, one: Service, evidence: Evidence, how: str, now: float) -> Proposal:
        return Proposal(
            agent="omniscient",
            subject=Subject("rule", f"service-wedged/{one.name}"),
            action=Raise(
                rule="service-wedged",
                severity="high",
                text=f"the service {one.name} is wedged: {how}",
                fix="restart the node, and report this with the log if it comes back",
            ),
            evidence=(evidence,),
            expects=None,
            until=now + STANDS,
            why=f"the service {one.name} is wedged: {how}",
        )

    # ---- the process ----

    def _process(self, vitals: Vitals, now: float) -> Iterator[Proposal]:
        if vitals.lag > LAG:
            self._slow, self._worst = self._slow + 1, max(self._worst, vitals.lag)
        else:
            self._slow = 0
        slow = vitals.lag if self._slow == 0 or self._slow >= SLOW_LOOKS else 0.0
        # By the time that somebody reads it the loop may turn well again: what it rests on is the worst.
        yield from self._finding(
            "loop-slow", slow, LAG, now, "medium", "lag_s",
            f"the node reacts late: its loop was held up again and again, by up to {self._worst:.2f} s",
            "see what else takes this machine's processors; report it if the machine is idle",
            measured=self._worst,
        )  # fmt: skip
        if not (self._slow or self._alarms["loop-slow"].on):
            self._worst = 0.0
        if vitals.memory is not None:
            yield from self._finding(
                "memory-high", vitals.memory, self._memory, now, "medium", "memory_bytes",
                f"the node takes {vitals.memory // 2**20} MB of memory",
                "restart the node; raise agents.omniscient.memory_mb if the mesh is that large",
            )  # fmt: skip
        if vitals.descriptors is not None and vitals.limit:
            yield from self._finding(
                "descriptors-high", vitals.descriptors / vitals.limit, DESCRIPTORS, now, "high", "part",
                f"the node has {vitals.descriptors} of {vitals.limit} file descriptors open",
                "restart the node, or raise its limit (LimitNOFILE= in the systemd unit)",
            )  # fmt: skip
        yield from self._finding(
            "tasks-many", vitals.tasks, TASKS, now, "medium", "tasks",
            f"the node runs {vitals.tasks} tasks",
            "restart the node, and report this with the log",
        )  # fmt: skip
        if vitals.free is not None:
            yield from self._finding(
                "disk-low", vitals.free, DISK, now, "high", "free_bytes",
                f"{vitals.free // 2**20} MiB are left where the state directory is",
                "make room on that file system: what the node should remember will not be written",
                below=True,
            )  # fmt: skip
        if abs(vitals.jump) > JUMP:
            self._jumped = now, vitals.jump
        if self._jumped is not None and now - self._jumped[0] < JUMP_TOLD:
            by = self._jumped[1]
            raised = Raise(
                "clock-jumped", "low", f"this machine's clock jumped by {by:+.1f} s",
                "let it be kept right (NTP); a virtual machine that was suspended does this once",
            )  # fmt: skip
            evidence = Evidence("jump_s", round(by, 3), JUMP, "wall clock")
            yield finding("omniscient", raised, evidence, now + STANDS)

    def _finding(
        self, rule: Rule, value: float, bound: float, now: float, severity: Severity, what: str, text: str,
        fix: str, *, below: bool = False, measured: float | None = None,
    ) -> Iterator[Proposal]:  # fmt: skip
        """Raise a finding while a value is beyond its bound. ``measured``: what the finding rests on, where
        that is not the value of now."""
        alarm = self._alarms.setdefault(rule, _Alarm())
        if alarm.look(value, bound, now, below=below):
            evidence = Evidence(what, round(value if measured is None else measured, 3), bound, "process")
            yield finding("omniscient", Raise(rule, severity, text, fix), evidence, now + STANDS)

    # ---- the mesh ----

    def _mesh(self, members: tuple[Member, ...], now: float) -> Iterator[Proposal]:
        wrong = [one for one in members if not one.draining and (one.health or not one.answers)]
        bound = max(LEAST, PART * len(members)) - 0.5
        names = ", ".join(sorted(one.name for one in wrong)[:3]) + (" and more" if len(wrong) > 3 else "")
        yield from self._finding(
            "mesh-degraded", len(wrong), bound, now, "medium", "members",
            f"{len(wrong)} of {len(members)} members are gone or not well: {names}",
            "see `phantommesh status` on those; what they share may be at fault",
        )  # fmt: skip
