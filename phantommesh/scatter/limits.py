# SPDX-License-Identifier: GPL-3.0-or-later
"""Which dimensions to a peer each class of its traffic may take, as the ways of now are. Pure.

A class that no dimension may have is closed: its packets are dropped, and counted apart from those that are
dropped since all is drained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phantommesh.dimensions import ALL, DIMENSIONS, has

DIRECT = b""
"""The hand of a dimension whose packets no other member passes on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one peer. ``allowed`` has an entry for each class, in order: the dimensions that it may take, a
    bitmap; with none, every class may take all. ``hands`` are who passes on the packets of each dimension:
    the node id of a member, or `DIRECT`."""

    allowed: tuple[int, ...] = ()
    hands: tuple[bytes, ...] = (DIRECT,) * DIMENSIONS

    def limit(self, scores: Sequence[float], place: int, hands: int) -> tuple[float, ...]:
        """Return the capacities that the class at this ``place`` has of the peer's, none of those that it may
        not take; none at all where the rest has fewer than so many different ``hands``."""
        allowed = self.allowed[place] if self.allowed else ALL
        left = tuple(score if has(allowed, i) else 0.0 for i, score in enumerate(scores))
        used = {self.hands[i] for i, score in enumerate(left) if score}
        return left if len(used) >= hands else (0.0,) * len(left)


FREE = Limits()
