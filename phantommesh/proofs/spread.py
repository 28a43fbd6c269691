# SPDX-License-Identifier: GPL-3.0-or-later
"""Did the bytes come the ways that were committed to? By what the receiver counted, and by nothing else.

An honest scheduler gives each draw (a GSO burst, a run of packets, a flow) to a dimension by a secret order
that knows nothing of sizes. With draws of at most ``b`` bytes, ``t`` bytes in all and a share ``p`` of the
cards, the bytes ``s`` of a dimension have for every number ``x``, above or below 0,

    E exp(x s - (t / b) log(1 + p (exp(x b) - 1))) <= 1

because the logarithm of a draw's moment generating function is convex in its size and 0 at 0. It holds draw
by draw, so the terms of all draws multiply, also where the size of what comes next depends on how what was
before was drawn, as TCP's does. The mean of such terms over some ``x`` and over the dimensions is again one
whose expectation is at most 1, and the chance that it ever reaches 1 / alpha is at most alpha (Ville 1939;
Howard et al. 2020, "Time-uniform Chernoff bounds via nonnegative supermartingales").

Two such tests are made of a link. ``lopsided`` adds up the bytes of all its epochs, and finds a bias that is
always the same way. ``restless`` multiplies the evidence of single epochs, and finds one that goes round.

Bytes that are not the scheduler's are allowed for, each kind as far as the specification lets an honest node
go: the loss bound; a node's own messages, which are the same on all dimensions that carry traffic; and what
was on its way when one plan followed another, which is judged by the other plan. No number that the sender
alone states makes an allowance wider, but the bytes it says were late, and those up to a share of what came.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, assert_never

from phantommesh.proofs.statement import ZEROS, Plan, Receipt, Scheduler, Statement

BY_FLOW: Final[frozenset[Scheduler]] = frozenset({"flow", "flowlet"})
"""The schedulers whose draws are flows, which may be as large as all that comes in an epoch."""

_SEVEN: Final = range(len(ZEROS))

# The most that a draw can be.
LARGEST_DRAW: Final = 71_356
"""Bytes that WireGuard makes of a GSO burst: 65,575 with the IPv6 header, in segments of 536 bytes, the least
that TCP announces (RFC 9293 section 3.7.1), with 47 bytes each for header, tag and padding."""

# Tuning.
STRETCHES: Final = 128
"""`deck` and `batch` deal the same order again and again. Traffic that keeps step with it, so that the large
packets fall on the same cards each time, is drawn less often than it has packets: at least so often an
epoch, however long it is. A deck has 146 hands of seven, so any rhythm of up to seven packets is covered."""
OWN_BYTES_PER_S: Final = 12 * 1024  # a dimension: handshakes, and probes at fifty a second both ways
OWN_ALONE_PER_S: Final = 1024  # those of a dimension that is alone with them
OWN_LIKE_OTHERS: Final = 2.0  # times what others have: paths in use are probed at the same pace
OWN_BYTES: Final = 1024  # an epoch: a handshake with its retries is not spread over time
UNDERWAY_BYTES: Final = 256 * 1024  # a file: what lies in queues when one plan follows another
UNDERWAY_SHARE: Final = 0.005  # of a file's bytes, the same of dimensions that were drained
LATE_SHARE: Final = 0.01  # of a file's bytes, what may have come late by the plan before it
LATE_ALONE: Final = 0.1  # the same of a dimension that has cards in the next plan only: less than its share
LATE_AT_END: Final = 0.005  # the same where the plan that follows is not in the file
UNUSUAL: Final = 3.0  # median deviations by which a plan's share is not unusual
UNUSUAL_AT_MOST: Final = 0.2  # else plans that differ much would excuse what came between them one way
_STEEPEST, _RATIO, _STEPS = 10.0, 1.5, 20  # the x of `lopsided`, times b: 10 down to 0.0045
_NOTHING: Final = 5.0  # where a normal distribution's evidence is less, there is none to be found
_EPOCH_STEPS: Final = (0.35, 0.7, 1.4)  # those of `restless`: for shares from a fifth to a half


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch that both ends have signed. By dimension: ``shares`` of the plan, ``following`` those of the
    plan after it, if the file has it; the bytes ``received``, and those that can be the sender's ``own``
    messages. ``held_ms`` is how long the epoch was; ``late`` the bytes of all dimensions that the sender says
    came late. All but the last are by the receiver."""

    plan: Plan
    shares: tuple[float, ...]
    following: tuple[float, ...] | None
    received: tuple[int, ...]
    own: tuple[float, ...]
    held_ms: int
    late: int

    @property
    def total(self) -> int:
        """The bytes of all dimensions."""
        return sum(self.received)


