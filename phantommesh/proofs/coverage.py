# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a link's time and bytes do its proofs cover? By the receiver's clock and its running totals.

A receipt has the totals at the end of its epoch, so that two of them show what came between, whatever the
sender says of it. If nothing came between two receipts, nothing is missing, however far their dates are
apart: the second epoch began at the very reading that ended the first, or the link was dead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from phantommesh.proofs.spread import Epoch, by_flow, usual_shares
from phantommesh.proofs.statement import ZEROS, Receipt

MIN_COVERAGE: Final = 0.5
"""The least share of a link's time, and of its bytes, that has to be proved."""

# Tuning.
STRAY_SHARE: Final = 0.045
"""The share of a link's bytes that may have come outside of the proved epochs by one dimension beyond its
share, where half of all has to be proved. If a share c has to be proved, it is (1 - c) / c times that."""
CUT_MS: Final = 5_000  # ms between two looks at a counter, and so what is missing where it begins anew
STRAY_BYTES: Final = 256 * 1024  # a file: so few need not be proved, nor spread evenly

_SEVEN: Final = range(len(ZEROS))


@dataclass(frozen=True, slots=True)
class Gap:
    """The time and bytes between two receipts. ``came`` are the bytes by dimension that the receiver counted
    in it; ``unseen_ms`` is the time of it in which it may have missed some."""

    ms: int
    came: tuple[int, ...]
    unseen_ms: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of one direction of a link is proved, from the first proved epoch to the last. Times are in
    milliseconds, by the receiver."""

    since_ms: int
    until_ms: int
    held_ms: int
    gaps: tuple[Gap, ...]
    received: tuple[int, ...]

    @property
    def unproved(self) -> tuple[int, ...]:
        """The bytes by dimension that came in the gaps."""
        return tuple(sum(gap.came[i] for gap in self.gaps) for i in _SEVEN)

    @property
    def all_bytes(self) -> tuple[int, ...]:
        """All bytes by dimension that the receiver counted."""
        return tuple(a + b for a, b in zip(self.received, self.unproved, strict=True))

    @property
    def unseen_bytes(self) -> float:
        """The bytes that may have come while nobody counted, at the rate of the proved time."""
        return sum(self.received) * sum(gap.unseen_ms for gap in self.gaps) / max(1, self.held_ms)

    @property
    def time(self) -> float:
        """The share of the time that is proved, 0 to 1."""
        whole = self.held_ms + sum(gap.ms for gap in self.gaps)
        return self.held_ms / whole if whole else 0.0

    @property
    def bytes(self) -> float:
        """The share of the bytes that is proved, 0 to 1; 1 where there are none."""
        whole = sum(self.all_bytes) + self.unseen_bytes
        return sum(self.received) / whole if whole else 1.0


def coverage(receipts: Sequence[Receipt]) -> Coverage:
    """Look at the receipts of one direction of one link, in order; at least one."""
    return Coverage(
        since_ms=receipts[0].since_ms,
        until_ms=receipts[-1].until_ms,
        held_ms=sum(receipt.held_ms for receipt in receipts),
        gaps=tuple(gap for a, b in pairwise(receipts) if (gap := _between(a, b)) is not None),
        received=tuple(sum(receipt.received[i] for receipt in receipts) for i in _SEVEN),
    )


def _between(a: Receipt, b: Receipt) -> Gap | None:
    came = tuple(later - sooner for later, sooner in zip(b.before, a.total, strict=True))
    cuts = b.cuts - a.cuts
    if not any(came) and not cuts:
        return None
    ms = max(0, b.since_ms - a.until_ms)
    if min(came) < 0 or cuts < 0:  # the receiver has begun to count anew
        return Gap(ms, b.before, ms)
    return Gap(ms, came, min(ms, CUT_MS * cuts))


def too_little(found: Coverage, epochs: Sequence[Epoch], least: float) -> str | None:
    """Say what of a link is not covered as is asked for, or None; ``epochs`` are those that are proved."""
    if found.time < least:
        return f"{found.time:.1%} of the time is proved, and {least:.0%} is asked for"
    whole = sum(found.all_bytes) + found.unseen_bytes
    if whole - sum(found.received) > (1 - least) * whole + STRAY_BYTES:
        return f"{found.bytes:.1%} of the bytes are proved, and {least:.0%} is asked for"
    strays, i = max((bytes_, i) for i, bytes_ in enumerate(_strays(found, epochs)))
    if least and strays > STRAY_BYTES + STRAY_SHARE * (1 - least) / least * whole:
        return (
            f"{strays / whole:.1%} of the bytes came, or may have come, by dimension {i} outside of the "
            f"proved epochs, beyond its share: {STRAY_SHARE * (1 - least) / least:.1%} are allowed where "
            f"{least:.0%} is to be proved"
        )
    return None


def _strays(found: Coverage, epochs: Sequence[Epoch]) -> list[float]:
    """How many bytes came by each dimension outside of the proved epochs, beyond the share that is usual in
    them. Flows may all have taken one way for as long as a gap is: there `spread.lopsided` judges."""
    if by_flow(epochs):
        return [0.0] * len(ZEROS)
    came = found.unproved
    return [
        max(0.0, bytes_ - share * sum(came)) + found.unseen_bytes
        for bytes_, share in zip(came, usual_shares(epochs), strict=True)
    ]
