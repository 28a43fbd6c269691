# SPDX-License-Identifier: GPL-3.0-or-later
"""How often the tests of a scatter proof err: against exact sums, and in simulated epochs."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from phantommesh.dimensions import MAX_BATCH, MIN_BATCH, SLOTS
from phantommesh.proofs import fit, merkle
from phantommesh.proofs.reconcile import unreceived
from phantommesh.proofs.statement import Plan, Receipt, Scheduler, Seven, Statement
from phantommesh.proofs.verdict import check_statement
from phantommesh.scatter import maps
from phantommesh.secret import Secret
from tests.support.makeproofs import EQUAL, UNEQUAL, cards_of, plus, scatter, seven

ALPHA = fit.FALSE_REJECTIONS / 2


def plan(scheduler: Scheduler = "packet", run: int = 1, cards: Seven = EQUAL) -> Plan:
    return Plan(bytes(16), bytes([1]) * 16, 1, 1, scheduler, run, cards)


def binomial(n: int, count: int, p: float) -> float:
    return math.comb(n, count) * p**count * (1 - p) ** (n - count)


@pytest.mark.parametrize(
    ("x", "dof", "tail"),  # Abramowitz and Stegun, table 26.8
    [(12.5916, 6, 0.05), (16.8119, 6, 0.01), (22.4577, 6, 0.001), (11.0705, 5, 0.05), (3.84146, 1, 0.05),
     (10.8276, 1, 0.001), (13.8155, 2, 0.001), (0.0, 6, 1.0)],
)  # fmt: skip
def test_the_chi_squared_tail_is_that_of_the_tables(x: float, dof: int, tail: float) -> None:
    assert fit.chi2_sf(x, dof) == pytest.approx(tail, rel=1e-4)


@pytest.mark.parametrize("cards", [(1, 1), (1, 3), (1, 20), (1, 255)])
def test_the_bound_holds_for_every_small_number_of_packets(cards: tuple[int, int]) -> None:
    """Exactly, over all outcomes of up to 120 packets on two dimensions."""
    p = cards[0] / sum(cards)
    for n in range(1, 121):
        by_excess = sorted(
            (fit.relative_entropy((count, n - count), cards), binomial(n, count, p)) for count in range(n + 1)
        )
        tail = 0.0
        for excess, chance in reversed(by_excess):
            tail += chance
            assert tail <= fit.gamma_bound(excess, 1) * (1 + 1e-9)


def test_the_bound_holds_exactly_on_three_dimensions() -> None:
    cards = (1, 4, 11)
    for n in (1, 2, 5, 17, 40):
        outcomes = []
        for a in range(n + 1):
            for b in range(n - a + 1):
                chance = binomial(n, a, 1 / 16) * binomial(n - a, b, 4 / 15)
                outcomes.append((fit.relative_entropy((a, b, n - a - b), cards), chance))
        tail = 0.0
        for excess, chance in sorted(outcomes, reverse=True):
            tail += chance
            assert tail <= fit.gamma_bound(excess, 2) * (1 + 1e-9)


def test_where_the_line_is_drawn() -> None:
    """The figures of docs/proofs.md: an equal plan and a file of one proof."""
    lines = [x / 100 for x in range(600, 5000) if fit.gamma_bound(x / 100, 6) <= ALPHA / 2]
    assert 2 * lines[0] == pytest.approx(62.14)

    def seen(packets: list[int]) -> int:
        n = 1
        while not fit.misfit(
            plan(), seven([n * p for p in packets]), seven([n * p * 100 for p in packets]), ALPHA
        ):
            n += 1
        return n * sum(packets)

    assert seen([0, 1, 1, 1, 1, 1, 1]) == 204  # packets until a starved dimension is seen
    assert seen([12, 5, 5, 5, 5, 5, 5]) == 462  # one that has twice its share


@pytest.mark.parametrize("cards", [EQUAL, UNEQUAL, seven([146] * 7), (5, 5, 0, 0, 90, 155, 1)])
def test_a_deck_keeps_to_its_span(cards: Seven) -> None:
    """The span is proved; this is the proof's check, without the slip."""
    rng = random.Random(5)
    deck = plan("deck", cards=cards)
    for n in [*range(1, 60), *(rng.randrange(5000) for _ in range(200))]:
        counts = scatter(rng, "deck", 1, cards, n)
        for count, card in zip(counts, cards, strict=True):
            assert abs(count - n * card / sum(cards)) <= fit._span(deck, card, n)


