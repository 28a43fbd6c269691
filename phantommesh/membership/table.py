# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node believes of every other: each one's latest claim, and which of them are down.

A table may start from a `Snapshot`, which it never changes and which any number of tables share: ten thousand
tables of ten thousand members then fit in the memory of one simulation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from phantommesh.membership.messages import BUCKETS, EVENT_SIZE, STATE, State

_GONE = b""  # in place of a claim: the snapshot has this member, the table no longer


class Snapshot:
    """Members as they were at one moment: alive, by their claims."""

    __slots__ = ("claims", "hashes", "ids", "ordered")

    def __init__(self, claims: Iterable[bytes] = ()) -> None:
        """Take alive events, of 48 bytes. Raises ValueError for anything else."""
        self.claims: dict[bytes, bytes] = {}
        for raw in claims:
            if len(raw) != EVENT_SIZE or raw[STATE] != State.ALIVE:
                raise ValueError("a snapshot holds events that say alive")
            self.claims[raw[:16]] = raw
        self.ids = tuple(self.claims)
        self.ordered = sorted(self.ids)
        self.hashes = [0] * BUCKETS
        for raw in self.claims.values():
            self.hashes[raw[0]] ^= _hash(raw)


EMPTY = Snapshot()


@dataclass(slots=True)
class Down:
    """A member that is dead or has left, since when, and the key it had."""

    state: State
    key: bytes
    since: float
    asked: float = 0.0  # when it was last asked whether it is back
    retried: bool = False  # asked on our own account, not on a rumour's


class Table:
    """Claims by node id, in the order of joining, with a round-robin order for probes over them."""

    __slots__ = ("_added", "_base", "_claims", "_hashes", "_missing", "_position", "_swaps", "down")

    def __init__(self, base: Snapshot = EMPTY) -> None:
        self._base = base
        self._claims: dict[bytes, bytes] = {}
        self._added: list[bytes] = []
        self._hashes: list[int] | None = None  # the snapshot's until something changes
        self._missing = 0
        self._position = 0
        self._swaps: dict[int, int] = {}
        self.down: dict[bytes, Down] = {}

    def get(self, node: bytes) -> bytes | None:
        """Return a member's claim: 48 bytes that say alive, whatever became of it since."""
        return self._claims.get(node) or (None if node in self._claims else self._base.claims.get(node))

    def lookup(self) -> tuple[Callable[[bytes], bytes | None], Callable[[bytes], bytes | None]]:
        """Return what finds a claim of our own and one of the snapshot: for loops over many events."""
        return self._claims.get, self._base.claims.get

    def __len__(self) -> int:
        """How many are known, of whatever state."""
        return self._slots - self._missing

    def __iter__(self) -> Iterator[bytes]:
        for position in range(self._slots):
            node = self._at(position)
            if self.get(node):
                yield node

    @property
    def live(self) -> int:
        """How many are not down."""
        return self._slots - self._missing - len(self.down)

    @property
    def _slots(self) -> int:
        return len(self._base.ids) + len(self._added)

    def _at(self, position: int) -> bytes:
        ids = self._base.ids
        return ids[position] if position < len(ids) else self._added[position - len(ids)]

    def put(self, claim: bytes) -> None:
        """Keep a claim in place of any older one. It does not change whether the member is down."""
        node = claim[:16]
        self._fold(node)
        if node not in self._claims and node not in self._base.claims:
            self._added.append(node)
        elif self._claims.get(node) == _GONE:
            self._missing -= 1
        self._claims[node] = claim
        self._fold(node)

    def remove(self, node: bytes) -> None:
        """Forget a member."""
        if not self.get(node):
            return
        self._fold(node)
        self.down.pop(node, None)
        if node in self._base.claims:
            self._claims[node] = _GONE
            self._missing += 1
        else:
            del self._claims[node]
            self._added.remove(node)
            self._position, self._swaps = 0, {}

    def put_down(self, node: bytes, down: Down) -> None:
        """Mark a known member as dead or gone."""
        self._fold(node)
        self.down[node] = down
        self._fold(node)

    def raise_up(self, node: bytes) -> None:
        """Mark a member as no longer down."""
        self._fold(node)
        del self.down[node]
        self._fold(node)

    def random(self, rng: Random) -> bytes | None:
        """Return any member's id, each as likely as the next, or None for one that is no longer there."""
        slots = self._slots
        if not slots:
            return None
        node = self._at(int(rng.random() * slots))
        return node if self.get(node) else None

    def next_probe(self, rng: Random) -> bytes | None:
        """Return the next of a shuffled list of all, shuffled anew after each round (SWIM section 4.3).

        The shuffle is Fisher and Yates's, done one step a call: whoever joins lands at a random place in
        the rest of the round, and a long list costs nothing before it is used.
        """
        slots = self._slots
        if self._position >= slots:
            self._position, self._swaps = 0, {}
            if not slots:
                return None
        here = self._position
        there = here + int(rng.random() * (slots - here))
        swaps = self._swaps
        displaced = swaps.pop(here, here)
        chosen = displaced
        if there != here:
            chosen = swaps.get(there, there)
            swaps[there] = displaced
        self._position = here + 1
        node = self._at(chosen)
        return node if self.get(node) else None

    def bucket(self, number: int) -> list[bytes]:
        """Return the ids in one of the digest's buckets."""
        ordered = self._base.ordered
        start = bisect_left(ordered, bytes((number,)))
        end = bisect_right(ordered, bytes((number,)) + b"\xff" * 15)
        found = ordered[start:end] + [node for node in self._added if node[0] == number]
        return [node for node in found if self.get(node)]

    def hashes(self) -> list[int]:
        """Return the digest: per bucket the sum (exclusive or) of its members' hashes."""
        return self._base.hashes if self._hashes is None else self._hashes

    def _fold(self, node: bytes) -> None:
        """Take a member's hash out of the digest, or put it in: the same operation."""
        claim = self.get(node)
        if claim is None:
            return
        if self._hashes is None:
            self._hashes = list(self._base.hashes)
        down = self.down.get(node)
        self._hashes[node[0]] ^= _hash(claim if down is None else node + down.key + bytes((down.state,)))


def _hash(event: bytes) -> int:
    return int.from_bytes(blake2b(event, digest_size=8).digest())
