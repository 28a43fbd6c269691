# SPDX-License-Identifier: GPL-3.0-or-later
"""When the dimensions that had to leave their own uplink of a peer try that uplink again. Sans-I/O.

A dimension has an uplink of its own at the peer. While that uplink is out, the dimension goes by another one,
which then carries more than its share. So the own uplink is tried again: soon after an address of either end
has changed, and now and then, for no record says that a cable somewhere is whole again. An uplink that comes
and goes would take packets with it each time. So a dimension stays away for `STAY` at least, and for twice as
long each time that it has to leave again soon after it came back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

# Tuning.
STAY: Final = 12.0  # s that a dimension stays away at least
STEADY: Final = 60.0  # s at its own uplink, below which leaving it again doubles the time that it stays away
MOST_FLAPS: Final = 5  # doublings at most: 384 s
PAUSES: Final = (32.0, 60.0, 120.0, 300.0, 600.0)  # s after the first try that failed, the second, ...


@dataclass(slots=True)
class Homing:
    """Of one peer: ``away`` are the dimensions, a bitmap, that go by another uplink than their own, as of the
    last round; ``due`` is when to try their own next."""

    due: float = inf
    away: int = 0
    _earliest: float = 0.0
    _failed: int = 0
    _flaps: int = 0
    _home_at: float = -inf

    def anew(self, now: float, settle: float) -> None:
        """An address of either end is another: the own uplink may be there again, or be another one."""
        self._failed = 0
        self.due = min(self.due, max(now + settle, self._earliest))

    def tried(self, away: int, now: float) -> None:
        """A round of knocks is over: these dimensions are away now, a bitmap."""
        before, self.away = self.away, away
        if before & ~away:
            self._home_at = now
        if not away:
            self.due, self._failed = inf, 0
            return
        if away & ~before:
            self._flaps = min(self._flaps + 1, MOST_FLAPS) if now < self._home_at + STEADY else 0
            self._earliest, self._failed = now + (STAY * 2**self._flaps), 0
        self.due = max(self._earliest, now + PAUSES[min(self._failed, len(PAUSES) - 1)])
        self._failed += 1
