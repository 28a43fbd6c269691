# SPDX-License-Identifier: GPL-3.0-or-later
"""A memory of threat patterns, bounded in bytes. `Memory` recalls a pattern by its `Key` and records another
one, each in constant time.

A pattern has a strength that halves every half-life. Nothing runs for that: the strength is stored with the
moment of its last change, and decayed where it is read. Recording a pattern again adds to its strength.
Whoever acted on a recall says afterwards what came of it: `Memory.reinforce` where it was right,
`Memory.punish` where it was a false alarm. Each step of a pattern's priority doubles its half-life.

The patterns lie in a table of fixed size, in sets of `WAYS`, as in a processor's cache: a keyed hash
(BLAKE2b) of a pattern's key says in which set. A new pattern takes the place of the stalest one of its set:
the one whose strength falls below `FORGOTTEN` first. So patterns that a stranger makes up, each seen once,
drive out each other and not what was seen often; and nobody can aim at a set without the hash's key. A set
may be full before the table is: when as many patterns were recorded as there are places, one in ten has gone
early.

The table is one piece of memory, which Python's collector of cycles does not visit, and a recall reads two or
three lines of the processor's cache in it. That is why a recall from a million patterns takes hardly longer
than one from a thousand (`benchmarks.memory`).

All moments are wall time in Unix seconds, as the memory outlives the process. A clock that is set back stops
the decay until the clock has caught up.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from math import exp2, isfinite, log2
from typing import Final, NamedTuple

import msgspec

# Tuning.
MOST_BYTES: Final = 8 * 1024 * 1024  # of one memory: 43,000 patterns, a tenth of what a node has resident
HALF_LIFE: Final = 2 * 86_400.0  # s: seen once, a pattern is remembered for eight days (`FORGOTTEN`)
MOST_STRENGTH: Final = 64.0  # ten half-lives from being forgotten, however long an attack lasted
FORGOTTEN: Final = 1 / 16  # strength below which a pattern tells nothing
REINFORCED: Final = (
    1.0  # strength that a recall adds which proved useful: as much as seeing the pattern again
)
PUNISHED: Final = 1 / 4  # of the strength is left after a false alarm: two half-lives
MOST_PRIORITY: Final = 3  # half-lives of 16 days
MOST_NOTED: Final = 4_096  # changes that wait to be written; of more the whole memory is written
WAYS: Final = 16  # patterns of a set: eight lose twice as many early, 32 take longer to look at

MOST_KEY: Final = 95  # characters of a key's four texts with their separators
_SEPARATOR: Final = "|"
_MOST_COUNT: Final = 2**16 - 1
_MOST_MOMENT: Final = 2**32 - 1

# Strength, the moment of its last change, of its first recording; recordings, useful recalls, false alarms;
# priority.
_STATE: Final = struct.Struct("<ddIHHHB")
STATE_BYTES: Final = _STATE.size
# A set is its patterns' tags, the moments when they will be forgotten (0: the place is free), their states.
_TAG: Final = 8  # bytes
_FREE, _NOT_FREE = bytes(_TAG), bytes(_TAG - 1) + b"\x01"  # tags
_DUES: Final = struct.Struct(f"<{WAYS}d")
_DUE: Final = struct.Struct("<d")
_DUES_AT: Final = WAYS * _TAG
_STATES_AT: Final = _DUES_AT + _DUES.size
_SET: Final = _STATES_AT + WAYS * STATE_BYTES
SLOT_BYTES: Final = _SET // WAYS + 8  # with the reference to the key's text
_TEXT_BYTES: Final = 49  # of a text in CPython 3.11, beside its characters; all in steps of 16
MOST_PATTERN_BYTES: Final = SLOT_BYTES + (_TEXT_BYTES + MOST_KEY + 15) // 16 * 16


class Key(NamedTuple):
    """What names a pattern: printable ASCII without ``|``, 92 characters in all. ``source`` is a block of
    addresses (`rates.source_block`), ``target`` what it was about, ``signature`` tells shapes apart."""

    kind: str
    source: str
    target: str = ""
    signature: str = ""


class Pattern(msgspec.Struct, frozen=True):
    """What is remembered of a pattern. ``strength`` is as of the recall. ``times`` it was recorded,
    ``useful`` recalls and ``false`` alarms end at 65,535. ``last`` is the moment of the last change."""

    strength: float
    times: int
    useful: int
    false: int
    first: float
    last: float
    priority: int


class Summary(msgspec.Struct, frozen=True):
    """A memory for people: how many patterns it has and has room for; the bytes that it takes, and may take;
    how many patterns had to make room; and the strongest ones, the strongest first."""

    patterns: int
    places: int
    bytes: int
    most_bytes: int
    evicted: int
    strongest: tuple[tuple[Key, Pattern], ...]


Item = tuple[str, bytes]
"""A pattern as it is written: its key as text, and its state; no bytes where it was forgotten."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A memory as it was at a moment, which a thread may read."""

    table: bytes
    texts: list[str | None]

    def items(self) -> Iterator[Item]:
        """All patterns as they are written."""
        for slot, text in enumerate(self.texts):
            if text is not None:
                at = _state_at(slot)
                yield text, self.table[at : at + STATE_BYTES]