@dataclass(frozen=True, slots=True)
class Finding:
    """The claim about the bytes that does not hold; ``dimension`` is the one that stands out most."""

    dimension: int
    received: int
    total: int
    expected: float

    def __str__(self) -> str:
        return (
            f"{self.received} of {self.total} received bytes came by dimension {self.dimension}, where the "
            f"plan gives it {self.expected / max(1, self.total):.1%}"
        )


def shares(plan: Plan) -> tuple[float, ...]:
    """The share that a plan gives each dimension, 0 to 1."""
    cycle = sum(plan.cards) or 1
    return tuple(card / cycle for card in plan.cards)


def epoch_of(statement: Statement, receipt: Receipt, following: Plan | None) -> Epoch:
    """The part of a proof that counts; ``following`` is the plan of the next."""
    return Epoch(
        plan=statement.plan,
        shares=shares(statement.plan),
        following=None if following is None else shares(following),
        received=receipt.received,
        own=own_bytes(statement.plan, receipt),
        held_ms=receipt.held_ms,
        late=sum(statement.late_close),
    )


def expected(epochs: Sequence[Epoch]) -> list[float]:
    """The bytes that the plans give each dimension, of those that were received."""
    return [math.fsum(epoch.shares[i] * epoch.total for epoch in epochs) for i in _SEVEN]


def unlike_plan(epoch: Epoch, alpha: float, max_loss: float) -> Finding | None:
    """The same as `lopsided` of one epoch. All of it may have come late; of many, `lopsided` bounds that."""
    return lopsided([epoch], alpha, max_loss, bounded=False)


def lopsided(
    epochs: Sequence[Epoch],
    alpha: float,
    max_loss: float,
    *,
    gaps: Sequence[Sequence[int]] = (),
    bounded: bool = True,
) -> Finding | None:
    """Say which dimension had more or less than its share of the bytes of all these epochs together, or None.
    At most a share ``alpha`` of honest links is said to. ``gaps`` are the bytes by dimension of what lay
    between the epochs; they count where flows are drawn."""
    off = _Misplaced(epochs, bounded=bounded)
    for i in _SEVEN:
        if found := _by_no_card(epochs, i, off):
            return found
    epochs = [*epochs, *_gap_epochs(epochs, gaps)]
    logs = [(log, i) for i in _SEVEN for log in _both_ways(epochs, i, max_loss, off)]
    if _log_sum([log for log, _ in logs]) < math.log(len(ZEROS) * 2 * _STEPS / alpha):
        return None
    return _finding(epochs, max(logs)[1])


def restless(epochs: Sequence[Epoch], alpha: float, max_loss: float) -> Finding | None:
    """The same of a bias that is another in each epoch; the finding is of the epoch that stands out most.

    Half of each epoch's stake is kept back, so that epochs without a bias cost little evidence of the others.
    """
    evidence, worst = 0.0, (-math.inf, 0, epochs[:1])
    for epoch in epochs:
        logs = []
        for i in _SEVEN:
            total, came = _most(epoch, i, max_loss)
            came -= _Misplaced([epoch], bounded=False).of(i, more=True)
            if epoch.shares[i] and came > epoch.shares[i] * total:
                draw = _draw(epoch, total)
                drawn = [(epoch.shares[i], total, draw)]
                logs += [(_evidence(drawn, step / draw, came), i) for step in _EPOCH_STEPS]
        mean = _log_sum([log for log, _ in logs]) - math.log(len(ZEROS) * len(_EPOCH_STEPS))
        found = _log_sum([0.0, mean]) - math.log(2)
        evidence += found
        if logs and found > worst[0]:
            worst = found, max(logs)[1], [epoch]
    return _finding(worst[2], worst[1]) if evidence >= -math.log(alpha) else None


