# SPDX-License-Identifier: GPL-3.0-or-later
"""The test of received bytes: exact sums for what it is built on, and what each allowance is for."""

import math

import pytest

from phantommesh.proofs import coverage as covering
from phantommesh.proofs import spread
from phantommesh.proofs.coverage import coverage, too_little
from phantommesh.proofs.ledger import Kept
from phantommesh.proofs.review import Review
from phantommesh.proofs.spread import LARGEST_DRAW, Epoch
from phantommesh.proofs.statement import ZEROS, Proof, Receipt, Scheduler, Seven, Signed
from phantommesh.scatter import maps
from tests.support.makeproofs import cards_of, node, seven
from tests.unit.proofs.cheats import always, biased, plan_of, story
from tests.unit.proofs.telling import B, parts

QUARTER = 0.25


def epoch(received: Seven, scheduler: Scheduler = "packet", cards: Seven | None = None) -> Epoch:
    """An epoch of a node that sends nothing of its own."""
    plan = plan_of(scheduler, 0, cards)
    return Epoch(plan, spread.shares(plan), None, received, (0.0,) * 7, 60_000, 0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 30, 120])
def test_the_evidence_of_an_honest_link_has_a_mean_of_one_at_most(n: int, sign: float) -> None:
    """Exactly, over all outcomes of so many draws of the largest size, for every x that is tried."""
    for step in range(20):
        x = sign * 10.0 / 1.5**step / LARGEST_DRAW
        mean = 0.0
        for count in range(n + 1):
            chance = math.comb(n, count) * QUARTER**count * (1 - QUARTER) ** (n - count)
            drawn = [(QUARTER, float(n * LARGEST_DRAW), float(LARGEST_DRAW))]
            log = spread._evidence(drawn, x, count * LARGEST_DRAW)
            mean += chance * math.exp(log)
        assert mean <= 1 + 1e-9


@pytest.mark.parametrize("scheduler", maps.SCHEDULERS)
def test_more_bytes_make_the_bound_narrower(scheduler: Scheduler) -> None:
    """But for flows, of which there may be one, whatever its size."""

    def most(epochs: int) -> float:
        low, high = 1 / 7, 1.0
        for _ in range(12):
            share = (low + high) / 2
            received = seven([round(60_000_000 * part) for part in biased(share)])
            held = [epoch(received, scheduler)] * epochs
            low, high = (low, share) if spread.lopsided(held, 1e-6, 0.0) else (share, high)
        return low

    few, many = most(5), most(60)
    assert many < few
    limit = {"packet": 0.16, "deck": 0.18, "batch": 0.22, "flow": 0.5, "flowlet": 0.5}[scheduler]
    assert many < limit


def receipt(received: Seven, seconds: float = 60.0) -> Receipt:
    return Receipt(
        bytes(16), bytes(16), bytes(32), bytes(32), int(seconds * 1000), received, 10**6, received, 0
    )


def test_own_messages_are_like_those_on_other_dimensions() -> None:
    plan = plan_of("deck", 0)
    alone = spread.own_bytes(plan, receipt(seven([10**6, *[0] * 6])))
    assert alone[0] == 1024 * 60 + 1024
    among_others = spread.own_bytes(plan, receipt(seven([10**6, *[100_000] * 6])))
    assert among_others[0] == 2 * 100_000 + 1024 * 60 + 1024
    assert spread.own_bytes(plan, receipt((10**8,) * 7))[0] == 12 * 1024 * 60 + 1024


def test_a_gap_shows_what_came_in_it() -> None:
    def at(total: Seven, received: Seven, until: float, cuts: int = 0) -> Receipt:
        return Receipt(
            bytes(16), bytes(16), bytes(32), bytes(32), 60_000, received, int(until * 1000), total, cuts
        )

    one = (100,) * 7
    first = at(one, one, 60.0)
    follows = at(seven([200] * 7), one, 120.0)
    later = at(seven([1200, *[300] * 5, 300]), one, 240.0)
    anew = at(one, one, 240.0)
    cut = at(seven([300] * 7), one, 240.0, cuts=2)
    assert coverage([first, follows]).gaps == ()
    assert (coverage([first, follows]).time, coverage([first, follows]).bytes) == (1.0, 1.0)
    found = coverage([first, later])
    assert found.unproved == (1000, *[100] * 6) and found.time == 0.5
    assert found.bytes == pytest.approx(1400 / 3000)
    assert coverage([first, anew]).gaps[0].unseen_ms == 120_000
    assert coverage([first, cut]).gaps[0].unseen_ms == 2 * covering.CUT_MS
    # A clock that was set between two epochs of which one began at the reading that ended the other.
    set_on = at(seven([200] * 7), one, 7_000.0)
    assert coverage([first, set_on]).time == 1.0


def test_what_came_one_way_outside_of_the_proved_epochs_counts() -> None:
    big: Seven = (10**8,) * 7
    first = Receipt(bytes(16), bytes(16), bytes(32), bytes(32), 60_000, big, 60_000, big, 0)
    for extra, refused in ((10**7, False), (10**8, True)):
        total = seven([2 * 10**8 + extra, *[2 * 10**8] * 6])
        second = Receipt(bytes(16), bytes(16), bytes(32), bytes(32), 60_000, big, 130_000, total, 0)
        found = too_little(coverage([first, second]), [epoch(big, "deck")] * 2, 0.5)
        assert (found is not None and "dimension 0 outside" in found) == refused


def test_the_node_itself_judges_by_the_same_test() -> None:
    """The figures of `proofs` and the metrics on a proof: all bytes one way, with packets as planned."""
    (checked,) = parts(story(1, always(biased(0.99))))
    signed = Signed(b"", 0, (), b"", b"")
    kept = Kept(node(B).node_id, "sent", 0, Proof(signed, signed), checked.statement, checked.receipt)
    result, problem = Review(60).add(kept)
    assert result == "mismatch" and "came by dimension 0" in str(problem)


def test_a_dimension_without_cards_has_what_was_under_way() -> None:
    without = cards_of("deck", (0, 1, 1, 1, 1, 1, 1))
    for came, refused in ((300_000, False), (3_000_000, True)):
        held = epoch(seven([came, *[10_000_000] * 6]), "deck", without)
        assert (spread.unlike_plan(held, 1e-9, 0.05) is not None) == refused
    assert spread.unlike_plan(epoch(ZEROS, "deck", without), 1e-9, 0.05) is None


def test_a_loss_bound_of_all_divides_by_nothing() -> None:
    assert spread.lopsided([epoch((10**7,) * 7)], 1e-6, 1.0) is None
