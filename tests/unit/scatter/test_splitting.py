# SPDX-License-Identifier: GPL-3.0-or-later
"""When flows are split: fluid flows over paths on a virtual clock, and any measurements at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.budget import BURST, MAX_PAUSE, REFILL
from phantommesh.scatter.splitting import BACK_AFTER, MOVE_REFILL, MOVES, Load, Splitting
from tests.unit.scatter.fluid import BUCKETS, HOMES, LOOK, Bbr, Cubic, Path, Sender, Steady, World

NARROW = 600e3  # bytes a second
FAST = 1e8
TEN_MINUTES = 600.0

senders = pytest.mark.parametrize("sender", [Cubic, Bbr])


def narrow() -> list[Path]:
    return [Path(NARROW) for _ in range(DIMENSIONS)]


def delayed() -> list[Path]:
    return [Path(NARROW, rtt=0.01 * (i + 1)) for i in range(DIMENSIONS)]


def lossy() -> list[Path]:
    return [Path(NARROW, rtt=0.01 * (i + 1), loss=0.015 if i > 3 else 0.0) for i in range(DIMENSIONS)]


def fast() -> list[Path]:
    return [Path(FAST) for _ in range(DIMENSIONS)]


def most_in_vain(seconds: float) -> float:
    """The seconds that failed trials may take: one more look is a trial's last."""
    return BURST + REFILL * seconds + LOOK


@senders
@pytest.mark.parametrize("paths", [narrow, delayed])
def test_one_flow_gets_nearly_all_the_paths_and_keeps_them(
    sender: Callable[[], Sender], paths: Callable[[], list[Path]]
) -> None:
    world = World(paths(), {3: sender()})
    assert world.run(60.0) > 5.0 * NARROW
    assert world.run(TEN_MINUTES) > 6.5 * NARROW
    assert world.split == {3} and world.machine.kept == 1
    assert len(world.changes) == 1 + 2 * world.machine.checks and world.machine.checks <= 6


@pytest.mark.parametrize("home", range(DIMENSIONS))
def test_a_flow_that_takes_late_packets_for_lost_is_split_by_its_first_trial(home: int) -> None:
    """At first it sends less than on its own path, whose round trip says how long it waits for packets."""
    world = World(delayed(), {home: Cubic(minds=True)})
    assert world.run(20.0) > 4.0 * NARROW
    assert world.split == {home} and world.machine.trials == 1


@senders
@pytest.mark.parametrize("home", [1, 5])
def test_where_three_paths_lose_packets_one_flow_gets_what_its_sender_can(
    sender: Callable[[], Sender], home: int
) -> None:
    """A sender like CUBIC that meets a loss of 0.6 % at 50 ms gets what one path without any carries."""
    world = World(lossy(), {home: sender()})
    world.run(60.0)
    assert world.run(TEN_MINUTES) > (0.85 if sender is Cubic else 6.0) * NARROW


@senders
def test_one_flow_over_paths_of_one_to_seven_times_the_rate_gets_more(sender: Callable[[], Sender]) -> None:
    world = World([Path(NARROW * (i + 1)) for i in range(DIMENSIONS)], {0: sender()})
    world.run(60.0)
    assert world.run(60.0) > 5.0 * NARROW


@senders
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("flows", [1, 8])
def test_where_the_cpu_is_the_limit_trials_are_few_and_cost_little(
    sender: Callable[[], Sender], noise: float, flows: int
) -> None:
    """The same where the CPU is another one from second to second, so that a trial may gain by chance."""
    cpu, seconds = 2e7, TEN_MINUTES if flows == 1 else 200.0
    buckets = [i * DIMENSIONS + i % 5 for i in range(flows)]
    world = World(fast(), {bucket: sender() for bucket in buckets}, cpu=cpu, noise=noise)
    never = World(fast(), {bucket: sender() for bucket in buckets}, cpu=cpu, noise=noise, machine=Refusing())
    assert world.run(seconds) > 0.98 * never.run(seconds)
    assert world.machine.vain <= most_in_vain(seconds) and len(world.changes) <= 24
    assert noise or not world.machine.kept


