# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes that may not take just any dimension: what they are dealt, and when they are closed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config.sections import Goal
from phantommesh.dimensions import ALL, DIMENSIONS, bits, has
from phantommesh.scatter.epochs import EQUAL, EpochCounts, Keying, PeerScatter, ScatterPeer
from phantommesh.scatter.epochs import Numbers as EpochNumbers
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.intents import TrafficClass
from phantommesh.scatter.limits import DIRECT, FREE, Limits
from phantommesh.scatter.peermap import CLOSED, DROPPED, PeerMap, mark
from phantommesh.scatter.plan import Plan
from phantommesh.scatter.ruleset import render_peer, render_removal
from phantommesh.secret import Secret
from tests.unit.scatter.test_plan import FRAME, Counters, at, peer, placed

KEYING = Keying(1, Secret(b"1" * 32))
ONE, TWO = b"1" * 16, b"2" * 16
HANDS = (DIRECT, DIRECT, ONE, ONE, ONE, TWO, TWO)


def traffic(name: str, goal: Goal = "order", hands: int = 1) -> TrafficClass:
    return TrafficClass(name, goal, SCHEDULES[goal], (f"meta skuid {len(name)}",), True, hands)


def limited(limits: Limits, *classes: TrafficClass, number: int = 2) -> ScatterPeer:
    return replace(peer(number), classes=classes, limits=limits)


def dealt(part: PeerMap) -> set[int]:
    """The low bits of all cards of a part, those of split flows too."""
    return {value & 15 for elements in replace(part, classes=()).maps.values() for value in elements.values()}


def of(*dimensions: int) -> int:
    return bits(i in dimensions for i in range(DIMENSIONS))


classes = st.lists(
    st.builds(
        traffic, st.sampled_from(("a", "bb")),
        st.sampled_from(("auto", "throughput", "order", "latency", "private")), st.integers(1, 4),
    ),
    min_size=1, max_size=7,
)  # fmt: skip
scores = st.tuples(*[st.sampled_from((0.0, 0.125, 1.0))] * DIMENSIONS)
hands = st.tuples(*[st.sampled_from((DIRECT, ONE, TWO))] * DIMENSIONS)


@given(classes, st.data(), scores, hands, st.none() | st.integers(0, DIMENSIONS - 1))
def test_a_class_is_dealt_what_it_may_take_or_nothing(
    classes: list[TrafficClass], data: st.DataObject, scores: tuple[float, ...], hands: tuple[bytes, ...],
    quickest: int | None,
) -> None:  # fmt: skip
    allowed = tuple(data.draw(st.integers(0, ALL)) for _ in classes)
    address = peer(2)
    found = PeerScatter(
        b"n" * 16, 4, (address.ip4, address.ip6), SCHEDULES["auto"], 8, EpochNumbers(), tuple(classes)
    )
    made = found.open(KEYING, scores, at(0.0), quickest=quickest, limits=Limits(allowed, hands))
    assert dealt(made) == ({i + 1 for i in range(DIMENSIONS) if scores[i]} or {DROPPED})
    assert found.current is not None
    for one, part, counts, may in zip(
        classes, made.classes, found.current.classes[:-1], allowed, strict=True
    ):
        able = {i for i in range(DIMENSIONS) if has(may, i) and scores[i]}
        cards = dealt(part)
        if len({hands[i] for i in able}) >= one.hands:
            assert cards <= {i + 1 for i in able} and cards and not counts.closed
            if not one.schedule.quickest:
                assert len({hands[card - 1] for card in cards}) >= one.hands
        else:
            assert counts.closed == any(scores)
            assert cards == {CLOSED if any(scores) else DROPPED} and sum(counts.cards) == 0


def test_a_quickest_dimension_that_a_class_may_not_take_is_not_taken_by_it() -> None:
    found = limited(Limits((of(1, 2), ALL)), traffic("a", "latency"), traffic("b", "latency"))
    assert found.capacities(EQUAL, 5) == [EQUAL, (0, 1, 1, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1, 0)]
    assert found.capacities(EQUAL, 2)[1] == (0, 0, 1, 0, 0, 0, 0)


def test_what_a_closed_class_sends_is_dropped_and_counted_apart() -> None:
    plan = placed(limited(Limits((0, ALL)), traffic("a"), traffic("b")))
    assert plan.closed() == {"a": [peer(2).node_id]}
    counters = Counters()
    counters |= {mark(1, p, i, n): (0, 0) for n in range(3) for p in (0, 1) for i in range(DIMENSIONS)}
    counters[1 << 8 | 1 << 5 | CLOSED] = 4, 40
    counters[1 << 8 | 2 << 5 | DROPPED] = 3, 30
    assert plan.read(counters).fresh == Counter({"scatter-closed": 4, "scatter-drained": 3})
    text = plan.whole(FRAME, plan.ways, at(1.0)).text
    assert f"meta mark & 15 {{ {CLOSED}, {DROPPED} }} drop" in text


