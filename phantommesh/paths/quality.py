# SPDX-License-Identifier: GPL-3.0-or-later
"""Measurements of one path: round trips, jitter, and loss by probes and by WireGuard's own counters."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, sqrt
from typing import Final

from phantommesh.paths.lossalarm import LossAlarm
from phantommesh.paths.standing import Standing

# Specification: RFC 6298 section 2 (smoothed round trip), RFC 3550 section 6.4.1 (jitter).
ALPHA, BETA, VARIATIONS = 1 / 8, 1 / 4, 4
JITTER_GAIN: Final = 1 / 16

# Tuning.
WINDOW: Final = 600  # probes that loss is remembered over at most: a minute of them at 100 ms
MEMORY: Final = 120.0  # s that it is remembered over at most, so that a bad hour is not held against a path
LEAST_PROBES: Final = 20  # that it is remembered over in any case
CONFIDENCE: Final = 1.28  # standard errors to either side: nine tenths of a normal distribution each
YOUNG: Final = 30  # probes, among which a much faster answer is taken for the first true one
COUNTED_OVER: Final = 60.0  # s that counters are compared over
COUNTED_LEAST: Final = 200_000  # bytes sent meanwhile, below which the comparison says nothing
LEAST_POINTS: Final = 6
PACKET: Final = 1500  # bytes
POINTS_APART: Final = 0.5  # s
READINGS: Final = 64  # of our own counter, kept to compare with


@dataclass(slots=True)
class Quality:
    """Round trips in seconds, loss as a ratio. ``now`` is seconds on any clock that only goes forward."""

    rtt: float | None = None
    variation: float = 0.0
    jitter: float = 0.0
    _last: float | None = None
    _sent: float = 0.0
    _lost: float = 0.0
    _at: float = float("-inf")  # when the newest of them was settled
    counted: Counted = field(default_factory=lambda: Counted())
    standing: Standing = field(default_factory=Standing)
    alarm: LossAlarm = field(default_factory=LossAlarm)

    @property
    def timeout(self) -> float:
        """How long an answer may take before it counts as missing."""
        return 0.0 if self.rtt is None else self.rtt + VARIATIONS * self.variation

    def answered(self, rtt: float, now: float) -> None:
        """Take in a round trip. The first ones may have waited for a WireGuard handshake."""
        self.standing.answered(rtt, now)
        self.alarm.answered()
        if self.rtt is None or (self._sent < YOUNG and rtt < self.rtt / 2):
            self.rtt, self.variation = rtt, rtt / 2
        else:
            self.variation += BETA * (abs(self.rtt - rtt) - self.variation)
            self.rtt += ALPHA * (rtt - self.rtt)
        if self._last is not None:
            self.jitter += JITTER_GAIN * (abs(rtt - self._last) - self.jitter)
        self._last = rtt
        self._outcome(0.0, now)

    def missed(self, number: int, now: float) -> None:
        """No answer to the probe of this number came in time."""
        self.standing.missed(now)
        self.alarm.missed(number, now)
        self._outcome(1.0, now)

    def came_late(self, number: int) -> None:
        """The probe of this number counted as missing and came after all."""
        self._lost = max(0.0, self._lost - 1.0)
        self.alarm.came_late(number)

    def _outcome(self, lost: float, now: float) -> None:
        keep = min(1 - 1 / WINDOW, exp((self._at - now) / MEMORY))
        if self._sent * keep < LEAST_PROBES:
            keep = min(1.0, LEAST_PROBES / self._sent) if self._sent else 0.0
        self._sent, self._lost, self._at = self._sent * keep + 1.0, self._lost * keep + lost, now

    def forget_loss(self) -> None:
        """Start to count anew: what was lost while the path was dark says nothing of what it is now."""
        self._sent = self._lost = 0.0
        self.counted, self.alarm = Counted(), LossAlarm()

    @property
    def probe_loss(self) -> float:
        """The share of recent probes without an answer: lost on either way."""
        return self._lost / self._sent if self._sent else 0.0

    @property
    def loss(self) -> float:
        """The worse of both measurements."""
        return max(self.probe_loss, self.counted.loss or 0.0)

    @property
    def bounds(self) -> tuple[float, float]:
        """Between what values the probes' loss lies, but for a chance of one in ten on either side.

        These are Wilson's bounds (E. B. Wilson, 1927): one loss in a short run lifts the lower
        hardly, and no loss in a short run leaves the upper high.
        """
        n, z = self._sent, CONFIDENCE
        low, high = 0.0, 1.0
        if n:
            p = self._lost / n
            spread = z * sqrt(max(0.0, p * (1 - p) / n) + z * z / (4 * n * n))
            low = max(0.0, (p + z * z / (2 * n) - spread) / (1 + z * z / n))
            high = (p + z * z / (2 * n) + spread) / (1 + z * z / n)
        return low, high


class Counted:
    """Loss for free: bytes that WireGuard sent to a peer on a dimension, less those that arrived there.

    Both ends read their counters every other second, not at the same moment. The bytes sent by the moment
    when the other end read its counter are interpolated. A straight line through the pairs of a minute evens
    out the errors of that. How far the pairs lie from it, and how few packets there were, bounds the loss.
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque(maxlen=READINGS)
        self._points: deque[tuple[float, float, int]] = deque()  # when, sent until then, arrived until then
        self._fitted: tuple[float, float] | None = None  # loss, standard error
        self._forgiven = 0  # bytes

    def sent(self, total: int, now: float) -> None:
        """Take in our own counter. One that went back is another key's: all starts over."""
        if self._readings and total < self._readings[-1][1]:
            self._readings.clear()
            self._points.clear()
            self._fitted = None
        self._readings.append((now, total))

    def forgive(self, lost: int) -> None:
        """So many bytes were lost because they were too many at once: that says nothing of the others."""
        self._forgiven += lost

    def arrived(self, total: int, at: float) -> None:
        """Take in the other end's counter of what had left here by ``at``, on our clock."""
        total += self._forgiven
        if self._points and at - self._points[-1][0] < POINTS_APART:
            return
        for (t0, sent0), (t1, sent1) in pairwise(reversed(self._readings)):  # noqa: B007  # used below
            if t1 <= at <= t0 and t0 > t1:
                break
        else:
            return
        if self._points and total < self._points[-1][2]:
            self._points.clear()
        self._points.append((at, sent1 + (sent0 - sent1) * (at - t1) / (t0 - t1), total))
        while self._points[0][0] < at - COUNTED_OVER:
            self._points.popleft()
        self._fitted = self._fit()

    def _fit(self) -> tuple[float, float] | None:
        """Ordinary least squares of what arrived over what was sent."""
        n = len(self._points)
        if n < LEAST_POINTS or self._points[-1][1] - self._points[0][1] < COUNTED_LEAST:
            return None
        mean_x = sum(point[1] for point in self._points) / n
        mean_y = sum(point[2] for point in self._points) / n
        xx = sum((point[1] - mean_x) ** 2 for point in self._points)
        xy = sum((point[1] - mean_x) * (point[2] - mean_y) for point in self._points)
        slope = xy / xx
        loss = min(1.0, max(0.0, 1 - slope))
        packets = (self._points[-1][1] - self._points[0][1]) / PACKET
        off = sum((point[2] - mean_y - slope * (point[1] - mean_x)) ** 2 for point in self._points)
        return loss, sqrt(off / (n - 2) / xx + loss * (1 - loss) / packets)

    @property
    def loss(self) -> float | None:
        """The ratio of bytes lost on the way there, None where too little is known to tell."""
        return None if self._fitted is None else self._fitted[0]

    @property
    def bounds(self) -> tuple[float, float]:
        """Between what values it lies, but for a chance of about one in ten on either side."""
        if self._fitted is None:
            return 0.0, 1.0
        loss, error = self._fitted
        return max(0.0, loss - CONFIDENCE * error), min(1.0, loss + CONFIDENCE * error)
