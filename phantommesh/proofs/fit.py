# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a distribution fit what was committed to? Entropies, the G-test, and how often it errs.

The test rejects where the chance of such counts, had the plan been followed, is proved to be at most
``alpha``: no asymptotics, whatever the number of packets. With G = 2 n KL(counts/n || plan), Agrawal (2020,
"Finite-sample concentration of the multinomial in relative entropy", IEEE Trans. Inf. Theory 66(10)) bounds
the moment generating function of G/2 by that of a gamma distribution of shape k - 1 and rate 1, for every n
and every plan over k dimensions. So P(G/2 >= x) <= e^-x (e x / d)^d for x > d = k - 1, and sums over
independent epochs obey the same with the sum of their d.

What goes round a cycle of shuffled cards is smoother than what is drawn, and is held to the same: a part of a
cycle is a sample without replacement, whose convex functions have no greater mean than with replacement
(Hoeffding 1963, theorem 4), whole cycles have exactly the planned shares, and KL is convex. A window has two
such parts at most, so d is 2 (k - 1). Of runs of ``run`` equal cards a window has two broken ones more, each
no more than one draw, and n KL is ``run`` times that of the runs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.proofs.statement import Plan

FALSE_REJECTIONS: Final = 1e-6
"""The chance that honest links are rejected, by all tests of one verification together."""

LARGEST_PACKET: Final = 65_575  # bytes: what a GSO burst can hold, IPv6 header and all
SMALLEST_PACKET: Final = 20  # an IPv4 header

# Tuning. Packets around the swap of two maps are counted under one and sent under the other.
SLIP_PACKETS, SLIP_SHARE = 64, 0.001


def entropy_bits(counts: Sequence[int]) -> float:
    """Shannon entropy of the distribution of the counts, in bits; 0 where there are none."""
    total = sum(counts)
    return max(0.0, -math.fsum(c / total * math.log2(c / total) for c in counts if c))


def min_entropy_bits(counts: Sequence[int]) -> float:
    """Min-entropy: minus the logarithm of the largest share, in bits; 0 where there are none."""
    total = sum(counts)
    return math.log2(total / max(counts)) if total else 0.0


def millionths(bits: float) -> int:
    """Bits as statements hold them."""
    return round(bits * 1e6)


def relative_entropy(counts: Sequence[int], cards: Sequence[int]) -> float:
    """n KL(counts/n || cards/N) in nats, which is G/2. Dimensions without cards are left out."""
    pairs = [(count, card) for count, card in zip(counts, cards, strict=True) if card]
    n, cycle = sum(count for count, _ in pairs), sum(card for _, card in pairs)
    return max(0.0, math.fsum(c * math.log(c * cycle / (n * card)) for c, card in pairs if c))


