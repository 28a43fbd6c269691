# SPDX-License-Identifier: GPL-3.0-or-later
"""When a node may drain, and when nothing is left to do for others."""

from __future__ import annotations

from dataclasses import replace

import pytest
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


def other(node: Identity = ONE, *, draining: bool = True, region: str = "eu") -> Entry:
    found = entry(node, "other", (), (), region)
    return replace(found, record=structs.replace(found.record, condition=Condition(draining)))


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
    Draining(TWO.node_id, "eu").begin([other()], late + FOR, force=False, now=0.0, wall=late)


def test_of_two_that_begin_at_once_the_greater_node_id_gives_way() -> None:
    assert begun().gives_way([other(ONE)], 1.0, NOW) == "other"
    assert begun().gives_way([other(ONE)], AT_ONCE + 1.0, NOW) == ""
    assert begun(force=True).gives_way([other(ONE)], 1.0, NOW) == ""
    first = Draining(ONE.node_id, "eu")
    first.begin((), NOW + FOR, force=False, now=0.0, wall=NOW)
    assert first.gives_way([other(TWO)], 1.0, NOW) == ""


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


def test_what_an_earlier_run_began_goes_on_beside_others() -> None:
    draining = Draining(TWO.node_id, "eu", Drained(NOW, NOW + FOR))
    assert draining.on and draining.gives_way([other(ONE)], 1000.0, NOW) == ""
    draining.begin([other(ONE)], NOW + FOR, force=False, now=1000.0, wall=NOW)
