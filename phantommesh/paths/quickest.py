# SPDX-License-Identifier: GPL-3.0-or-later
"""Which dimension traffic takes that waits for answers: the one whose round trip, jitter and loss cost least.

One dimension has all of such a peer's traffic, so that its packets keep their order. It is left

- at once if it may carry nothing any more,
- soon if it surely became worse: each of its round trips of late was longer than they were and than another
  path costs, or its loss is sure (`paths/lossalarm.py`) while another path loses nothing,
- later if another path has cost less for a while.

No I/O: measurements and ``now`` in, the dimension out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Final, Literal

from phantommesh.paths.cost import MARGIN, cost, worth

# Tuning.
SETTLE: Final = 2.0  # s that the first choice waits for paths that have not answered yet
# s that a cost is smoothed over: of a path without the traffic these are 300 probes, so that three slow ones
# in the mean are among them
SMOOTH: Final = 60.0
LEAST_SMOOTH: Final = 1.0
PATIENT: Final = 20.0  # s for which another path has to have cost less, as smoothed,
# s from a change to the next one for cost's sake; doubled by each change because a path became worse.
HOLD, MOST_HOLD = 30.0, 960.0
# s from a change because a path became worse to the next one for that reason; doubled by each that follows,
RESTLESS, MOST_RESTLESS = 2.0, 120.0
CALM: Final = 300.0  # s without any such change after which the next one is the first again

Reason = Literal["first", "unusable", "slow", "lossy", "cheaper"]
"""Why a dimension was taken: there was none before; the one before may carry nothing, became slow or lossy;
or this one cost less."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One path. ``usable``: it may carry traffic. ``rtt`` and ``jitter`` in seconds, smoothed; ``rtt`` is
    None before the first answer. ``loss`` from 0 to 1. ``least`` is the least round trip of late, None where
    too few probes were answered, and ``rose`` how much more that is than at the best of times. ``lossy``: its
    loss is sure. ``fresh``: no probe of late is unanswered. ``doubted``: one was, and is not made up for."""

    usable: bool
    rtt: float | None = None
    jitter: float = 0.0
    loss: float = 0.0
    least: float | None = None
    rose: float = 0.0
    lossy: bool = False
    fresh: bool = True
    doubted: bool = False

    @property
    def cost(self) -> float | None:
        """What it costs in seconds; None where it may carry nothing or is not measured."""
        if not self.usable or self.rtt is None:
            return None
        return cost(self.rtt, self.jitter, self.loss)


class Quickest:
    """The choice for one peer. ``chosen`` is None while nothing is measured."""

    def __init__(self) -> None:
        self.chosen: int | None = None
        self.reason: Reason | None = None
        self.since = float("-inf")
        self.changes = 0
        self._fled = float("-inf")  # when a path was last left because it became worse
        self._hold = HOLD
        self._pause = 0.0  # s that the next such change waits from then on
        self._began: float | None = None  # when the first path had answered
        self._cheaper: tuple[int, float] | None = None  # another path that costs less, and since when
        self._costs: dict[int, float] = {}  # smoothed, as of
        self._looked = float("-inf")
        self._measured: dict[int, float] = {}  # since when without a break

    @property
    def costs(self) -> Mapping[int, float]:
        """The smoothed costs in seconds by dimension, of those that may carry traffic and are measured."""
        return self._costs

    @property
    def free_at(self) -> float:
        """From when on the dimension may be left for one that costs less; minus infinity for at any time."""
        return float("-inf") if self.reason == "first" else self.since + self._hold

    @property
    def cheaper(self) -> tuple[int, float] | None:
        """Another dimension that costs less by enough for a change, and since when without a break."""
        return self._cheaper

    def look(self, seen: Sequence[Candidate], now: float) -> int | None:
        """Decide by the paths as they are, by dimension. Return the dimension to take."""
        costs = self._smooth({i: c for i, path in enumerate(seen) if (c := path.cost) is not None}, now)
        if not costs:
            return self.chosen
        held = self.chosen
        if held is None:
            self._began = now if self._began is None else self._began
            waits = any(path.usable and path.rtt is None for path in seen)
            if waits and now - self._began < SETTLE:
                return None
        if held is None or held not in costs:
            least = min(costs, key=lambda i: (seen[i].lossy, costs[i], i))
            self._take(least, "first" if held is None else "unusable", now)
            return self.chosen
        worse = self._worse(seen, costs, held)
        if worse is not None:
            if now >= self._fled + self._pause:
                self._flee(*worse, now)
        elif (best := self._better(seen, costs, held, now)) is not None:
            self._take(best, "cheaper", now)
        return self.chosen

    def _smooth(self, costs: dict[int, float], now: float) -> dict[int, float]:
        """Smooth the costs; of a path that is measured only of late over the time since then, so that its
        first answer, which may have waited for a handshake, counts for little soon."""
        passed, self._looked = now - self._looked, now
        self._measured = {i: self._measured.get(i, now) for i in costs}
        over = {i: min(SMOOTH, max(LEAST_SMOOTH, now - since)) for i, since in self._measured.items()}
        self._costs = {i: c + exp(-passed / over[i]) * (self._costs.get(i, c) - c) for i, c in costs.items()}
        return self._costs

    def _others(self, seen: Sequence[Candidate], costs: dict[int, float], held: int) -> dict[int, float]:
        """The costs of the paths that one might flee to."""
        return {i: c for i, c in costs.items() if i != held and seen[i].fresh and not seen[i].lossy}

    def _worse(
        self, seen: Sequence[Candidate], costs: dict[int, float], held: int
    ) -> tuple[int, Reason] | None:
        others = self._others(seen, costs, held)
        if not others:
            return None
        best, path = min(others, key=lambda i: (others[i], i)), seen[held]
        if path.least is not None and path.rose >= MARGIN and worth(path.least, others[best]):
            return best, "slow"
        if path.lossy:
            return best, "lossy"
        return None

    def _better(
        self, seen: Sequence[Candidate], costs: dict[int, float], held: int, now: float
    ) -> int | None:
        others = self._others(seen, costs, held)
        best = min(others, key=lambda i: (others[i], i), default=None)
        if best is None or not worth(costs[held], others[best]):
            self._cheaper = None
            return None
        same = self._cheaper is not None and self._cheaper[0] == best
        since = self._cheaper[1] if same and self._cheaper is not None else now
        self._cheaper = best, since
        return best if now - since >= PATIENT and now >= self.free_at else None

    def _flee(self, best: int, reason: Reason, now: float) -> None:
        calm = now - self._fled >= max(CALM, self._hold)
        self._fled = now
        self._hold = 2 * HOLD if calm else min(MOST_HOLD, 2 * self._hold)
        self._pause = RESTLESS if calm else min(MOST_RESTLESS, 2 * self._pause)
        self._take(best, reason, now)

    def _take(self, dimension: int, reason: Reason, now: float) -> None:
        self.chosen, self.reason, self.since, self._cheaper = dimension, reason, now, None
        self.changes += 1
