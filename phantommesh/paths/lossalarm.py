# SPDX-License-Identifier: GPL-3.0-or-later
"""When a path surely loses packets that it did not lose before: soon, and seldom in error.

Each probe that is answered speaks for a path that loses `FEW`, each that is lost for one that loses `MANY`.
The evidence is summed, and a sum below nothing counts as nothing: Page's test (E. S. Page, Continuous
inspection schemes, 1954) of the ratio of likelihoods (A. Wald, Sequential tests of statistical hypotheses,
1945).
"""

from __future__ import annotations

from collections import deque
from math import log
from typing import Final

# Tuning.
FEW, MANY = 0.004, 0.04  # of the probes: what a sound path loses, and what is surely too much
SURE: Final = 7.0  # four losses in 63 probes, five in 124
MOST: Final = 2 * SURE  # so that a path that lost all is believed again after so many answers

RIPE: Final = 0.2  # s that a missed probe may still come back in, before it counts as lost
GAPS: Final = 32  # gaps at most that are remembered, so that a late answer takes them back

_LOST: Final = log(MANY / FEW)
_CAME: Final = log((1 - MANY) / (1 - FEW))


class LossAlarm:
    """One path. Tell what became of its probes, in the order in which that is known. ``now`` is seconds on
    any clock that only goes forward."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._missed: int | None = None  # the number of the newest probe that was missed
        self._open = deque[tuple[int, float]](maxlen=GAPS)  # numbers, and when they will count
        self._gaps = deque[int](maxlen=GAPS)  # the numbers of the probes that are in the sum

    @property
    def suspects(self) -> bool:
        """Whether a probe of late was missed and that is not made up for yet."""
        return bool(self._open) or self._sum > 0.0

    def doubts(self, now: float) -> bool:
        """Whether a probe of late is lost for certain and that is not made up for yet."""
        self._count(now)
        return self._sum > 0.0

    def sure(self, now: float) -> bool:
        """Whether the path loses too much."""
        self._count(now)
        return self._sum >= SURE

    def _count(self, now: float) -> None:
        """Count as lost what has been missed for long enough."""
        while self._open and self._open[0][1] <= now:
            self._gaps.append(self._open.popleft()[0])
            self._sum = min(MOST, self._sum + _LOST)

    def answered(self) -> None:
        """A probe came back in time."""
        self._sum = max(0.0, self._sum + _CAME)

    def missed(self, number: int, now: float) -> None:
        """The probe of this number did not come back in time. Probes in a row are one gap: a path that is
        silent for a while is slow or dark, which others judge."""
        self._count(now)
        gap = self._missed is None or number != (self._missed + 1) & 0xFFFF_FFFF
        self._missed = number
        if gap:
            self._open.append((number, now + RIPE))

    def came_late(self, number: int) -> None:
        """The probe of this number was missed and came back after all, so it was no loss."""
        if number in self._gaps:
            self._gaps.remove(number)
            self._sum = max(0.0, self._sum - _LOST)
            return
        self._open = deque((gap for gap in self._open if gap[0] != number), GAPS)