def by_flow(epochs: Sequence[Epoch]) -> bool:
    """Whether most bytes were scattered by flow."""
    flows = sum(epoch.total for epoch in epochs if epoch.plan.scheduler in BY_FLOW)
    return 2 * flows > sum(epoch.total for epoch in epochs)


def usual_shares(epochs: Sequence[Epoch]) -> tuple[float, ...]:
    """The share that plans like these may well give each dimension, where one is not known: the mean of the
    proved bytes and a few times their median deviation, which epochs with few bytes do not move."""
    whole, found = sum(epoch.total for epoch in epochs) or 1, list[float]()
    for i, bytes_ in enumerate(expected(epochs)):
        mean = bytes_ / whole
        apart = sorted((abs(epoch.shares[i] - mean), epoch.total) for epoch in epochs)
        below = accumulate(total for _, total in apart)
        median = next((off for (off, _), sum_ in zip(apart, below, strict=True) if 2 * sum_ >= whole), 0.0)
        found.append(min(1.0, mean + min(UNUSUAL_AT_MOST, UNUSUAL * median)))
    return tuple(found)


def _gap_epochs(epochs: Sequence[Epoch], gaps: Sequence[Sequence[int]]) -> list[Epoch]:
    """Gaps as epochs of flows by the usual shares: one flow may have had one way for all of a gap. They are
    held for no time."""
    if not by_flow(epochs):
        return []
    plan = next(epoch.plan for epoch in epochs if epoch.plan.scheduler in BY_FLOW)
    usual = usual_shares(epochs)
    return [Epoch(plan, usual, None, tuple(gap), (0.0,) * len(gap), 0, 0) for gap in gaps]


def _both_ways(epochs: Sequence[Epoch], i: int, max_loss: float, off: _Misplaced) -> list[float]:
    """The evidence of too many bytes on a dimension, or of too few, as logarithms; empty where neither is."""
    dealt = [epoch for epoch in epochs if epoch.shares[i]]
    tries = (
        (1.0, [(epoch, *_most(epoch, i, max_loss)) for epoch in dealt]),
        (-1.0, [(epoch, *_least(epoch, i, max_loss)) for epoch in dealt if epoch.held_ms]),
    )
    logs: list[float] = []
    for sign, counted in tries:
        came = math.fsum(came for *_, came in counted) - sign * off.of(i, more=sign > 0)
        apart = came - math.fsum(epoch.shares[i] * total for epoch, total, _ in counted)
        if not counted or sign * apart <= 0:
            continue
        drawn = [(epoch.shares[i], total, _draw(epoch, total)) for epoch, total, _ in counted]
        variance = math.fsum(p * (1 - p) * draw * total for p, total, draw in drawn)
        if apart * apart < 2 * _NOTHING * variance:
            continue
        largest = max(draw for *_, draw in drawn)
        steps = (_STEEPEST / _RATIO**step / largest for step in range(_STEPS))
        logs += [_evidence(drawn, sign * x, came) for x in steps]
    return logs


def _evidence(drawn: Sequence[tuple[float, float, float]], x: float, came: float) -> float:
    """The logarithm of the term of this ``x``: see above. ``drawn`` has the share, the bytes in all and those
    of a draw of each epoch, ``came`` is the bytes of the dimension."""
    expected = math.fsum(total / draw * math.log1p(p * math.expm1(x * draw)) for p, total, draw in drawn)
    return x * came - expected


def _draw(epoch: Epoch, total: float) -> float:
    """The bytes of a draw at most, where so many came in all."""
    plan, stretch = epoch.plan, total / STRETCHES
    match plan.scheduler:
        case "packet":
            return LARGEST_DRAW
        case "deck":
            return max(LARGEST_DRAW, stretch)
        case "batch":
            return max(LARGEST_DRAW * plan.run, stretch)
        case "flow" | "flowlet":
            return max(LARGEST_DRAW, total)  # one flow, or one that never pauses, keeps its way for an epoch
        case _:
            assert_never(plan.scheduler)


def _most(epoch: Epoch, i: int, max_loss: float) -> tuple[float, float]:
    """All bytes that were scattered, and those of a dimension, if there were so few of it as can be: the rest
    is the node's own, and of the others the most was lost."""
    came = max(0.0, epoch.received[i] - epoch.own[i])
    return came + (epoch.total - epoch.received[i]) / _kept(max_loss), came


