# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept of yesterday's links, and what counts as worse."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.routing.drift import (
    DAY,
    MAX_BYTES,
    MOST,
    OLD_ENOUGH,
    Days,
    Had,
    Summary,
    decode,
    drifted,
    encode,
    follow,
    summary,
    yesterday,
)
from phantommesh.routing.neighbours import Link
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
WELL = Had(0.02, 0.0, 1.0)


def test_there_is_always_a_summary_of_half_a_day_to_two_days_ago_once_the_first_day_is_over() -> None:
    days = Days()
    for hour in range(24 * 7):
        now = 3600.0 * hour
        found = yesterday(days, now)
        assert (found is not None) == (now >= OLD_ENOUGH)
        assert found is None or OLD_ENOUGH <= now - found.at <= 2 * DAY
        days = follow(days, Summary(now, {A: WELL}))


def test_a_clock_that_was_ahead_leaves_nothing_behind() -> None:
    days = follow(Days(), Summary(5 * DAY, {A: WELL}))
    assert follow(days, Summary(DAY, {B: WELL})) == Days(Summary(DAY, {B: WELL}))


def test_worse_is_by_much_and_not_by_a_little() -> None:
    def said(now: Had) -> list[str]:
        return [how for _, how in drifted(Summary(0.0, {A: WELL}), Summary(DAY, {A: now, B: now}))]

    assert said(Had(0.08, 0.0, 1.0)) == ["20 ms of round trip then, 80 ms now"]
    assert said(Had(0.02, 0.05, 1.0)) == ["0.0 % lost then, 5.0 % now"]
    assert said(Had(0.02, 0.0, 0.3)) == ["100% of the members reached then, 30% now"]
    assert not said(Had(0.035, 0.01, 0.7))


def test_relayed_pairs_are_no_links_and_the_file_is_bounded() -> None:
    direct, relayed = Link(0.02, 0.0, 0.01, Kind.DIRECT), Link(0.9, 0.0, 0.9, Kind.RELAYED)
    assert summary({(A, B): direct}, 1.0, 7.0).members == {A: Had(0.02, 0.01, 1.0), B: Had(0.02, 0.01, 1.0)}
    assert not summary({(A, B): relayed}, 1.0, 7.0).members
    many = {
        (NodeId(n.to_bytes(16, "big")), NodeId((n + 1).to_bytes(16, "big"))): direct for n in range(2 * MOST)
    }
    full = summary(many, 2.0, 7.0)
    assert len(full.members) == MOST and len(encode(Days(full, full))) <= MAX_BYTES
    assert decode(encode(Days(full, full))) == Days(full, full)


@given(st.binary(max_size=200))
def test_whatever_is_on_disk_is_read_or_counts_as_nothing(data: bytes) -> None:
    assert isinstance(decode(data), Days)
