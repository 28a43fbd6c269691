# SPDX-License-Identifier: GPL-3.0-or-later
"""Paths after one of their ends has moved: asked at once, and soon again until they answer."""

from random import Random

from phantommesh.dimensions import ALL
from phantommesh.paths.effects import Send
from phantommesh.paths.machine import ROUSED, Paths
from phantommesh.paths.probe import Probe, decode_probe_untrusted
from phantommesh.paths.schedule import SLOW
from phantommesh.paths.state import PROVE_PLANNED, PathState

PEER, INTERVAL = b"p" * 16, 0.1


class Rig:
    """A node's paths to one peer, which answers on the dimensions ``alive``, a bitmap."""

    def __init__(self) -> None:
        self.paths, self.now, self.alive = Paths(random=Random(1), interval=INTERVAL), 0.0, ALL
        self.asked: list[tuple[int, float]] = []
        self.paths.set_peers({PEER: ALL}, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.paths.deadline <= end:
            self.now = max(self.now, self.paths.deadline)
            for effect in self.paths.tick(self.now):
                if isinstance(effect, Send) and not (probe := decode_probe_untrusted(effect.datagram)).pong:
                    self.asked.append((effect.dimension, self.now))
                    if self.alive >> effect.dimension & 1:
                        pong = Probe(True, probe.dimension, probe.number, False, False, 0, None).encode()
                        self.paths.receive(pong, PEER, effect.dimension, self.now + 0.001)
        self.now = end

    @property
    def states(self) -> list[PathState]:
        return [view.state for view in self.paths.view(PEER, self.now)]


def test_all_dimensions_are_asked_at_once() -> None:
    rig = Rig()
    rig.run(60.0)
    rig.asked.clear()
    rig.paths.rouse(PEER, ALL, rig.now)
    rig.run(0.0)
    assert sorted(dimension for dimension, _ in rig.asked) == list(range(7))


def test_what_does_not_answer_is_asked_often_for_a_while_only() -> None:
    rig = Rig()
    rig.run(60.0)
    rig.alive = 0
    rig.run(60.0)
    assert set(rig.states) == {PathState.DARK}
    rig.asked.clear()
    rig.paths.rouse(PEER, ALL, rig.now)
    rig.run(ROUSED)
    assert len(rig.asked) > 7 * ROUSED  # a dark peer is asked each 10 s else
    rig.asked.clear()
    rig.run(2 * SLOW)
    assert len(rig.asked) < 7 * 2 * 2


def test_a_path_to_a_new_place_has_no_more_to_prove_than_one_that_was_taken_out() -> None:
    rig = Rig()
    rig.run(60.0)
    rig.alive = ALL & ~1
    for _ in range(3):  # it went dark alone, again and again
        rig.run(30.0)
        rig.alive ^= 1
        rig.run(4.0)
        rig.alive ^= 1
    rig.run(30.0)
    assert {*rig.states[:1]} == {PathState.DARK}
    rig.paths.rouse(PEER, ALL, rig.now)
    rig.alive = ALL
    rig.asked.clear()
    rig.run(INTERVAL * 1.5 * (PROVE_PLANNED + 2))
    assert {*rig.states[:1]} == {PathState.UP}


def test_only_the_dimensions_that_moved_are_asked() -> None:
    rig = Rig()
    rig.run(60.0)
    rig.asked.clear()
    rig.paths.rouse(PEER, 0b100, rig.now)
    rig.paths.rouse(b"stranger", ALL, rig.now)
    rig.run(0.0)
    assert [dimension for dimension, _ in rig.asked] == [2]
