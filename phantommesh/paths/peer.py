# SPDX-License-Identifier: GPL-3.0-or-later
"""One peer's paths, with all that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.paths.pace import CLOSEST, FURTHER, Pace, Watch
from phantommesh.paths.quickest import Candidate, Quickest
from phantommesh.paths.state import Path, PathState
from phantommesh.paths.weights import FULL
from phantommesh.rates import Bucket

# Tuning.
ANSWERS: Final = 120.0, 300.0  # pings of a path that are answered, a second and at once
# Further probes of a peer's paths that have lost one, a second: a path that always loses some is in doubt all
# the time, and may not cost more than that.
DOUBTS: Final = 5.0


@dataclass(slots=True)
class Seek:
    """The search for the quickest path to one peer."""

    watch: Watch
    found: Quickest = field(default_factory=Quickest)
    look_at: float = float("-inf")


@dataclass(slots=True)
class Peer:
    """The paths to one peer and what is known of its traffic."""

    paths: list[Path]
    scores: tuple[float, ...] = FULL
    quickest: int | None = None  # the dimension that traffic takes which waits for answers
    in_force: tuple[float, ...] = FULL
    pace: Pace = field(default_factory=Pace)
    answered: float = float("-inf")  # when the newest answered ping was sent, on any path
    heard: float = float("-inf")  # when its latest probe came, on any path
    roused: float = float("-inf")  # until when it may have to be found anew
    sent: list[int | None] = field(default_factory=lambda: [None] * DIMENSIONS)
    probes: list[int] = field(default_factory=lambda: [0] * DIMENSIONS)  # bytes of them, as of `sent`
    cover: int = 0  # bytes of cover traffic since the counters were read last
    received: list[tuple[float, int] | None] = field(default_factory=lambda: [None] * DIMENSIONS)
    seek: Seek | None = None  # only where its traffic takes the quickest path
    doubts: Bucket = field(default_factory=lambda: Bucket(DOUBTS, CLOSEST[1], 0.0))
    answers: list[Bucket] = field(default_factory=lambda: [Bucket(*ANSWERS, 0.0) for _ in range(DIMENSIONS)])

    def watch(self, path: Path, now: float) -> Watch | None:
        """What says how closely to watch a path that has the peer's traffic as the quickest; None for another
        path, and while there is no traffic."""
        if self.seek is None or self.quickest != path.dimension or not self.pace.busy(now):
            return None
        return self.seek.watch if path.state is PathState.UP else None

    def busy_pause(self, interval: float) -> float:
        """The seconds between probes of a path while there is traffic; of the quickest there are more, and
        fewer of the others, so that all are as many as without."""
        pause = self.pace.pause(interval)
        return pause if self.quickest is None else max(FURTHER * interval, pause)


def is_new(path: Path) -> bool:
    """Whether a path has to show first that it carries anything."""
    return path.state is PathState.PROVING or path.quality.rtt is None


def candidate(path: Path, score: float, now: float, *, held: bool) -> Candidate:
    """One path as a candidate for the quickest. ``held``: it is the one that is taken now."""
    quality = path.quality
    return Candidate(
        score > 0.0,
        quality.rtt,
        quality.jitter,
        quality.loss,
        quality.standing.least(now) if held else None,
        quality.standing.queue(now) if held else 0.0,
        quality.alarm.sure(now),
        not path.misses,
        quality.alarm.doubts(now),
    )
