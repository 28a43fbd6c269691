# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of 16-byte ids with digests by prefix: two nodes find what either lacks without sending the rest.

    the node that asks            the node that answers
    256 digests under a prefix -> the ids in those parts that differ, or "look closer" for a part with many

A part is the ids that begin with the prefix and one more byte. Ids are hashes, so parts are even. A node
that makes ids up to fill one part gets its answers cut, which costs that node alone.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Final, NamedTuple

ID_BYTES: Final = 16
PARTS: Final = 256
DIGEST_BYTES: Final = 16
MAX_DEPTH: Final = 3  # bytes of the longest prefix that is asked about
FEW: Final = 64  # ids of one part that are listed rather than looked at more closely
MAX_LISTED: Final = 2_048  # ids in one answer, 32 KiB
_BITMAP_BYTES: Final = PARTS // 8


class IdTreeError(Exception):
    """The other node sent something that is no question or answer of this kind."""


class Apart(NamedTuple):
    """The prefixes to look at more closely, and the ids of the answerer in the other parts that differ."""

    closer: tuple[bytes, ...]
    ids: tuple[bytes, ...]


class IdTree:
    """A set of ids. Its digest tells whether two sets are the same."""

    def __init__(self) -> None:
        self._ids: list[bytes] = []
        self._top: dict[int, bytes] = {}  # digests by first byte, of those that are up to date
        self._digest: bytes | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, one: bytes) -> bool:
        place = bisect_left(self._ids, one)
        return place < len(self._ids) and self._ids[place] == one

    def add(self, one: bytes) -> None:
        """Put an id in."""
        if one not in self:
            insort(self._ids, one)
            self._stale(one)

    def discard(self, one: bytes) -> None:
        """Take an id out."""
        if one in self:
            del self._ids[bisect_left(self._ids, one)]
            self._stale(one)

    def copy(self) -> "IdTree":
        """The same set once more."""
        made = IdTree()
        made._ids, made._top, made._digest = list(self._ids), dict(self._top), self._digest
        return made

    def digest(self) -> bytes:
        """SHA3-256, 32 bytes: equal for equal sets."""
        if self._digest is None:
            self._digest = hashlib.sha3_256(b"phantommesh id tree" + self.parts(b"")).digest()
        return self._digest

    def parts(self, prefix: bytes) -> bytes:
        """The digests of the 256 parts under a prefix, 4 KiB; zeros for a part with nothing in it."""
        if prefix:
            return b"".join(_digest(ids) for ids in self._split(prefix))
        for first in range(PARTS):
            if first not in self._top:
                self._top[first] = _digest(self._under(bytes([first])))
        return b"".join(self._top[first] for first in range(PARTS))

    def differing(self, prefix: bytes, theirs: bytes) -> bytes:
        """Answer somebody's `parts`. At most 33 KB. Raises IdTreeError for what is none."""
        if len(theirs) != PARTS * DIGEST_BYTES or len(prefix) > MAX_DEPTH:
            raise IdTreeError("the digests have a wrong length")
        ours, closer, listed = self.parts(prefix), 0, list[bytes]()
        for number in range(PARTS):
            slot = slice(number * DIGEST_BYTES, (number + 1) * DIGEST_BYTES)
            if ours[slot] == theirs[slot]:
                continue
            ids, room = self._under(prefix + bytes([number])), MAX_LISTED - len(listed)
            if len(prefix) < MAX_DEPTH and len(ids) > min(FEW, room):
                closer |= 1 << number
            else:
                listed += ids[:room]
        return closer.to_bytes(_BITMAP_BYTES) + b"".join(listed)

    def lacking(self, ids: Iterable[bytes]) -> list[bytes]:
        """Those of them that are not in this set."""
        return [one for one in ids if one not in self]

    def _stale(self, one: bytes) -> None:
        self._top.pop(one[0], None)
        self._digest = None

    def _under(self, prefix: bytes) -> list[bytes]:
        after = (int.from_bytes(prefix) + 1) << 8 * (ID_BYTES - len(prefix))
        start = bisect_left(self._ids, prefix)
        if after >> 8 * ID_BYTES:
            return self._ids[start:]
        return self._ids[start : bisect_left(self._ids, after.to_bytes(ID_BYTES))]

    def _split(self, prefix: bytes) -> list[list[bytes]]:
        parts: list[list[bytes]] = [[] for _ in range(PARTS)]
        for one in self._under(prefix):
            parts[one[len(prefix)]].append(one)
        return parts


def parse_differing_untrusted(prefix: bytes, data: bytes) -> Apart:
    """Read what `IdTree.differing` gave for this prefix. Raises IdTreeError only."""
    bitmap, rest = data[:_BITMAP_BYTES], data[_BITMAP_BYTES:]
    if len(bitmap) != _BITMAP_BYTES or len(rest) % ID_BYTES or len(rest) > MAX_LISTED * ID_BYTES:
        raise IdTreeError("the difference has a wrong length")
    bits = int.from_bytes(bitmap)
    ids = tuple(rest[i : i + ID_BYTES] for i in range(0, len(rest), ID_BYTES))
    if any(not one.startswith(prefix) for one in ids) or (bits and len(prefix) >= MAX_DEPTH):
        raise IdTreeError("the difference is of another part than was asked about")
    closer = tuple(prefix + bytes([number]) for number in range(PARTS) if bits >> number & 1)
    return Apart(closer, ids)


def _digest(ids: list[bytes]) -> bytes:
    return hashlib.sha3_256(b"".join(ids)).digest()[:DIGEST_BYTES] if ids else bytes(DIGEST_BYTES)
