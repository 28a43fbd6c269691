# SPDX-License-Identifier: GPL-3.0-or-later
"""NEXUS: deployment. Who drains, whether versions and settings of the mesh agree, whether the file is in
force.

**Inputs.** Whether this node drains and by whose word, and its readiness; of each member the region, version,
draining and policy of its record, and whether it answers; whether the configuration's file was changed and
not taken over.

**Order of a rollout.** Of one region never two nodes drain at once (`node.draining` holds that for the
operator's word, too). A rollout waits at `phantommesh drain --wait` until it is this node's turn.

**Draining by itself.** A node that is not ready for its own work for `UNREADY` seconds takes itself out of
the others' way, if `drain_unready` allows and no other of its region drains; it is back when it was ready for
`READY` seconds. `UNREADY` is longer than a start and than any failover. `READY` is as long, so that a node
that comes and goes changes its record at most once a minute. The operator's `phantommesh undrain` wins: it
ends this draining, too, and NEXUS leaves the node at work until it was ready for `READY` seconds; what makes
it unready after that is a new cause.

**Findings**, all low or medium: nothing of this keeps traffic from flowing.

- `version-skew`: members have run different versions for `skew_hours` of the configuration: a rollout that
  stands still. With what is newer, and how many have what.
- `config-drift`: the file says something else than the node runs with for `DRIFT` seconds, and nobody had the
  node reload. Somebody who is still writing it needs less.
- `policy-drift`: a setting that members should agree on (`node.policy.AGREED`) differs here from most members
  that say something, three at least: with fewer nobody knows who is right.
- `two-draining`: two nodes of this region drain, one of them by force.

**Actions.** `Drain` of this node, `Raise`. **Never**: it drains no other node, ends no drain that the
operator began, begins none for a cause for which the operator took the node back, reloads nothing, restarts
nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from phantommesh.agents.actions import Drain, Raise
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
from phantommesh.config.agents import NexusSection
from phantommesh.node.policy import differing

# Tuning.
EVERY: Final = 5.0  # s between looks
UNREADY: Final = 30.0  # s without readiness until the node drains by itself
READY: Final = 30.0  # s of readiness until it is back
STANDS: Final = 30.0  # s that a proposal stands without being renewed
DRIFT: Final = 60.0  # s
FEWEST: Final = 3  # members that say something of a setting
NAMED: Final = 3  # members or keys that a finding names


@dataclass(frozen=True, slots=True)
class Member:
    """One other member, by its record. ``draining``: it drains in this node's region, within its turn."""

    name: str
    region: str
    version: str
    draining: bool
    answers: bool
    policy: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What NEXUS sees at one look. ``draining``: by whose word this node drains now, if it does. ``ready``:
    all but the draining itself speaks for its readiness. ``drift``: the keys in which the file differs from
    what the node runs with, and which nobody had taken over; ``unusable``: the file is changed and does not
    hold; ``taken_back``: when the operator last said that this node is to be at work, on the node's clock."""

    region: str
    version: str
    ready: bool
    draining: Literal["", "operator", "nexus"] = ""
    policy: tuple[int, ...] = ()
    members: tuple[Member, ...] = ()
    drift: tuple[str, ...] = ()
    unusable: bool = False
    taken_back: float = float("-inf")


