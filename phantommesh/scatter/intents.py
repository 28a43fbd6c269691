# SPDX-License-Identifier: GPL-3.0-or-later
"""What a mesh, or one of its peers, wants of the scatter, and what is done for it.

``speed`` is a single TCP flow's throughput over unequal paths, ``order`` is packets of a flow that do not
overtake each other, ``private`` is that who watches one path learns little of the whole. The experiments
behind each choice are in docs/scatter.md and docs/traffic-analysis.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from phantommesh.scatter.maps import Scheduler

Intent = Literal["speed", "order", "private"]
INTENTS: Final[tuple[Intent, ...]] = get_args(Intent)


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


def read_peer_intent(text: str) -> tuple[str, Intent]:
    """Read ``NAME=INTENT``. Raises ValueError."""
    name, _, given = text.partition("=")
    intent = next((intent for intent in INTENTS if intent == given), None)
    if not name or intent is None:
        raise ValueError(f"{text!r} is not NAME=INTENT")
    return name, intent


def intent_of(name: str, intent: Intent, peers: Sequence[str]) -> Intent:
    """What is wanted of the traffic to the peer of this name: its own intent in ``peers`` (``NAME=INTENT``
    each; the last one counts), or else ``intent``."""
    return dict(map(read_peer_intent, peers)).get(name, intent)


def manner_of(
    name: str, intent: Intent, peers: Sequence[str], scheduler: Scheduler | Literal["auto"]
) -> Manner:
    """How to scatter to the peer of this name. Where ``scheduler`` is not auto it takes the place of that of
    ``intent``, but not of a peer's own."""
    own = dict(map(read_peer_intent, peers)).get(name)
    found = MANNERS[own or intent]
    return found if own or scheduler == "auto" else replace(found, scheduler=scheduler)
