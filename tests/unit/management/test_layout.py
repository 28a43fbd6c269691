# SPDX-License-Identifier: GPL-3.0-or-later
from math import hypot
from statistics import mean

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.management.layout import MARGIN, Pair, Place, lay_out

REGIONS = {f"n{number:03}": ("eu", "us", "ap")[number % 3] for number in range(60)}


def pairs(regions: dict[str, str]) -> list[Pair]:
    """5 ms within a region, 150 ms between two."""
    nodes = sorted(regions)
    return [
        Pair(one, two, 0.005 if regions[one] == regions[two] else 0.15)
        for place, one in enumerate(nodes)
        for two in nodes[:place]
    ]


def apart(places: dict[str, Place], one: str, two: str) -> float:
    return hypot(places[one].x - places[two].x, places[one].y - places[two].y)


def test_members_with_short_round_trips_stand_near_each_other() -> None:
    places = lay_out(REGIONS, pairs(REGIONS))
    near = mean(apart(places, p.one, p.two) for p in pairs(REGIONS) if p.rtt < 0.1)
    far = mean(apart(places, p.one, p.two) for p in pairs(REGIONS) if p.rtt > 0.1)
    assert far > 2.5 * near


def test_round_trips_say_more_than_regions() -> None:
    """Regions are members' own words, and here they lie."""
    told = dict.fromkeys(REGIONS, "one")
    places = lay_out(told, pairs(REGIONS))
    near = mean(apart(places, p.one, p.two) for p in pairs(REGIONS) if p.rtt < 0.1)
    far = mean(apart(places, p.one, p.two) for p in pairs(REGIONS) if p.rtt > 0.1)
    assert far > 2 * near


def test_the_same_mesh_gives_the_same_map_in_any_order() -> None:
    assert lay_out(REGIONS, pairs(REGIONS)) == lay_out(dict(reversed(REGIONS.items())), pairs(REGIONS)[::-1])


def test_a_member_that_comes_hardly_moves_the_others() -> None:
    before = lay_out(REGIONS, pairs(REGIONS))
    more = REGIONS | {"new": "eu"}
    after = lay_out(more, pairs(more), before)
    moved = [hypot(after[n].x - before[n].x, after[n].y - before[n].y) for n in REGIONS]
    assert mean(moved) < 0.03
    assert apart(after, "new", "n000") < apart(after, "new", "n001")


def test_members_do_not_stand_on_each_other() -> None:
    alone = {f"n{number}": "" for number in range(400)}
    places = lay_out(alone, [Pair("n0", node, 0.001) for node in alone])
    assert len(set(places.values())) == 400
    nodes = sorted(alone)
    close = sum(apart(places, one, two) < 0.01 for i, one in enumerate(nodes) for two in nodes[:i])
    assert close < 20


NODES = st.sampled_from([f"n{number}" for number in range(12)])


@given(
    regions=st.dictionaries(NODES, st.sampled_from(["", "eu", "us"]), min_size=1),
    told=st.lists(st.tuples(NODES, NODES, st.floats(0, 3600)), max_size=40),
    known=st.dictionaries(NODES, st.tuples(st.floats(0, 1), st.floats(0, 1))),
)
def test_every_member_has_a_place_within_the_picture(
    regions: dict[str, str], told: list[tuple[str, str, float]], known: dict[str, tuple[float, float]]
) -> None:
    before = {node: Place(x, y) for node, (x, y) in known.items()}
    places = lay_out(regions, [Pair(*one) for one in told], before)
    assert places.keys() == regions.keys()
    for place in places.values():
        assert MARGIN <= place.x <= 1 - MARGIN and MARGIN <= place.y <= 1 - MARGIN
