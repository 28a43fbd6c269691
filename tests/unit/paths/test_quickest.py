# SPDX-License-Identifier: GPL-3.0-or-later
"""The choice of the quickest path, and the alarm about loss, on measurements that are made up."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.paths.cost import cost, worth
from phantommesh.paths.lossalarm import RIPE, LossAlarm
from phantommesh.paths.pace import CLOSER, CLOSEST, Watch
from phantommesh.paths.peer import ANSWERS
from phantommesh.paths.quickest import HOLD, MOST_RESTLESS, PATIENT, RESTLESS, SETTLE, Candidate, Quickest
from phantommesh.paths.state import Path

TRIPS = (0.030, 0.020, 0.040, 0.050, 0.060, 0.070, 0.080)


def candidates(**changed: Candidate) -> list[Candidate]:
    """Paths as fast as `TRIPS`, but for some: ``p1`` is that of dimension 1."""
    seen = [Candidate(True, trip, least=trip) for trip in TRIPS]
    for name, path in changed.items():
        seen[int(name[1:])] = path
    return seen


def settled(now: float = 0.0) -> Quickest:
    found = Quickest()
    assert found.look(candidates(), now) == 1 and found.reason == "first"
    return found


def watched(found: Quickest, seen: list[Candidate], begin: float, seconds: float) -> int | None:
    """Look ten times a second."""
    for tenth in range(round(seconds * 10) + 1):
        found.look(seen, begin + tenth / 10)
    return found.chosen


def test_the_path_that_costs_least_is_taken_by_round_trip_jitter_and_loss() -> None:
    assert settled().chosen == 1
    assert Quickest().look(candidates(p1=Candidate(True, 0.020, jitter=0.01)), 0.0) == 0
    assert Quickest().look(candidates(p1=Candidate(True, 0.020, loss=0.1)), 0.0) == 0
    assert Quickest().look(candidates(p1=Candidate(True, 0.020, lossy=True)), 0.0) == 0


def test_the_first_choice_waits_a_little_for_paths_that_have_not_answered() -> None:
    found, seen = Quickest(), candidates(p1=Candidate(True))
    assert found.look(seen, 0.0) is None
    assert found.look(seen, SETTLE - 0.1) is None
    assert found.look(seen, SETTLE) == 0
    assert Quickest().look([Candidate(False)] * DIMENSIONS, 0.0) is None


def test_a_path_that_may_carry_nothing_is_left_at_once() -> None:
    found = settled()
    assert found.look(candidates(p1=Candidate(False, 0.020)), 0.1) == 0 and found.reason == "unusable"


def test_a_path_that_became_slow_or_lossy_is_left_at_once_and_noise_is_not() -> None:
    found = settled()
    noisy = Candidate(True, 0.090, least=0.021, rose=0.001)  # the mean is worse, but some answers are as ever
    assert found.look(candidates(p1=noisy), 0.1) == 1
    assert (
        found.look(candidates(p1=replace(noisy, least=0.100, rose=0.080)), 0.2) == 0
        and found.reason == "slow"
    )
    found = settled()
    assert found.look(candidates(p1=Candidate(True, 0.020, lossy=True)), 0.1) == 0
    assert found.reason == "lossy"


def test_it_stays_where_the_others_are_no_better() -> None:
    found, bad = settled(), Candidate(True, 0.020, least=0.020, lossy=True)
    assert found.look([replace(bad, rtt=trip) for trip in TRIPS], 0.1) == 1
    unsure = [replace(path, fresh=i == 1) for i, path in enumerate(candidates(p1=bad))]
    assert found.look(unsure, 0.2) == 1


def test_a_path_that_is_cheaper_is_taken_after_a_while() -> None:
    found, seen = settled(), candidates(p4=Candidate(True, 0.005))
    assert watched(found, seen, 0.1, PATIENT - 1) == 1
    assert watched(found, seen, PATIENT, 3 * PATIENT) == 4 and found.reason == "cheaper"
    found = settled()
    assert watched(found, candidates(p4=Candidate(True, 0.015)), 0.1, 300.0) == 1  # too little


def test_a_first_answer_that_waited_for_a_handshake_counts_for_little_soon() -> None:
    found = Quickest()
    found.look(candidates(p1=Candidate(True, 1.0)), 0.0)
    watched(found, candidates(), 0.1, 15.0)
    assert found.costs[1] < 0.060
    watched(found, candidates(), 15.2, 45.0)
    watched(found, candidates(p1=Candidate(True, 1.0)), 60.3, 1.0)  # and slow ones later for not much
    assert found.costs[1] < 0.100


def test_it_goes_back_the_later_the_oftener_it_had_to_leave() -> None:
    found, slow, now, waits = settled(), candidates(p1=Candidate(True, 0.1, least=0.1, rose=0.08)), 0.0, []
    for _ in range(3):
        now += MOST_RESTLESS
        assert watched(found, slow, now, 1.0) == 0
        left = now
        quick = candidates(p1=Candidate(True, 0.005), p0=Candidate(True, 0.030, least=0.030))
        while found.chosen == 0:
            now += 0.5
            found.look(quick, now)
        waits.append(now - left)
    # The first time its smoothed cost takes longer to fall than the pause.
    assert waits[0] >= HOLD and waits[1] >= waits[0] - 1.0 and waits[2] > 1.5 * waits[0]


def test_paths_that_are_slow_by_turns_are_left_less_and_less_often() -> None:
    """As where the traffic itself makes the queue: the path that has it is slow, and the others are not."""
    found, now, changes = settled(), 0.0, []
    while now < 600.0:
        now += 0.1
        held = found.chosen
        seen = [
            Candidate(True, 0.1, least=0.1, rose=0.08) if i == held else Candidate(True, 0.02)
            for i in range(7)
        ]
        if found.look(seen, now) != held:
            changes.append(now)
    assert len(changes) <= 12
    pauses = [b - a for a, b in itertools.pairwise(changes)]
    assert pauses[0] >= RESTLESS and pauses[-1] >= MOST_RESTLESS - 0.2


moments = st.builds(
    Candidate,
    st.booleans(),
    st.one_of(st.none(), st.floats(0.0, 10.0)),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.one_of(st.none(), st.floats(0.0, 10.0)),
    st.floats(0.0, 10.0),
    st.booleans(),
    st.booleans(),
)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 100.0), st.lists(moments, min_size=7, max_size=7)), min_size=1, max_size=8
    )
)
def test_whatever_is_measured_a_usable_path_is_taken_where_one_is_measured(
    looks: list[tuple[float, list[Candidate]]],
) -> None:
    found, now, moves = Quickest(), 0.0, list[float]()
    for pause, seen in looks:
        now += pause
        before, chosen = found.chosen, found.look(seen, now)
        measured = [i for i, path in enumerate(seen) if path.cost is not None]
        if before is not None and measured:
            assert chosen in measured
        if chosen != before and found.reason in ("slow", "lossy"):
            assert not moves or now - moves[-1] >= RESTLESS
            moves.append(now)


def test_what_is_worth_a_change_saves_a_share_and_some_milliseconds() -> None:
    assert worth(0.100, 0.079) and not worth(0.100, 0.081)
    assert worth(0.020, 0.009) and not worth(0.020, 0.011)
    assert cost(0.1, 0.01, 0.5) == pytest.approx(0.1 + 0.02 + 0.15)


def probes(loss: float, seed: int, most: int) -> int | None:
    """After how many probes of a path with this loss the alarm is sure."""
    chance, alarm = random.Random(seed), LossAlarm()
    for number in range(most):
        if chance.random() < loss:
            alarm.missed(number, float(number))
        else:
            alarm.answered()
        if alarm.sure(number + RIPE):
            return number
    return None


def test_one_probe_in_twenty_is_noticed_within_some_hundred_and_one_in_a_thousand_is_not() -> None:
    taken = sorted(probes(0.05, seed, 10_000) or 0 for seed in range(200))
    assert taken[100] < 130 and taken[180] < 300
    assert [probes(0.001, seed, 10_000) for seed in range(100)].count(None) >= 98


def state(alarm: LossAlarm, now: float = 2.0) -> tuple[bool, bool]:
    sure = alarm.sure(now)
    return alarm.suspects, sure


def test_a_missed_probe_makes_suspect_at_once_and_counts_once_it_is_no_more_merely_late() -> None:
    alarm = LossAlarm()
    for number in (1, 3, 5, 7):
        alarm.missed(number, 1.0)
    assert state(alarm, 1.0) == state(alarm, 0.99 + RIPE) == (True, False)
    assert state(alarm, 1.01 + RIPE) == (True, True)
    late = LossAlarm()
    for number in (1, 3, 5, 7):
        late.missed(number, 1.0)
        late.came_late(number)
    assert state(late, 2.0) == (False, False)


@pytest.mark.parametrize("counted", [0.0, 1.0])  # s until the late answers come
def test_a_silence_is_one_gap_and_late_answers_take_it_back(counted: float) -> None:
    alarm = LossAlarm()
    for number in range(7, 107):
        alarm.missed(number, 1.0)
    assert state(alarm, 1.0 + counted) == (True, False)
    alarm.came_late(8)
    assert state(alarm) == (True, False)
    alarm.came_late(7)
    alarm.came_late(7)
    assert state(alarm) == (False, False)
    for number in (150, 160, 170):  # slow answers under way at one time
        alarm.missed(number, 2.0)
    assert state(alarm, 2.0 + counted) == (True, False)
    for number in (160, 150, 170):
        alarm.came_late(number)
    assert state(alarm) == (False, False)
    for number in range(200, 240, 2):
        alarm.missed(number, 3.0)
    assert state(alarm, 4.0) == (True, True)
    for _ in range(1000):
        alarm.answered()
    assert state(alarm) == (False, False)


@given(st.lists(st.booleans(), max_size=300), st.integers(0, 2**32 - 1))
def test_any_outcomes_leave_a_bounded_sum(outcomes: list[bool], first: int) -> None:
    alarm = LossAlarm()
    for i, lost in enumerate(outcomes):
        if lost:
            alarm.missed((first + i) & 0xFFFF_FFFF, i / 10)
        else:
            alarm.came_late((first + i - 1) & 0xFFFF_FFFF)
            alarm.answered()
        assert alarm.suspects or not alarm.sure(i / 10)


def test_a_probe_that_is_lost_among_answered_ones_is_no_part_of_a_silence() -> None:
    path = Path(b"peer", 0, 0)
    path.open(0.0, first=True)
    first, then = path.ping(0.0, 0.1), path.ping(0.02, 0.1)
    path.answered(then, 0.03)
    assert path.overdue(0.11, 0.0) == 0 and path.quality.probe_loss == 0.5
    for number in range(4):
        path.ping(0.04 + number / 50, 0.1)
    assert path.overdue(0.3, 0.0) == 4 and path.first_missed == 0.04
    path.judge(0.035, 0.3)  # nothing else was answered since then: it may be the peer
    assert path.state.value == "up"
    path.judge(0.045, 0.3)
    assert path.state.value == "dark"
    path.answered(first, 0.4)
    assert path.misses == 0


def test_a_watched_path_is_never_asked_more_than_the_other_end_answers() -> None:
    watch, now, sent = Watch(0.0), 0.0, 0
    while now < 60.0:
        watch.sent(now)
        sent += 1
        now += watch.pause(0.02, now, suspects=True) * 0.85  # the spread at its worst
    assert CLOSEST[0] < ANSWERS[0] and CLOSEST[1] < ANSWERS[1]
    assert sent <= ANSWERS[0] * 60.0 + ANSWERS[1]
    assert watch.pause(0.1, now + 60.0, suspects=False) == pytest.approx(0.1 / CLOSER)
