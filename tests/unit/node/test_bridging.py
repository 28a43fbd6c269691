# SPDX-License-Identifier: GPL-3.0-or-later
"""What a member that joins connections of others lets them have."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.node.bridging import ASKS, DAY, EACH, EACH_MEMBER, MOST, Bridges

ME, A, B, C = (bytes((number,)) * 16 for number in range(4))


def bridges(*, rate: float = 1e6, quota: int = 10**9, among: frozenset[bytes] | None = None) -> Bridges:
    return Bridges(ME, lambda: {ME, A, B, C}, among, rate, quota)


def test_a_pair_of_members_in_good_standing_is_joined() -> None:
    one = bridges()
    assert one.admit(A, B, 0.0) == one.admit(B, A, 0.0) == ""
    for origin, to in ((A, A), (A, ME), (ME, A), (A, b"?" * 16), (b"?" * 16, A)):
        assert one.admit(origin, to, 0.0)
    assert one.dropped["bridge-refused"] == 5


def test_nothing_is_passed_on_for_one_that_is_no_member_any_more() -> None:
    """A connection of a member whose certificate ran out was passed on for as long as it stood."""
    members = {ME, A, B}
    one = Bridges(ME, lambda: members, None, 1e6, 10**9)
    assert one.admit(A, B, 0.0) == "" and one.owe(A, B, 100, 0.0) is not None
    members.remove(B)
    assert one.owe(A, B, 100, 1.0) is None and one.owe(B, A, 100, 1.0) is None


def test_only_members_that_the_operator_relays_for_are_joined() -> None:
    one = bridges(among=frozenset((A, B)))
    assert not one.admit(A, B, 0.0) and one.admit(A, C, 0.0) and one.admit(C, A, 0.0)


def test_a_member_holds_few_connections_and_asks_seldom() -> None:
    one = bridges()
    assert [one.admit(A, B, 0.0) == "" for _ in range(20)].count(True) == min(EACH_MEMBER, ASKS[1])
    assert one.admit(A, B, 1000.0) and not one.admit(B, A, 1000.0)
    for _ in range(EACH_MEMBER):
        one.over(A)
    assert not one.admit(A, B, 2000.0)


def test_all_members_together_hold_so_many() -> None:
    members = {A, *(bytes((number, 9)) * 8 for number in range(100))}
    one = Bridges(ME, lambda: members, None, 1e6, 10**9)
    assert sum(one.admit(origin, A, 0.0) == "" for origin in members - {A}) == MOST


@given(st.lists(st.tuples(st.integers(0, 65_536), st.floats(0.0, 2.0), st.booleans()), max_size=80))
def test_no_more_is_passed_on_than_the_rate_and_the_quota_let(steps: list[tuple[int, float, bool]]) -> None:
    rate, quota, now, passed, waits = 100_000.0, 500_000, 0.0, 0, {A: 0.0, B: 0.0}
    one, sent = bridges(rate=rate, quota=quota), {A: 0, B: 0}
    for size, pause, back in steps:
        origin, to = (B, A) if back else (A, B)
        now = max(now + pause, waits[origin])
        debt = one.owe(origin, to, size, now)
        if debt is None:
            assert passed >= quota
            continue
        passed, sent[origin] = passed + size + EACH, sent[origin] + size + EACH
        waits[origin] = now + debt
        assert sent[origin] <= rate * waits[origin] + 128 * 1024 + EACH
    assert passed <= quota + 65_536 + EACH
    if passed >= quota:
        assert one.admit(A, B, now) and not one.admit(A, B, now + DAY)
