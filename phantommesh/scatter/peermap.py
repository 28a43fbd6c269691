# SPDX-License-Identifier: GPL-3.0-or-later
"""One peer's part of the scatter rules as data: its maps of cards, and the marks and counters of these.

A mark holds the peer's slot from bit 8 on, the number of the traffic's class in bits 5 to 7, which of two
epochs dealt it in bit 4, and the dimension plus one in bits 0 to 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from phantommesh.config.intents import MAX_CLASSES
from phantommesh.dimensions import DIMENSIONS, SLOTS
from phantommesh.scatter.maps import Scheduler
from phantommesh.scatter.steering import NOTHING, Steering

# In a mark's low four bits, where a dimension has its number plus one.
MISSED: Final = 0
SPLIT: Final = 9
CLOSED: Final = 14
DROPPED: Final = 15

BUCKETS: Final = SLOTS["flow"]


@dataclass(frozen=True, slots=True)
class PeerMap:
    """One peer's part. ``dealt`` are the dimensions of its cards in order, empty while all are drained;
    ``parity`` alternates from epoch to epoch; ``length`` is how many cards the scheduler deals; ``segments``:
    each TCP connection is told a size of segment of its own. ``deck``: the dimensions of the cards that the
    flows of split buckets are dealt instead of their own (`scatter/splitting.py`); None where no flow is ever
    split or moved. No bucket is moved to a dimension that has no card.

    ``classes`` are the classes of the traffic that have parts of their own, in order: packets of a class
    match one of its ``matches``, nftables expressions, and those that match none are dealt the peer's own
    cards. A class's ``number`` is 1 to 7; a peer's own is 0. ``confined``: a class may not take just any
    dimension, so its packets never take the fallback; ``closed``: it has no cards, since it may take none of
    the dimensions that carry traffic."""

    slot: int
    ip4: IPv4Address | None
    ip6: IPv6Address
    scheduler: Scheduler
    length: int
    parity: int
    dealt: tuple[int, ...]
    segments: bool = False
    deck: tuple[int, ...] | None = None
    steering: Steering = NOTHING
    number: int = 0
    matches: tuple[str, ...] = ()
    classes: tuple[PeerMap, ...] = ()
    confined: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.number < MAX_CLASSES or [c.number for c in self.classes if not c.number]:
            raise ValueError(f"a class has a number from 1 to {MAX_CLASSES - 1}")
        if not 0 < self.slot < 1 << 24 or self.parity not in (0, 1):
            raise ValueError("a slot is 1 to 2**24 - 1, a parity 0 or 1")
        if self.dealt and len(self.dealt) != self.length:
            raise ValueError(f"{len(self.dealt)} cards for a map of {self.length}")
        if self.deck is not None and (self.scheduler != "flow" or len(self.deck) != len(self.dealt)):
            raise ValueError("only flows are split, by a deck as long as their map")

    @property
    def each(self) -> tuple[PeerMap, ...]:
        """The peer's own part, and those of its classes."""
        return (self, *self.classes)

    @property
    def suffix(self) -> str:
        """The end of all names of this part."""
        return f"{self.slot}_{self.number}" if self.number else f"{self.slot}"

    @property
    def name(self) -> str:
        """The name of the map of cards."""
        return f"deck_{self.suffix}"

    @property
    def deck_name(self) -> str:
        """The name of the map of cards of split flows."""
        return f"split_{self.suffix}"

    @property
    def flows(self) -> str:
        """The name of the set that counts the buckets' traffic, where flows may be split."""
        return f"flows_{self.suffix}"

    @property
    def bare(self) -> int:
        """The mark of this part without the low bits."""
        return self.slot << 8 | self.number << 5

    @property
    def missed(self) -> int:
        """The mark of a packet for which there is no card."""
        return self.bare | (CLOSED if self.confined else MISSED)

    @property
    def elements(self) -> dict[int, int]:
        """The map of cards: number to mark."""
        found = {i: self.card(i) for i in range(self.length)}
        if self.dealt:
            used = set(self.dealt)
            moved = [(i, way) for i, way in self.steering.moved if way in used]
            found |= {i: mark(self.slot, self.parity, way, self.number) for i, way in moved}
            found |= dict.fromkeys(self.steering.split, self.bare | SPLIT)
        return found

    @property
    def maps(self) -> dict[str, dict[int, int]]:
        """All maps of the peer by name."""
        found = {self.name: self.elements}
        if self.deck is not None:
            cards = [mark(self.slot, self.parity, i, self.number) for i in self.deck]
            found[self.deck_name] = dict(enumerate(cards or [self.card(0)] * self.length))
        for part in self.classes:
            found |= part.maps
        return found

    @property
    def counted(self) -> dict[str, int]:
        """The sets that count buckets' traffic, each with the number of its first bucket: a class has
        buckets of its own, beside those of the peer's other classes."""
        return {part.flows: part.number * BUCKETS for part in self.each if part.deck is not None}

    @property
    def homes(self) -> list[int | None]:
        """The dimension of each bucket of all classes by the epoch's map; None where there is none, or while
        all are drained."""
        last = max((part.number for part in self.each if part.deck is not None), default=-1)
        found: list[int | None] = [None for _ in range(BUCKETS * (last + 1))]
        for part in self.each:
            if part.deck is not None and part.dealt:
                found[part.number * BUCKETS : (part.number + 1) * BUCKETS] = part.dealt
        return found

    @property
    def all_steering(self) -> Steering:
        """The buckets of all classes that are split or moved."""
        split, moved = set[int](), set[tuple[int, int]]()
        for part in self.each:
            split |= {part.number * BUCKETS + b for b in part.steering.split}
            moved |= {(part.number * BUCKETS + b, way) for b, way in part.steering.moved}
        return Steering(frozenset(split), frozenset(moved))

    def steered(self, steering: Steering) -> PeerMap:
        """Return the peer's part with these buckets of all classes split and moved, and no others."""
        parts = [replace(part, steering=part.own(steering)) for part in self.classes]
        return replace(self, steering=self.own(steering), classes=tuple(parts))

    def own(self, steering: Steering) -> Steering:
        """Which of these buckets of all classes are this part's, by its own numbers."""
        if self.deck is None:
            return NOTHING
        return Steering(
            frozenset(b % BUCKETS for b in steering.split if b // BUCKETS == self.number),
            frozenset((b % BUCKETS, way) for b, way in steering.moved if b // BUCKETS == self.number),
        )

    def card(self, number: int) -> int:
        """The mark of one card."""
        if not self.dealt:
            return self.bare | (CLOSED if self.closed else DROPPED)
        return mark(self.slot, self.parity, self.dealt[number], self.number)


def length_of(scheduler: Scheduler, batch: int, slots: int | None = None) -> int:
    """How many cards a scheduler deals, for as many ``slots`` as it usually has or for so many."""
    return (SLOTS[scheduler] if slots is None else slots) * (batch if scheduler == "batch" else 1)


def mark(slot: int, parity: int, dimension: int, number: int = 0) -> int:
    """The mark of a card of the peer's class of this number."""
    return slot << 8 | number << 5 | parity << 4 | dimension + 1


@dataclass(frozen=True, slots=True)
class Hits:
    """The counters of one epoch, of a peer or a class of its traffic: packets (a GSO burst counts as one) and
    bytes a dimension."""

    packets: tuple[int, ...] = (0,) * DIMENSIONS
    bytes: tuple[int, ...] = (0,) * DIMENSIONS

    def since(self, before: Hits) -> Hits:
        """Return the counts since ``before``."""
        return Hits(
            tuple(a - b for a, b in zip(self.packets, before.packets, strict=True)),
            tuple(a - b for a, b in zip(self.bytes, before.bytes, strict=True)),
        )

    def plus(self, other: Hits) -> Hits:
        """Return both together."""
        return Hits(
            tuple(a + b for a, b in zip(self.packets, other.packets, strict=True)),
            tuple(a + b for a, b in zip(self.bytes, other.bytes, strict=True)),
        )


def read_hits(counters: Mapping[int, tuple[int, int]], slot: int, parity: int, number: int = 0) -> Hits:
    """Pick the counters of a peer's class and an epoch's parity."""
    found = [counters.get(mark(slot, parity, i, number), (0, 0)) for i in range(DIMENSIONS)]
    return Hits(tuple(packets for packets, _ in found), tuple(size for _, size in found))
