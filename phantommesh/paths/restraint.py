# SPDX-License-Identifier: GPL-3.0-or-later
"""How often a path's MTU is searched anew, and how much searches may send to one peer.

A search begins where the way of a path changes, where the other end says that its uplink takes another size,
and where a dark path answers again. A peer can bring about each of these as often as it likes, by an address,
by a probe or by silence. So the first change is followed at once, and a peer that changes again and again is
searched less and less often.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from phantommesh.rates import Bucket

# Tuning.
FIRST: Final = 1.0  # s from one search's begin to the next at least, doubled with each that follows
MOST: Final = 32.0  # s, the longest of these pauses
CALM: Final = 60.0  # s without a search after a pause, from which on the next change is followed at once
PROBES: Final = 200.0  # sized probes in a row to one peer: more than a search in all dimensions has
REFILL: Final = 2.0  # sized probes a second and peer, beside those that its traffic has watched
WATCHED: Final = 2.0  # sized probes to one that watching takes: the second answers where one was lost


@dataclass(slots=True)
class Restraint:
    """When the searches of one path begin. Times are in seconds on the protocol's clock."""

    _at: float = float("-inf")  # when the newest search began, or will
    _pause: float = 0.0

    def begin(self, wanted: float) -> float:
        """A search is wanted from ``wanted`` on. Return when it may begin; one that was put off serves all
        changes until then."""
        if wanted < self._at:
            return self._at
        if wanted >= self._at + self._pause + CALM:
            self._pause = 0.0
        self._at = max(wanted, self._at + self._pause)
        self._pause = min(MOST, max(FIRST, 2 * self._pause))
        return self._at


@dataclass(slots=True)
class Allowance:
    """How many sized probes one peer may be sent."""

    _bucket: Bucket = field(default_factory=lambda: Bucket(REFILL, PROBES, 0.0))

    def take(self, now: float, watch: float) -> float:
        """Take one probe. Return 0.0, or the seconds until there is one. ``watch``: the seconds between two
        looks at the peer's MTU while there is traffic; infinity while there is none."""
        self._bucket.rate = REFILL + WATCHED / watch
        return 0.0 if self._bucket.take(now) else self._bucket.wait(now)
