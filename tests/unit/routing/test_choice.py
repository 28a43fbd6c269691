# SPDX-License-Identifier: GPL-3.0-or-later
"""Which relays a pair uses: the cheapest two, kept until a change is worth it."""

from __future__ import annotations

from collections import Counter
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.paths.cost import MARGIN, SHARE
from phantommesh.routing.choice import HOLD, WAYS, Choice, Need, Offer, hop, latency
from phantommesh.routing.neighbours import Link
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

P, Q, R, S = (NodeId(bytes((n,)) * 16) for n in range(1, 5))
SEVEN = range(7)


def offers(**milliseconds: float) -> list[Offer]:
    relays = {"p": P, "q": Q, "r": R, "s": S}
    return [Offer(relays[name], ms / 2000, ms / 2000) for name, ms in milliseconds.items()]


def test_two_dimensions_go_over_two_relays_the_cheapest() -> None:
    assert Choice().decide((0, 1), offers(p=50, q=20, r=30), 0.0) == {0: Q, 1: R}
    assert Choice().decide((0,), offers(p=50, q=20), 0.0) == {0: Q}
    assert Choice().decide((0, 1), offers(p=50), 0.0) == {0: P, 1: P}
    assert Choice().decide((0, 1), [], 0.0) == {}


def test_seven_dimensions_are_shared_evenly() -> None:
    assert Counter(Choice().decide(SEVEN, offers(p=50, q=20, r=30), 0.0).values()) == {Q: 4, R: 3}


def test_a_relay_that_is_gone_is_left_at_once_and_no_other_dimension_moves() -> None:
    choice = Choice()
    before = choice.decide(SEVEN, offers(p=50, q=20, r=30), 0.0)
    after = choice.decide(SEVEN, offers(p=50, q=20), 0.1)
    assert {d: after[d] for d in SEVEN if before[d] == Q} == {d: Q for d in SEVEN if before[d] == Q}
    assert {after[d] for d in SEVEN if before[d] == R} == {P}


def test_a_little_less_is_not_worth_a_change() -> None:
    choice = Choice()
    choice.decide((0, 1), offers(p=50, q=50, r=60), 0.0)
    assert set(choice.decide((0, 1), offers(p=50, q=50, r=41), HOLD).values()) == {P, Q}
    assert set(choice.decide((0, 1), offers(p=50, q=50, r=30), HOLD).values()) == {P, R}


def test_changes_for_costs_sake_keep_their_distance() -> None:
    choice = Choice()
    choice.decide((0, 1), offers(p=90, q=90), 0.0)
    assert set(choice.decide((0, 1), offers(p=90, q=90, r=10, s=10), HOLD - 1).values()) == {P, Q}
    assert set(choice.decide((0, 1), offers(p=90, q=90, r=10, s=10), HOLD).values()) == {P, R}
    assert set(choice.decide((0, 1), offers(p=90, q=90, r=10, s=10), HOLD + 1).values()) == {P, R}
    assert set(choice.decide((0, 1), offers(p=90, q=90, r=10, s=10), 2 * HOLD).values()) == {R, S}


def test_a_second_relay_that_comes_is_used_at_once() -> None:
    choice = Choice()
    choice.decide((0, 1), offers(p=10), 0.0)
    assert choice.decide((0, 1), offers(p=10, q=500), 0.1) == {0: P, 1: Q}


def test_a_dimension_that_still_needs_a_relay_stays_where_it_is() -> None:
    choice = Choice()
    choice.decide((0, 1), offers(p=10, q=20), 0.0)
    assert choice.decide((1,), offers(p=10, q=20), 1.0) == {1: Q}


def test_a_relay_cannot_talk_its_cost_below_what_is_measured() -> None:
    assert Offer(P, 0.05, -1.0).cost == 0.05


COSTS = st.dictionaries(st.sampled_from("pqrs"), st.floats(0, 500), max_size=4)


@given(st.lists(st.tuples(st.sets(st.sampled_from(SEVEN)), COSTS, st.floats(0, 60)), max_size=8))
def test_every_dimension_has_a_relay_that_offers_and_shares_differ_by_one(
    rounds: list[tuple[set[int], dict[str, float], float]],
) -> None:
    choice, now = Choice(), 0.0
    for dimensions, costs, later in rounds:
        now += later
        offered = offers(**costs)
        chosen = choice.decide(dimensions, offered, now)
        assert set(chosen) == (dimensions if offered else set())
        used = Counter(chosen.values())
        assert set(used) <= {offer.relay for offer in offered}
        assert len(used) == min(WAYS, len(offered), len(dimensions))
        assert not used or max(used.values()) - min(used.values()) <= 1
        assert choice.decide(dimensions, offered, now) == chosen


COSTS = st.dictionaries(st.sampled_from([P, Q, R, S]), st.floats(0.001, 1.0))


