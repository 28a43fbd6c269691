# SPDX-License-Identifier: GPL-3.0-or-later
"""When a flow leaves its order and is split over several dimensions, and when it goes back: the goal `auto`.

A flow stays on the dimension that its bucket hashes to, as under `order`. It is split only while its path is
what limits it. That cannot be told for certain from outside: a queue or losses may be seen, but a sender such
as BBR leaves neither. So a heavy bucket that has sent steadily, while another path has room, is split on
trial. The split stays if a fifth more gets through; else the bucket goes back. Before that, heavy buckets
that share a path are moved to paths that carry less (`scatter/steering.py`).

A trial that fails costs a flow its order for a while. So each failure doubles the bucket's pause, and all
trials that fail take from one budget (`scatter/budget.py`). A split that stays is tried the other way round
now and then: its buckets go home, and stay there if as much gets through.

Where somebody decides (`Splitting.asks`; a node's agents do), a bucket is only nominated, and a trial begins
once the bucket may be split. Buckets may also be kept in order, and pinned to a dimension, which lasts from
epoch to epoch. No I/O: measurements and `now` in, what is to be steered out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.scatter.budget import TRIAL, Budget, Pause
from phantommesh.scatter.readings import OVER, STILL_OVER, Readings
from phantommesh.scatter.steering import LEAST, Steering, move

# Tuning.
QUEUE: Final = 0.025  # s of standing queue: a busy CPU was seen to make 0.02, an access line makes 0.1
LOSS: Final = 0.05  # of the newest probes
HEAVY: Final = 1 / 8  # of its path's traffic that a bucket on trial carries at least
FULL_SIZE: Final = 300.0  # bytes of a bucket's packets on average: acknowledgements have 52 to 100
EVERY: Final = 1.0  # s between readings while nothing is on trial
ROOM: Final = 0.7  # of what a flow's path carries: a path with less has room for the flow
MAX_TRIAL: Final = 4.0  # s, while what gets through still grows: BBR takes 8 round trips for a quarter more
GROWING: Final = 1.05  # times as much as before the trial, at the end of `TRIAL`
# A sender that takes packets for lost which others overtake sends less at first, and then grows. So where the
# path looked limited, a trial also goes on while so many times as much gets through as half a second before.
RISES: Final = 1.08
GAIN: Final = 0.2  # of what the bucket had: so much more has to get through
GAIN_ALL: Final = 0.1  # of what all buckets had, likewise
BACK: Final = 0.7  # of what a bucket got on its own path: with less than that it fits there again
BACK_AFTER: Final = 2.0  # s
CHECK, MAX_CHECK = 15.0, 600.0  # s that a split stays before it is tried the other way round; doubled by each
CHECK_GAIN: Final = 1.1  # times as much as at home: with less the buckets stay there
MOVES: Final = 14.0  # that a peer's buckets may make at once
MOVE_REFILL: Final = 0.1  # a second
MOVES_APART: Final = 1.5  # s: what a move brings is seen by then


@dataclass(frozen=True, slots=True)
class Load:
    """One path as measured lately. ``queue``: seconds that each probe waits in the path at least; ``loss``:
    the share of the newest probes that were lost; ``used``: traffic may take it."""

    queue: float = 0.0
    loss: float = 0.0
    used: bool = True

    @property
    def limited(self) -> bool:
        """Whether it looks as if the path carries all that it can."""
        return self.queue >= QUEUE or self.loss >= LOSS


@dataclass(frozen=True, slots=True)
class Nominee:
    """A bucket that its path may hold up: the bytes a second that it has, and its dimension."""

    bucket: int
    rate: float
    dimension: int


@dataclass(frozen=True, slots=True)
class _Trial:
    """``home``: the buckets are at home on trial, not split; ``limited``: their path looked limited, by a
    queue or losses; ``rooms``: what each of them had at home, and ``base`` what all buckets had before, in
    bytes a second."""

    home: bool
    limited: bool
    rooms: Mapping[int, float]
    began: float
    base: float


class Splitting:
    """One peer's flows. Ask `wants`, then give `look` the counters. ``asks``: a bucket is split only after
    `rule` has said so."""

    def __init__(self, *, asks: bool = False) -> None:
        self.asks = asks
        self.nominee: Nominee | None = None
        self._ruled: dict[int, bool] = {}  # by bucket: whether it may be split
        self._pinned: dict[int, int] = {}
        self._readings = Readings()
        self._room: dict[int, float] = {}  # by split bucket: the bytes a second that it had on its own path
        self._fits: dict[int, float] = {}  # since when it would fit there again
        self._homes: Sequence[int | None] = ()
        self._moved: dict[int, int] = {}
        self._moved_at = float("-inf")
        self._may_move = Budget(MOVES, MOVE_REFILL)
        self._trial: _Trial | None = None
        self._budget = Budget()
        self._pauses: dict[tuple[int, bool], Pause] = {}  # by bucket and by what the trial was begun for
        self._check_at, self._check_gap = float("inf"), CHECK
        self.trials = self.kept = self.checks = self.moves = 0
        self.vain = 0.0  # s of trials that failed

    @property
    def steering(self) -> Steering:
        """Which buckets are split, and which are moved."""
        return Steering(frozenset(self._room), frozenset({**self._moved, **self._pinned}.items()))

    @property
    def dealt(self) -> frozenset[int]:
        """The buckets that are split, or at home only to see whether they need to be."""
        return frozenset(self._room if self._trial is None else {*self._room, *self._trial.rooms})

    def rule(self, bucket: int, split: bool | None, now: float) -> None:
        """Let a bucket be split, or keep it in order; None: nobody says any more. A bucket that may not be
        split goes home."""
        if split is None:
            self._ruled.pop(bucket, None)
        else:
            self._ruled[bucket] = split
        if not split and bucket in self.dealt:
            if self._trial is not None and bucket in self._trial.rooms:
                self._room |= self._trial.rooms if self._trial.home else {}
                self._trial = None
            self._go_home(bucket, False, now)
        if self.nominee is not None and self.nominee.bucket == bucket:
            self.nominee = None

    def pin(self, bucket: int, dimension: int | None) -> None:
        """Keep a bucket on a dimension, for as long as that may carry traffic; None: no longer."""
        if dimension is None:
            self._pinned.pop(bucket, None)
        else:
            self._pinned[bucket] = dimension

    def rates(self) -> Mapping[int, float]:
        """The bytes a second of each bucket lately; empty while they are not read."""
        return self._readings.rates(OVER) or {}

    @property
    def looked(self) -> float:
        """When the counters were read last; minus infinity for never."""
        return self._readings.newest

    def wants(self, loads: Sequence[Load], rate: float, now: float) -> bool:
        """Whether the buckets' counters are needed. ``rate``: the bytes a second to the peer."""
        if self._trial is not None:
            return True
        useful = self._budget.allows(now + STILL_OVER) or self._may_move.allows(now + STILL_OVER, 1.0)
        others = sum(load.used for load in loads) > 1
        wanted = bool(self._room) or (rate >= LEAST and others and useful)
        return wanted and now - self._readings.newest >= EVERY

    def look(
        self,
        loads: Sequence[Load],
        counted: Mapping[int, tuple[int, int]],
        homes: Sequence[int | None],
        now: float,
    ) -> Steering | None:
        """Decide. ``counted``: packets and bytes sent so far by bucket; ``homes``: each bucket's dimension by
        the epoch's map. Return what is to be steered from now on; None for no change."""
        before = self.steering
        if list(homes) != self._homes:
            self._homes, self._moved = list(homes), {}  # another epoch: all flows have moved
        self._readings.add(counted, now)
        self.nominee = None
        rates = self._readings.rates(OVER)
        if rates is not None:
            if self._trial is not None:
                self._judge(self._trial, rates, now)
            else:
                self._return(rates, now)
                self._begin(loads, rates, now)
        after = self.steering
        return None if after == before else after

    # ---- what begins ----

    def _begin(self, loads: Sequence[Load], rates: Mapping[int, float], now: float) -> None:
        all_rates = self._readings.rates(STILL_OVER)
        if all_rates is None or now < self._moved_at + MOVES_APART:
            return
        full = {b: rate for b, rate in rates.items() if self._readings.size(b) >= FULL_SIZE}
        ways = {b: way for b in full if b not in self._room and (way := self._way(b)) is not None}
        carried = self._carried(full, ways, [i for i, load in enumerate(loads) if load.used])
        base = sum(all_rates.values())
        if self._room and now >= self._check_at:
            self.checks += 1
            self._trial = _Trial(True, False, dict(self._room), now, base)
            self._room = {}
        elif self._move(loads, ways, carried, now) or now < self._moved_at + STILL_OVER:
            return
        elif self._budget.allows(now):
            found = self._held_up(loads, full, ways, carried, now)
            if found is not None:
                bucket, limited, rate = found
                if self.asks and not self._ruled.get(bucket):
                    self.nominee = Nominee(bucket, rate, ways[bucket])
                    return
                self.trials += 1
                self._trial = _Trial(False, limited, {bucket: rate}, now, base)
                self._room[bucket] = rate

    def _way(self, bucket: int) -> int | None:
        return self._pinned.get(bucket, self._moved.get(bucket, self._homes[bucket]))

    def _carried(
        self, rates: Mapping[int, float], ways: Mapping[int, int], used: Sequence[int]
    ) -> dict[int, float]:
        """The bytes a second on each path in use."""
        split = sum(rate for b, rate in rates.items() if b in self._room)
        carried = {i: split / len(used) for i in used}
        for b, way in ways.items():
            if way in carried:
                carried[way] += rates[b]
        return carried

    def _move(
        self, loads: Sequence[Load], ways: Mapping[int, int], carried: Mapping[int, float], now: float
    ) -> bool:
        """Move a bucket if that helps. Only a rate that stands still says what a bucket would bring."""
        if not self._may_move.allows(now, 1.0):
            return False
        rates = {b: self._readings.still(b, unsteady=loads[way].limited) for b, way in ways.items()}
        found = move(rates, ways, carried, self._pinned)
        if found is None:
            return False
        bucket, way = found
        self._moved[bucket] = way
        if self._homes[bucket] == way:
            del self._moved[bucket]
        self._may_move.spend(1.0, now)
        self._moved_at = now
        self.moves += 1
        return True

    def _held_up(
        self,
        loads: Sequence[Load],
        rates: Mapping[int, float],
        ways: Mapping[int, int],
        carried: Mapping[int, float],
        now: float,
    ) -> tuple[int, bool, float] | None:
        """A heavy bucket that its path may limit, whether the path looks limited, and the bucket's rate. One
        that only stands still comes last. That its trial failed is no reason against one with a queue."""
        found = [
            b
            for b, way in ways.items()
            if way in carried
            and rates[b] >= max(LEAST, HEAVY * carried[way])
            and self._ruled.get(b) is not False
        ]
        for bucket in sorted(found, key=lambda b: (not loads[ways[b]].limited, -rates[b])):
            here, limited = carried[ways[bucket]], loads[ways[bucket]].limited
            room = any(
                not loads[way].limited and (limited or there < ROOM * here)
                for way, there in carried.items()
                if way != ways[bucket]
            )
            rate = self._readings.still(bucket, unsteady=limited)
            if room and rate and self._pauses.get((bucket, limited), Pause()).over(now):
                return bucket, limited, rate
        return None

    # ---- what ends ----

    def _judge(self, trial: _Trial, rates: Mapping[int, float], now: float) -> None:
        took, rate = now - trial.began, sum(rates.values())
        if took < TRIAL:
            return
        if trial.home:
            gained, growing = rate < trial.base / CHECK_GAIN, False  # it is the split that gains
        else:
            least = max(GAIN * sum(trial.rooms.values()), GAIN_ALL * trial.base)
            rises = trial.limited and self._readings.rise() >= RISES
            gained, growing = rate - trial.base >= least, rises or rate >= GROWING * trial.base
        if not gained and growing and took < MAX_TRIAL and self._budget.allows(now, took + TRIAL):
            return
        self._trial = None
        if gained:
            self._keep(trial, now)
        else:
            self._fail(trial, now)

    def _keep(self, trial: _Trial, now: float) -> None:
        if trial.home:
            self._room = dict(trial.rooms)
            self._check_gap = min(MAX_CHECK, 2.0 * self._check_gap)
        else:
            self.kept += 1
            self._check_gap = CHECK
            for bucket in trial.rooms:
                self._pauses.pop((bucket, trial.limited), None)
        self._check_at = now + self._check_gap

    def _fail(self, trial: _Trial, now: float) -> None:
        if not trial.home:
            self._budget.spend(now - trial.began, now)
            self.vain += now - trial.began
        for bucket in trial.rooms:
            self._go_home(bucket, trial.limited, now)

    def _return(self, rates: Mapping[int, float], now: float) -> None:
        """Put back on its own path what would fit there by now."""
        for bucket, room in list(self._room.items()):
            if rates.get(bucket, 0.0) >= BACK * room:
                self._fits.pop(bucket, None)
            elif now - self._fits.setdefault(bucket, now) >= BACK_AFTER:
                self._go_home(bucket, False, now)

    def _go_home(self, bucket: int, limited: bool, now: float) -> None:
        """No more of this bucket for a while: it might send like this all the time."""
        before = self._pauses.get((bucket, limited), Pause())
        self._room.pop(bucket, None)
        self._fits.pop(bucket, None)
        self._pauses[bucket, limited] = before.longer(now)