def test_the_marks_of_closed_classes_are_there_to_be_counted() -> None:
    found = PeerScatter(
        b"n" * 16, 4, (peer(2).ip4, peer(2).ip6), SCHEDULES["order"], 8, EpochNumbers(), (traffic("a"),)
    )
    made = found.open(KEYING, EQUAL, at(0.0), limits=Limits((0,)))
    listed = render_peer(FRAME, made).split("hits { ")[2].split(" }")[0].split(", ")
    assert str(4 << 8 | 1 << 5 | CLOSED) in listed and set(made.classes[0].elements.values()) <= set(
        map(int, listed)
    )


def confined(plan: Plan, to: ScatterPeer, now: float) -> dict[str, set[int]]:
    """The cards of the maps that change, by name, once a peer is like this."""
    assert plan.change(to, at(now))
    rotation = plan.rotation(plan.limited(), at(now))
    plan.close(rotation, Counters(), at(now))
    return {name: {value & 15 for value in map_.values()} for name, map_ in rotation.maps.items()}


def test_a_class_leaves_a_dimension_as_soon_as_it_may_not_take_it() -> None:
    plan = placed(limited(Limits((ALL, ALL)), traffic("a"), traffic("b")), peer(3))
    assert not plan.limited() and plan.due(at(0.1)) == []
    changed = limited(Limits((of(0), ALL)), traffic("a"), traffic("b"))
    assert plan.change(changed, at(1.0))
    assert plan.limited() == plan.due(at(1.0)) == [peer(2).node_id]
    assert confined(plan, changed, 1.0) == {
        "deck_1": set(range(1, 8)), "deck_1_1": {1}, "deck_1_2": set(range(1, 8)),
    }  # fmt: skip
    assert not plan.limited() and not plan.change(changed, at(2.0))
    assert confined(plan, limited(Limits((0, ALL)), traffic("a"), traffic("b")), 3.0)["deck_1_1"] == {CLOSED}
    assert confined(plan, limited(FREE, traffic("a"), traffic("b")), 4.0)["deck_1_1"] == set(range(1, 8))


def test_a_map_whose_class_has_to_leave_a_dimension_does_not_rest() -> None:
    plan = placed(limited(FREE, traffic("a")))
    plan.change(limited(Limits((0,)), traffic("a")), at(1.0))
    assert not plan.can_rest(at(1.0))
    plan.rest(at(1.0))
    assert plan.due(at(1.0)) == [peer(2).node_id]


def test_a_dimension_that_ends_has_a_class_closed_that_has_no_other() -> None:
    plan = placed(limited(Limits((of(3),)), traffic("a", "latency")))
    node_id = peer(2).node_id
    assert plan.score({node_id: EQUAL}, {node_id: 5}) == [] and not plan.closed()
    dark = tuple(float(i != 3) for i in range(DIMENSIONS))
    assert plan.score({node_id: dark}, {node_id: 5}) == [node_id]
    plan.rotation([node_id], at(1.0))
    assert plan.closed() == {"a": [node_id]}
    assert plan.score({node_id: (0.0,) * DIMENSIONS}) == [node_id]
    plan.rotation([node_id], at(2.0))
    assert not plan.closed(), "all is drained, so no constraint keeps anything from being sent"


def test_too_few_hands_close_a_class_and_as_many_as_wanted_open_it() -> None:
    three = traffic("a", "throughput", hands=3)
    plan = placed(limited(Limits((ALL,), HANDS), three))
    assert not plan.closed()
    before = limited(Limits((ALL,), (*HANDS[:5], ONE, ONE)), three)
    assert confined(plan, before, 1.0)["deck_1_1"] == {CLOSED}
    assert confined(plan, limited(Limits((ALL,), HANDS), three), 2.0)["deck_1_1"] == set(range(1, 8))


def test_an_epoch_in_which_a_class_kept_to_some_dimensions_is_not_by_its_plan() -> None:
    found = PeerScatter(
        b"n" * 16, 4, (peer(2).ip4, peer(2).ip6), SCHEDULES["order"], 8, EpochNumbers(),
        (traffic("a"), traffic("b")),
    )  # fmt: skip

    def read(number: int) -> EpochCounts:
        parity = found.open(KEYING, EQUAL, at(0.0), limits=Limits((of(0, 1), ALL))).parity
        found.read({mark(4, parity, 0, number): (5, 50)})
        assert found.current is not None
        return found.current

    assert not read(1).by_plan and read(2).by_plan


def test_a_confined_class_never_takes_the_fallback() -> None:
    found = PeerScatter(
        b"n" * 16, 4, (peer(2).ip4, peer(2).ip6), SCHEDULES["order"], 8, EpochNumbers(),
        (traffic("a"), TrafficClass("b", "order", SCHEDULES["order"], ("meta skuid 1",))),
    )  # fmt: skip
    made = found.open(KEYING, EQUAL, at(0.0), limits=Limits((ALL, ALL)))
    text, gone = render_peer(FRAME, made), render_removal(FRAME, made)
    assert f"peer_4_1 meta mark set {4 << 8 | 1 << 5 | CLOSED} goto out" in text
    assert f"peer_4_2 meta mark set {4 << 8 | 2 << 5} goto out" in text, "the fallback"
    assert f"add element netdev phantommesh_pm confined {{ {4 << 8 | 1 << 5} }}" in text
    assert f"delete element netdev phantommesh_pm confined {{ {4 << 8 | 1 << 5} }}" in gone
    assert text.count(" confined ") == gone.count(" confined ") == 1
