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
FEW, MANY = 0.005, 0.05  # of the probes: what a sound path loses, and what is to be noticed
SURE: Final = 6.5  # four losses in 58 probes, five in 108
MOST: Final = 2 * SURE  # so that a path that lost all is believed again after so many answers

GAPS: Final = 32  # gaps at most that a late answer takes back

_LOST: Final = log(MANY / FEW)
_CAME: Final = log((1 - MANY) / (1 - FEW))


class LossAlarm:
    """One path. Tell what became of its probes, in the order in which that is known."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._missed: int | None = None  # the number of the newest probe that was missed
        self._gaps = deque[int](maxlen=GAPS)  # the numbers of the probes that are in the sum

    @property
    def suspects(self) -> bool:
        """Whether a loss of late is not made up for yet."""
        return self._sum > 0.0

    @property
    def sure(self) -> bool:
        """Whether the path loses too much."""
        return self._sum >= SURE

    def answered(self) -> None:
        """A probe came back in time."""
        self._sum = max(0.0, self._sum + _CAME)

    def missed(self, number: int) -> None:
        """The probe of this number did not come back in time. Probes in a row are one gap: a path that is
        silent for a while is slow or dark, which others judge."""
        gap = self._missed is None or number != (self._missed + 1) & 0xFFFF_FFFF
        self._missed = number
        if gap:
            self._sum = min(MOST, self._sum + _LOST)
            self._gaps.append(number)

    def came_late(self, number: int) -> None:
        """The probe of this number was missed and came back after all, so it was no loss."""
        if number in self._gaps:
            self._gaps.remove(number)
            self._sum = max(0.0, self._sum - _LOST)