@given(st.floats(0.001, 1.0) | st.just(inf), COSTS, COSTS, st.sampled_from([None, P, Q, R, S]))
def test_one_hop_is_left_only_for_what_costs_less_by_the_margin(
    direct: float, near: dict[NodeId, float], far: dict[NodeId, float], held: NodeId | None
) -> None:
    costs: dict[NodeId | None, float] = {r: near[r] + far[r] for r in near.keys() & far.keys()}
    costs[None] = direct
    chosen, cost = hop(direct, near, far, held)
    assert costs[chosen] == cost
    before = held if held in costs else None
    least = min(costs.values())
    if chosen == before:
        assert costs[before] == least or costs[before] - least <= max(MARGIN, SHARE * costs[before])
    else:
        assert cost == least
        assert costs[before] == inf or costs[before] - cost > max(MARGIN, SHARE * costs[before]) * (1 - 1e-9)
    assert hop(direct, near, far, chosen) == (chosen, cost)  # nothing has changed, so nothing moves


def test_noise_moves_no_hop_and_a_slow_link_does() -> None:
    near, far, held = {P: 0.02, Q: 0.03}, {P: 0.03, Q: 0.03}, None
    for direct in (0.05, 0.055, 0.06, 0.052, 0.045):
        held, _ = hop(direct, near, far, held)
        assert held is None
    held, _ = hop(0.13, near, far, held)
    assert held == P
    for noise in (0.002, -0.002, 0.004):
        held, _ = hop(0.048, {**near, P: 0.02 + noise}, far, held)
        assert held == P


def test_jitter_and_loss_cost_traffic_that_waits() -> None:
    quiet = Link(0.05, 0.0, 0.0, Kind.DIRECT)
    assert latency(quiet) == 0.05
    assert latency(Link(0.05, 0.02, 0.0, Kind.DIRECT)) > latency(Link(0.05, 0.0, 0.05, Kind.DIRECT)) > 0.05


def test_a_relay_that_a_class_needs_is_taken_beside_the_cheapest() -> None:
    choice, offered = Choice(), offers(p=10, q=20, r=30, s=40)
    only = [Need(lambda relay: relay in (R, S))]
    first = choice.decide(SEVEN, offered, 0.0, only)
    assert Counter(first.values()) == {P: 3, Q: 2, R: 2}
    assert choice.decide(SEVEN, offered, 10 * HOLD, only) == first
    # Another that would serve as well is no reason to leave the one that does.
    assert choice.decide(SEVEN, offers(p=10, q=20, r=30, s=29), 20 * HOLD, only) == first
    assert set(choice.decide(SEVEN, offers(p=10, q=20, s=40), 21 * HOLD, only).values()) == {P, Q, S}
    assert set(choice.decide(SEVEN, offered, 22 * HOLD).values()) == {P, Q}, "no class needs it now"


def test_as_many_relays_are_taken_as_a_class_needs() -> None:
    offered = offers(p=10, q=20, r=30, s=40)
    three = Need(lambda relay: True, 3)
    assert set(Choice().decide(SEVEN, offered, 0.0, [three]).values()) == {P, Q, R}
    two = Need(lambda relay: relay in (R, S), 2)
    assert set(Choice().decide(SEVEN, offered, 0.0, [three, two]).values()) == {P, Q, R, S}
    assert set(Choice().decide((0, 1, 2), offered, 0.0, [three, two]).values()) == {P, Q, R}, (
        "no more dimensions"
    )
    assert Choice().decide(SEVEN, [], 0.0, [three]) == {}


@given(
    st.lists(st.tuples(st.frozensets(st.sampled_from((P, Q, R, S))), st.integers(1, 4)), max_size=3),
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("pqrs"), st.integers(1, 200), max_size=4), st.integers(1, 7),
            st.floats(0, 40),
        ),
        min_size=1, max_size=6,
    ),
)  # fmt: skip
def test_needs_are_met_as_far_as_offers_and_dimensions_go_and_the_choice_stands(
    needs: list[tuple[frozenset[NodeId], int]], steps: list[tuple[dict[str, float], int, float]]
) -> None:
    wanted, choice, now = [Need(allowed.__contains__, count) for allowed, count in needs], Choice(), 0.0
    for costs, dimensions, pause in steps:
        now += pause
        offered = offers(**costs)
        found = dict(choice.decide(range(dimensions), offered, now, wanted))
        there = {one.relay for one in offered}
        assert set(found.values()) <= there and len(found) == (dimensions if there else 0)
        if dimensions == 7:
            for allowed, count in needs:
                assert len(allowed & {*found.values()}) >= min(count, len(allowed & there))
        # One relay may do for two classes, which is seen once it is held.
        settled = [choice.decide(range(dimensions), offered, now, wanted) for _ in range(len(needs) + 2)]
        assert settled[-2] == settled[-1] and {*settled[-1].values()} <= {*found.values()}