def chi2_sf(x: float, dof: int) -> float:
    """P(X >= x) for X of the chi-squared distribution: the finite sums of Abramowitz and Stegun, 26.4.4 for
    an odd and 26.4.5 for an even number of degrees of freedom."""
    if x <= 0:
        return 1.0
    half = x / 2
    if dof % 2 == 0:
        return math.fsum(math.exp(j * math.log(half) - half - math.lgamma(j + 1)) for j in range(dof // 2))
    tail = (
        math.exp((j - 0.5) * math.log(half) - half - math.lgamma(j + 0.5)) for j in range(1, dof // 2 + 1)
    )
    return math.erfc(math.sqrt(half)) + math.fsum(tail)


def gamma_bound(x: float, shape: float) -> float:
    """Chernoff's bound of P(X >= x) where X's moment generating function is at most that of the gamma
    distribution of this shape and rate 1."""
    return 1.0 if x <= shape else math.exp(shape - x + shape * math.log(x / shape))


@dataclass(frozen=True, slots=True)
class Fit:
    """How well counts fit a plan. ``excess`` is G/2 a run, ``shape`` the d it is judged by; both are 0 for
    schedulers whose packets do not tell (``flow``, ``flowlet``): those are not tested."""

    tested: bool
    excess: float
    shape: int
    p_value: float | None
    """Of the G-test, by the chi-squared distribution: for people. The verdict goes by ``bound``."""

    @property
    def bound(self) -> float:
        """The chance that an honest link shows such counts is at most this."""
        return gamma_bound(self.excess, self.shape) if self.tested else 1.0


def fit(plan: Plan, packets: Sequence[int]) -> Fit:
    """Judge the packets of one epoch."""
    used = sum(1 for card in plan.cards if card)
    if plan.scheduler in ("flow", "flowlet") or used < 2:
        return Fit(False, 0.0, 0, None)
    cyclic = plan.scheduler in ("deck", "batch")
    run = plan.run if cyclic else 1
    parts = 1 if not cyclic else 2 if run == 1 else 4
    excess = relative_entropy(packets, plan.cards) / run
    return Fit(True, excess, parts * (used - 1), chi2_sf(2 * excess, used - 1))


def together(fits: Iterable[Fit]) -> Fit:
    """Judge several independent epochs as one. Its p-value is None: it is the bound that adds up."""
    tested = [one for one in fits if one.tested]
    return Fit(bool(tested), math.fsum(f.excess for f in tested), sum(f.shape for f in tested), None)


def slip(packets: Sequence[int]) -> float:
    """How many packets of an epoch may have been sent under the map before or after."""
    return SLIP_PACKETS + SLIP_SHARE * sum(packets)


def misfit(plan: Plan, packets: Sequence[int], octets: Sequence[int], alpha: float) -> str | None:
    """Say what of one epoch's counts does not fit the plan, or None. Of honest epochs a share of at most
    ``alpha`` is said to misfit."""
    n, cycle = sum(packets), sum(plan.cards)
    if not cycle:
        return f"{n} packets were scattered by a plan without cards" if n else None
    for i, (count, size, card) in enumerate(zip(packets, octets, plan.cards, strict=True)):
        share = f"dimension {i} was given {count} of {n} packets, where the plan gives it {card} of {cycle}"
        if not card and count > slip(packets):
            return share
        if not SMALLEST_PACKET * count <= size <= LARGEST_PACKET * count:
            return f"dimension {i} was given {count} packets of {size} bytes in all, which cannot be"
        # In whole cycles each dimension has its exact share, so only two broken ones can differ.
        if plan.scheduler in ("deck", "batch"):
            expected, span = n * card / cycle, 2 * card * (cycle - card) / cycle
            if abs(count - expected) > span + slip(packets):
                return f"{share}, and a {plan.scheduler} cannot differ so much"
    found = fit(plan, packets)
    if found.bound <= alpha / 2:
        return (
            f"the packets {'/'.join(map(str, packets))} do not fit the cards "
            f"{'/'.join(map(str, plan.cards))}: the chance is below {found.bound:.1g} (G = "
            f"{2 * found.excess:.0f})"
        )
    return _lopsided(plan, octets, alpha / 2) if plan.scheduler == "packet" else None


def _lopsided(plan: Plan, octets: Sequence[int], alpha: float) -> str | None:
    """The same of bytes, where each packet is drawn: Freedman's inequality (1975; Bernstein's for independent
    draws), with the largest packet for what is not known of their sizes."""
    total, cycle = sum(octets), sum(plan.cards)
    for i, (size, card) in enumerate(zip(octets, plan.cards, strict=True)):
        share = card / cycle
        off = abs(size - share * total)
        variance = share * (1 - share) * LARGEST_PACKET * total
        if not off or not card:
            continue
        chance = 2 * len(octets) * math.exp(-off * off / (2 * (variance + LARGEST_PACKET * off / 3)))
        if chance <= alpha:
            return (
                f"dimension {i} was given {size} of {total} bytes, where the plan gives it {card} of {cycle}"
            )
    return None
