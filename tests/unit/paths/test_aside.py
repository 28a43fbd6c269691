# SPDX-License-Identifier: GPL-3.0-or-later
"""Dimensions that are set aside: out of use at both ends, probed all the time, and never taken for dark."""

from __future__ import annotations

from random import Random

from phantommesh.dimensions import ALL, DIMENSIONS, only
from phantommesh.paths.effects import Effect, Rescore, Send, Turned
from phantommesh.paths.machine import Paths
from phantommesh.paths.state import PathState

A, B = b"a" * 16, b"b" * 16


class Pair:
    """Two ends. ``cut``: the dimensions by which nothing passes, as a bitmap."""

    def __init__(self) -> None:
        self.now, self.cut = 0.0, 0
        self.ends = {A: Paths(random=Random(1), interval=0.1), B: Paths(random=Random(2), interval=0.1)}
        self.turned: list[Turned] = []
        for me, peer in ((A, B), (B, A)):
            self.carry_out(me, self.ends[me].set_peers({peer: ALL}, 0.0))

    def carry_out(self, me: bytes, effects: list[Effect]) -> None:
        other = A if me == B else B
        for effect in effects:
            match effect:
                case Send(_, dimension, datagram):
                    if not self.cut >> dimension & 1:
                        self.carry_out(other, self.ends[other].receive(datagram, me, dimension, self.now))
                case Rescore(peer, scores):
                    self.ends[me].in_force(peer, scores)
                case Turned():
                    self.turned.append(effect)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.now += 0.02
            for me, end in self.ends.items():
                self.carry_out(me, end.tick(self.now))

    def aside(self, dimensions: int) -> None:
        self.carry_out(A, self.ends[A].set_aside(B, dimensions, self.now))


def states(pair: Pair) -> list[PathState]:
    found = [
        end.path(peer, i) for end, peer in zip(pair.ends.values(), (B, A), strict=True) for i in range(7)
    ]
    return [path.state for path in found if path is not None]


def test_both_ends_stop_sending_by_a_dimension_that_one_sets_aside_and_go_on_afterwards() -> None:
    pair = Pair()
    pair.run(3.0)
    pair.aside(only(2))
    pair.run(0.5)
    for me, peer in ((A, B), (B, A)):
        assert [score > 0.0 for score in pair.ends[me].scores(peer)] == [i != 2 for i in range(DIMENSIONS)]
        assert pair.ends[me].at_rest(peer) == only(2)
    pair.aside(0)
    pair.run(0.5)
    for me, peer in ((A, B), (B, A)):
        assert pair.ends[me].scores(peer) == (1.0,) * DIMENSIONS
        assert pair.ends[me].at_rest(peer) == 0


def test_a_dimension_that_is_set_aside_may_fall_silent_and_comes_back_at_once() -> None:
    pair = Pair()
    pair.run(3.0)
    pair.turned.clear()
    pair.aside(only(2))
    pair.run(0.5)
    pair.cut = only(2)
    pair.run(3.5)
    pair.cut = 0
    pair.aside(0)
    pair.run(1.0)
    assert not pair.turned and set(states(pair)) == {PathState.UP}
    for me, peer in ((A, B), (B, A)):
        assert pair.ends[me].scores(peer) == (1.0,) * DIMENSIONS
        path = pair.ends[me].path(peer, 2)
        assert path is not None and path.quality.probe_loss == 0.0


def test_a_dimension_that_stays_silent_is_dark_once_it_is_in_use_again() -> None:
    pair = Pair()
    pair.run(3.0)
    pair.aside(only(2))
    pair.run(0.5)
    pair.cut = only(2)
    pair.run(4.0)
    pair.aside(0)
    pair.run(20.0)
    for me, peer in ((A, B), (B, A)):
        assert pair.ends[me].dark(peer) == only(2)
    assert {turned.dimension for turned in pair.turned if turned.after is PathState.DARK} == {2}
