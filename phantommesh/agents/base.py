# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes that all agents share: what an agent sees, what it proposes, and what comes of that.

An agent is a policy without I/O. It gets an `Observation`, an immutable snapshot of what it watches, and
returns proposals. `apex` judges the proposals of all agents, the node carries out what is accepted, and the
agent's own `measure` says afterwards whether the expected effect came.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final, Generic, Literal, TypeVar, get_args

import msgspec

from phantommesh.agents.actions import Action, Raise
from phantommesh.management.views import Event
from phantommesh.node.steps import Moment

AgentName = Literal[
    "operator",
    "fortress",
    "aegis",
    "cipher",
    "phantom",
    "velocity",
    "stream",
    "genesis",
    "nexus",
    "omniscient",
]
PRECEDENCE: Final[tuple[AgentName, ...]] = get_args(AgentName)
"""Who wins a subject over whom: the operator, then safety, then privacy, then speed, then upkeep."""
RANK: Final = {name: rank for rank, name in enumerate(PRECEDENCE)}

SubjectKind = Literal[
    "address", "dimension", "flow", "host", "node", "parameter", "path", "peer", "rule", "service"
]

Seen = TypeVar("Seen")


class Subject(msgspec.Struct, frozen=True, order=True):
    """What a proposal is about. Two proposals about one subject exclude each other.

    ``name`` by kind: an address or network; a dimension's number; a flow as its module writes it; nothing
    for ``host`` and ``node`` (this one); the key of a parameter; ``NODE_ID/DIMENSION`` for a path; a node id
    for a peer; the id of a rule; the name of a service, or ``dns/ADDRESS`` for what an overlay address gets
    of the name server.
    """

    kind: SubjectKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


class Evidence(msgspec.Struct, frozen=True):
    """One measured value that speaks for a proposal, with the bound that it crossed. ``what`` names the
    measure and its unit (``rtt_ms``), ``source`` where the value comes from (a counter, a file)."""

    what: str
    value: float
    bound: float | None = None
    source: str = ""


class Expectation(msgspec.Struct, frozen=True):
    """The effect that an action should have: ``what``, as the agent's `Agent.measure` reads it, is at most or
    at least ``value``, ``within`` so many seconds of the action."""

    what: str
    relation: Literal["at_most", "at_least"]
    value: float
    within: float

    def met(self, measured: float) -> bool:
        """Whether this value is the expected effect."""
        return measured <= self.value if self.relation == "at_most" else measured >= self.value


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent wants done. ``until`` is on the node's clock (`Moment.now`): the action stands no longer
    unless it is proposed again. A lasting action (`actions.LASTING`) is lifted then."""

    agent: AgentName
    subject: Subject
    action: Action
    evidence: tuple[Evidence, ...]
    expects: Expectation | None
    until: float
    why: str
    """One sentence for people."""
    incident: str = ""
    """Subjects of one incident have one such key, e.g. the node id or address behind all of it."""


def finding(agent: AgentName, raised: Raise, evidence: Evidence, until: float) -> Proposal:
    """A finding whose subject is its rule, and whose text says why."""
    return Proposal(
        agent=agent,
        subject=Subject("rule", raised.rule),
        action=raised,
        evidence=(evidence,),
        expects=None,
        until=until,
        why=raised.text,
    )


Reason = Literal[
    "accepted", "renewed", "dry-run", "paused", "frozen", "no-evidence", "expired", "not-its-action",
    "not-its-subject", "out-of-bounds", "held", "outranked", "cooling-down", "too-many",
]  # fmt: skip


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a proposal. ``by``: the agent that has the subject instead. ``renewed``: the same action
    stands already, and stands longer now; that is no decision."""

    proposal: Proposal
    reason: Reason
    by: AgentName | None = None

    @property
    def accepted(self) -> bool:
        """Whether the action is to be carried out."""
        return self.reason == "accepted"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an action came to: the measured value, and whether the effect was the expected one. None: the
    measure could not be read, or the action failed (``error``)."""

    trace: str
    proposal: Proposal
    measured: float | None
    met: bool | None
    error: str = ""


class Observation(msgspec.Struct, Generic[Seen], frozen=True):
    """What an agent sees at one look: its snapshot, and since its last look the events that it asked for and
    the outcomes of its actions."""

    at: Moment
    seen: Seen
    events: tuple[Event, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


class Agent(Generic[Seen]):
    """One agent. ``every``: seconds between looks; ``wakes``: types of events at which it looks at once.

    `observe` is called with one observation at a time and may keep state, bounded. It may not block; what it
    raises benches this agent only."""

    name: ClassVar[AgentName]
    every: float
    wakes: ClassVar[frozenset[str]] = frozenset()

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        """Return what should be done, given what is seen."""
        raise NotImplementedError

    def holds(self, seen: Seen, proposal: Proposal) -> bool:
        """Whether a lasting action of this agent's that stands is still wanted, after `observe` with the same
        snapshot. False has it lifted at once; else it stands until its proposal expires."""
        return True

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        """Read the measure that ``proposal.expects`` names from a snapshot; None where it cannot be read."""
        return None