class Refusing(Splitting):
    """Never splits."""

    def wants(self, loads: object, rate: float, now: float) -> bool:
        return False


def test_a_flow_goes_back_when_it_needs_no_more_than_its_path() -> None:
    world = World(narrow(), {3: Bbr()})
    world.run(30.0)
    assert world.split == {3}
    world.senders = {3: Steady(NARROW / 2)}
    world.run(BACK_AFTER + 2.0)
    assert not world.split
    changes = len(world.changes)
    world.run(TEN_MINUTES)
    assert len(world.changes) - changes <= 16  # trials that fail: it might be at its limit


def test_where_somebody_decides_a_flow_is_named_and_split_only_after_that() -> None:
    machine = Splitting(asks=True)
    world = World(narrow(), {3: Bbr()}, machine=machine)
    world.run(20.0)
    assert not world.split and not machine.trials
    named = machine.nominee
    assert named is not None and (named.bucket, named.dimension) == (3, 3)
    machine.rule(3, True, world.now)
    world.run(20.0)
    assert world.split == {3} == machine.dealt and machine.nominee is None
    machine.rule(3, None, world.now)
    world.run(1.0)
    assert not machine.steering.split and not machine.dealt


def test_a_flow_that_is_to_keep_its_order_is_never_split_and_goes_home_at_once() -> None:
    machine = Splitting()
    machine.rule(3, False, 0.0)
    world = World(narrow(), {3: Bbr()}, machine=machine)
    world.run(60.0)
    assert not world.changes and not machine.trials
    machine.rule(3, None, world.now)
    world.run(30.0)
    assert world.split == {3}
    machine.rule(3, False, world.now)
    assert not machine.steering.split


def test_a_pinned_bucket_stays_from_epoch_to_epoch_and_is_not_moved_away() -> None:
    machine = Splitting(asks=True)
    machine.pin(3, 5)
    world = World(narrow(), {3: Steady(500e3), 12: Steady(400e3)}, machine=machine)
    world.run(30.0)
    assert [way for b, way in machine.steering.moved if b == 3] == [5]
    assert any(b == 12 for b, _ in machine.steering.moved), "who shares its path is moved instead"
    machine.pin(3, None)
    assert not [b for b, _ in machine.steering.moved if b == 3]


def test_a_call_or_a_film_is_tried_seldom() -> None:
    world = World(fast(), {3: Steady(500e3)})
    world.run(TEN_MINUTES)
    assert not world.split and world.machine.trials <= 7
    assert world.machine.vain <= most_in_vain(TEN_MINUTES)


def test_acknowledgements_and_light_flows_are_never_tried() -> None:
    world = World(fast(), {3: Steady(500e3, size=60), 4: Steady(10e3)})
    world.run(TEN_MINUTES)
    assert not world.changes


def test_flows_beside_the_heavy_one_stay_in_order() -> None:
    world = World(narrow(), {3: Bbr(), 10: Steady(3e3), 4: Steady(5e3)})  # 3 and 10 have one path
    world.run(TEN_MINUTES)
    assert all(steering.split <= {3} for _, steering in world.changes) and world.split == {3}


def test_flows_that_fill_every_path_are_let_alone() -> None:
    world = World(narrow(), {bucket: Cubic() for bucket in range(2 * DIMENSIONS)})
    assert world.run(TEN_MINUTES) > 0.98 * DIMENSIONS * NARROW
    assert not world.split and world.machine.vain <= most_in_vain(TEN_MINUTES)


@senders
def test_where_the_cpu_is_the_limit_and_flows_are_on_every_path_none_is_tried(
    sender: Callable[[], Sender],
) -> None:
    world = World(fast(), {bucket: sender() for bucket in range(2 * DIMENSIONS)}, cpu=2e7)
    world.run(60.0)
    assert not world.changes


