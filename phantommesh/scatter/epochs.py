# SPDX-License-Identifier: GPL-3.0-or-later
"""One peer's scatter: from epoch to epoch, what was committed and what was counted. No I/O; `now` comes
in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from phantommesh.config.intents import REST
from phantommesh.config.sections import Goal
from phantommesh.dimensions import DIMENSIONS, SLOTS
from phantommesh.scatter.goals import Schedule
from phantommesh.scatter.intents import TrafficClass
from phantommesh.scatter.limits import FREE, Limits
from phantommesh.scatter.maps import (
    Epoch,
    Scheduler,
    apart,
    cards,
    deal,
    deck_of_split,
    epoch_keys,
    stream_of,
)
from phantommesh.scatter.peermap import Hits, PeerMap, length_of, read_hits
from phantommesh.scatter.steering import Steering
from phantommesh.secret import Secret

EQUAL = (1.0,) * DIMENSIONS
STEP = 1.0  # s that the clock and the epochs' lengths may differ by, before it counts as set
_REMEMBERED = 8  # epochs of the link, those used last; an unsure one alternates between two


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment by two clocks: ``wall`` in Unix seconds, which may be set; ``steady`` in seconds by one that
    never goes back."""

    wall: float
    steady: float


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """The part of a class of traffic in an epoch: the name of its intent, and ``rest`` for what matches none;
    its goal, None for the rest; how it was scattered, by which cards, and what the kernel counted.
    ``closed``: nothing was sent, as none of the ways was one that the intent allows."""

    name: str
    goal: Goal | None
    scheduler: Scheduler
    cards: tuple[int, ...]
    hits: Hits
    closed: bool = False


@dataclass(frozen=True, slots=True)
class EpochCounts:
    """An epoch as its sender knows it. ``cards`` is the committed distribution, ``hits`` what the kernel
    counted (decisions: a GSO burst is one). ``started`` and ``ended`` are in Unix seconds, and as far apart
    as by the steady clock, whose reading at the start is ``began``. ``ended`` is None for the one that is
    under way, and ``whole`` False for one whose last counts are lost, because somebody removed the table
    meanwhile. ``scores`` are those in effect: 0.0 too for a dimension whose interface was missing.

    ``classes`` has an entry for each class of the traffic and one for the rest, and ``hits`` is their sum;
    where there are no classes it is empty. With classes the scheduler is ``flow``, whatever theirs are: of
    all schedulers it promises the least, so what is said of it holds for each of them."""

    epoch: Epoch
    scheduler: Scheduler
    scores: tuple[float, ...]
    cards: tuple[int, ...]
    hits: Hits
    started: float
    ended: float | None = None
    whole: bool = True
    began: float = 0.0
    classes: tuple[ClassCounts, ...] = ()

    @property
    def by_plan(self) -> bool:
        """Whether all that was sent went by the committed distribution. A class with weights of its own goes
        by another one."""
        return all(part.cards == self.cards or not any(part.hits.packets) for part in self.classes)

    def after(self, steady: float) -> float:
        """The date of a later moment of the epoch, in Unix seconds, whether or not the clock was set."""
        return self.started + (steady - self.began)


@dataclass(frozen=True, slots=True)
class Keying:
    """The source of a peer's maps: the link's epoch and its scatter secret."""

    link: int
    secret: Secret


@dataclass(frozen=True, slots=True)
class ScatterPeer:
    """A peer as the roster and its link have it now, and how to scatter to it; ``keying`` is None while its
    keys are random. ``limits`` say which dimensions its ``classes`` may take. A member of another mesh has no
    IPv4 address here."""

    node_id: bytes
    ip4: IPv4Address | None
    ip6: IPv6Address
    keying: tuple[int, Secret] | None
    schedule: Schedule
    classes: tuple[TrafficClass, ...] = ()
    limits: Limits = FREE

    @property
    def schedules(self) -> list[Schedule]:
        """How its traffic is scattered: what is of no class first, then the classes."""
        return [self.schedule, *(each.schedule for each in self.classes)]

    def capacities(self, scores: Sequence[float], quickest: int | None) -> list[tuple[float, ...]]:
        """The capacities of the dimensions, given those that they have: for what is of no class first, then
        for the classes."""
        return _capacities(self.schedule, self.classes, self.limits, scores, quickest)


