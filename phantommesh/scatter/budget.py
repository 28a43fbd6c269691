# SPDX-License-Identifier: GPL-3.0-or-later
"""How much may be tried in vain: each failure doubles a pause, and all of them share a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Tuning. In ten minutes failed trials take 12 s at most, which is 2 %; in the long run 1 %.
TRIAL: Final = 1.5  # s
PAUSE, MAX_PAUSE = 8.0, 600.0  # s after a trial that failed; doubled by each that follows
BURST: Final = 6.0  # s of trials that a peer may have failed at once
REFILL: Final = 0.01  # s of trials a second


@dataclass(frozen=True, slots=True)
class Pause:
    """The time until the next trial may be. A pause that ended long ago counts no more."""

    length: float = 0.0
    until: float = float("-inf")

    def over(self, now: float) -> bool:
        """Whether a trial may be."""
        return now >= self.until

    def longer(self, now: float) -> Pause:
        """The pause after one more trial that failed."""
        length = min(MAX_PAUSE, 2.0 * self.length) if now < self.until + MAX_PAUSE else 0.0
        return Pause(length or PAUSE, now + (length or PAUSE))


class Budget:
    """A token bucket; by default of the seconds of failed trials. Trials that gain are free."""

    def __init__(self, burst: float = BURST, refill: float = REFILL) -> None:
        self._burst, self._refill = burst, refill
        self._left, self._at = burst, float("-inf")

    def _left_at(self, now: float) -> float:
        return min(self._burst, self._left + self._refill * (now - self._at))

    def allows(self, now: float, amount: float = TRIAL) -> bool:
        """Whether so much may be spent."""
        return self._left_at(now) >= amount

    def spend(self, amount: float, now: float) -> None:
        """So much was spent."""
        self._left, self._at = self._left_at(now) - amount, now
