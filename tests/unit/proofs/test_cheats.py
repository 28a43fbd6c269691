# SPDX-License-Identifier: GPL-3.0-or-later
"""No strategy of a cheating sender verifies, and every honest link does."""

from dataclasses import replace

import pytest

from benchmarks.proof_bounds import STARTS, best
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.statement import (
    Proof,
    ProofError,
    Receipt,
    Scheduler,
    Statement,
    decode_leaf_untrusted,
)
from phantommesh.proofs.verify import examine, verify
from phantommesh.scatter import maps
from tests.support.makeproofs import MESH, World, node
from tests.unit.proofs.cheats import CHEATS, RATE, always, biased, story
from tests.unit.proofs.honest import honest
from tests.unit.proofs.telling import Telling, verdict

ROOT = MESH.mesh.root_hash


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refused(name: str) -> None:
    """Whole files, with the signatures of both ends; and their parts alone, for which `verdict` stands."""
    acts, why = CHEATS[name]()
    archive = Archive.decode_untrusted(Telling().tell(acts).encode())
    for act, proof in zip(acts, archive.proofs, strict=True):
        if proof.receipt is not None:
            receipt = decode_leaf_untrusted(proof.receipt.leaf)
            assert isinstance(receipt, Receipt) and receipt.received == act.came  # the receiver is honest
    with pytest.raises(ProofError, match=why):
        verify(archive, root_hash=ROOT)
    found = verdict(acts)
    assert found.verdict != "holds" and found.reason is not None


@pytest.mark.parametrize("scheduler", maps.SCHEDULERS)
def test_what_the_cheats_are_made_of_verifies(scheduler: Scheduler) -> None:
    """So a cheat is not refused for how its story is told."""
    acts = story(30, always([1] * 7), scheduler=scheduler)
    report = verify(Telling().tell(acts), root_hash=ROOT)
    (found,) = report.links
    assert (found.verdict, found.countersigned, found.received) == (
        "holds",
        30,
        30 * 7 * round(RATE * 60 / 7),
    )
    assert (found.coverage_time, found.coverage_bytes) == (1.0, 1.0)
    assert found.received_shannon_bits == pytest.approx(2.807, abs=0.001)


@pytest.mark.parametrize(("scheduler", "run"), [("deck", 1), ("packet", 1), ("batch", 8)])
def test_no_strategy_gets_a_quarter_of_the_bytes_one_way(scheduler: Scheduler, run: int) -> None:
    """At equal weights, 60 epochs of 60 s and 1 MB/s; `python -m benchmarks.proof_bounds` tries more."""
    got = [best(scheduler, replace(strategy, run=run))[0] for strategy in STARTS]
    assert 0.18 < max(got) <= 0.25


def test_there_are_twenty_cheats_and_more() -> None:
    assert len(CHEATS) >= 20


def test_one_link_does_not_carry_another() -> None:
    """A link that no receipt is of, beside one that is whole."""
    world = World(3, ("pm-1", "pm-2", "pm-3"))
    world.run(4, "deck", packets=20_000)
    proofs = world.proofs("pm-1")
    alone = world.archive(proofs)
    assert len(verify(alone, root_hash=ROOT).links) == 4
    third = bytes(node("pm-3").node_id)

    def of_third(proof: Proof) -> bool:
        leaf = decode_leaf_untrusted(proof.statement.leaf)
        assert isinstance(leaf, Statement)
        return third in (leaf.plan.sender, leaf.plan.receiver)

    stripped = [Proof(proof.statement) if of_third(proof) else proof for proof in proofs]
    archive = world.archive(stripped)
    with pytest.raises(ProofError, match="no proof of it is countersigned"):
        verify(archive, root_hash=ROOT)
    verdicts = sorted(
        (link.sender, link.receiver, link.verdict) for link in examine(archive, root_hash=ROOT).links
    )
    assert verdicts == [
        ("pm-1", "pm-2", "holds"),
        ("pm-1", "pm-3", "too little"),
        ("pm-2", "pm-1", "holds"),
        ("pm-3", "pm-1", "too little"),
    ]


@pytest.mark.parametrize("seed", [*range(120), 3851, 7346])  # the last two: in step for ten minutes
def test_an_honest_link_is_not_refused(seed: int) -> None:
    """`python -m benchmarks.proof_bounds --honest 10000` tries more."""
    found = verdict(honest(seed))
    assert found.verdict == "holds", found.reason


@pytest.mark.parametrize("scheduler", maps.SCHEDULERS)
def test_an_honest_file_is_not_refused(scheduler: Scheduler) -> None:
    acts = honest(7, 30, scheduler)
    report = verify(Telling().tell(acts), root_hash=ROOT)
    assert report.proofs == 30


def test_a_bias_that_chance_can_make_passes() -> None:
    """The tests are not so narrow that they would refuse it: see docs/proofs.md for how far they go."""
    assert verdict(story(60, always(biased(0.16)))).verdict == "holds"
