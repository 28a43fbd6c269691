# SPDX-License-Identifier: GPL-3.0-or-later
"""When a node may drain, and when nothing is left to do for others."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.node.draining import (
    AT_ONCE,
    HEARD,
    LONGEST,
    QUIET,
    Drained,
    Draining,
    DrainRefusedError,
    Work,
)
from phantommesh.records.record import Condition
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import Identity
from tests.support.makemesh import NOW
from tests.unit.node.test_routes import ONE, TWO, entry

FOR = 3600.0


member = cache(partial(entry, name="other", grants=(), says=()))


def other(
    node: Identity = ONE, *, draining: bool = True, region: str = "eu", until: float = NOW + FOR
) -> Entry:
    found = member(node, region=region)
    condition = Condition(draining, until=int(until))
    return replace(found, record=structs.replace(found.record, condition=condition))


def begun(**more: bool) -> Draining:
    draining = Draining(TWO.node_id, "eu")
    draining.begin((), NOW + FOR, force=more.get("force", False), now=0.0, wall=NOW)
    return draining


def test_a_second_one_of_a_region_is_refused_unless_forced() -> None:
    draining = Draining(TWO.node_id, "eu")
    with pytest.raises(DrainRefusedError, match="other drains in the region eu") as caught:
        draining.begin([other()], NOW + FOR, force=False, now=0.0, wall=NOW)
    assert "--wait" in caught.value.fix and not draining.on
    for free in (other(region="us"), other(draining=False)):
        Draining(TWO.node_id, "eu").begin([free], NOW + FOR, force=False, now=0.0, wall=NOW)
    draining.begin([other()], NOW + FOR, force=True, now=0.0, wall=NOW)
    assert draining.on


def test_a_member_whose_certificate_ran_out_holds_nobody_up() -> None:
    late = NOW + 365 * 86_400.0
    gone = other(until=late + FOR)
    Draining(TWO.node_id, "eu").begin([gone], late + FOR, force=False, now=0.0, wall=late)


def test_of_two_that_begin_at_once_the_greater_node_id_gives_way() -> None:
    assert begun().gives_way([other(ONE)], 1.0, NOW) == "other"
    assert begun().gives_way([other(ONE)], AT_ONCE + 1.0, NOW) == ""
    assert begun(force=True).gives_way([other(ONE)], 1.0, NOW) == ""
    first = Draining(ONE.node_id, "eu")
    first.begin((), NOW + FOR, force=False, now=0.0, wall=NOW)
    assert first.gives_way([other(TWO)], 1.0, NOW) == ""


def test_a_member_that_went_while_it_drained_holds_nobody_up_once_its_time_is_over() -> None:
    draining = Draining(TWO.node_id, "eu")
    gone = other(until=NOW + FOR)
    with pytest.raises(DrainRefusedError):
        draining.check([gone], force=False, now=0.0, wall=NOW + FOR - 1.0)
    draining.check([gone], force=False, now=0.0, wall=NOW + FOR)
    draining.check([other(until=0)], force=False, now=0.0, wall=NOW)


def test_a_member_that_drains_for_ever_holds_its_region_up_for_a_day_and_then_half_of_the_time() -> None:
    draining, held = Draining(TWO.node_id, "eu"), list[bool]()
    for minute in range(3 * 1440):
        now = 60.0 * minute
        flag = other(draining=minute < 1500 or minute % 2 == 0, until=NOW + now + FOR)
        held.append(bool(draining.holding([flag], now, NOW + now)))
    assert all(held[:1440]) and not any(held[1440:1500])
    assert sum(held[1500:]) <= len(held[1500:]) / 2
    # It was at work for a day: its next turn is as long as the first.
    rested = (3 * 1440 + 1440 + 1) * 60.0
    assert draining.holding([other(draining=False)], rested, NOW + rested) == []
    at = rested + 3600.0
    assert draining.holding([other(until=NOW + at + FOR)], at, NOW + at)


def test_it_gives_way_to_one_member_once_a_day() -> None:
    draining = begun()
    assert draining.gives_way([other(ONE)], 1.0, NOW) == "other"
    draining.end()
    draining.begin((), NOW + 2 * FOR, force=False, now=60.0, wall=NOW + 60.0)
    assert draining.gives_way([other(ONE)], 61.0, NOW + 61.0) == ""
    later = LONGEST + 2.0
    draining.end()
    draining.begin((), NOW + later + FOR, force=False, now=later, wall=NOW + later)
    assert draining.gives_way([other(ONE, until=NOW + later + FOR)], later, NOW + later) == "other"


@given(
    st.lists(st.tuples(st.floats(0.0, LONGEST / 4, exclude_min=True), st.booleans()), min_size=1, max_size=60)
)
def test_no_member_holds_another_up_for_more_than_a_day_and_what_it_has_rested(
    steps: list[tuple[float, bool]],
) -> None:
    draining, now, held, rested = Draining(TWO.node_id, "eu"), 0.0, 0.0, 0.0
    before = drains = False
    for passed, drains_now in steps:
        now += passed
        found = bool(draining.holding([other(draining=drains_now, until=NOW + 2**40)], now, NOW))
        assert drains_now or not found
        if not (drains or drains_now):
            rested += passed
        if before and found:
            held += passed
        before, drains = found, drains_now
    assert held <= LONGEST + rested + 1.0


def test_it_is_drained_once_all_have_heard_and_nothing_moves() -> None:
    draining, idle = begun(), Work(10, 0, 0)
    for now in (0.5, 1.0, HEARD - 0.1):
        draining.count(idle, now)
        assert not draining.idle(now)
    draining.count(idle, HEARD)
    assert draining.idle(HEARD)
    for busy in (Work(11, 0, 0), Work(11, 1, 0), Work(11, 0, 1)):
        draining.count(busy, 10.0)
        assert not draining.idle(10.0)
        draining.count(Work(11, 0, 0), 10.0 + QUIET - 0.1)
        assert not draining.idle(10.0 + QUIET - 0.1) and draining.idle(10.0 + QUIET)
    assert not Draining(TWO.node_id, "eu").idle(10.0)


def test_it_ends_with_its_time_and_lasts_a_day_at_most() -> None:
    draining = begun()
    assert not draining.over(NOW + FOR - 1.0) and draining.over(NOW + FOR)
    draining.begin((), NOW + 1e9, force=False, now=5.0, wall=NOW)
    assert draining.drained == Drained(NOW, NOW + LONGEST, False)
    assert draining.end() and not draining.end()


def test_what_began_by_a_clock_that_was_ahead_lasts_a_day_at_most() -> None:
    ahead = 5 * LONGEST
    draining = Draining(TWO.node_id, "eu", Drained(NOW + ahead, NOW + ahead + FOR, True))
    assert draining.clamp(NOW) and draining.drained == Drained(NOW, NOW + LONGEST, True)
    assert not draining.clamp(NOW) and not draining.clamp(NOW + 1.0)
    assert not draining.over(NOW + LONGEST - 1.0) and draining.over(NOW + LONGEST)
    assert not begun().clamp(NOW) and not Draining(TWO.node_id, "eu").clamp(NOW)


def test_what_an_earlier_run_began_goes_on_beside_others() -> None:
    draining = Draining(TWO.node_id, "eu", Drained(NOW, NOW + FOR))
    assert draining.on and draining.gives_way([other(ONE)], 1000.0, NOW) == ""
    draining.begin([other(ONE)], NOW + FOR, force=False, now=1000.0, wall=NOW)
