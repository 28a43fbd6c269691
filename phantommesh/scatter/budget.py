# SPDX-License-Identifier: GPL-3.0-or-later
"""How much time trials that fail may take: each doubles the pause, and all of them share a budget."""

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
    """Seconds of failed trials, as a token bucket. Trials that gain are free."""

    def __init__(self) -> None:
        self._left, self._at = BURST, float("-inf")

    def _left_at(self, now: float) -> float:
        return min(BURST, self._left + REFILL * (now - self._at))

    def allows(self, now: float, seconds: float = TRIAL) -> bool:
        """Whether a trial of so many seconds may fail."""
        return self._left_at(now) >= seconds

    def spend(self, seconds: float, now: float) -> None:
        """A trial has failed."""
        self._left, self._at = self._left_at(now) - seconds, now
