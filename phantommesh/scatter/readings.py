# SPDX-License-Identifier: GPL-3.0-or-later
"""What each bucket of the flows to one peer has sent lately, from counters that are read now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

# Tuning.
OVER: Final = 0.9  # s that a rate is taken over
STILL_OVER: Final = 3.0  # s over which a rate has to stand still
STILL: Final = 1.25  # times as much in one half as in the other at most
ALWAYS: Final = 0.5  # of the rate that each part of that time has at least: the sender has data all the time
PART: Final = 0.45  # s
KEPT: Final = STILL_OVER + 1.0  # s

Reading = tuple[float, Mapping[int, tuple[int, int]]]


class Readings:
    """The readings of some seconds, oldest first: when, and packets and bytes so far by bucket."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()

    @property
    def newest(self) -> float:
        """When the latest reading was; minus infinity for none."""
        return self._readings[-1][0] if self._readings else float("-inf")

    def add(self, counted: Mapping[int, tuple[int, int]], now: float) -> None:
        """Take in a reading. Counters that went back are another table's, so the readings start over."""
        if self._readings and any(
            counted.get(b, (0, 0))[1] < size for b, (_, size) in self._readings[-1][1].items()
        ):
            self._readings.clear()
        self._readings.append((now, dict(counted)))
        while self._readings[0][0] < now - KEPT:
            self._readings.popleft()

    def _since(self, seconds: float) -> Reading | None:
        """The newest of the readings that are so old; None where there is none."""
        return next((one for one in reversed(self._readings) if self.newest - one[0] >= seconds), None)

    def rates(self, seconds: float) -> dict[int, float] | None:
        """Bytes a second by bucket over so many seconds or a little more; None until so much is known."""
        before = self._since(seconds)
        if before is None:
            return None
        since, then = before
        now, counted = self._readings[-1]
        return {
            b: (size - then.get(b, (0, 0))[1]) / (now - since)
            for b, (_, size) in counted.items()
            if size > then.get(b, (0, 0))[1]
        }

    def rise(self) -> float:
        """How many times as much all buckets have sent in the newest half of `OVER` as in the half before it;
        1.0 where that is not known."""
        middle, start = self._since(OVER / 2), self._since(OVER)
        if middle is None or start is None or start[0] == middle[0]:
            return 1.0
        now, newest = self._readings[-1]
        first, then, last = (sum(size for _, size in one.values()) for one in (start[1], middle[1], newest))
        early, late = (then - first) / (middle[0] - start[0]), (last - then) / (now - middle[0])
        return late / early if early > 0.0 else 1.0

    def size(self, bucket: int) -> float:
        """The average bytes of a bucket's packets lately. A burst that TCP hands over at once counts as one
        packet."""
        (_, first), (_, last) = self._readings[0], self._readings[-1]
        packets, size = (a - b for a, b in zip(last[bucket], first.get(bucket, (0, 0)), strict=True))
        return size / packets if packets > 0 else 0.0

    def still(self, bucket: int, *, unsteady: bool = False) -> float:
        """The bytes a second that a bucket has had for `STILL_OVER` seconds without more rise or fall than a
        sender at its limit shows; 0.0 where its rate has moved, or paused, or too little is known.
        ``unsteady``: it may have fallen or paused, as senders do that lose packets."""
        start = self._since(STILL_OVER)
        if start is None:
            return 0.0
        points = [(at, counted.get(bucket, (0, 0))[1]) for at, counted in self._readings if at >= start[0]]
        (began, first), (now, last) = points[0], points[-1]
        rate = (last - first) / (now - began)
        middle = min(points[1:-1], key=lambda point: abs(point[0] - (began + now) / 2), default=None)
        if middle is None or rate <= 0.0:
            return 0.0
        early, late = (middle[1] - first) / (middle[0] - began), (last - middle[1]) / (now - middle[0])
        at, size = points[0]
        for then, more in points[1:]:
            if then - at >= PART:
                if more - size < ALWAYS * rate * (then - at) and not unsteady:
                    return 0.0
                at, size = then, more
        return rate if late <= STILL * early and (early <= STILL * late or unsteady) else 0.0
