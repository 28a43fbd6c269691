# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's beliefs about every other: each one's latest claim, and which of them are down.

A table may start from a `Snapshot`, which it never changes and which any number of tables share: ten thousand
tables of ten thousand members then fit in the memory of one simulation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from random import Random

from phantommesh.membership.living import Living
from phantommesh.membership.messages import BUCKETS, EVENT_SIZE, STATE, State

_GONE = b""  # in place of a claim: this member has a slot, and the table no longer has the member
_KEPT = 64  # slots of added members that are gone, from which on they may be cleared


class Snapshot:
    """Members as they were at one moment: alive, by their claims."""

    __slots__ = ("claims", "hashes", "ids", "ordered", "slots")

    def __init__(self, claims: Iterable[bytes] = ()) -> None:
        """Take alive events, of 48 bytes. Raises ValueError for anything else."""
        self.claims: dict[bytes, bytes] = {}
        for raw in claims:
            if len(raw) != EVENT_SIZE or raw[STATE] != State.ALIVE:
                raise ValueError("a snapshot holds events that say alive")
            self.claims[raw[:16]] = raw
        self.ids = tuple(self.claims)
        self.slots = {node: slot for slot, node in enumerate(self.ids)}
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
    """Claims by node id, in the order of joining. Draws and rounds of probes are over those not down: most of
    a table may be dead for three days."""

    __slots__ = ("_added", "_base", "_claims", "_gone", "_hashes", "_living", "_slots", "down")

    def __init__(self, base: Snapshot = EMPTY) -> None:
        self._base = base
        self._claims: dict[bytes, bytes] = {}
        self._added: list[bytes] = []
        self._slots: dict[bytes, int] = {}  # of the added ones
        self._gone = 0  # how many of the added ones are there no longer
        self._hashes: list[int] | None = None  # the snapshot's until something changes
        self._living = Living(len(base.ids))
        self.down: dict[bytes, Down] = {}

    def get(self, node: bytes) -> bytes | None:
        """Return a member's claim: 48 bytes that say alive, whatever became of it since."""
        return self._claims.get(node) or (None if node in self._claims else self._base.claims.get(node))

    def lookup(self) -> tuple[Callable[[bytes], bytes | None], Callable[[bytes], bytes | None]]:
        """Return what finds a claim of our own and one of the snapshot: for loops over many events."""
        return self._claims.get, self._base.claims.get

    def __len__(self) -> int:
        """How many are known, of whatever state."""
        return self._living.count + len(self.down)

    def __iter__(self) -> Iterator[bytes]:
        for nodes in (self._base.ids, self._added):
            for node in nodes:
                if self.get(node):
                    yield node

    @property
    def live(self) -> int:
        """How many are not down."""
        return self._living.count

    def _at(self, slot: int) -> bytes:
        ids = self._base.ids
        return ids[slot] if slot < len(ids) else self._added[slot - len(ids)]

    def _slot(self, node: bytes) -> int:
        slot = self._base.slots.get(node)
        return self._slots[node] if slot is None else slot

    def put(self, claim: bytes) -> None:
        """Keep a claim in place of any older one. It does not change whether the member is down."""
        node = claim[:16]
        self._fold(node)
        if node not in self._claims and node not in self._base.claims:
            self._slots[node] = len(self._base.ids) + len(self._added)
            self._added.append(node)
            self._living.add()
        elif self._claims.get(node) == _GONE:
            self._gone -= node in self._slots
            self._living.rise(self._slot(node))
        self._claims[node] = claim
        self._fold(node)

    def remove(self, node: bytes) -> None:
        """Forget a member."""
        if not self.get(node):
            return
        self._fold(node)
        if self.down.pop(node, None) is None:
            self._living.fall(self._slot(node))
        self._claims[node] = _GONE
        self._gone += node in self._slots
        if self._gone > max(_KEPT, len(self._added) // 2):
            self._clear()

    def _clear(self) -> None:
        """Give up the slots of added members that are gone, and begin a round anew."""
        first = len(self._base.ids)
        for node in [node for node in self._added if self._claims[node] == _GONE]:
            del self._claims[node]
        self._gone = 0
        self._added = [node for node in self._added if node in self._claims]
        self._slots = {node: slot for slot, node in enumerate(self._added, first)}
        self._living = Living(first + len(self._added))
        for slot in range(first + len(self._added)):
            if self._at(slot) in self.down or not self.get(self._at(slot)):
                self._living.fall(slot)

    def put_down(self, node: bytes, down: Down) -> None:
        """Mark a known member as dead or gone."""
        self._fold(node)
        if node not in self.down:
            self._living.fall(self._slot(node))
        self.down[node] = down
        self._fold(node)

    def raise_up(self, node: bytes) -> None:
        """Mark a member as no longer down."""
        self._fold(node)
        del self.down[node]
        self._living.rise(self._slot(node))
        self._fold(node)

    def random(self, rng: Random) -> bytes | None:
        """Return the id of any member that is not down, each as likely as the next; None if there is none."""
        slot = self._living.draw(rng)
        return None if slot is None else self._at(slot)

    def next_probe(self, rng: Random) -> bytes | None:
        """Return the next of a shuffled list of those not down, shuffled anew after each round."""
        slot = self._living.next(rng)
        return None if slot is None else self._at(slot)

    def within(self, buckets: Iterable[int]) -> Iterator[bytes]:
        """Give the ids in these of the digest's buckets."""
        ordered, wanted = self._base.ordered, set(buckets)
        for number in wanted:
            start = bisect_left(ordered, bytes((number,)))
            end = bisect_right(ordered, bytes((number,)) + b"\xff" * 15)
            yield from (node for node in ordered[start:end] if self.get(node))
        yield from (node for node in self._added if node[0] in wanted and self.get(node))

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
