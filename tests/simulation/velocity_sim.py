# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's VELOCITY, its judge and its paths on the virtual clock of `latency_sim`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from phantommesh.agents.actions import Weigh
from phantommesh.agents.council import Council, Order
from phantommesh.agents.velocity import PeerSeen, Seen, Velocity
from phantommesh.node.steps import Moment
from tests.simulation.latency_sim import PEER, Model

NAME = "peer"
WATCH = 60.0  # s that a path which became worse is watched


@dataclass
class Scene:
    """A node whose traffic to one peer takes all paths, or with ``seeks`` the quickest."""

    seed: int
    seeks: bool = False
    in_order: bool = True
    rate: float = 50_000.0
    filled: Callable[[Scene], None] = lambda scene: None
    """Called before each look: may change how late paths are, by what is left."""
    turns: list[tuple[float, int, bool]] = field(default_factory=list)
    """When which path was left (True) or taken back."""
    out: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.model = Model(self.seed, seeks=self.seeks, rate=self.rate)
        numbers = itertools.count()
        self.agent = Velocity()
        self.council = Council([self.agent], trace=lambda: str(next(numbers)), now=self.model.now)
        self.verdicts = Counter[str]()

    def seen(self) -> Seen:
        paths = self.model.paths
        if not (rate := paths.rate(PEER, self.model.now)) and not self.out:
            return Seen()
        return Seen((PeerSeen(NAME, self.in_order, rate, paths.candidates(PEER, self.model.now)),))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let so many seconds pass, or fewer, until this is so."""
        end = self.model.now + seconds
        while self.model.now < end and not until():
            due = self.council.due("velocity", self.model.now)
            self.model.run(min(end, max(due, self.model.now + 0.001)) - self.model.now)
            self.filled(self)
            if self.council.due("velocity", self.model.now) <= self.model.now:
                self._look()
            self._do(self.council.lapse(self.model.now))

    def _look(self) -> None:
        at = Moment(self.model.now, self.model.now)
        minutes = self.council.looked(
            "velocity", self.council.look("velocity", self.seen(), (), at)(), 0.0, at
        )
        self.verdicts.update(one.verdict.reason for one in minutes.decisions)
        self._do(minutes.orders)

    def _do(self, orders: list[Order]) -> None:
        for order in orders:
            action = order.proposal.action
            assert isinstance(action, Weigh)
            self.turns.append((self.model.now, action.dimension, not order.lift))
            (self.out.discard if order.lift else self.out.add)(action.dimension)
            self.model.weigh(action.dimension, 1.0 if order.lift else action.factor)


@dataclass(frozen=True, slots=True)
class Course:
    """What became of a path that was worse for a while: after how many seconds it was left and taken back
    (inf: never), how often any path was left, and what the outcomes of the decisions were."""

    left: float
    back: float
    leaves: int
    met: int
    unmet: int


def course(
    seed: int,
    *,
    late: float = 0.0,
    loss: float = 0.0,
    worse: float = 40.0,
    seeks: bool = False,
    in_order: bool = True,
) -> Course:
    """Let one path of a node be ``late`` by seconds or lose a share of its probes for ``worse`` seconds, and
    watch for three minutes more."""
    place = Scene(seed, seeks, in_order)
    place.run(30.0 + seed % 7)
    path = place.model.taken if place.seeks and place.model.taken is not None else seed % 7
    place.turns.clear()
    start = place.model.now
    place.model.late[path], place.model.loss[path] = late, loss
    place.run(worse)
    place.model.late[path] = place.model.loss[path] = 0.0
    ended = place.model.now
    place.run(180.0)
    lefts = [at - start for at, dimension, gone in place.turns if gone and dimension == path]
    backs = [
        at - ended for at, dimension, gone in place.turns if not gone and dimension == path and at >= ended
    ]
    seat = place.council.seats["velocity"]
    return Course(
        lefts[0] if lefts else inf,
        backs[0] if backs else inf,
        sum(gone for _, _, gone in place.turns),
        seat.met,
        seat.unmet,
    )
