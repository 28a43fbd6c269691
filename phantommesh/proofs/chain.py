# SPDX-License-Identifier: GPL-3.0-or-later
"""Do the proofs of one direction of one link follow each other, and are they of the time that they say?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from phantommesh.proofs.statement import FIRST, Head, Receipt, Statement

# Tuning.
CLOCKS_MS: Final = 3_600_000  # ms that two nodes' clocks may be apart, or one may be set back
DELAY_MS: Final = 25 * 3_600_000  # ms until a node signs: a peer takes what is a day old, by its own clock


@dataclass(frozen=True, slots=True)
class Checked:
    """One proof of genuine parts that belong together. ``hash`` is the statement's."""

    statement: Statement
    hash: bytes
    head: Head
    receipt: Receipt | None = None
    receipt_head: Head | None = None


def broken(proofs: Sequence[Checked]) -> str | None:
    """Say at which proof the chain of a link breaks and how, or which date cannot be, or None."""
    first = proofs[0].statement
    if (first.number == 0) != (first.previous == FIRST):
        return f"{first.plan.name}: the chain does not begin here"
    for before, proof in pairwise(proofs):
        if found := _does_not_follow(before, proof):
            return f"{proof.statement.plan.name}: {found}"
    rounds = [proof.receipt_head.sequence for proof in proofs if proof.receipt_head is not None]
    if rounds != sorted(rounds):
        return "the countersignatures are not in the order of the epochs"
    for proof in proofs:
        if found := misdated(proof):
            return f"{proof.statement.plan.name}: {found}"
    return None


def _does_not_follow(before: Checked, proof: Checked) -> str | None:
    last, this = before.statement, proof.statement
    if this.number != last.number + 1:
        return f"proof {last.number + 1} of the link is missing before proof {this.number}"
    if this.previous != before.hash:
        return "the chain is broken: it does not name the proof before it"
    if this.start_ms + CLOCKS_MS < last.end_ms:
        return "it begins before the epoch before it ends"
    if this.start_ms == last.end_ms and this.late_open != last.late_close:
        return "what was sent at its beginning is not what was sent at the end of the epoch before"
    return None


def misdated(proof: Checked) -> str | None:
    """Say which date of a proof cannot be, or None. Each end dates by its own clock."""
    statement, receipt, signed = proof.statement, proof.receipt, proof.receipt_head
    if found := _signed_at(proof.head.at_ms, statement.end_ms, "signed"):
        return found
    if receipt is None or signed is None:
        return None
    apart = abs(receipt.until_ms - statement.end_ms)
    if apart > CLOCKS_MS:
        return (
            f"it ended {apart / 3_600_000:.1f} hours apart by the two ends' clocks: their clocks have to be "
            f"set, or the date is made up"
        )
    if found := _signed_at(signed.at_ms, receipt.until_ms, "countersigned"):
        return found
    if signed.at_ms + CLOCKS_MS < proof.head.at_ms:
        return "it was countersigned before it was signed"
    return None


def _signed_at(at_ms: int, end_ms: int, what: str) -> str | None:
    if at_ms + CLOCKS_MS < end_ms:
        return f"it was {what} {(end_ms - at_ms) / 3_600_000:.1f} hours before its end"
    if at_ms > end_ms + DELAY_MS:
        return f"it was {what} {(at_ms - end_ms) / 3_600_000:.1f} hours after its end"
    return None
