# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API shows of the agents, their decisions, incidents and the memory of threats.

As in `views`: add freely, change or drop nothing silently. Durations are seconds, dates RFC 3339 in UTC.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal["running", "dry-run", "paused", "benched"]


class EvidenceView(msgspec.Struct, frozen=True, kw_only=True):
    """A measured value that speaks for a proposal. ``what`` names the measure and its unit."""

    what: str
    value: float | None
    """None: what the agent gave is no number, which is why the proposal was refused."""
    bound: float | None = None
    """What the value crossed."""
    source: str = ""


class ExpectedView(msgspec.Struct, frozen=True, kw_only=True):
    """The effect that an action should have."""

    what: str
    relation: Literal["at_most", "at_least"]
    value: float | None
    within_s: float | None


class OutcomeView(msgspec.Struct, frozen=True, kw_only=True):
    """What an action came to."""

    time: str
    after_s: float
    measured: float | None
    met: bool | None
    """None: the measure could not be read, or nothing was expected, or the action failed."""
    error: str
    text: str
    """The same as the end of a sentence."""


class DecisionView(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. ``seq`` counts from 1 in each run of the node, which ``run`` names."""

    seq: int
    run: str
    time: str
    trace: str
    agent: str
    action: str
    """What kind of action: ban, rotate, weigh and so on."""
    what: dict[str, object]
    """The action, as in the record on disk."""
    subject: str
    result: str
    """``accepted``, or why the proposal was refused."""
    accepted: bool
    by: str | None
    """The agent that has the subject instead."""
    why: str
    evidence: list[EvidenceView]
    expects: ExpectedView | None
    incident: str
    seconds: float
    """From the agent's look to the verdict."""
    times: int
    """Refusals like it since the last that is on record, with this one."""
    outcome: OutcomeView | None
    """None: not known yet, or no longer kept."""
    text: str
    """The decision as a sentence."""


class StandingView(msgspec.Struct, frozen=True, kw_only=True):
    """A lasting action that is in force."""

    subject: str
    action: str
    since_s: float
    left_s: float
    """It is lifted then, unless it is proposed again."""
    text: str
    why: str


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """One agent. Counts are since the node's start."""

    name: str
    phase: Phase
    """``benched``: it failed and sits out."""
    since_s: float
    """For how long it has been in this phase."""
    why: str = ""
    """Why it is benched."""
    back_in_s: float | None = None
    """When it is back from the bench; None: it is not benched, or stays until it is resumed."""
    about: str = ""
    every_s: float | None = None
    wakes: list[str] = []
    """Types of events at which it looks at once."""
    looks: int = 0
    look_s: float = 0.0
    """What its last look took."""
    slowest_s: float = 0.0
    benched: int = 0
    """How often it was benched."""
    proposals: int = 0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    """Accepted actions that could not be carried out."""
    met: int = 0
    """Effects that came as expected."""
    unmet: int = 0
    standing: int = 0
    """Lasting actions of its own that are in force."""


class AgentDetail(msgspec.Struct, frozen=True, kw_only=True):
    """One agent, its lasting actions, the newest of these first, and its latest decisions, oldest first."""

    agent: AgentView
    policy: str
    """What it sees, does, and never does."""
    standing: list[StandingView]
    decisions: list[DecisionView]


class AgentsResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/agents/{name}/pause and /resume: these agents as they are now, and how many
    lasting actions are lifted for that, or in a dry run would be."""

    agents: list[AgentView]
    lifted: int
    dry_run: bool = False


class IncidentView(msgspec.Struct, frozen=True, kw_only=True):
    """What several agents did about one peer or address at about one time."""

    id: str
    """The trace of its first decision."""
    state: Literal["open", "closed"]
    opened: str
    updated: str
    closed: str | None
    about: list[str]
    """Members by name, addresses, and what else its agents call it."""
    agents: list[str]
    decisions: list[str]
    """The traces of its decisions."""
    more: int
    """Further decisions, which are not kept here."""
    title: str
    story: list[str]


class AgentsGlance(msgspec.Struct, frozen=True, kw_only=True):
    """The agents in `status`. ``accepted``: decisions since the start. ``frozen``: APEX is paused, and
    nothing new is accepted but the operator's word."""

    running: int
    total: int
    dry_run: list[str] = []
    paused: list[str] = []
    benched: list[str] = []
    accepted: int = 0
    frozen: bool = False


class PatternView(msgspec.Struct, frozen=True, kw_only=True):
    """One pattern that the memory has. ``strength`` fades; ``times`` it was recorded, and ``useful`` and
    ``false`` recalls."""

    kind: str
    source: str
    target: str
    signature: str
    strength: float
    times: int
    useful: int
    false: int
    first: str
    last: str
    priority: int


class HinterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A member that hints at threats. ``weight`` 0: it was found to lie, or has used up what it may cause
    this hour."""

    name: str
    node_id: str
    weight: float
    confirmed: float
    refuted: float
    hints: int
    hops: int
    liar_until: str | None


class MemoryView(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of threats (MNEMONIC), and what other members hint."""

    patterns: int
    most_patterns: int
    bytes: int
    most_bytes: int
    evicted: int
    strongest: list[PatternView]
    hinted: int
    """Addresses that other members hint at."""
    own_hints: int
    hints_taken: int
    hints_dropped: dict[str, int]
    hinters: list[HinterRow]
