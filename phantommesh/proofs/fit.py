# SPDX-License-Identifier: GPL-3.0-or-later
"""Does a distribution fit what was committed to? Entropies, the G-test, and how often it errs.

The test rejects where the chance of such counts, had the plan been followed, is proved to be at most
``alpha``: no asymptotics, whatever the number of packets. With G = 2 n KL(counts/n || plan), Agrawal (2020,
"Finite-sample concentration of the multinomial in relative entropy", IEEE Trans. Inf. Theory 66(10)) bounds
the moment generating function of G/2 by that of a gamma distribution of shape k - 1 and rate 1, for every n
and every plan over k dimensions. So P(G/2 >= x) <= e^-x (e x / d)^d for x > d = k - 1. Epochs have different
plans; what they have in common is judged by how far each dimension's packets are from its shares in all of
them together, with Bernstein's inequality.

``packet`` draws for each packet. ``batch`` goes round a cycle of shuffled runs, and is smoother than what is
drawn: whole cycles have exactly the planned shares, the rest is a sample of runs without replacement, whose
convex functions have no greater mean than with replacement (Hoeffding 1963, theorem 4), and KL is convex. A
window has two broken runs more, each no more than one draw, and n KL is ``run`` times that of the runs; so it
is judged by G / run and d = 3 (k - 1).

``deck`` deals each dimension's cards evenly, one in each of ``cards[i]`` equal stretches of the cycle. Up to
any place of the cycle a dimension has its share but for less than one card, and that place is off by less
than k cards in N; so in any window its count differs by less than 2 (1 + k cards[i] / N) from its share.
There is no chance in that: the bound is exact, and no G-test is needed.

``flow`` and ``flowlet`` draw for each flow or burst, which the kernel does not count: packets say nothing of
how they were drawn, and are not tested.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.dimensions import MAX_BATCH, MIN_BATCH, SLOTS
from phantommesh.proofs.statement import ZEROS, Plan

FALSE_REJECTIONS: Final = 1e-6
"""The chance that honest links are rejected, by all tests of one verification together."""

LARGEST_PACKET: Final = 65_575  # bytes: what a GSO burst can hold, IPv6 header and all
SMALLEST_PACKET: Final = 20  # an IPv4 header

# Tuning.
SLIP = 32  # packets: what other processors had in hand when a map was swapped is counted in a later epoch


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
    """How well counts fit a plan. ``excess`` is G/2 a run, ``shape`` the d it is judged by; both are 0 where
    chance has no part in the verdict (``deck``), or where nothing is tested."""

    tested: bool
    excess: float = 0.0
    shape: int = 0
    p_value: float | None = None
    """The G-test's p-value, by the chi-squared distribution: for people. The verdict goes by ``bound``."""

    @property
    def bound(self) -> float:
        """The chance that an honest link shows such counts is at most this."""
        return gamma_bound(self.excess, self.shape) if self.shape else 1.0


def implausible(plan: Plan) -> str | None:
    """Say what of a plan its scheduler cannot have, or None. The sender alone makes the plan, and the bounds
    below are as wide as its run and its cards are: they hold for what the scatterer makes, and no other."""
    least, most = (MIN_BATCH, MAX_BATCH) if plan.scheduler == "batch" else (1, 1)
    if not least <= plan.run <= most:
        allowed = f"{least} to {most}" if least < most else f"{most}"
        return f"the plan has {plan.run} packets in a row, where {plan.scheduler} has {allowed}"
    cycle, slots = sum(plan.cards), SLOTS[plan.scheduler]
    if cycle not in (0, slots):
        return f"the plan has {cycle} cards, where {plan.scheduler} has {slots}, or none if it sends nothing"
    return None


def fit(plan: Plan, packets: Sequence[int]) -> Fit:
    """Judge the packets of one epoch."""
    others = sum(1 for card in plan.cards if card) - 1
    if plan.scheduler in ("flow", "flowlet") or others < 1:
        return Fit(False)
    excess = relative_entropy(packets, plan.cards) / plan.run
    p_value = chi2_sf(2 * excess, others)
    match plan.scheduler:
        case "packet":
            return Fit(True, excess, others, p_value)
        case "batch":
            return Fit(True, excess, 3 * others, p_value)
        case _:
            return Fit(True, p_value=p_value)


