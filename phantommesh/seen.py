# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of tags that were met before, in little room: a Bloom filter (Bloom 1970) over authentication tags.

A tag is as good as random, so its own bits say which bits of the filter are its. A tag that was met is always
known again; at most one in a thousand of the others is taken for it. So it suits what may get lost.
"""

from __future__ import annotations

import struct
from typing import Final

TAG_BYTES: Final = 16
_WORDS: Final = struct.Struct("!4I")  # four hash functions, of 32 bits each

# Tuning: with so many tags in a filter of 2 MiB 15 % of its bits are set, and one in 1,800 tags is mistaken.
BITS: Final = 1 << 24
MOST: Final = 700_000  # a day at eight datagrams a second


class Seen:
    """The latest `MOST` tags at least, and twice as many at most. ``bits`` is a power of two."""

    def __init__(self, bits: int = BITS, most: int = MOST) -> None:
        self._mask, self._most, self._count = bits - 1, most, 0
        self._now, self._before = bytearray(bits // 8), b""

    def __contains__(self, tag: bytes) -> bool:
        places = [word & self._mask for word in _WORDS.unpack(tag)]
        return any(
            all(held[place >> 3] >> (place & 7) & 1 for place in places)
            for held in (self._now, self._before)
            if held
        )

    def add(self, tag: bytes) -> None:
        """Know this tag of 16 bytes from now on."""
        if self._count >= self._most:
            self._now, self._before, self._count = bytearray(len(self._now)), bytes(self._now), 0
        self._count += 1
        for word in _WORDS.unpack(tag):
            place = word & self._mask
            self._now[place >> 3] |= 1 << (place & 7)
