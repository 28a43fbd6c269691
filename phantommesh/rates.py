# SPDX-License-Identifier: GPL-3.0-or-later
"""Token buckets: how often something may be done, and by whom; and counts that fade: how often it was done.
``now`` is the owner's clock in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from math import exp
from typing import Final, Generic, TypeVar

# Tuning.
FADE: Final = 10.0  # s in which a count falls to 1/e
MOST: Final = 16_384  # buckets of one table: as many as a mesh has members

Key = TypeVar("Key", bound=Hashable)


@lru_cache(maxsize=1024)
def source_block(host: str) -> str:
    """The unit that rates are kept for: an IPv4 address, or an IPv6 /64, since a host owns its whole /64."""
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)


class Bucket:
    """A bucket of ``burst`` tokens, full at first, that gains ``rate`` tokens a second."""

    __slots__ = ("_left", "_then", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst = rate, burst
        self._left, self._then = float(burst), now

    def _fill(self, now: float) -> None:
        self._left = min(self.burst, self._left + max(0.0, now - self._then) * self.rate)
        self._then = max(self._then, now)

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take so many tokens; False, and nothing taken, where there are fewer."""
        self._fill(now)
        if self._left < tokens:
            return False
        self._left -= tokens
        return True

    def owe(self, now: float, tokens: float = 1.0) -> float:
        """Take so many tokens, also where there are fewer. Return the seconds until the debt is paid."""
        self._fill(now)
        self._left -= tokens
        return max(0.0, -self._left / self.rate)

    def wait(self, now: float, tokens: float = 1.0) -> float:
        """Return the seconds until `take` succeeds; 0 where it would at once."""
        self._fill(now)
        return max(0.0, (tokens - self._left) / self.rate)


class Rates(Generic[Key]):
    """A bucket for each key, in a table of bounded size: the key that was used least lately makes room, and
    comes back with a full bucket. So the keys must be dear to make up: members, or blocks of addresses."""

    def __init__(self, rate: float, burst: float, most: int = MOST) -> None:
        self._rate, self._burst, self._most = rate, burst, most
        self._buckets: OrderedDict[Key, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: Key, now: float) -> Bucket:
        """The bucket of one key."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, self._burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def allow(self, key: Key, now: float) -> bool:
        """Take one token from the key's bucket; False where it is empty."""
        return self.of(key, now).take(now)

    def owe(self, key: Key, now: float) -> float:
        """`Bucket.owe` of the key's bucket."""
        return self.of(key, now).owe(now)

    def wait(self, key: Key, now: float) -> float:
        """`Bucket.wait` of the key's bucket."""
        return self.of(key, now).wait(now)


class Faded:
    """A count that fades."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value, self._at = 0.0, float("-inf")

    def add(self, count: float, now: float) -> None:
        """Count so many more."""
        self._value, self._at = self.at(now) + count, now

    def at(self, now: float) -> float:
        """The count by now."""
        return self._value * exp(min(0.0, self._at - now) / FADE) if self._value else 0.0
