# SPDX-License-Identifier: GPL-3.0-or-later
"""When a flow leaves its order and is split over several dimensions, and when it goes back: the goal `auto`.

A flow stays on the dimension that its bucket hashes to, as under `order`. It is split only while its path is
what limits it. That is so if a queue stands in the path, or the path loses packets, while another path has
room. Then the flow's bucket is split on trial. It stays split if more gets through, or as much without a
queue; else it goes back, and the next trial comes the later. Where the CPU is the limit, a trial fails, for
splitting costs order and gains nothing. No I/O: measurements and `now` in, the buckets to split out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.dimensions import DIMENSIONS

# Tuning.
QUEUE: Final = 0.025  # s of standing queue: a busy CPU was seen to make 0.02, an access line makes 0.1
LOSS: Final = 0.05  # of the newest probes
HOLD: Final = 0.5  # s that a path has to look limited
LEAST: Final = 20_000.0  # bytes a second of a bucket that counts as heavy; `paths.pace.FULL_RATE`
HEAVY: Final = 1 / 8  # of its path's traffic that a bucket carries at least to count as heavy
SETTLE: Final = 0.5  # s of a trial that do not count: what left in order is still under way
TRIAL: Final = 1.5  # s
OVER: Final = 0.9  # s that rates are taken over
GAIN: Final = 1.1  # times as much as before the trial, or as much (`LOSES`) without a queue
LOSES: Final = 0.9
BACK: Final = 0.7  # of what a bucket got on its own path: with less than that it fits there again
BACK_AFTER: Final = 2.0  # s
PAUSE, MAX_PAUSE = 8.0, 600.0  # s after a trial that failed; doubled by each that follows


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


@dataclass(slots=True)
class _Trial:
    buckets: frozenset[int]
    path: int
    began: float
    base: float  # bytes a second before


class Splitting:
    """One peer's flows. Ask `wants`, then give `look` the counters."""

    def __init__(self) -> None:
        self._since: list[float | None] = [None] * DIMENSIONS  # from when on each path looks limited
        self._readings: deque[tuple[float, Mapping[int, int]]] = deque()
        self._room: dict[int, float] = {}  # by split bucket: the bytes a second that it had on its own path
        self._fits: dict[int, float] = {}  # since when it would fit there again
        self._trial: _Trial | None = None
        self._pause, self._not_before = PAUSE, float("-inf")
        self.trials = self.kept = 0

    @property
    def split(self) -> frozenset[int]:
        """The buckets that are split now."""
        return frozenset(self._room)

    def wants(self, loads: Sequence[Load], now: float) -> bool:
        """Take in the state of the paths. Return whether the buckets' counters are needed."""
        for i, load in enumerate(loads):
            if not (load.used and load.limited):
                self._since[i] = None
            elif self._since[i] is None:
                self._since[i] = now
        if self._room or self._may_gain(loads, now):
            return True
        self._readings.clear()
        return False

    def _may_gain(self, loads: Sequence[Load], now: float) -> bool:
        limited = any(since is not None for since in self._since)
        return limited and now >= self._not_before and any(load.used and not load.limited for load in loads)

    def look(
        self, loads: Sequence[Load], counted: Mapping[int, int], homes: Sequence[int | None], now: float
    ) -> frozenset[int] | None:
        """Decide. ``counted``: bytes sent so far by bucket; ``homes``: each bucket's own dimension. Return
        the buckets to split from now on; None for no change."""
        before = self.split
        rates = self._rates(counted, now)
        if rates is not None:
            if self._trial is not None:
                self._judge(self._trial, loads, rates, now)
            else:
                self._return(rates, now)
                self._begin(loads, rates, homes, now)
        after = self.split
        return None if after == before else after

    def _rates(self, counted: Mapping[int, int], now: float) -> dict[int, float] | None:
        """Bytes a second by bucket over the last `OVER` seconds; None until so much is known."""
        if self._readings and any(counted.get(b, 0) < n for b, n in self._readings[-1][1].items()):
            self._readings.clear()  # the table is another one
        self._readings.append((now, dict(counted)))
        while len(self._readings) > 1 and self._readings[1][0] <= now - OVER:
            self._readings.popleft()
        since, then = self._readings[0]
        if now - since < OVER:
            return None
        return {b: (n - then.get(b, 0)) / (now - since) for b, n in counted.items() if n > then.get(b, 0)}

    def _begin(
        self, loads: Sequence[Load], rates: Mapping[int, float], homes: Sequence[int | None], now: float
    ) -> None:
        """Split the heavy buckets of the path that has looked limited longest, on trial."""
        if not self._may_gain(loads, now):
            return
        for path in sorted(range(DIMENSIONS), key=lambda i: self._since[i] or now):
            since = self._since[path]
            if since is None or now - since < HOLD:
                continue
            here = {b: r for b, r in rates.items() if homes[b] == path and b not in self._room}
            least = max(LEAST, HEAVY * sum(here.values()))
            if heavy := {b: r for b, r in here.items() if r >= least}:
                self._trial = _Trial(frozenset(heavy), path, now, sum(rates.values()))
                self._room |= heavy
                self.trials += 1
                return

    def _judge(self, trial: _Trial, loads: Sequence[Load], rates: Mapping[int, float], now: float) -> None:
        if now - trial.began < max(SETTLE + OVER, TRIAL):
            return
        rate, self._trial = sum(rates.values()), None
        relieved = rate >= LOSES * trial.base and not any(load.used and load.limited for load in loads)
        if rate >= GAIN * trial.base or relieved:
            self._pause = PAUSE
            self.kept += 1
            return
        for bucket in trial.buckets:
            self._room.pop(bucket, None)
        self._not_before, self._pause = now + self._pause, min(MAX_PAUSE, 2 * self._pause)

    def _return(self, rates: Mapping[int, float], now: float) -> None:
        """Put back on its own path what would fit there by now."""
        for bucket, room in list(self._room.items()):
            if rates.get(bucket, 0.0) >= BACK * room:
                self._fits.pop(bucket, None)
            elif now - self._fits.setdefault(bucket, now) >= BACK_AFTER:
                del self._room[bucket], self._fits[bucket]
