# SPDX-License-Identifier: GPL-3.0-or-later
"""Goals: what a mesh, or one of its peers, wants of the scatter, and how it is scattered for that.

``auto`` is order until a path is what limits a flow (`scatter/splitting.py`), ``throughput`` a single TCP
flow's over unequal paths, ``order`` packets of a flow that do not overtake each other, ``latency`` the least
delay and loss (`paths/quickest.py`), ``private`` that an observer of one path learns little of the whole. The
experiments behind each choice are in docs/scatter.md and docs/traffic-analysis.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from phantommesh.config.sections import Goal, ScatterSection
from phantommesh.faults import FaultKind
from phantommesh.scatter.maps import Scheduler

UNKNOWN_PEER = FaultKind("scatter-unknown-peer", "low")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How traffic to one peer is scattered. ``unequal``: by weights far from equal, drawn anew each epoch;
    ``segments``: each TCP connection is told segments of another size to send us; ``splits``: a flow is split
    over several dimensions while its path is what limits it, with the scheduler ``flow`` only; ``quickest``:
    all of it goes over the one dimension that is quickest, once that is known."""

    scheduler: Scheduler
    unequal: bool = False
    segments: bool = False
    splits: bool = False
    quickest: bool = False

    def capacities(self, scores: Sequence[float], quickest: int | None) -> tuple[float, ...]:
        """The capacities of the dimensions for traffic scattered so: where the traffic takes the ``quickest``
        dimension, and that one may serve, the others have none."""
        if not self.quickest or quickest is None or not scores[quickest]:
            return tuple(scores)
        return tuple(score * (i == quickest) for i, score in enumerate(scores))


SCHEDULES: Final[dict[Goal, Schedule]] = {
    "auto": Schedule("flow", splits=True),
    "throughput": Schedule("deck"),
    "order": Schedule("flow"),
    "latency": Schedule("flow", quickest=True),
    "private": Schedule("batch", unequal=True, segments=True),
}


def goal_of(name: str, settings: ScatterSection) -> Goal:
    """Return what is wanted of the traffic to the peer of this name: its own goal, or else everybody's."""
    return settings.peers.get(name, settings.goal)


def schedule_of(name: str, settings: ScatterSection) -> Schedule:
    """How to scatter to the peer of this name. `scatter.scheduler` overrides the scheduler of the mesh-wide
    goal, not that of a goal set for one peer."""
    found = SCHEDULES[goal_of(name, settings)]
    if settings.scheduler == "auto" or name in settings.peers:
        return found
    return replace(found, scheduler=settings.scheduler, splits=False)
