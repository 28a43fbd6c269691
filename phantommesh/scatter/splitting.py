# SPDX-License-Identifier: GPL-3.0-or-later
"""When a flow leaves its order and is split over several dimensions, and when it goes back: the goal `auto`.

A flow stays on the dimension that its bucket hashes to, as under `order`. It is split only while its path is
what limits it. That cannot be told for certain from outside, so a split is a trial, and there are two
reasons for one. A queue stands in the path, or the path loses packets, while another path has room. Or a flow
has sent steadily at one rate while another path carries less: a sender that leaves no queue, such as BBR,
shows no more than that. The split stays if more gets through, or as much without the queue; else the bucket
goes back.

A trial that fails costs a flow its order for a while. So each failure doubles the pause, and all trials that
fail take from one budget (`scatter/budget.py`). A split that stays is tried the other way round now and then:
its buckets go home, and stay there if as much gets through. No I/O: measurements and `now` in, the buckets to
split out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.budget import TRIAL, Budget, Pause
from phantommesh.scatter.readings import OVER, STILL_OVER, Readings

# Tuning.
QUEUE: Final = 0.025  # s of standing queue: a busy CPU was seen to make 0.02, an access line makes 0.1
LOSS: Final = 0.05  # of the newest probes
HOLD: Final = 0.5  # s that a path has to look limited
LEAST: Final = 20_000.0  # bytes a second of a bucket that counts as heavy; `paths.pace.FULL_RATE`
HEAVY: Final = 1 / 8  # of its path's traffic that a bucket carries at least to count as heavy
FULL_SIZE: Final = 300.0  # bytes of a bucket's packets on average: acknowledgements have 52 to 100
EVERY: Final = 0.5  # s between readings while nothing but a rate that stands still could be a reason
ROOM: Final = 0.7  # of what a flow's path carries: a path with less has room for the flow
MAX_TRIAL: Final = 4.0  # s, while what gets through still grows: BBR takes 8 round trips for a quarter more
GROWING: Final = 1.05  # times as much as before the trial, at the end of `TRIAL`
GAIN: Final = 1.1  # times as much as before the trial, or as much (`LOSES`) without a queue
LOSES: Final = 0.9
GAIN_STILL: Final = 0.2  # of what the flow had before: so much more, where no queue was the reason
BACK: Final = 0.7  # of what a bucket got on its own path: with less than that it fits there again
BACK_AFTER: Final = 2.0  # s
CHECK, MAX_CHECK = 15.0, 600.0  # s that a split stays before it is tried the other way round; doubled by each
CHECK_GAIN: Final = 1.1  # times as much as at home: with less the buckets stay there


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


Reason = Literal["limited", "still", "check"]


@dataclass(frozen=True, slots=True)
class _Trial:
    """``base``: bytes a second of all flows before; ``rooms``: those of the buckets on trial, at home."""

    reason: Reason
    rooms: Mapping[int, float]
    began: float
    base: float


class Splitting:
    """One peer's flows. Ask `wants`, then give `look` the counters."""

    def __init__(self) -> None:
        self._since: list[float | None] = [None] * DIMENSIONS  # from when on each path looks limited
        self._readings = Readings()
        self._room: dict[int, float] = {}  # by split bucket: the bytes a second that it had on its own path
        self._fits: dict[int, float] = {}  # since when it would fit there again
        self._trial: _Trial | None = None
        self._budget = Budget()
        self._limited = Pause()
        self._still: dict[int, Pause] = {}
        self._check_at, self._check_gap = float("inf"), CHECK
        self.trials = self.kept = self.checks = 0
        self.vain = 0.0  # s of trials that failed

    @property
    def split(self) -> frozenset[int]:
        """The buckets that are split now."""
        return frozenset(self._room)

    def wants(self, loads: Sequence[Load], rate: float, now: float) -> bool:
        """Take in the state of the paths, and the bytes a second to the peer. Return whether the buckets'
        counters are needed."""
        for i, load in enumerate(loads):
            if not (load.used and load.limited):
                self._since[i] = None
            elif self._since[i] is None:
                self._since[i] = now
        if self._room or self._trial is not None or self._may_gain(loads, now):
            return True
        others = sum(load.used for load in loads) > 1
        soon = self._budget.allows(now + STILL_OVER)
        return rate >= LEAST and others and soon and now - self._readings.newest >= EVERY

    def _may_gain(self, loads: Sequence[Load], now: float) -> bool:
        limited = any(since is not None for since in self._since)
        ready = self._limited.over(now) and self._budget.allows(now)
        return limited and ready and any(load.used and not load.limited for load in loads)

    def look(
        self,
        loads: Sequence[Load],
        counted: Mapping[int, tuple[int, int]],
        homes: Sequence[int | None],
        now: float,
    ) -> frozenset[int] | None:
        """Decide. ``counted``: packets and bytes sent so far by bucket; ``homes``: each bucket's own
        dimension. Return the buckets to split from now on; None for no change."""
        before = self.split
        self._readings.add(counted, now)
        rates = self._readings.rates(OVER)
        if rates is not None:
            if self._trial is not None:
                self._judge(self._trial, loads, rates, now)
            else:
                self._return(rates, now)
                self._begin(loads, rates, homes, now)
        after = self.split
        return None if after == before else after

    # ---- what begins a trial ----

    def _begin(
        self, loads: Sequence[Load], rates: Mapping[int, float], homes: Sequence[int | None], now: float
    ) -> None:
        full = {b: rate for b, rate in rates.items() if self._readings.size(b) >= FULL_SIZE}
        steady = sum((self._readings.rates(STILL_OVER) or rates).values())
        if self._room and now >= self._check_at:
            self.checks += 1
            self._try("check", self._room, steady, now)
            self._room = {}
        elif self._may_gain(loads, now) and (heavy := self._held_up(full, homes, now)):
            self.trials += 1
            self._try("limited", heavy, sum(rates.values()), now)
            self._room |= heavy
        elif self._budget.allows(now) and (still := self._still_one(loads, full, homes, now)):
            self.trials += 1
            self._try("still", still, steady, now)
            self._room |= still

    def _try(self, reason: Reason, rooms: Mapping[int, float], base: float, now: float) -> None:
        self._trial = _Trial(reason, dict(rooms), now, base)

    def _held_up(
        self, rates: Mapping[int, float], homes: Sequence[int | None], now: float
    ) -> dict[int, float]:
        """The heavy buckets of the path that has looked limited longest."""
        for path in sorted(range(DIMENSIONS), key=lambda i: self._since[i] or now):
            since = self._since[path]
            if since is None or now - since < HOLD:
                continue
            here = {b: r for b, r in rates.items() if homes[b] == path and b not in self._room}
            least = max(LEAST, HEAVY * sum(here.values()))
            if heavy := {b: r for b, r in here.items() if r >= least}:
                return heavy
        return {}

    def _still_one(
        self, loads: Sequence[Load], rates: Mapping[int, float], homes: Sequence[int | None], now: float
    ) -> dict[int, float]:
        """The heaviest bucket of those that stand still while another path has room."""
        carried = self._carried(rates, homes, [i for i, load in enumerate(loads) if load.used])
        for bucket in sorted(rates, key=lambda b: -rates[b]):
            if rates[bucket] < LEAST:
                break
            home = homes[bucket]
            if bucket in self._room or home is None or rates[bucket] < HEAVY * carried.get(home, 0.0):
                continue
            room = any(
                here < ROOM * carried.get(home, 0.0) and not loads[i].limited for i, here in carried.items()
            )
            if room and self._pause_of(bucket).over(now) and (rate := self._readings.still(bucket)):
                return {bucket: rate}
        return {}

    def _carried(
        self, rates: Mapping[int, float], homes: Sequence[int | None], used: Sequence[int]
    ) -> dict[int, float]:
        """The bytes a second on each path in use."""
        split = sum(rate for b, rate in rates.items() if b in self._room)
        carried = {i: split / len(used) for i in used}
        for b, rate in rates.items():
            if b not in self._room and (home := homes[b]) in carried and home is not None:
                carried[home] += rate
        return carried

    def _pause_of(self, bucket: int) -> Pause:
        return self._still.get(bucket) or Pause()

    # ---- what ends one ----

    def _judge(self, trial: _Trial, loads: Sequence[Load], rates: Mapping[int, float], now: float) -> None:
        took = now - trial.began
        if took < TRIAL:
            return
        rate = sum(rates.values())
        match trial.reason:
            case "limited":
                relieved = rate >= LOSES * trial.base and not any(
                    load.used and load.limited for load in loads
                )
                gained = rate >= GAIN * trial.base or relieved
            case "still":
                least = max(GAIN_STILL * sum(trial.rooms.values()), (GAIN - 1.0) * trial.base)
                gained = rate - trial.base >= least
            case "check":
                gained = rate < trial.base / CHECK_GAIN  # that is, by the split
            case _:
                assert_never(trial.reason)
        growing = trial.reason != "check" and rate >= GROWING * trial.base
        if not gained and growing and took < MAX_TRIAL and self._budget.allows(now, took + TRIAL):
            return
        self._trial = None
        if gained:
            self._keep(trial, now)
        else:
            self._fail(trial, now)

    def _keep(self, trial: _Trial, now: float) -> None:
        if trial.reason == "check":
            self._room = dict(trial.rooms)
            self._check_gap = min(MAX_CHECK, 2.0 * self._check_gap)
        else:
            self.kept += 1
            self._limited = Pause()
            self._check_gap = CHECK
            for bucket in trial.rooms:
                self._still.pop(bucket, None)
        self._check_at = now + self._check_gap

    def _fail(self, trial: _Trial, now: float) -> None:
        if trial.reason != "check":
            self._budget.spend(now - trial.began, now)
            self.vain += now - trial.began
        if trial.reason == "limited":
            self._limited = self._limited.longer(now)
        else:
            for bucket in trial.rooms:
                self._still[bucket] = self._pause_of(bucket).longer(now)
        for bucket in trial.rooms:
            self._room.pop(bucket, None)
            self._fits.pop(bucket, None)

    def _return(self, rates: Mapping[int, float], now: float) -> None:
        """Put back on its own path what would fit there by now."""
        for bucket, room in list(self._room.items()):
            if rates.get(bucket, 0.0) >= BACK * room:
                self._fits.pop(bucket, None)
            elif now - self._fits.setdefault(bucket, now) >= BACK_AFTER:
                del self._room[bucket], self._fits[bucket]
                self._still[bucket] = self._pause_of(bucket).longer(now)  # it might send so all the time
