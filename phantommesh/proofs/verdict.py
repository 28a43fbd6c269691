# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict on one direction of one link: whether it can be an honest one's, and whether it shows enough.

Sans-I/O and below signatures: what comes in is genuine. A link that *fails* cannot be honest but for a chance
that `fit.FALSE_REJECTIONS` bounds. One that shows *too little* may be: most of it may be missing, or there
was but one path.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from phantommesh.proofs import fit, spread
from phantommesh.proofs.chain import Checked, broken
from phantommesh.proofs.coverage import MIN_COVERAGE, Coverage, coverage, too_little
from phantommesh.proofs.reconcile import MAX_LOSS, unreceived, unreceived_together, unsent, unsent_together
from phantommesh.proofs.statement import ZEROS, Plan, Receipt, Statement

MIN_ENTROPY: Final = 0.5
"""Bits: the least entropy of a link's plans, and of its bytes as received, that shows scattering at all."""

# Tuning.
ROUNDING = 1  # millionths of a bit

Verdict = Literal["holds", "too little", "fails"]


@dataclass(frozen=True, slots=True)
class Demands:
    """Demands on a file. ``max_loss`` is the share of a dimension's bytes that may get lost, ``min_coverage``
    the share of a link's time and bytes that has to be proved, ``min_entropy`` in bits."""

    max_loss: float = MAX_LOSS
    min_coverage: float = MIN_COVERAGE
    min_entropy: float = MIN_ENTROPY


DEMANDS: Final = Demands()


@dataclass(frozen=True, slots=True)
class LinkReport:
    """The proofs of one direction of one link: from ``sender`` to ``receiver``. Figures are of what is in the
    file also where the verdict is not that it holds."""

    sender: str
    receiver: str
    verdict: Verdict
    """``too little``: nothing of it is wrong, but it does not show what is asked for."""
    reason: str | None
    fix: str | None
    schedulers: tuple[str, ...]
    proofs: int
    countersigned: int
    """Those that the receiver has signed too; the others are the sender's word alone."""
    tested: int
    """Those whose packets were tested against the plan: not those of `flow` and `flowlet`."""
    packets: int
    octets: int
    """Payload by the sender's count."""
    received: int
    """Bytes in the proved epochs by the receiver's count, with WireGuard's overhead and messages."""
    shannon_bits: float
    """The entropy of all packets by the sender's count; the schedulers' best is log2 of seven, 2.807."""
    minimum_bits: float
    plan_bits: float
    """The entropy of the plans: their shares, weighted by the bytes that were received under each."""
    epoch_plan_bits: float
    """The entropy of a single epoch's plan, on the average of the bytes: less than ``plan_bits`` where plans
    differ."""
    received_shannon_bits: float
    """The entropy of the bytes as received in the proved epochs."""
    received_minimum_bits: float
    largest_share: float
    """The share of the dimension that had most, of all bytes that the receiver counted from the first proved
    epoch to the last."""
    coverage_time: float
    """The share of the time from the first proved epoch to the last that is proved."""
    coverage_bytes: float
    """The same of the bytes."""
    least_p_value: float | None
    since_ms: int
    """By the receiver's clock, if it has signed, else by the sender's."""
    until_ms: int


def judge(
    proofs: Sequence[Checked], names: tuple[str, str], demands: Demands, in_file: int, links: int
) -> LinkReport:
    """Judge the proofs of one direction of one link, genuine ones in the file's order. The chance of an error
    is a part of that of the whole file, which has so many proofs (``in_file``) and such ``links``."""
    signed = [(proof.statement, proof.receipt) for proof in proofs if proof.receipt is not None]
    following = _followed_by(proofs)
    epochs = _epochs(proofs, following)
    covered = coverage([receipt for _, receipt in signed]) if signed else None
    verdict: Verdict = "fails"
    fix = None
    found = broken(proofs) or _wrong_alone(proofs, following, demands, in_file)
    if found is None:
        found = _wrong_together(proofs, signed, epochs, covered, demands, links)
    if found is None:
        verdict, (found, fix) = "too little", _too_little(epochs, covered, demands)
    return _report(proofs, names, epochs, covered, "holds" if found is None else verdict, found, fix)