def test_a_dimension_without_cards_carries_nothing() -> None:
    for scheduler in ("packet", "deck", "flow", "flowlet"):
        drained = plan(scheduler, cards=(0, 1, 1, 1, 1, 1, 1))
        assert fit.misfit(drained, seven([99, *[100] * 6]), seven([9900, *[10_000] * 6]), ALPHA)
        assert not fit.misfit(drained, seven([0, *[100] * 6]), seven([0, *[10_000] * 6]), ALPHA)
    assert fit.misfit(plan(cards=(0,) * 7), (99,) * 7, (9900,) * 7, ALPHA)


def test_packets_have_sizes_that_packets_can_have() -> None:
    for size in (19, 65_576):
        assert "cannot be" in str(fit.misfit(plan(), (100,) * 7, (100 * size,) * 7, ALPHA))


def test_bytes_that_all_went_one_way_are_seen() -> None:
    octets = seven([5_000 * 60_000, *[5_000 * 60] * 6])
    assert "bytes" in str(fit.misfit(plan(), (5_000,) * 7, octets, ALPHA))


SCHEDULERS: list[tuple[Scheduler, int]] = [
    ("packet", 1), ("deck", 1), ("batch", 8), ("flow", 1), ("flowlet", 1),
]  # fmt: skip


def state(committed: Plan, packets: Seven, octets: Seven) -> Statement:
    """What an honest sender says of such counts."""
    return Statement(
        plan=committed, salt=bytes(32), number=0, previous=bytes(32), start_ms=1000, end_ms=61_000,
        packets=packets, octets=octets, wire=octets, late_open=(0,) * 7, late_close=(0,) * 7,
        shannon=fit.millionths(fit.entropy_bits(packets)),
        minimum=fit.millionths(fit.min_entropy_bits(packets)),
    )  # fmt: skip


