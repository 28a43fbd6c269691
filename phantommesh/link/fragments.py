# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts fragments back together, within bounds, and says which ones to ask for again."""

from __future__ import annotations

from dataclasses import dataclass, field

from phantommesh.link.timers import Timers
from phantommesh.wire import CHUNK_SIZE, Address, Fragment, Kind, Mode

# Specification (DESIGN section 4).
PER_SOURCE = 64 * 1024  # bytes
IN_ALL = 4 * 1024 * 1024  # bytes
LIFE = 3.0  # s

# Tuning.
RESEND_AFTER = 0.12  # s without a new fragment before the missing ones are asked for
RESEND_LIMIT = 6


class QuotaError(Exception):
    """Holding this fragment would pass a limit."""


@dataclass(slots=True)
class _Partial:
    kind: Kind
    mode: Mode
    count: int
    total: int
    born: float
    touched: float
    asked: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        return self.count * CHUNK_SIZE

    @property
    def due(self) -> float:
        death = self.born + LIFE
        return death if self.asked >= RESEND_LIMIT else min(death, self.touched + RESEND_AFTER)


@dataclass(frozen=True, slots=True)
class Missing:
    """A message that lacks fragments; bit i of ``bitmap`` is fragment i."""

    source: Address
    kind: Kind
    mode: Mode
    session: bytes
    bitmap: int


_Key = tuple[Address, bytes, Kind]


class Reassembler:
    """All half-received messages of a node. The whole message's room is reserved by its first fragment."""

    def __init__(self) -> None:
        self._partials: dict[_Key, _Partial] = {}
        self._timers = Timers[_Key]()
        self._by_source: dict[str, int] = {}
        self._in_all = 0

    @property
    def held(self) -> int:
        """Bytes reserved now."""
        return self._in_all

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._timers.first

    def started(self, source: Address, fragment: Fragment) -> bool:
        """Whether a part of this fragment's message is held already."""
        return (source, fragment.session, fragment.kind) in self._partials

    def add(self, source: Address, fragment: Fragment, now: float) -> bytes | None:
        """Take a fragment; return the whole body once it is complete. Raises `QuotaError`."""
        if fragment.count == 1:
            return fragment.chunk
        key = (source, fragment.session, fragment.kind)
        partial = self._partials.get(key)
        if partial is not None and (
            now - partial.born >= LIFE
            or (partial.count, partial.total, partial.mode) != (fragment.count, fragment.total, fragment.mode)
        ):
            self._drop(key)
            partial = None
        if partial is None:
            partial = _Partial(fragment.kind, fragment.mode, fragment.count, fragment.total, now, now)
            mine = self._by_source.get(source.host, 0)
            if mine + partial.reserved > PER_SOURCE or self._in_all + partial.reserved > IN_ALL:
                raise QuotaError
            self._partials[key] = partial
            self._by_source[source.host] = mine + partial.reserved
            self._in_all += partial.reserved
        if fragment.index not in partial.chunks:
            partial.chunks[fragment.index] = fragment.chunk
            partial.touched = now
        if len(partial.chunks) < partial.count:
            self._timers.set(key, partial.due)
            return None
        body = b"".join(partial.chunks[i] for i in range(partial.count))
        self._drop(key)
        return body

    def _drop(self, key: _Key) -> None:
        partial = self._partials.pop(key)
        self._timers.cancel(key)
        self._in_all -= partial.reserved
        left = self._by_source[key[0].host] - partial.reserved
        if left:
            self._by_source[key[0].host] = left
        else:
            del self._by_source[key[0].host]

    def tick(self, now: float) -> list[Missing]:
        """Forget what is too old, and return what should be asked for again."""
        missing = []
        for key in self._timers.due(now):
            partial = self._partials[key]
            if now >= partial.born + LIFE:
                self._drop(key)
                continue
            partial.asked += 1
            partial.touched = now
            self._timers.set(key, partial.due)
            bitmap = sum(1 << i for i in range(partial.count) if i not in partial.chunks)
            missing.append(Missing(key[0], partial.kind, partial.mode, key[1], bitmap))
        return missing