def _epochs(proofs: Sequence[Checked], following: Sequence[Plan | None]) -> list[spread.Epoch]:
    """The counting parts of those proofs that both ends have signed."""
    return [
        spread.epoch_of(proof.statement, proof.receipt, plan)
        for proof, plan in zip(proofs, following, strict=True)
        if proof.receipt is not None
    ]


def _followed_by(proofs: Sequence[Checked]) -> list[Plan | None]:
    """The plan that took the place of each proof's, if it is in the file."""
    statements = [proof.statement for proof in proofs]
    return [*(b.plan if b.start_ms == a.end_ms else None for a, b in pairwise(statements)), None]


def _wrong_alone(
    proofs: Sequence[Checked], following: Sequence[Plan | None], demands: Demands, in_file: int
) -> str | None:
    """Say what of a single proof cannot be of an honest link, or None."""
    each = fit.FALSE_REJECTIONS / 4 / in_file
    for proof, plan in zip(proofs, following, strict=True):
        if found := check_proof(proof.statement, proof.receipt, each, demands.max_loss, plan):
            return f"{proof.statement.plan.name}: {found}"
    return None


def _wrong_together(
    proofs: Sequence[Checked],
    signed: Sequence[tuple[Statement, Receipt]],
    epochs: Sequence[spread.Epoch],
    covered: Coverage | None,
    demands: Demands,
    links: int,
) -> str | None:
    """Say what of all proofs together cannot be of an honest link, or None."""
    together, loss = fit.FALSE_REJECTIONS / 4 / links, demands.max_loss
    statements = [proof.statement for proof in proofs]
    gaps = [] if covered is None else [gap.came for gap in covered.gaps]
    found_together = (
        fit.misfit_together([(statement.plan, statement.packets) for statement in statements], together)
        or unsent_together(statements, loss)
        or unreceived_together(signed, loss)
        or spread.lopsided(epochs, together / 2, loss, gaps=gaps)
    )
    if found_together:
        return f"all {len(proofs)} epochs together: {found_together}"
    if restless := spread.restless(epochs, together / 2, loss):
        return f"epoch by epoch bytes came by other ways than was planned; in one of them {restless}"
    return None


def check_proof(
    statement: Statement,
    receipt: Receipt | None,
    alpha: float,
    max_loss: float = MAX_LOSS,
    following: Plan | None = None,
) -> str | None:
    """Say what of one proof cannot be of an honest link, or None; of honest ones a share of at most twice
    ``alpha`` is said to have something. ``following`` is the plan after it, where that is known."""
    found = check_statement(statement, alpha, max_loss)
    if found is not None or receipt is None:
        return found
    epoch = spread.epoch_of(statement, receipt, following)
    wrong = unreceived(statement, receipt, max_loss) or spread.unlike_plan(epoch, alpha, max_loss)
    return None if wrong is None else str(wrong)


def check_statement(statement: Statement, alpha: float, max_loss: float = MAX_LOSS) -> str | None:
    """Say what of a statement does not hold by itself, or None."""
    if statement.start_ms >= statement.end_ms:
        return "it ends before it begins"
    if (found := fit.implausible(statement.plan)) is not None:
        return found
    entropies = (
        ("entropy", statement.shannon, fit.entropy_bits(statement.packets)),
        ("min-entropy", statement.minimum, fit.min_entropy_bits(statement.packets)),
    )
    for what, said, bits in entropies:
        if abs(said - fit.millionths(bits)) > ROUNDING:
            return f"the {what} of the packets is {bits:.6f} bits, not {said / 1e6:.6f}"
    return fit.misfit(statement.plan, statement.packets, statement.octets, alpha) or unsent(
        statement, max_loss
    )