sevens = st.tuples(*[st.integers(0, 2**63 - 1)] * 7)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans of all kinds, also such as no scheduler has; the weights favour the first dimension."""
    scheduler: Scheduler = draw(st.sampled_from(["packet", "batch", "deck"]))
    weights = [draw(st.integers(1, 200)), *(draw(st.integers(0, 20)) for _ in range(6))]
    cards = draw(st.one_of(st.just(cards_of(scheduler, weights)), st.just(seven(weights)), sevens))
    runs = st.integers(MIN_BATCH, MAX_BATCH) if scheduler == "batch" else st.just(1)
    return plan(scheduler, draw(st.one_of(runs, st.integers(1, 2**16))), cards)


@settings(max_examples=500, deadline=None)
@given(plans())
def test_what_all_went_one_way_is_not_taken_for_scattered(committed: Plan) -> None:
    """Whatever the sender wrote into its plan, unless that gives the one way nearly all."""
    packets, octets = seven([20_000, *[0] * 6]), seven([20_000 * 1420, *[0] * 6])
    if check_statement(state(committed, packets, octets), ALPHA) is None:
        assert committed.cards[0] > 0.9 * sum(committed.cards) > 0


@pytest.mark.parametrize("scheduler", maps.SCHEDULERS)
def test_a_plan_is_one_that_its_scheduler_can_have(scheduler: Scheduler) -> None:
    packets, zeros = scatter(random.Random(1), scheduler, 2, cards_of(scheduler), 40), (0,) * 7
    octets = seven([100 * count for count in packets])
    allowed = range(MIN_BATCH, MAX_BATCH + 1) if scheduler == "batch" else [1]
    for run in range(1, 100):
        found = check_statement(state(plan(scheduler, run, cards_of(scheduler)), packets, octets), ALPHA)
        assert (found is None) == (run in allowed), found
        assert run in allowed or "in a row" in str(found)
    for total in range(2048):
        committed = plan(scheduler, allowed[0], (total, 0, 0, 0, 0, 0, 0))
        found = check_statement(state(committed, zeros, zeros), ALPHA)
        assert (found is None) == (total in (0, SLOTS[scheduler])), found


def test_a_plan_without_cards_is_no_way_around() -> None:
    """Bytes without packets, or with a few that slipped."""
    for count in (0, 10):
        packets, octets = seven([count, *[0] * 6]), seven([5_000_000_000, *[0] * 6])
        found = check_statement(state(plan(cards=(0,) * 7), packets, octets), ALPHA)
        assert "cannot be" in str(found)


def test_none_of_ten_thousand_honest_epochs_is_rejected() -> None:
    """Five schedulers, random weights, few packets and many, small and large, some lost, on time or late."""
    rng = random.Random(20_261_124)
    for number in range(10_000):
        scheduler, run = SCHEDULERS[number % len(SCHEDULERS)]
        cards = cards_of(scheduler, [0 if rng.random() < 0.1 else rng.randint(1, 60) for _ in range(7)])
        if not any(cards):
            continue
        packets = scatter(rng, scheduler, run, cards, int(2 ** rng.uniform(0, 11)))
        size = rng.randint(40, 1420)
        octets = seven([count * size for count in packets])
        wire = seven([count * (size + 47) + rng.randrange(4096) for count in packets])
        late = seven([int(sent * rng.random() * 0.1) for sent in wire]), seven(rng.choices(range(5000), k=7))
        slipped = [-early + rng.randint(0, behind) for early, behind in zip(*late, strict=True)]
        received = seven([max(0, int(x * rng.uniform(0.96, 1))) for x in plus(wire, slipped)])
        statement = replace(
            state(plan(scheduler, run, cards), packets, octets),
            wire=wire,
            late_open=late[0],
            late_close=late[1],
        )
        held = 60_000 + rng.randint(-2000, 2000)
        receipt = Receipt(bytes(16), bytes(16), bytes(32), bytes(32), held, received, 61_000, received, 0)
        assert check_statement(statement, ALPHA) is None, (number, statement)
        assert unreceived(statement, receipt) is None, (number, statement, receipt)


def test_many_honest_epochs_together_are_not_rejected() -> None:
    rng = random.Random(11)
    for scheduler, run in SCHEDULERS:
        for _ in range(20):
            epochs = []
            for _ in range(60):
                cards = seven([rng.randint(10, 40) for _ in range(7)])
                epochs.append((plan(scheduler, run, cards), scatter(rng, scheduler, run, cards, 300)))
            assert fit.misfit_together(epochs, ALPHA) is None


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 100])
def test_every_leaf_has_a_way_to_the_root_and_only_its_own(size: int) -> None:
    leaves = [bytes([i]) for i in range(size)]
    root, ways = merkle.tree(leaves)
    for i, leaf in enumerate(leaves):
        assert merkle.root_of(leaf, i, size, ways[i]) == root
        for j in range(size):
            if j != i:
                assert merkle.root_of(leaf, j, size, ways[i]) != root
                assert merkle.root_of(leaf, i, size, ways[j]) != root
    assert merkle.root_of(b"\x00", size, size, ways[0]) is None


def test_an_inner_node_is_no_leaf() -> None:
    leaves = [b"a", b"b", b"c", b"d"]
    root, ways = merkle.tree(leaves)
    inner = merkle.leaf_hash(b"a") + merkle.leaf_hash(b"b")
    assert merkle.root_of(inner, 0, 2, ways[0][1:]) != root


@pytest.mark.parametrize("scheduler", ["deck", "batch"])
def test_the_scatterers_own_maps_keep_to_the_span(scheduler: Scheduler) -> None:
    """In windows of any length, from anywhere in the cycle, at equal and at very unequal scores."""
    rng = random.Random(3)
    for scores in ((1.0,) * 7, (9.0, 4.0, 2.0, 1.0, 1.0, 0.1, 0.0)):
        for number in range(5):
            secret, unequal = Secret(bytes([number]) * 32), number % 2 == 1
            keys = maps.epoch_keys(secret, bytes(16), maps.Epoch(1, number), unequal=unequal)
            cards = seven(maps.cards(scores, keys.noise, SLOTS[scheduler]))
            dealt = maps.deal(cards, scheduler, keys.stream, 8)
            committed = plan(scheduler, 8 if scheduler == "batch" else 1, cards)
            for _ in range(60):
                n, start = rng.randrange(1, 2 * len(dealt)), rng.randrange(len(dealt))
                window = (dealt * 3)[start : start + n]
                packets = seven([window.count(i) for i in range(7)])
                for count, card in zip(packets, cards, strict=True):
                    assert abs(count - n * card / sum(cards)) <= fit._span(committed, card, n)
                assert fit.misfit(committed, packets, seven([100 * p for p in packets]), ALPHA) is None