class Memory:
    """Threat patterns by key. ``most_bytes`` bounds what the memory takes, ``half_life`` is in seconds.
    ``secret`` (at most 64 bytes) keys the hash that says where a pattern lies; it is random in life."""

    def __init__(
        self, most_bytes: int = MOST_BYTES, half_life: float = HALF_LIFE, secret: bytes = b""
    ) -> None:
        self.most_bytes, self.half_life = most_bytes, half_life
        self.evicted = 0
        self._half_lives = tuple(half_life * 2**priority for priority in range(MOST_PRIORITY + 1))
        self._hash = blake2b(digest_size=16, key=secret)
        self._sets = max(1, most_bytes // (MOST_PATTERN_BYTES * WAYS))
        self._table = bytearray(self._sets * _SET)
        self._texts: list[str | None] = [None] * (self._sets * WAYS)
        self._count = self._text_bytes = 0
        self._changed, self._forgotten, self._whole = set[int](), list[str](), False

    def __len__(self) -> int:
        return self._count

    @property
    def places(self) -> int:
        """How many patterns there is room for."""
        return self._sets * WAYS

    @property
    def size(self) -> int:
        """Bytes that the memory takes: the table, and the texts of the keys."""
        return self.places * SLOT_BYTES + self._text_bytes

    def recall(self, key: Key, now: float) -> Pattern | None:
        """What is remembered of a pattern, or None. Changes nothing."""
        slot, _, _ = self._find(_SEPARATOR.join(key))
        return None if slot < 0 else self._pattern(slot, now)

    def record(self, key: Key, now: float, weight: float = 1.0, priority: int = 0) -> Pattern:
        """Remember that a pattern was seen: add ``weight`` to its strength. It keeps the highest priority
        that it was given. Raises ValueError for a key, weight or priority that cannot be."""
        if not (0 < weight <= MOST_STRENGTH and 0 <= priority <= MOST_PRIORITY):
            raise ValueError(f"a weight of {weight} or a priority of {priority} is out of range")
        text = _SEPARATOR.join(key)
        if not _valid(text):
            raise ValueError("a pattern's key is not four short texts of printable ASCII")
        slot, base, tag = self._find(text)
        if slot < 0:
            slot = self._take_place(text, base, tag)
            strength, first, times, useful, false = weight, _moment(now), 1, 0, 0
        else:
            before, at, first, times, useful, false, had = self._state(slot)
            priority = max(priority, had)
            strength = min(self._decayed(before, at, had, now) + weight, MOST_STRENGTH)
            times = min(times + 1, _MOST_COUNT)
        self._put(slot, strength, now, first, times, useful, false, priority)
        self._note(slot)
        return Pattern(strength, times, useful, false, first, now, priority)

    def reinforce(self, key: Key, now: float) -> None:
        """A recall of this pattern proved useful. Without effect where it is forgotten."""
        self._judge(key, now, useful=True)

    def punish(self, key: Key, now: float) -> None:
        """A recall of this pattern was a false alarm. Without effect where it is forgotten."""
        self._judge(key, now, useful=False)

    def forget(self, key: Key) -> bool:
        """Forget a pattern; False where there was none."""
        text = _SEPARATOR.join(key)
        if not self._drop(text):
            return False
        self._forgotten.append(text)
        if len(self._forgotten) > MOST_NOTED:
            self._write_whole()
        return True

    def copy(self) -> Copy:
        """The memory as it is now: 1 ms for 8 MiB."""
        return Copy(bytes(self._table), list(self._texts))

    def summary(self, now: float, count: int, copy: Copy | None = None) -> Summary:
        """The memory for people, with the ``count`` strongest patterns. Looks at every one, in a thread where
        a ``copy`` was made before."""
        found = ((self._opened(state, now), text) for text, state in (copy or self.copy()).items())
        strongest = heapq.nlargest(count, found, key=lambda one: one[0].strength)
        return Summary(
            len(self), self.places, self.size, self.most_bytes, self.evicted,
            tuple((Key(*text.split(_SEPARATOR)), pattern) for pattern, text in strongest),
        )  # fmt: skip

    @property
    def unsaved(self) -> bool:
        """Whether anything changed since `take_changes`."""
        return self._whole or bool(self._changed or self._forgotten)

    def take_changes(self) -> list[Item] | None:
        """What changed since the last time, in an order in which `restore` takes it in; None: too much, so
        all of the memory is to be written."""
        whole, changed, forgotten = self._whole, self._changed, self._forgotten
        self._changed, self._forgotten, self._whole = set(), [], False
        if whole:
            return None
        items = [(text, b"") for text in forgotten]
        for slot in changed:
            text, at = self._texts[slot], _state_at(slot)
            if text is not None:
                items.append((text, bytes(self._table[at : at + STATE_BYTES])))
        return items

    def give_back(self) -> None:
        """Let what `take_changes` returned last have failed to be written: all is to be written."""
        self._write_whole()

    def restore(self, items: Iterable[Item], now: float) -> int:
        """Take in what was written, in its order; return how many items cannot be. A moment that is still to
        come is taken for ``now``: the clock was wrong then. Nothing of it is a change to be written."""
        refused = 0
        for text, state in items:
            if not state:
                self._drop(text)
            elif not self._restore(text, state, now):
                refused += 1
        return refused

    def _restore(self, text: str, state: bytes, now: float) -> bool:
        if not _valid(text) or len(state) != STATE_BYTES:
            return False
        strength, at, first, times, useful, false, priority = _STATE.unpack(state)
        if not (0 < strength <= MOST_STRENGTH and isfinite(at) and at >= 0 and priority <= MOST_PRIORITY):
            return False
        slot, base, tag = self._find(text)
        if slot < 0:
            slot = self._take_place(text, base, tag)
        self._put(slot, strength, min(at, now), first, times, useful, false, priority)
        return True

    def _judge(self, key: Key, now: float, *, useful: bool) -> None:
        slot, _, _ = self._find(_SEPARATOR.join(key))
        if slot < 0:
            return
        before, at, first, times, proved, false, priority = self._state(slot)
        strength = self._decayed(before, at, priority, now)
        if useful:
            strength, proved = min(strength + REINFORCED, MOST_STRENGTH), min(proved + 1, _MOST_COUNT)
        else:
            strength, false = strength * PUNISHED, min(false + 1, _MOST_COUNT)
        self._put(slot, strength, now, first, times, proved, false, priority)
        self._note(slot)

    def _find(self, text: str) -> tuple[int, int, bytes]:
        """The place of a pattern, -1 for none; where its set begins in the table; and its tag."""
        hashed = self._hash.copy()
        hashed.update(text.encode())
        digest = hashed.digest()
        number = int.from_bytes(digest[:_TAG], "little") % self._sets
        base, tag = number * _SET, digest[_TAG:]
        if tag == _FREE:
            tag = _NOT_FREE
        at = self._table.find(tag, base, base + _DUES_AT)
        while at >= 0 and (at - base) % _TAG:
            at = self._table.find(tag, at + 1, base + _DUES_AT)
        return -1 if at < 0 else number * WAYS + (at - base) // _TAG, base, tag

    def _take_place(self, text: str, base: int, tag: bytes) -> int:
        """Give a new pattern the place in its set that is free, or has the stalest one."""
        dues = _DUES.unpack_from(self._table, base + _DUES_AT)
        way = dues.index(min(dues))
        slot = base // _SET * WAYS + way
        old = self._texts[slot]
        if old is None:
            self._count += 1
        else:
            self._text_bytes -= _size_of(old)
            self.evicted += 1
        self._texts[slot] = text
        self._text_bytes += _size_of(text)
        self._table[base + way * _TAG : base + (way + 1) * _TAG] = tag
        return slot

    def _drop(self, text: str) -> bool:
        slot, base, _ = self._find(text)
        if slot < 0:
            return False
        self._texts[slot] = None
        self._count -= 1
        self._text_bytes -= _size_of(text)
        at = base + slot % WAYS * _TAG
        self._table[at : at + _TAG] = _FREE
        _DUE.pack_into(self._table, base + _DUES_AT + slot % WAYS * _DUE.size, 0.0)
        return True

    def _put(
        self, slot: int, strength: float, now: float,
        first: int, times: int, useful: int, false: int, priority: int,
    ) -> None:  # fmt: skip
        _STATE.pack_into(self._table, _state_at(slot), strength, now, first, times, useful, false, priority)
        left = log2(strength / FORGOTTEN) * self._half_lives[priority] if strength > FORGOTTEN else 0.0
        at = slot // WAYS * _SET + _DUES_AT + slot % WAYS * _DUE.size
        _DUE.pack_into(self._table, at, max(now + left, 1.0))

    def _state(self, slot: int) -> tuple[float, float, int, int, int, int, int]:
        return _STATE.unpack_from(self._table, _state_at(slot))

    def _pattern(self, slot: int, now: float) -> Pattern:
        strength, at, first, times, useful, false, priority = _STATE.unpack_from(self._table, _state_at(slot))
        return Pattern(self._decayed(strength, at, priority, now), times, useful, false, first, at, priority)

    def _opened(self, state: bytes, now: float) -> Pattern:
        strength, at, first, times, useful, false, priority = _STATE.unpack(state)
        return Pattern(self._decayed(strength, at, priority, now), times, useful, false, first, at, priority)

    def _decayed(self, strength: float, at: float, priority: int, now: float) -> float:
        return strength * exp2(-max(0.0, now - at) / self._half_lives[priority])

    def _note(self, slot: int) -> None:
        if not self._whole:
            self._changed.add(slot)
            if len(self._changed) > MOST_NOTED:
                self._write_whole()

    def _write_whole(self) -> None:
        self._whole = True
        self._changed.clear()
        self._forgotten.clear()


def _state_at(slot: int) -> int:
    return slot // WAYS * _SET + _STATES_AT + slot % WAYS * STATE_BYTES


def _valid(text: str) -> bool:
    return len(text) <= MOST_KEY and text.isascii() and text.isprintable() and text.count(_SEPARATOR) == 3


def _size_of(text: str) -> int:
    return (_TEXT_BYTES + len(text) + 15) // 16 * 16


def _moment(now: float) -> int:
    return int(min(max(0.0, now), _MOST_MOMENT))
