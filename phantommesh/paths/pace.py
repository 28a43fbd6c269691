# SPDX-License-Identifier: GPL-3.0-or-later
"""How closely a peer's paths are watched: the more traffic they carry, the closer, up to what is configured.

A probe is answered by a node that is as busy, so a peer that is sent ten packets a second should not cost
seventy probes. A light flow loses little by it: a path that goes dark is left later, but fewer packets a
second are lost on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from phantommesh.rates import Bucket

# Tuning.
BUSY_RATE: Final = 600.0  # bytes a second sent to a peer, probes aside, that count as traffic
BUSY_FOR: Final = 10.0  # s that it stays so after the last such reading
FULL_RATE: Final = 20_000.0  # bytes a second from which on probes are the interval apart: with less, further
LIGHT: Final = 2.0  # s between probes of a path at most while there is any traffic
READ: Final = 1.0  # s of counters at least that a rate is taken from
# Of a path that has a peer's traffic because it is the quickest, so many probes in an interval, and while a
# loss of late makes it suspect. The other paths of that peer have one in so many intervals.
CLOSER, SUSPECT, FURTHER = 7.5, 30.0, 2.0
CLOSEST: Final = 110.0, 250.0  # such probes a second, and at once: fewer than are answered (`peer.ANSWERS`)


@dataclass(slots=True)
class Pace:
    """The traffic to one peer. Times are in seconds on the protocol's clock."""

    _rate: float = 0.0  # bytes a second, while busy
    _busy_until: float = 0.0
    _carried: int = 0  # bytes since `_since`
    _since: float | None = None

    def carried(self, count: int, now: float) -> bool:
        """Take in the bytes sent since the call before. Return whether to watch closer than before it."""
        self._carried += count
        if self._since is None:
            self._since, self._carried = now, 0
        if now - self._since < READ:
            return False
        rate = self._carried / (now - self._since)
        self._since, self._carried = now, 0
        if rate < BUSY_RATE:
            return False
        closer = not self.busy(now) or rate > self._rate
        self._rate, self._busy_until = rate, now + BUSY_FOR
        return closer

    def busy(self, now: float) -> bool:
        """Whether there is traffic, or was not long ago."""
        return now < self._busy_until

    def rate(self, now: float) -> float:
        """The bytes a second while there is traffic, else 0.0."""
        return self._rate if self.busy(now) else 0.0

    def pause(self, interval: float) -> float:
        """Return the seconds between probes of a path while busy; ``interval`` is that under load."""
        return max(interval, min(LIGHT, interval * FULL_RATE / self._rate))


class Watch:
    """How closely one path is watched, so that it is known within two seconds that the path loses more, or
    takes longer."""

    def __init__(self, now: float) -> None:
        self._bucket = Bucket(*CLOSEST, now)

    def sent(self, now: float) -> None:
        """A probe was sent by the path."""
        self._bucket.owe(now)

    def pause(self, interval: float, now: float, *, suspects: bool) -> float:
        """Return the seconds until the next probe; ``interval`` is that of other paths under load. Probes are
        never so many that the other end would not answer them: that would look like loss."""
        return max(interval / (SUSPECT if suspects else CLOSER), self._bucket.wait(now))