def _capacities(
    own: Schedule,
    classes: Sequence[TrafficClass],
    limits: Limits,
    scores: Sequence[float],
    quickest: int | None,
) -> list[tuple[float, ...]]:
    limited = [limits.limit(scores, place, each.hands) for place, each in enumerate(classes)]
    return [
        own.capacities(scores, quickest),
        *(each.schedule.capacities(left, quickest) for each, left in zip(classes, limited, strict=True)),
    ]


class Numbers:
    """Numbers a peer's epochs within each of the link's, so that none is ever used twice: a link that is
    unsure goes back and forth between two of its epochs, and a peer may leave the table and come back."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}

    def take(self, link: int) -> Epoch:
        """The next epoch of this epoch of the link."""
        number = self._next.pop(link, 0)
        self._next[link] = number + 1
        if len(self._next) > _REMEMBERED:
            del self._next[next(iter(self._next))]
        return Epoch(link, number)


class PeerScatter:
    """One keyed peer. ``open`` starts an epoch; its map is to be put in place; then ``close`` ends the one
    before, with the counters as read after that."""

    def __init__(
        self,
        sender: bytes,
        slot: int,
        addresses: tuple[IPv4Address | None, IPv6Address],
        schedule: Schedule,
        batch: int,
        numbers: Numbers,
        classes: tuple[TrafficClass, ...] = (),
    ) -> None:
        self._sender, self._batch, self._numbers = sender, batch, numbers
        self.slot, self.addresses, self.schedule, self.classes = slot, addresses, schedule, classes
        self.current: EpochCounts | None = None
        self.previous: EpochCounts | None = None
        self.limits = FREE  # of the epoch under way
        self.due = 0.0
        self.live = False  # whether the kernel has had the map of the epoch under way
        self._parity = 0
        self._stood = self._nothing()  # the counters of each parity when its last epoch ended
        self._map: PeerMap | None = None
        self._split: frozenset[int] = frozenset()  # moved buckets are those of one epoch
        self._closing: tuple[EpochCounts, int] | None = None

    @property
    def map(self) -> PeerMap:
        """The map of the epoch under way. Only after ``open``."""
        assert self._map is not None
        return self._map

    def open(
        self,
        keying: Keying,
        scores: Sequence[float],
        now: Moment,
        *,
        quickest: int | None = None,
        limits: Limits = FREE,
    ) -> PeerMap:
        """Start the next epoch and return its map. ``quickest`` is the dimension for schedules that want the
        quickest one, ``limits`` which dimensions the classes may take. The epoch's date is that at which the
        one before it ends, unless the clock was set meanwhile. Raises ValueError for scores that are none."""
        before, epoch = self.current, self._numbers.take(keying.link)
        if before is not None and self.live:
            self._closing = (before, self._parity)
        self._parity ^= 1
        declared: Scheduler = "flow" if self.classes else self.schedule.scheduler
        keys = epoch_keys(keying.secret, self._sender, epoch, unequal=self.schedule.unequal)
        self.limits = limits
        mine, *theirs = _capacities(self.schedule, self.classes, limits, scores, quickest)
        committed = cards(mine, keys.noise, SLOTS[declared])
        held = [committed]  # by the number of the class
        closed = [any(scores) and not any(capacities) for capacities in (mine, *theirs)]
        for each, capacities in zip(self.classes, theirs, strict=True):
            noise = keys.noise
            if each.schedule.unequal != self.schedule.unequal:
                others = epoch_keys(apart(keying.secret), self._sender, epoch, unequal=each.schedule.unequal)
                noise = others.noise
            held.append(cards(capacities, noise, SLOTS[declared]))
        own = self._part(self.schedule, committed, keys.stream)
        parts = [
            replace(
                self._part(each.schedule, held[number], stream_of(keys.stream, number)),
                number=number, matches=each.matches,
                confined=each.confined, closed=closed[number],
            )
            for number, each in enumerate(self.classes, 1)
        ]  # fmt: skip
        self._map = made = replace(own, classes=tuple(parts)).steered(Steering(self._split))
        started = now.wall if before is None else before.after(now.steady)
        if abs(started - now.wall) >= STEP:
            started = now.wall
        counts = EpochCounts(
            epoch, declared, mine, committed, Hits(), started, began=now.steady,
            classes=self._counts(held, closed),
        )  # fmt: skip
        self.current = counts
        return made

    def _part(self, schedule: Schedule, committed: Sequence[int], stream: Secret) -> PeerMap:
        """Deal one class's cards: with classes so many to each as to `flow`, so that their shares are one."""
        slots = SLOTS["flow" if self.classes else schedule.scheduler]
        return PeerMap(
            self.slot, *self.addresses, schedule.scheduler, length_of(schedule.scheduler, self._batch, slots),
            self._parity, deal(committed, schedule.scheduler, stream, self._batch), schedule.segments,
            deck=deck_of_split(committed, stream) if schedule.splits else None,
        )  # fmt: skip

    def _counts(self, held: Sequence[tuple[int, ...]], closed: Sequence[bool]) -> tuple[ClassCounts, ...]:
        """The classes of an epoch that begins, the rest last; ``held`` are their cards by number, ``closed``
        whether they have none since nothing is allowed to them."""
        if not self.classes:
            return ()
        rest = ClassCounts(REST, None, self.schedule.scheduler, held[0], Hits())
        return (
            *(
                ClassCounts(each.name, each.goal, each.schedule.scheduler, cards, Hits(), shut)
                for each, cards, shut in zip(self.classes, held[1:], closed[1:], strict=True)
            ),
            rest,
        )

    def steer(self, steering: Steering) -> PeerMap:
        """Split these buckets, in this epoch and those that follow, and move others in this one. Return the
        map of the epoch under way, which goes on. Only after ``open``."""
        self._split = steering.split
        self._map = self.map.steered(steering)
        return self._map

    def close(self, counters: Mapping[int, tuple[int, int]], now: Moment) -> EpochCounts | None:
        """End the epoch before the one that ``open`` started, with counters read after the swap."""
        if self._closing is None:
            return None
        (before, parity), self._closing = self._closing, None
        hits, self._stood[parity] = self._since(counters, parity), self._read(counters, parity)
        self.previous = _ended(_counted(before, hits), now)
        return self.previous

    def lost(self, now: Moment) -> EpochCounts | None:
        """The table and its counters are gone: end the epoch with what was last read, and count from
        nothing."""
        self._stood = self._nothing()
        if self._closing is None:
            return None
        (before, _), self._closing = self._closing, None
        self.previous = _ended(before, now, whole=False)
        return self.previous

    def gone(self, now: Moment) -> EpochCounts | None:
        """The table and its counters are gone, and the peer leaves: end the epoch under way with what was
        last read, if the kernel has had its map."""
        if self.current is None or not self.live:
            return None
        self.previous, self.current = _ended(self.current, now, whole=False), None
        return self.previous

    def end(self, counters: Mapping[int, tuple[int, int]], now: Moment) -> EpochCounts | None:
        """The peer leaves the table: end the epoch under way."""
        self.read(counters)
        if self.current is None:
            return None
        self.previous, self.current = _ended(self.current, now), None
        return self.previous

    def read(self, counters: Mapping[int, tuple[int, int]]) -> None:
        """Bring the counts of the epoch under way up to date."""
        if self.current is not None:
            self.current = _counted(self.current, self._since(counters, self._parity))

    def _nothing(self) -> list[tuple[Hits, ...]]:
        return [(Hits(),) * (1 + len(self.classes)) for _ in (0, 1)]

    def _read(self, counters: Mapping[int, tuple[int, int]], parity: int) -> tuple[Hits, ...]:
        """The counters of a parity by the number of the class."""
        return tuple(
            read_hits(counters, self.slot, parity, number) for number in range(1 + len(self.classes))
        )

    def _since(self, counters: Mapping[int, tuple[int, int]], parity: int) -> tuple[Hits, ...]:
        """What was counted since the last epoch of that parity ended."""
        seen = self._read(counters, parity)
        return tuple(now.since(then) for now, then in zip(seen, self._stood[parity], strict=True))


def _counted(counts: EpochCounts, hits: Sequence[Hits]) -> EpochCounts:
    """``hits`` are by the number of the class; the rest, the first of them, is the last one in an epoch."""
    total = Hits()
    for each in hits:
        total = total.plus(each)
    in_order = (*hits[1:], hits[0])
    parts = [replace(part, hits=each) for part, each in zip(counts.classes, in_order, strict=False)]
    return replace(counts, hits=total, classes=tuple(parts))


def _ended(counts: EpochCounts, now: Moment, *, whole: bool = True) -> EpochCounts:
    return replace(counts, ended=counts.after(now.steady), whole=whole)
