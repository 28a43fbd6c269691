# SPDX-License-Identifier: GPL-3.0-or-later
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.rates import Bucket, Rates


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(2.0, 3, 10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait(10.0) == 0.5
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_debts_add_up_and_are_paid_in_time() -> None:
    bucket = Bucket(2.0, 1, 0.0)
    assert [bucket.owe(0.0) for _ in range(3)] == [0.0, 0.5, 1.0]
    assert not bucket.take(1.0)
    assert bucket.take(1.5)


@given(
    st.lists(st.tuples(st.floats(-1, 100), st.booleans()), max_size=200),
    st.floats(0.1, 10),
    st.integers(1, 9),
)
def test_never_more_than_burst_and_rate(steps: list[tuple[float, bool]], rate: float, burst: int) -> None:
    bucket, now, latest, taken = Bucket(rate, burst, 0.0), 0.0, 0.0, 0
    for pause, waits in steps:
        now += bucket.wait(now) if waits else pause
        latest = max(latest, now)
        taken += bucket.take(now)
    assert taken <= burst + rate * latest + 1e-6


def test_a_table_of_buckets_is_bounded_and_keeps_those_in_use() -> None:
    rates = Rates[int](1.0, 1, most=3)
    assert rates.allow(0, 0.0)
    for key in range(1, 10):
        assert not rates.allow(0, 0.0)
        assert rates.allow(key, 0.0)
    assert len(rates) == 3
