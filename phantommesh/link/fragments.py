# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts fragments back together, within bounds, and says which ones to ask for again."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from phantommesh.endpoint import Address
from phantommesh.link.wire import CHUNK_SIZE, Fragment, Kind, Mode
from phantommesh.timers import Timers

# Specification (docs/protocol.md, "Limits").
PER_SOURCE = 64 * 1024  # bytes
IN_ALL = 4 * 1024 * 1024  # bytes
LIFE = 3.0  # s

# Tuning.
RESEND_AFTER = 0.12  # s without a new fragment before the missing ones are asked for
RESEND_LIMIT = 6


class Pool(Enum):
    """Messages that share a bound. Messages that anyone can begin never take room from those of a session."""

    SESSIONS = "RESP, AUTH and ACK of handshakes under way"
    CURRENT = "INIT under an admission secret in use"
    OUTDATED = "INIT under one that was replaced"


ROOM = {Pool.SESSIONS: IN_ALL // 2, Pool.CURRENT: IN_ALL // 2 - 262_144, Pool.OUTDATED: 262_144}  # bytes


class QuotaError(Exception):
    """Holding this fragment would pass a limit."""


@dataclass(slots=True)
class _Partial:
    pool: Pool
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
        if self.pool is not Pool.SESSIONS:  # nobody is asked for the rest of an INIT
            return death
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
    """All half-received messages of a node. The whole message's room is reserved by its first fragment.

    In a full pool of INITs the oldest gives way, of the same source where that has used up its own room: the
    fragments of an honest INIT come within milliseconds of each other.
    """

    def __init__(self) -> None:
        self._partials: dict[_Key, _Partial] = {}
        self._timers = Timers[_Key]()
        self._pools: dict[Pool, dict[_Key, None]] = {pool: {} for pool in Pool}  # oldest first
        self._by_source: dict[tuple[Pool, str], dict[_Key, None]] = {}
        self._in_pool = dict.fromkeys(Pool, 0)

    @property
    def held(self) -> int:
        """Bytes reserved now."""
        return sum(self._in_pool.values())

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._timers.first

    def started(self, source: Address, fragment: Fragment) -> bool:
        """Whether a part of this fragment's message is held already."""
        return (source, fragment.session, fragment.kind) in self._partials

    def of_source(self, host: str) -> int:
        """Bytes reserved by one source address, in the pool where it has most."""
        held = (self._by_source.get((pool, host), {}) for pool in Pool)
        return max(sum(self._partials[key].reserved for key in keys) for keys in held)

    def add(self, source: Address, fragment: Fragment, now: float, pool: Pool) -> bytes | None:
        """Take a fragment; return the whole body once it is complete. Raises `QuotaError` where a session's
        message finds no room."""
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
            partial = _Partial(pool, fragment.mode, fragment.count, fragment.total, now, now)
            self._make_room(pool, source.host, partial.reserved)
            self._partials[key] = partial
            self._pools[pool][key] = None
            self._by_source.setdefault((pool, source.host), {})[key] = None
            self._in_pool[pool] += partial.reserved
        if fragment.index not in partial.chunks:
            partial.chunks[fragment.index] = fragment.chunk
            partial.touched = now
        if len(partial.chunks) < partial.count:
            self._timers.set(key, partial.due)
            return None
        body = b"".join(partial.chunks[i] for i in range(partial.count))
        self._drop(key)
        return body

    def _make_room(self, pool: Pool, host: str, size: int) -> None:
        mine = self._by_source.get((pool, host), {})
        while mine and sum(self._partials[key].reserved for key in mine) + size > PER_SOURCE:
            self._give_way(pool, next(iter(mine)))
        while self._in_pool[pool] + size > ROOM[pool]:
            if not self._pools[pool]:
                raise QuotaError
            self._give_way(pool, next(iter(self._pools[pool])))

    def _give_way(self, pool: Pool, key: _Key) -> None:
        if pool is Pool.SESSIONS:
            raise QuotaError
        self._drop(key)

    def _drop(self, key: _Key) -> None:
        partial = self._partials.pop(key)
        self._timers.cancel(key)
        self._in_pool[partial.pool] -= partial.reserved
        del self._pools[partial.pool][key]
        of_source = (partial.pool, key[0].host)
        del self._by_source[of_source][key]
        if not self._by_source[of_source]:
            del self._by_source[of_source]

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
            missing.append(Missing(key[0], key[2], partial.mode, key[1], bitmap))
        return missing
