# SPDX-License-Identifier: GPL-3.0-or-later
"""When flows are split: a model of links and flows on a virtual clock, and any measurements at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.splitting import BACK_AFTER, HOLD, MAX_PAUSE, Load, Splitting

BUCKETS = 256
HOMES = [bucket % DIMENSIONS for bucket in range(BUCKETS)]
LOOK = 0.25


@dataclass
class Model:
    """Seven paths of ``rates`` bytes a second with a buffer of 100 ms each, and flows of what they want, by
    bucket. ``cpu``: what all of them together can have; a split flow costs ``reordering`` times as much."""

    rates: Sequence[float]
    wants: dict[int, float]
    cpu: float = 1e9
    reordering: float = 1.4
    machine: Splitting = field(default_factory=Splitting)
    now: float = 0.0
    sent: Counter[int] = field(default_factory=Counter)
    split: frozenset[int] = frozenset()
    changes: int = 0

    def step(self) -> None:
        rates, full = self._rates()
        for bucket, rate in rates.items():
            self.sent[bucket] += round(rate * LOOK)
        self.now += LOOK
        loads = [Load(queue=0.1 if i in full else 0.002) for i in range(DIMENSIONS)]
        if self.machine.wants(loads, self.now):
            found = self.machine.look(loads, {b: self.sent[b] for b in range(BUCKETS)}, HOMES, self.now)
            if found is not None:
                assert found != self.split
                self.split, self.changes = found, self.changes + 1

    def run(self, seconds: float) -> float:
        """Return the bytes a second of all flows over the time."""
        before, ends = sum(self.sent.values()), self.now + seconds
        while self.now < ends:
            self.step()
        return (sum(self.sent.values()) - before) / seconds

    def _rates(self) -> tuple[dict[int, float], set[int]]:
        """Fill the paths: flows at home share theirs, split ones take what is left of all."""
        left, full, got = list(self.rates), set[int](), dict[int, float]()
        for path in range(DIMENSIONS):
            here = {b: w for b, w in self.wants.items() if HOMES[b] == path and b not in self.split}
            wanted = sum(here.values())
            share = min(1.0, left[path] / wanted) if wanted else 1.0
            got |= {b: w * share for b, w in here.items()}
            left[path] -= wanted * share
            if wanted and share < 1.0:
                full.add(path)
        room, wanted = sum(left), sum(w for b, w in self.wants.items() if b in self.split)
        share = min(1.0, room / wanted) if wanted else 1.0
        got |= {b: w * share for b, w in self.wants.items() if b in self.split}
        if wanted and share < 1.0:
            full = set(range(DIMENSIONS))
        cost = sum(rate * (self.reordering if b in self.split else 1.0) for b, rate in got.items())
        scale = min(1.0, self.cpu / cost) if cost else 1.0
        return {b: rate * scale for b, rate in got.items()}, full


def test_one_flow_gets_all_the_paths_that_it_needs_and_goes_back_when_it_needs_them_no_more() -> None:
    model = Model([100e3] * DIMENSIONS, {3: 1e6})
    model.run(10.0)
    assert model.split == {3}
    assert model.run(10.0) > 6.9 * 100e3
    model.wants = {3: 50e3}
    model.run(BACK_AFTER + 2.0)
    assert not model.split and model.changes == 2
    model.run(600.0)
    assert model.changes == 2


def test_flows_beside_the_heavy_one_stay_in_order() -> None:
    model = Model([100e3] * DIMENSIONS, {3: 1e6, 10: 1e3, 4: 5e3})  # 3 and 10 have one path
    model.run(10.0)
    assert model.split == {3}


def test_where_every_path_is_full_nothing_is_split() -> None:
    model = Model([100e3] * DIMENSIONS, dict.fromkeys(range(2 * DIMENSIONS), 1000000.0))
    model.run(60.0)
    assert model.changes == 0


def test_a_free_path_is_used_where_all_others_are_full() -> None:
    model = Model([100e3] * DIMENSIONS, {b: 1e6 for b in range(14) if HOMES[b] != 5})
    assert model.run(60.0) > 6.5 * 100e3
    assert model.split


def test_where_the_cpu_is_the_limit_trials_cost_next_to_nothing() -> None:
    """The probes claim a queue in one path, but what a split flow gains, the CPU cannot give."""
    model = Model([100e3] * DIMENSIONS, {3: 1e6}, cpu=100e3)
    assert model.run(600.0) > 0.98 * 100e3
    assert not model.split and model.machine.kept == 0 and model.machine.trials <= 8


def test_a_short_queue_is_no_reason() -> None:
    model = Model([100e3] * DIMENSIONS, {3: 1e6})
    model.run(HOLD)
    assert model.changes == 0


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
    for pause, measured, more, replaced in steps:
        now += pause
        if replaced:
            sent.clear()
        sent.update(more)
        trials, before = machine.trials, machine.split
        if machine.wants(measured, now):
            found = machine.look(measured, dict(sent), HOMES, now)
            assert found is None or found == machine.split != before
        else:
            assert not machine.split
        assert machine.split <= set(range(BUCKETS))
        assert machine.trials - trials <= 1 and machine.kept <= machine.trials
    machine.wants([Load()] * DIMENSIONS, now)
    for _ in range(int(MAX_PAUSE)):  # and what is idle goes back
        now += 1.0
        if machine.wants([Load()] * DIMENSIONS, now):
            machine.look([Load()] * DIMENSIONS, dict(sent), HOMES, now)
    assert not machine.split