def misfit(plan: Plan, packets: Sequence[int], octets: Sequence[int], alpha: float) -> str | None:
    """Say what of one epoch's counts does not fit the plan, or None. At most a share ``alpha`` of honest
    epochs is said to misfit."""
    n, cycle = sum(packets), sum(plan.cards)
    for i, (count, size) in enumerate(zip(packets, octets, strict=True)):
        if not SMALLEST_PACKET * count <= size <= LARGEST_PACKET * count:
            return f"dimension {i} was given {count} packets of {size} bytes in all, which cannot be"
    if not cycle:
        return f"{n} packets were scattered by a plan without cards" if n > SLIP else None
    for i, (count, card) in enumerate(zip(packets, plan.cards, strict=True)):
        if abs(count - n * card / cycle) > _span(plan, card, n) + SLIP:
            return (
                f"dimension {i} was given {count} of {n} packets, where the plan gives it {card} of {cycle}"
            )
    found = fit(plan, packets)
    if found.bound <= alpha / 2:
        return (
            f"the packets {'/'.join(map(str, packets))} do not fit the cards "
            f"{'/'.join(map(str, plan.cards))}: the chance is below {found.bound:.1g} (G = "
            f"{2 * found.excess:.0f})"
        )
    return _lopsided(plan, octets, alpha / 2) if plan.scheduler == "packet" else None


def _span(plan: Plan, card: int, n: int) -> float:
    """How far a dimension's count can be from its share of ``n``, whatever chance does. A dimension without
    cards has none at all."""
    cycle = sum(plan.cards)
    if not card:
        return 0.0
    match plan.scheduler:
        case "deck":
            return 2 + 2 * sum(1 for other in plan.cards if other) * card / cycle
        case "batch":
            return plan.run * (card * (cycle - card) / cycle + 2)
        case _:
            return n


def _lopsided(plan: Plan, octets: Sequence[int], alpha: float) -> str | None:
    """The same of bytes, where each packet is drawn: of sizes only the largest is known."""
    total, cycle = sum(octets), sum(plan.cards)
    for i, (size, card) in enumerate(zip(octets, plan.cards, strict=True)):
        share = card / cycle
        variance = share * (1 - share) * LARGEST_PACKET * total
        if len(octets) * bernstein(size - share * total, variance, LARGEST_PACKET) <= alpha:
            return (
                f"dimension {i} was given {size} of {total} bytes, where the plan gives it {card} of {cycle}"
            )
    return None


def misfit_together(epochs: Sequence[tuple[Plan, Sequence[int]]], alpha: float) -> str | None:
    """Say which dimension had more or less than its share in all epochs together, or None: a bias that is too
    small to be seen in one."""
    drawn = [(plan, packets) for plan, packets in epochs if plan.scheduler in ("packet", "batch")]
    for i in range(len(ZEROS)):
        expected = variance = 0.0
        for plan, packets in drawn:
            share, n = plan.cards[i] / (sum(plan.cards) or 1), sum(packets)
            expected += share * n
            variance += (
                share * (1 - share) * (n + 2 * plan.run) * plan.run
            )  # a run is one draw; two are broken
        count = sum(packets[i] for _, packets in drawn)
        largest = max((plan.run for plan, _ in drawn), default=1)
        off = max(0.0, abs(count - expected) - SLIP)
        if len(ZEROS) * bernstein(off, variance, largest) <= alpha:
            return (
                f"dimension {i} was given {count} packets in all epochs together, where its share was "
                f"{expected:.0f}"
            )
    return None


def bernstein(off: float, variance: float, largest: float) -> float:
    """The chance that a sum of independent terms, none further than ``largest`` from its mean, is so far off,
    is at most this (Bernstein's inequality; Freedman 1975 for terms that may depend on those before)."""
    return 2 * math.exp(-off * off / (2 * (variance + largest * abs(off) / 3))) if off else 1.0
