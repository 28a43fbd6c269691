# SPDX-License-Identifier: GPL-3.0-or-later
"""What `scatter/plan.py` gives: transactions for the kernel, and readings of what it counted, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.epochs import EpochCounts
from phantommesh.scatter.maps import entropy_bits

Ended = tuple[bytes, EpochCounts]
"""A peer's node id, and an epoch of its that has ended."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A peer's epoch under way, as last read, and the one before."""

    current: EpochCounts
    previous: EpochCounts | None

    @property
    def entropy_bits(self) -> float | None:
        """Shannon's entropy of the dimensions of the packets sent in both; None where there are none."""
        before = (0,) * DIMENSIONS if self.previous is None else self.previous.hits.packets
        sent = [a + b for a, b in zip(self.current.hits.packets, before, strict=True)]
        return entropy_bits(sent) if any(sent) else None


@dataclass(frozen=True, slots=True)
class Transaction:
    """Text for ``nft -f -``, and the epochs that end with it."""

    text: str
    ended: Sequence[Ended]


@dataclass(frozen=True, slots=True)
class Rotation:
    """The contents of maps that are to be replaced in one transaction, by name, and the peers whose epochs
    begin by it. ``leaving``: another peer was due that is to leave the table; until then its old map
    holds."""

    maps: Mapping[str, Mapping[int, int]]
    peers: Sequence[bytes]
    leaving: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What the counters say: ``fresh`` is what was not scattered since the last reading, by reason;
    ``emptied`` that somebody else has emptied a map, or the set of counters."""

    fresh: Counter[str]
    emptied: bool
