# SPDX-License-Identifier: GPL-3.0-or-later
"""How well this node itself is doing (Lifeguard's awareness), and how long answers take."""

from __future__ import annotations

import math


class Awareness:
    """Lifeguard's local health multiplier: 0 is healthy, every failure that may be our own adds one.

    Whoever has a high score waits longer before it blames others.
    """

    __slots__ = ("_maximum", "score")

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.score = 0

    def adjust(self, by: int) -> None:
        """Add to the score, within its bounds."""
        self.score = min(max(0, self.score + by), self._maximum - 1)

    @property
    def scale(self) -> int:
        """The factor for intervals and timeouts."""
        return self.score + 1


class RoundTrips:
    """RFC 6298's smoothed round-trip time and variation, of each member that answered, of all of this
    node's region together, and of all ``beyond`` it."""

    __slots__ = ("_all", "_each")

    def __init__(self) -> None:
        self._all: dict[bool, tuple[float, float]] = {}
        self._each: dict[bytes, tuple[float, float]] = {}

    def measured(self, node: bytes, seconds: float, *, beyond: bool = False) -> None:
        """Take a sample in. A sample belongs to one nonce, so a repeated ping does not blur it (Karn)."""
        self._all[beyond] = _smooth(self._all.get(beyond), seconds)
        self._each[node] = _smooth(self._each.get(node), seconds)

    def timeout(self, node: bytes, least: float, most: float, *, beyond: bool = False) -> float:
        """How long to wait for this member: its mean and four deviations; those of all on its side of the
        region's border if it is new."""
        known = self._each.get(node) or self._all.get(beyond)
        if known is None:
            return most
        return min(max(least, known[0] + 4 * known[1]), most)

    def smoothed(self, node: bytes) -> float | None:
        """The member's smoothed round-trip time in seconds, if it ever answered."""
        known = self._each.get(node)
        return None if known is None else known[0]

    def forget(self, node: bytes) -> None:
        """Drop a member's samples."""
        self._each.pop(node, None)


def _smooth(known: tuple[float, float] | None, sample: float) -> tuple[float, float]:
    if known is None:
        return sample, sample / 2
    mean, deviation = known
    return mean + (sample - mean) / 8, deviation + (abs(sample - mean) - deviation) / 4


def suspicion_time(least: float, most: float, confirmed: int, wanted: int) -> float:
    """How long a suspicion lasts after ``confirmed`` of ``wanted`` independent confirmations (Lifeguard)."""
    if wanted < 1:
        return least
    share = math.log(confirmed + 1) / math.log(wanted + 1)
    return max(least, most - (most - least) * share)