@senders
def test_heavy_flows_that_share_paths_get_one_each_and_are_not_split(sender: Callable[[], Sender]) -> None:
    """Fourteen flows on five of seven paths: two moves fill the others."""
    buckets = [i * DIMENSIONS + i % 5 for i in range(14)]
    world = World(narrow(), {bucket: sender() for bucket in buckets})
    world.run(60.0)
    assert world.run(TEN_MINUTES) > 0.98 * DIMENSIONS * NARROW
    assert 2 <= world.machine.moves <= 4 and not world.split


def test_moves_end_with_their_epoch_and_are_made_again() -> None:
    world = World(narrow(), {3: Cubic(), 10: Cubic()})  # by the first epoch's map both have one path
    world.run(5.0)
    assert len(world.steering.moved) == 1 and not world.split
    world.homes = [(bucket // DIMENSIONS) % DIMENSIONS for bucket in range(BUCKETS)]
    world.run(1.5)
    assert not world.steering.moved
    world.homes = [0] * BUCKETS
    world.senders = {20: Cubic(), 21: Cubic()}
    world.run(6.0)
    assert sum(bucket in world.senders for bucket, _ in world.steering.moved) == 1


def test_two_flows_on_two_of_seven_paths_are_both_split() -> None:
    world = World(narrow(), {3: Bbr(), 4: Bbr()})
    world.run(90.0)
    assert world.run(60.0) > 6.0 * NARROW


def test_nothing_is_read_without_traffic_or_a_second_path() -> None:
    machine = Splitting()
    assert not machine.wants([Load()] * DIMENSIONS, 5e3, 1.0)
    assert not machine.wants([Load(), *[Load(used=False)] * (DIMENSIONS - 1)], 1e6, 2.0)
    assert machine.wants([Load()] * DIMENSIONS, 1e6, 3.0)


loads = st.builds(
    Load, queue=st.floats(0.0, 1.0), loss=st.floats(0.0, 1.0), used=st.booleans()
)  # a measurement of any kind


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 5.0),
            st.lists(loads, min_size=DIMENSIONS, max_size=DIMENSIONS),
            st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(0, 10**7), max_size=6),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_is_measured_only_buckets_are_split_and_trials_have_their_distance(
    steps: list[tuple[float, list[Load], dict[int, int], bool]],
) -> None:
    machine, now, sent = Splitting(), 0.0, Counter[int]()

    def counted() -> dict[int, tuple[int, int]]:
        return {bucket: (size // 1000, size) for bucket, size in sent.items()}

    for pause, measured, more, replaced in steps:
        now += pause
        if replaced:
            sent.clear()
        sent.update(more)
        trials, before = machine.trials, machine.steering
        if machine.wants(measured, 1e6, now):
            found = machine.look(measured, counted(), HOMES, now)
            assert found is None or found == machine.steering != before
        assert machine.steering.split <= set(range(BUCKETS))
        assert all(measured[way].used for _, way in machine.steering.moved - before.moved)
        assert machine.trials - trials <= 1 and machine.kept <= machine.trials
    for _ in range(int(MAX_PAUSE)):  # and what is idle goes back
        now += 1.0
        if machine.wants([Load()] * DIMENSIONS, 0.0, now):
            machine.look([Load()] * DIMENSIONS, counted(), HOMES, now)
    assert not machine.steering.split


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=60), st.booleans())
def test_failed_trials_keep_to_their_budget_whatever_flows_do(
    phases: list[tuple[int, int]], queued: bool
) -> None:
    """Four flows, each of which sends steadily for a while, and paths that look limited or do not."""
    machine, now, sent = Splitting(), 0.0, Counter[int]()
    measured = [Load(queue=0.1 if queued and i < 4 else 0.0) for i in range(DIMENSIONS)]
    for length, quiet in phases:
        for _ in range(length):
            now += LOOK
            sent.update({bucket: 100_000 + 1000 * bucket for bucket in range(4) if bucket != quiet})
            if machine.wants(measured, 1e6, now):
                machine.look(measured, {b: (n // 1000, n) for b, n in sent.items()}, HOMES, now)
    assert machine.vain <= most_in_vain(now)
    assert machine.moves <= MOVES + MOVE_REFILL * now