class Nexus(Agent[Seen]):
    """The agent of one node."""

    name: ClassVar[AgentName] = "nexus"
    wakes: ClassVar[frozenset[str]] = frozenset({"health.degraded", "health.well"})

    def __init__(self, section: NexusSection | None = None) -> None:
        section = NexusSection() if section is None else section
        self.every = EVERY
        self._drains, self._patience = section.drain_unready, section.skew_hours * 3600.0
        self._changed: float | None = None  # since when the node is as ready as it is, or as unready
        self._ready = True
        self._taken_back = float("-inf")  # the operator's last word that was heard
        self._overruled = False  # the operator wants the node at work with what makes it unready now
        self._skewed: float | None = None
        self._drifted: float | None = None

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        """Drain while this node is not ready, and say what does not agree."""
        seen, now = observation.seen, observation.at.now
        yield from self._drain(seen, now)
        yield from self._skew(seen, now)
        yield from self._drift(seen, now)
        yield from _policy(seen, now)
        yield from _order(seen, now)

    def holds(self, seen: Seen, proposal: Proposal) -> bool:
        """A drain that the operator took back ends at once, also one that was on its way meanwhile."""
        return not (isinstance(proposal.action, Drain) and self._overruled)

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        """Whether this node drains: 1 or 0."""
        return float(bool(seen.draining)) if isinstance(proposal.action, Drain) else None

    def _drain(self, seen: Seen, now: float) -> Iterator[Proposal]:
        if self._changed is None or seen.ready != self._ready:
            self._ready, self._changed = seen.ready, now
        lasting = now - self._changed
        held = seen.draining == "nexus"
        if seen.taken_back > self._taken_back:
            self._taken_back, self._overruled = seen.taken_back, True
        if seen.ready and lasting >= READY:
            self._overruled = False
        if self._overruled:
            return
        if not self._drains or seen.draining == "operator":
            return
        if not held and (seen.ready or lasting < UNREADY or _draining(seen)):
            return
        if held and seen.ready and lasting >= READY:
            return
        yield Proposal(
            agent="nexus",
            subject=Subject("node"),
            action=Drain(),
            evidence=(
                Evidence("unready_s" if not seen.ready else "ready_s", round(lasting, 1), UNREADY, "readyz"),
            ),
            expects=Expectation("draining", "at_least", 1.0, within=2 * EVERY),
            until=now + STANDS,
            why="this node is not ready for its own work: others are to use other routers and relays",
        )

    def _skew(self, seen: Seen, now: float) -> Iterator[Proposal]:
        counts = Counter([seen.version, *(one.version for one in seen.members if one.answers)])
        if len(counts) < 2:
            self._skewed = None
            return
        self._skewed = now if self._skewed is None else self._skewed
        lasting = now - self._skewed
        if lasting < self._patience:
            return
        said = ", ".join(
            f"{count} of {counts.total()} run {version}" for version, count in counts.most_common(NAMED)
        )
        hours = Evidence("skew_hours", round(lasting / 3600, 2), self._patience / 3600, "records")
        raised = Raise(
            "version-skew", "low", f"members run different versions: {said}",
            "finish the rollout, or go back: `phantommesh peers` has each one's version",
        )  # fmt: skip
        yield finding("nexus", raised, hours, now + STANDS)

    def _drift(self, seen: Seen, now: float) -> Iterator[Proposal]:
        if not seen.drift and not seen.unusable:
            self._drifted = None
            return
        self._drifted = now if self._drifted is None else self._drifted
        lasting = now - self._drifted
        if lasting < DRIFT:
            return
        what = "does not hold" if seen.unusable else f"says something else of {_named(seen.drift)}"
        fix = (
            "see `phantommesh config check`"
            if seen.unusable
            else "have the node reload it (SIGHUP), or take the change back"
        )
        raised = Raise(
            "config-drift", "medium" if seen.unusable else "low",
            f"the configuration's file was changed, and the node runs with the old one: it {what}", fix,
        )  # fmt: skip
        yield finding("nexus", raised, Evidence("drift_s", round(lasting, 1), DRIFT, "file"), now + STANDS)


def _policy(seen: Seen, now: float) -> Iterator[Proposal]:
    said = [one for one in seen.members if one.answers and one.policy]
    if len(said) < FEWEST:
        return
    against = Counter(key for one in said for key in differing(seen.policy, one.policy))
    alone = sorted(key for key, count in against.items() if 2 * count > len(said))
    if alone:
        most = max(against[key] for key in alone)
        raised = Raise(
            "policy-drift", "medium", f"{_named(alone)} differ here from {most} of {len(said)} members",
            "set the same on all nodes of the mesh, then restart those that differ",
        )  # fmt: skip
        yield finding("nexus", raised, Evidence("members", most, len(said) / 2, "records"), now + STANDS)


def _order(seen: Seen, now: float) -> Iterator[Proposal]:
    others = _draining(seen)
    if seen.draining and others:
        where = f"in the region {seen.region}" if seen.region else "among the nodes without a region"
        raised = Raise(
            "two-draining", "medium", f"this node and {_named(others)} drain at once {where}",
            "run `phantommesh undrain` on those that are well: one may be all that the other has",
        )  # fmt: skip
        yield finding("nexus", raised, Evidence("draining", 1 + len(others), 1, "records"), now + STANDS)


def _draining(seen: Seen) -> list[str]:
    return sorted(one.name for one in seen.members if one.draining and one.region == seen.region)


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