def _too_little(
    epochs: Sequence[spread.Epoch], covered: Coverage | None, demands: Demands
) -> tuple[str | None, str | None]:
    """Say what a link that may be honest does not show, and what to do."""
    if covered is None:
        return (
            "no proof of it is countersigned: it is the sender's word alone",
            "export again once the peer has answered; it takes two epochs",
        )
    if (found := too_little(covered, epochs, demands.min_coverage)) is not None:
        return found, (
            "export again later, if a node was killed or cut off meanwhile; or give a lower --min-coverage "
            "if that is known and accepted"
        )
    bits = (
        ("what the sender committed to", _entropy(_planned(epochs))),
        ("what was received", fit.entropy_bits(covered.received)),
    )
    for what, entropy in bits:
        if entropy < demands.min_entropy:
            reason = f"{what} has {entropy:.3f} bits of entropy, and {demands.min_entropy:.3f} are asked for"
            fix = (
                "see `phantommesh paths` for what paths there are, or give --min-entropy if that is accepted"
            )
            return reason, fix
    return None, None


def _planned(epochs: Sequence[spread.Epoch]) -> list[float]:
    """The share that the plans give each dimension: of the bytes that came, or of the epochs where none
    did."""
    planned = spread.expected(epochs)
    return planned if any(planned) else [sum(epoch.shares[i] for epoch in epochs) for i in range(len(ZEROS))]


def _single(epochs: Sequence[spread.Epoch]) -> float:
    """The entropy of a plan, on the average of the bytes."""
    whole = sum(epoch.total for epoch in epochs)
    return math.fsum(_entropy(epoch.shares) * epoch.total for epoch in epochs) / whole if whole else 0.0


def _entropy(shares: Sequence[float]) -> float:
    total = math.fsum(shares)
    return max(0.0, -math.fsum(s / total * math.log2(s / total) for s in shares if s))


def _report(
    proofs: Sequence[Checked],
    names: tuple[str, str],
    epochs: Sequence[spread.Epoch],
    covered: Coverage | None,
    verdict: Verdict,
    reason: str | None,
    fix: str | None,
) -> LinkReport:
    statements = [proof.statement for proof in proofs]
    packets = [sum(s.packets[i] for s in statements) for i in range(len(ZEROS))]
    fits = [found for s in statements if (found := fit.fit(s.plan, s.packets)).tested]
    received = ZEROS if covered is None else covered.received
    everything = ZEROS if covered is None else covered.all_bytes
    return LinkReport(
        sender=names[0],
        receiver=names[1],
        verdict=verdict,
        reason=reason,
        fix=fix,
        schedulers=tuple(sorted({statement.plan.scheduler for statement in statements})),
        proofs=len(proofs),
        countersigned=len(epochs),
        tested=len(fits),
        packets=sum(packets),
        octets=sum(sum(s.octets) for s in statements),
        received=sum(received),
        shannon_bits=round(fit.entropy_bits(packets), 6),
        minimum_bits=round(fit.min_entropy_bits(packets), 6),
        plan_bits=round(_entropy(_planned(epochs)), 6),
        epoch_plan_bits=round(_single(epochs), 6),
        received_shannon_bits=round(fit.entropy_bits(received), 6),
        received_minimum_bits=round(fit.min_entropy_bits(received), 6),
        largest_share=round(max(everything) / max(1, sum(everything)), 6),
        coverage_time=0.0 if covered is None else round(covered.time, 6),
        coverage_bytes=0.0 if covered is None else round(covered.bytes, 6),
        least_p_value=min((f.p_value for f in fits if f.p_value is not None), default=None),
        since_ms=statements[0].start_ms if covered is None else covered.since_ms,
        until_ms=statements[-1].end_ms if covered is None else covered.until_ms,
    )