def _least(epoch: Epoch, i: int, max_loss: float) -> tuple[float, float]:
    """The same if there were so many of it as can be."""
    came = epoch.received[i] / _kept(max_loss)
    others = (max(0.0, epoch.received[j] - epoch.own[j]) for j in _SEVEN if j != i)
    return came + math.fsum(others), came


def _kept(max_loss: float) -> float:
    """The least share of bytes that arrives; that of a bound of all is next to nothing."""
    return max(1e-6, 1 - max_loss)


def own_bytes(plan: Plan, receipt: Receipt) -> tuple[float, ...]:
    """The bytes of each dimension that can be the sender's own messages. The paths in use are probed at one
    pace, so no more than a few times of what came on the others."""
    seconds, found = receipt.held_ms / 1000, list[float]()
    for i in _SEVEN:
        others = [j for j in _SEVEN if j != i and plan.cards[j]] or [j for j in _SEVEN if j != i]
        like = OWN_LIKE_OTHERS * statistics.median(receipt.received[j] for j in others)
        alone = OWN_ALONE_PER_S * seconds
        found.append(min(OWN_BYTES_PER_S * seconds, like + alone) + OWN_BYTES)
    return tuple(found)


class _Misplaced:
    """Bytes that came by another epoch's plan: what is late, as far as the sender says and (``bounded``) to a
    share of all, and what was under way."""

    def __init__(self, epochs: Sequence[Epoch], *, bounded: bool) -> None:
        self._epochs, self._late, self._bounded = epochs, list[float](), bounded
        self._total = total = sum(epoch.total for epoch in epochs)
        known, at_ends = (part * total + UNDERWAY_BYTES for part in (LATE_SHARE, LATE_AT_END))
        for epoch in epochs:
            late = float(min(epoch.late, epoch.total))
            if not bounded:
                pass
            elif epoch.following is None:
                late = min(late, at_ends)
                at_ends -= late
            else:
                late = min(late, known)
                known -= late
            self._late.append(late)

    def by_next(self, i: int) -> float:
        """How many bytes of a dimension that has no cards can be of a next plan, which gives it some."""
        # Late bytes follow the next plan, so they come by all dimensions of that plan. In one epoch they may
        # be a single burst; in a file not all of them are.
        late = math.fsum(
            min(epoch.late, epoch.total) * self._part(epoch, i)
            for epoch in self._epochs
            if not epoch.shares[i] and (epoch.following is None or epoch.following[i])
        )
        return min(late, LATE_ALONE * self._total) if self._bounded else late

    def _part(self, epoch: Epoch, i: int) -> float:
        """The share of late bytes that a dimension can have of a plan: twice what the plan gives it."""
        if epoch.following is None or not self._bounded:
            return 1.0
        return min(1.0, 2 * epoch.following[i])

    def of(self, i: int, *, more: bool) -> float:
        """How far a dimension's bytes can be above its share by that, or below: not at all where plans are
        alike."""
        off, widest = 0.0, 0.0
        for epoch, late in zip(self._epochs, self._late, strict=True):
            this = epoch.shares[i]
            if epoch.following is None:
                off += late * (1 - this if more else this)
                continue
            apart = epoch.following[i] - this
            off += late * max(0.0, apart if more else -apart)
            widest = max(widest, abs(apart))
        return off + widest * UNDERWAY_BYTES


def _by_no_card(epochs: Sequence[Epoch], i: int, off: _Misplaced) -> Finding | None:
    """Bytes of a dimension that the plan gives none are the node's own, or were under way before it."""
    without = [epoch for epoch in epochs if not epoch.shares[i]]
    came = math.fsum(max(0.0, epoch.received[i] - epoch.own[i]) for epoch in without)
    allowed = UNDERWAY_BYTES + UNDERWAY_SHARE * sum(epoch.total for epoch in epochs)
    allowed += off.by_next(i)
    return _finding(without, i) if came > allowed else None


def _finding(epochs: Sequence[Epoch], i: int) -> Finding:
    received = sum(epoch.received[i] for epoch in epochs)
    return Finding(i, received, sum(epoch.total for epoch in epochs), expected(epochs)[i])


def _log_sum(logs: Sequence[float]) -> float:
    """The logarithm of the sum of what these are the logarithms of."""
    top = max(logs, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(log - top) for log in logs))
