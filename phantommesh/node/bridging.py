# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a member joins the connections of two others: frames over TCP for a pair of which neither takes a
connection from the other. Sans-I/O.

The member passes on ciphertext of the pair's own channel, so it learns when and how much they talk, as a
relay does. The limits are those of a relay's lease (`relay.rate`, `relay.quota`), for all dimensions of a
pair together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from typing import Final

from phantommesh.rates import Rates

# Tuning.
MOST: Final = 64  # connections that are joined, or wait to be
EACH_MEMBER: Final = 8  # of one member
ASKS: Final = 0.5, 8  # requests of one member a second, and at once
EACH: Final = 256  # bytes that a frame counts for beside its own
BURST: Final = 0.25  # s of the rate that a pair may be ahead
MOST_PAIRS: Final = 4096  # pairs of which is remembered how much they sent
DAY: Final = 86_400.0  # s of the quota


class Bridges:
    """The limits of one node. ``standing`` has the members whose certificates hold and who are not revoked,
    ``among`` those for whom the operator relays (None: all). ``rate``: bytes a second of a pair's direction;
    ``quota``: bytes a day of a pair. ``dropped`` counts refusals."""

    def __init__(
        self,
        me: bytes,
        standing: Callable[[], Container[bytes]],
        among: Container[bytes] | None,
        rate: float,
        quota: int,
    ) -> None:
        self._me, self._standing, self._among, self._quota = me, standing, among, quota
        self._asks = Rates[bytes](*ASKS)
        self._rates = Rates[tuple[bytes, bytes]](rate, max(rate * BURST, 128 * 1024), MOST_PAIRS)
        self._held = Counter[bytes]()
        self._day, self._used = 0.0, Counter[frozenset[bytes]]()
        self.dropped: Counter[str] = Counter()

    def admit(self, origin: bytes, to: bytes, now: float) -> str:
        """Count one more connection of ``origin``; return why it may not be, or nothing. Call `over` for one
        that was admitted."""
        why = self._why_not(origin, to, now)
        if why:
            self.dropped["bridge-refused"] += 1
        else:
            self._held[origin] += 1
        return why

    def _why_not(self, origin: bytes, to: bytes, now: float) -> str:
        if self._me in (origin, to) or origin == to or not self._stand(origin, to):
            return "these two are no pair of members"
        if self._among is not None and not (origin in self._among and to in self._among):
            return "this node relays for others"
        if not self._asks.allow(origin, now):
            return "too many connections to join"
        if self._held[origin] >= EACH_MEMBER or self._held.total() >= MOST:
            return "too many connections are joined"
        return "" if self._left(origin, to, now) else "the quota of the day is used up"

    @property
    def joined(self) -> int:
        """The connections that are joined, or wait to be."""
        return self._held.total()

    def over(self, origin: bytes) -> None:
        """A connection that was admitted has ended."""
        self._held[origin] -= 1
        if self._held[origin] <= 0:
            del self._held[origin]

    def owe(self, origin: bytes, to: bytes, size: int, now: float) -> float | None:
        """A frame of so many bytes is passed on. Return the seconds to wait before the next one; None: pass
        this one on no more, since the quota is used up, or one of the two is no member any more."""
        if not self._stand(origin, to):
            self.dropped["bridge-refused"] += 1
            return None
        if not self._left(origin, to, now):
            self.dropped["bridge-quota"] += 1
            return None
        self._used[frozenset((origin, to))] += EACH + size
        return self._rates.of((origin, to), now).owe(now, EACH + size)

    def _stand(self, origin: bytes, to: bytes) -> bool:
        standing = self._standing()
        return origin in standing and to in standing

    def _left(self, origin: bytes, to: bytes, now: float) -> bool:
        if now >= self._day + DAY:
            self._day = now
            self._used.clear()
        pair = frozenset((origin, to))
        return self._used[pair] < self._quota if pair in self._used else len(self._used) < MOST_PAIRS
