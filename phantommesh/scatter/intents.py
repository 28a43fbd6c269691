# SPDX-License-Identifier: GPL-3.0-or-later
"""Intents: what a mesh, or one of its peers, wants of the scatter, and what is done for it.

``speed`` is a single TCP flow's throughput over unequal paths, ``order`` is packets of a flow that do not
overtake each other, ``private`` is that an observer of one path learns little of the whole. The experiments
behind each choice are in docs/scatter.md and docs/traffic-analysis.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from phantommesh.config.sections import Intent, ScatterSection
from phantommesh.faults import FaultKind
from phantommesh.scatter.maps import Scheduler

UNKNOWN_PEER = FaultKind("scatter-unknown-peer", "low")


@dataclass(frozen=True, slots=True)
class Manner:
    """How traffic to one peer is scattered. ``unequal``: by weights far from equal, drawn anew each epoch;
    ``segments``: each TCP connection is told segments of another size to send us."""

    scheduler: Scheduler
    unequal: bool = False
    segments: bool = False


MANNERS: Final[dict[Intent, Manner]] = {
    "speed": Manner("deck"),
    "order": Manner("flow"),
    "private": Manner("batch", unequal=True, segments=True),
}


def intent_of(name: str, settings: ScatterSection) -> Intent:
    """Return what is wanted of the traffic to the peer of this name: its own intent, or else everybody's."""
    return settings.peers.get(name, settings.intent)


def manner_of(name: str, settings: ScatterSection) -> Manner:
    """How to scatter to the peer of this name. `scatter.scheduler` overrides the scheduler of the mesh-wide
    intent, not that of an intent set for one peer."""
    found = MANNERS[intent_of(name, settings)]
    if settings.scheduler == "auto" or name in settings.peers:
        return found
    return replace(found, scheduler=settings.scheduler)
