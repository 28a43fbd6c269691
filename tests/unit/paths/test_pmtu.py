# SPDX-License-Identifier: GPL-3.0-or-later
"""One path's MTU, found over a modelled path."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.paths.pmtu import BASE, MISSES, RAISE, PathMtu, ceiling, misses_needed, rung, sizes
from phantommesh.paths.probe import OVER
from phantommesh.proofs.spread import LARGEST_DRAW

LARGEST = 1420


class Way:
    """A path that carries overlay packets of up to ``carries`` bytes, and small probes always but when it is
    ``dark``."""

    def __init__(self, carries: int, *, rtt: float = 0.02, loss: float = 0.0, own: int = 0) -> None:
        self.carries, self.rtt, self.loss, self.dark = carries, rtt, loss, False
        self.now, self.probes, self.smallest, self.arrived = 0.0, 0, LARGEST, 0
        self.random = random.Random(1)
        self.path = PathMtu(LARGEST, 7, own=own)
        self.small = float("-inf")
        self._back: list[tuple[float, int, int]] = []
        self.path.begin(0.0)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            moment = min(self.path.due, self._back[0][0] if self._back else end)
            if moment > end:
                self.now = end
                return
            self.now = max(self.now, moment)
            while self._back and self._back[0][0] <= self.now:
                _, number, size = heapq.heappop(self._back)
                assert self.path.answered(number, size, self.now) in (True, False)
            if not self.dark:  # they are sent all the time
                self.small = self.now - self.rtt
            due = self.path.tick(
                self.now,
                small=self.small,
                patience=2 * self.rtt,
                needed=misses_needed(self.loss),
                hold=float("-inf"),
            )
            self.smallest = min(self.smallest, self.path.size)
            if due is not None:
                number = self.path.sent()
                self.probes += 1
                assert BASE <= due <= LARGEST
                if due <= self.carries and not self.dark:
                    self.arrived += due + OVER
                if due <= self.carries and not self.dark and self.random.random() >= self.loss:
                    heapq.heappush(self._back, (self.now + self.rtt, number, due))
            if self.now >= end:
                return


def test_a_path_that_carries_all_is_asked_once() -> None:
    way = Way(LARGEST)
    assert way.path.size == LARGEST
    way.run(5)
    assert (way.path.size, way.probes, way.path.settled, way.path.hole) == (LARGEST, 1, True, False)


@given(st.integers(BASE, LARGEST), st.floats(0.0001, 0.3))
def test_whatever_it_carries_is_found_in_few_probes(carries: int, rtt: float) -> None:
    way = Way(carries, rtt=rtt)
    way.run(15)
    assert way.path.size == rung(carries, LARGEST) and way.path.settled
    assert way.path.hole == (rung(carries, LARGEST) < LARGEST)
    assert way.probes <= 60


def test_a_size_that_is_swallowed_is_left_before_another_is_found() -> None:
    way = Way(1300)
    way.run(0.6)
    assert way.path.size <= 1300
    way.run(5)
    assert way.path.size == 1296


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("carries", [1206, 1300, 1376, 1414, LARGEST])
def test_what_a_search_brings_the_other_end_is_far_below_one_draw_of_scatter_proofs(
    carries: int, loss: float
) -> None:
    """Only what arrives counts there. A search in one dimension alone, in an epoch of a second, is allowed
    2 KiB and is a part of a draw otherwise."""
    anew = Way(carries, loss=loss)
    anew.run(15)
    shrunk = Way(LARGEST, loss=loss)
    shrunk.run(3)
    shrunk.arrived, shrunk.carries = 0, carries
    shrunk.path.confirm(shrunk.now)
    shrunk.run(15)
    assert max(anew.arrived, shrunk.arrived) <= LARGEST_DRAW / 6


def test_a_path_that_shrinks_is_followed_as_soon_as_it_is_asked() -> None:
    way = Way(LARGEST)
    way.run(1)
    way.carries = 1320
    way.path.confirm(way.now)
    way.run(0.6)
    assert way.path.size <= 1320
    way.run(5)
    assert way.path.size == 1312 and way.path.hole


def test_a_path_that_grows_is_followed_at_the_next_raise_and_without_loss_of_the_size_meanwhile() -> None:
    way = Way(1328)
    way.run(5)
    way.smallest = LARGEST
    for _ in range(700):
        way.path.confirm(way.now)
        way.run(1)
    assert way.smallest == way.path.size == 1328  # the raise that failed took nothing away
    way.carries = 1390
    for _ in range(int(RAISE) + 30):
        way.path.confirm(way.now)
        way.run(1)
    assert way.path.size == rung(1390, LARGEST) == 1376


def test_a_dark_path_says_nothing_of_its_size() -> None:
    way = Way(LARGEST)
    way.run(1)
    way.dark = True
    way.path.confirm(way.now)
    way.run(10)
    assert way.path.size == LARGEST
    way.path.pause()
    way.dark = False
    way.path.resume(way.now)
    way.run(5)
    assert way.path.size == LARGEST and way.path.settled


def test_a_path_that_was_dark_is_asked_for_more_than_before_and_traffic_keeps_what_holds() -> None:
    way = Way(1328)
    way.run(5)
    way.dark = True
    way.path.pause()
    way.run(60)
    way.dark = False
    way.path.resume(way.now)
    way.smallest = LARGEST
    way.run(5)
    assert way.smallest == way.path.size == 1328 and way.path.settled
    before = way.probes
    way.run(300)
    assert way.probes == before
    way.path.pause()
    way.carries = LARGEST
    way.path.resume(way.now)
    way.run(2)
    assert way.path.size == LARGEST and way.path.settled
    before = way.probes
    way.run(300)
    assert way.probes == before


def test_a_path_that_carries_no_useful_size_is_narrow_and_is_noticed_when_it_mends() -> None:
    way = Way(1000)
    way.run(5)
    assert way.path.narrow and way.path.hole and way.path.size == BASE
    way.carries = LARGEST
    way.path.confirm(way.now)
    way.run(2)
    assert (way.path.narrow, way.path.size, way.path.hole) == (False, LARGEST, False)


def test_what_both_uplinks_are_known_to_take_needs_no_search() -> None:
    way = Way(1390, own=ceiling(1450, ipv6=False, largest=LARGEST))
    assert way.path.size == 1376
    way.run(3)
    assert (way.probes, way.path.size, way.path.hole) == (1, 1376, False)
    way.path.limit(way.now, theirs=1328)
    assert way.path.size == 1328
    way.run(3)
    assert way.path.settled and way.probes == 1
    way.path.limit(way.now, theirs=1420, own=1420)
    way.carries = LARGEST
    way.run(3)
    assert way.path.size == LARGEST


def test_an_uplink_that_changes_in_either_direction_has_the_search_begin_anew() -> None:
    for own in (1376, 1408):
        way = Way(1320, own=1392)
        way.run(5)
        assert way.path.size == 1312 and way.path.hole
        way.carries = 1500
        way.path.limit(way.now, own=own)
        way.run(1)
        assert way.path.size == own and not way.path.hole


def test_another_way_is_measured_anew() -> None:
    way = Way(1300)
    way.run(5)
    assert way.path.size == 1296
    way.carries = LARGEST
    way.path.begin(way.now)
    assert way.path.size == 1296  # until it has shown more
    way.run(1)
    assert way.path.size == LARGEST and not way.path.hole


@settings(max_examples=30)
@given(st.sampled_from([0.01, 0.05, 0.2]), st.integers(0, 100))
def test_loss_is_seldom_taken_for_a_small_mtu(loss: float, seed: int) -> None:
    way = Way(LARGEST, loss=loss)
    way.random = random.Random(seed)
    for _ in range(100):
        way.path.confirm(way.now)
        way.run(1)
    assert way.smallest == LARGEST


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("carries"), st.integers(900, 1500)),
            st.tuples(st.just("own"), st.integers(BASE, 1420)),
            st.tuples(st.just("theirs"), st.integers(BASE, 1420)),
            st.tuples(st.just("dark"), st.booleans()),
            st.tuples(st.just("begin"), st.none()),
            st.tuples(st.just("run"), st.floats(0.0, 2.0)),
        ),
        max_size=12,
    )
)
def test_after_whatever_happens_it_settles_on_what_the_path_carries(steps: list[tuple[str, object]]) -> None:
    way = Way(LARGEST)
    for what, value in steps:
        match what, value:
            case "carries", int(carries):
                way.carries = carries
            case "own", int(own):
                way.path.limit(way.now, own=rung(own, LARGEST))
            case "theirs", int(theirs):
                way.path.limit(way.now, theirs=rung(theirs, LARGEST))
            case "dark", bool(dark):
                way.dark = dark
                way.path.pause() if dark else way.path.resume(way.now)
            case "begin", None:
                way.path.begin(way.now)
            case "run", float(seconds):
                way.run(seconds)
        assert BASE <= way.path.size <= way.path.top
    way.dark = False
    way.path.resume(way.now)
    way.run(2)
    for _ in range(3):
        way.path.confirm(way.now)
        way.run(10)
    allowed = max(BASE, min(way.path.top, rung(way.carries, LARGEST)))
    assert way.path.size <= allowed and not way.path.asked
    assert way.path.narrow == (way.carries < BASE)
    way.run(RAISE + 20)
    assert way.path.size == allowed


def test_sizes_are_as_long_outside_as_their_probes() -> None:
    assert sizes(1200, 1300) == [1216, 1232, 1248, 1264, 1280, 1296]
    assert [ceiling(mtu, ipv6=False, largest=LARGEST) for mtu in (9000, 1500, 1480, 1460, 1450, 1280)] == [
        1420, 1420, 1420, 1392, 1376, 1216,
    ]  # fmt: skip
    assert [ceiling(mtu, ipv6=True, largest=LARGEST) for mtu in (1500, 1492, 1450, 1280)] == [
        1420, 1408, 1360, 1200,
    ]  # fmt: skip


@pytest.mark.parametrize(("loss", "needed"), [(0.0, MISSES), (0.01, 3), (0.1, 6), (0.5, 10), (1.0, 10)])
def test_the_more_is_lost_the_more_has_to_be_missed(loss: float, needed: int) -> None:
    assert misses_needed(loss) == needed
