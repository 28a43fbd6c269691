# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's clock against those of the members that it talks to. Sans-I/O.

Nothing but a fault follows from it: no node sets its clock, or judges a certificate, by the word of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low
from typing import Final

from phantommesh.faults import FaultKind
from phantommesh.node.steps import Moment
from phantommesh.trust.certificates import CLOCK_SKEW
from phantommesh.trust.identity import NodeId

CLOCK_WRONG = FaultKind("clock-wrong", "high")

# Tuning.
KEPT: Final = 3_600.0  # s that a member's word counts
ALIKE: Final = 60.0  # s by which clocks that agree may differ
WRONG: Final = CLOCK_SKEW  # s from which on a clock is called wrong
AGREE: Final = 2  # members that must agree, and more than half of those heard
MOST: Final = 256  # members whose word is kept


@dataclass(frozen=True, slots=True)
class Wrong:
    """This node's clock is wrong by so many seconds (less than 0: it is behind), as ``agree`` of ``heard``
    members say."""

    ahead: float
    agree: int
    heard: int


@dataclass(frozen=True, slots=True)
class _Word:
    ahead: float  # of this node's clock
    base: float  # this node's clock less the one that does not go back
    at: float


class Clocks:
    """The latest word of each member on what time it is."""

    def __init__(self) -> None:
        self._words: dict[NodeId, _Word] = {}

    def heard(self, member: NodeId, theirs: float, at: Moment) -> None:
        """Note a member's Unix time, as it has just said over a channel."""
        self._words.pop(member, None)
        self._words[member] = _Word(at.wall - theirs, at.wall - at.now, at.now)
        if len(self._words) > MOST:
            del self._words[next(iter(self._words))]

    def wrong(self, at: Moment) -> Wrong | None:
        """Whether this node's clock is wrong, by what members said since it was last set, or this machine
        slept. None also where too few are heard."""
        ahead = self._ahead(at)
        if len(ahead) < AGREE:
            return None
        middle = median_low(ahead)
        agree = sum(abs(one - middle) <= ALIKE for one in ahead)
        if abs(middle) < WRONG or agree < AGREE or 2 * agree <= len(ahead):
            return None
        return Wrong(middle, agree, len(ahead))

    def ahead(self, at: Moment) -> tuple[float | None, int]:
        """By how many seconds this node's clock is ahead of most members', to about a second, and how many
        have said what time it is; None where none has."""
        ahead = self._ahead(at)
        return (median_low(ahead) if ahead else None), len(ahead)

    def _ahead(self, at: Moment) -> list[float]:
        base = at.wall - at.now
        return [
            word.ahead
            for word in self._words.values()
            if at.now - word.at <= KEPT and abs(word.base - base) <= ALIKE
        ]
