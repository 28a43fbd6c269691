# SPDX-License-Identifier: GPL-3.0-or-later
"""When a dimension is to go over a relay, when no more, and which relays could serve."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.node.lacking import GONE, KEEP, LACK, UNPROVED, Lacking, family, round_trip
from phantommesh.paths.effects import PathView
from phantommesh.paths.state import PathState
from phantommesh.records.record import RelayOffer
from phantommesh.routing.ways import Kind, Way
from phantommesh.wireguard.device import Endpoint
from tests.support.makemesh import identity, plain_record

UP = PathView(PathState.UP, 1.0, 0.02, 0.0, 0.0, 1.0, 1.0, 0.1, 0.1, True)
DARK = replace(UP, state=PathState.DARK, answers=False)
FRESH = replace(UP, answered=None, answers=False, rtt=None)
CLOSED = replace(FRESH, state=PathState.CLOSED)
RELAY, OTHER = b"r" * 16, b"s" * 16
RELAYED = Way(Kind.RELAYED, Endpoint("192.0.2.1", 51810), relay=RELAY)
DIRECT = Way(Kind.DIRECT, Endpoint("192.0.2.2", 51820))
NONE: list[Way | None] = [None] * DIMENSIONS


def test_a_lease_is_kept_while_wireguard_goes_back_to_it() -> None:
    lacking = Lacking()
    lacking.look(1, [DARK] * 7, NONE, 0.0)
    lacking.look(1, [DARK] * 7, NONE, 1.0)
    direct = [DIRECT, *NONE[1:]]
    assert lacking.look(1, [UP] * 7, direct, 2.0) == 1
    for now in (2.0 + KEEP - 0.1, 2.0 + 2 * KEEP - 0.2):
        assert lacking.look(1, [UP] * 7, direct, now, back=1) == 1
    assert lacking.look(1, [UP] * 7, direct, now + KEEP - 0.1, back=2) == 1
    assert lacking.look(1, [UP] * 7, direct, now + KEEP) == 0


@pytest.mark.parametrize(("path", "after"), [(DARK, LACK), (CLOSED, LACK), (FRESH, UNPROVED)])
def test_a_dimension_without_a_direct_way_goes_over_a_relay_after_a_while(
    path: PathView, after: float
) -> None:
    lacking = Lacking()
    paths = [path, *[UP] * 6]
    assert lacking.look(ALL, paths, NONE, 0.0) == 0
    assert not lacking.settled
    assert lacking.look(ALL, paths, NONE, after - 0.01) == 0
    assert lacking.look(ALL, paths, NONE, after) == 1


def test_without_keys_nothing_is_wanted() -> None:
    lacking = Lacking()
    for now in (0.0, 10.0):
        assert lacking.look(0, [CLOSED] * 7, NONE, now) == 0
    assert lacking.settled


def test_a_dimension_stays_over_its_relay_until_a_direct_way_is_on_offer_and_a_while_longer() -> None:
    lacking = Lacking()
    lacking.look(1, [DARK] * 7, NONE, 0.0)
    assert lacking.look(1, [DARK] * 7, NONE, 1.0) == 1
    over = [RELAYED, *NONE[1:]]
    assert lacking.look(1, [UP] * 7, over, 1000.0) == 1
    direct = [DIRECT, *NONE[1:]]
    assert lacking.look(1, [UP] * 7, direct, 1001.0) == 1
    assert lacking.look(1, [UP] * 7, direct, 1001.0 + KEEP - 0.1) == 1
    assert lacking.look(1, [UP] * 7, direct, 1001.0 + KEEP) == 0
    assert lacking.settled


@given(st.lists(st.tuples(st.sampled_from([UP, DARK, FRESH, CLOSED]), st.floats(0.01, 3.0)), max_size=30))
def test_a_direct_way_that_works_for_long_needs_no_relay_whatever_was(
    steps: list[tuple[PathView, float]],
) -> None:
    lacking, now = Lacking(), 0.0
    for path, seconds in steps:
        now += seconds
        lacking.look(ALL, [path] * 7, NONE, now)
    lacking.look(ALL, [UP] * 7, NONE, now)
    assert lacking.look(ALL, [UP] * 7, NONE, now + KEEP + 0.1) == 0
    assert lacking.settled


def test_a_relay_is_gone_when_all_that_goes_over_it_is_dark_for_a_while() -> None:
    lacking = Lacking()
    ways: list[Way | None] = [RELAYED, RELAYED, replace(RELAYED, relay=OTHER), *NONE[3:]]
    dark = [DARK, DARK, UP, *[UP] * 4]
    assert lacking.gone(dark, ways, 0.0) == []
    assert lacking.gone(dark, ways, GONE) == [RELAY]
    assert lacking.gone(dark, ways, GONE + 0.1) == []
    assert lacking.gone([DARK, UP, UP, *[UP] * 4], ways, 100.0) == []


def test_only_a_direct_way_counts_for_the_distance() -> None:
    near = replace(UP, rtt=0.001)
    assert round_trip([near, *[UP] * 6], NONE) == 0.001
    assert round_trip([near, *[UP] * 6], [RELAYED, *NONE[1:]]) == 0.02
    assert round_trip([DARK] * 7, NONE) is None


@pytest.mark.parametrize(
    ("families", "one", "two", "found"),
    [
        (3, "192.0.2.1:1", "192.0.2.2:1", 4),
        (3, "[2001:db8::1]:1", "[2001:db8::2]:1", 6),
        (3, "192.0.2.1:1", "[2001:db8::2]:1", None),
        (1, "[2001:db8::1]:1", "[2001:db8::2]:1", None),
        (2, "192.0.2.1:1", "192.0.2.2:1", None),
        (2, "vpn.example.net:1", "[2001:db8::2]:1", 6),
    ],
)
def test_no_pair_is_offered_a_relay_that_cannot_forward(
    families: int, one: str, two: str, found: int | None
) -> None:
    ends = [
        structs.replace(plain_record(identity(name)), control=(at,)) for name, at in (("a", one), ("b", two))
    ]
    relay = structs.replace(plain_record(identity("r")), relay=RelayOffer(51810, families))
    assert family(relay, *ends) == family(relay, *ends[::-1]) == found
    assert family(structs.replace(relay, relay=None), *ends) is None
