# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in one path's queue, and what it has lost lately: how loaded it is, told by its probes.

A queue that stands is the least wait of some probes in a row, as in CoDel (RFC 8289, section 3): one slow
answer is a slow machine or a short burst.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Tuning.
OVER: Final = 0.6  # s over which the least wait counts as the queue that stands
LEAST: Final = 3  # answers in that time at least, below which nothing is known
LOST_OVER: Final = 2.0  # s over which losses count
LOST_LEAST: Final = 10  # probes in that time at least
KEPT: Final = 64  # probes at most
FLOOR: Final = 60.0  # s; the empty path's round trip is the least of one to two such spans


class Standing:
    """One path. Round trips and ``now`` in seconds."""

    def __init__(self) -> None:
        self._probes: deque[tuple[float, float | None]] = deque(maxlen=KEPT)  # when, round trip; None: lost
        self._floor = self._floor_before = float("inf")
        self._turned = float("-inf")

    def answered(self, rtt: float, now: float) -> None:
        """A probe came back."""
        if now - self._turned >= FLOOR:
            self._floor_before, self._floor, self._turned = self._floor, float("inf"), now
        self._floor = min(self._floor, rtt)
        self._probes.append((now, rtt))

    def missed(self, now: float) -> None:
        """A probe did not come back in time."""
        self._probes.append((now, None))

    def least(self, now: float) -> float | None:
        """The least round trip of late in seconds; None where too little is known."""
        trips = [rtt for at, rtt in self._probes if rtt is not None and now - at <= OVER]
        return min(trips) if len(trips) >= LEAST else None

    def queue(self, now: float) -> float:
        """The seconds that each probe of late had to wait at least; 0.0 where too little is known."""
        least = self.least(now)
        return 0.0 if least is None else max(0.0, least - min(self._floor, self._floor_before))

    def loss(self, now: float) -> float:
        """The share of the probes of late that were lost; 0.0 where too little is known."""
        late = [rtt for at, rtt in self._probes if now - at <= LOST_OVER]
        return 0.0 if len(late) < LOST_LEAST else sum(rtt is None for rtt in late) / len(late)
