# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret map of one epoch: how many slots each dimension has, and in which order they are dealt.

Both come from a key that is derived, by HKDF (RFC 5869), from the link's scatter secret, the sender's node id
and the epoch's number, so that the other end can compute what the distribution should be, and a key of one
epoch tells nothing of another's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, assert_never, get_args

from phantommesh.dimensions import DIMENSIONS
from phantommesh.kdf import expand
from phantommesh.secret import Secret

Scheduler = Literal["packet", "batch", "deck", "flow", "flowlet"]
SCHEDULERS: Final[tuple[Scheduler, ...]] = get_args(Scheduler)

SECRET_BYTES: Final = 32

# Tuning.
NOISE: Final = 0.2  # a share is multiplied by 1 - NOISE to 1 + NOISE; at equal scores that costs 0.01 bits


@dataclass(frozen=True, slots=True, order=True)
class Epoch:
    """A scatter epoch: the epoch of the link whose keys it comes from, and its number within that."""

    link: int
    number: int


@dataclass(frozen=True, slots=True)
class EpochKeys:
    """Ingredients of one epoch's map: seven factors around 1, and a stream that orders the cards."""

    noise: tuple[float, ...] = field(repr=False)
    stream: Secret


def epoch_keys(secret: Secret, sender: bytes, epoch: Epoch, *, unequal: bool = False) -> EpochKeys:
    """Derive an epoch's keys from the link's scatter secret. ``sender`` is the node id of the node that sends
    by the map, so the two directions have different ones.

    The factors are uniform around 1, or with ``unequal`` the cubes of numbers above 0 to 1, whose shares are
    much like a draw from Dirichlet(1/3): two or three of the seven have most of it. A cube is the same number
    on every machine, as a fractional power might not be.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a scatter secret has {SECRET_BYTES} bytes")
    key = expand(secret.reveal(), b"scatter", 64, sender, epoch.link.to_bytes(8), epoch.number.to_bytes(8))
    draws = expand(key, b"noise", 4 * DIMENSIONS)
    drawn = [int.from_bytes(draws[4 * i : 4 * i + 4]) for i in range(DIMENSIONS)]
    if unequal:
        noise = tuple((part := (n + 1) / 2**32) * part * part for n in drawn)
    else:
        noise = tuple(1.0 - NOISE + 2.0 * NOISE * (n / 2**32) for n in drawn)
    return EpochKeys(noise, Secret(expand(key, b"order", 64)))


def apart(secret: Secret) -> Secret:
    """The scatter secret of the classes of traffic whose weights are others than those of the rest: the
    factors of either tell nothing of the other's."""
    return Secret(expand(secret.reveal(), b"scatter apart", SECRET_BYTES))


def stream_of(stream: Secret, number: int) -> Secret:
    """The stream that orders the cards of the class of traffic of this number."""
    return Secret(expand(stream.reveal(), b"class", 64, bytes([number])))


def cards(scores: Sequence[float], noise: Sequence[float], size: int) -> tuple[int, ...]:
    """The committed distribution: how many of ``size`` slots each dimension has.

    ``scores`` are capacities, in any unit; one of 0 has no slot, any other at least one. All are 0 if all
    scores are. Rounded by largest remainder, ties to the lower dimension. Raises ValueError for a score that
    is negative or not finite, and for fewer slots than dimensions.
    """
    if len(scores) != DIMENSIONS or len(noise) != DIMENSIONS or size < DIMENSIONS:
        raise ValueError(
            f"{len(scores)} scores, {len(noise)} factors, {size} slots for {DIMENSIONS} dimensions"
        )
    if not all(math.isfinite(score) and score >= 0.0 for score in scores):
        raise ValueError("a score is a finite number and not negative")
    top = max(scores)
    if top == 0.0:
        return (0,) * DIMENSIONS
    weights = [score / top * factor for score, factor in zip(scores, noise, strict=True)]
    used = [i for i in range(DIMENSIONS) if scores[i] > 0.0]
    total = math.fsum(weights)
    spare = size - len(used)  # every dimension in use has one slot for certain; the rest go by weight
    exact = [max(0.0, weight / total * size - 1.0) for weight in weights]
    scale = spare / math.fsum(exact) if math.fsum(exact) else 0.0
    floors = [math.floor(share * scale) for share in exact]
    by_remainder = sorted(used, key=lambda i: (floors[i] - exact[i] * scale, i))
    for i in by_remainder[: spare - sum(floors)]:
        floors[i] += 1
    return tuple(floors[i] + (scores[i] > 0.0) for i in range(DIMENSIONS))


def deal(cards: Sequence[int], scheduler: Scheduler, stream: Secret, batch: int = 1) -> tuple[int, ...]:
    """Return the dimension of each slot. Empty where every dimension is drained.

    ``deck`` deals each dimension's cards evenly but for a random shift within each one's stretch: with equal
    shares these are hands of seven, shuffled one by one. ``batch`` shuffles runs of ``batch`` equal cards.
    The kernel draws for the other schedulers, so only ``flow`` and ``flowlet``, whose draw is no secret, need
    the shuffle.
    """
    held = [i for i, count in enumerate(cards) for _ in range(count)]
    draws = _draws(stream, len(held))
    match scheduler:
        case "packet":
            return tuple(held)
        case "deck":
            places = [place for count in cards for place in range(count)]
            at = [(places[j] + draws[j]) / cards[i] for j, i in enumerate(held)]
            return tuple(held[j] for j in sorted(range(len(held)), key=lambda j: at[j]))
        case "batch":
            return tuple(i for i in _shuffle(held, draws) for _ in range(batch))
        case "flow" | "flowlet":
            return tuple(_shuffle(held, draws))
        case _:
            assert_never(scheduler)


def deck_of_split(cards: Sequence[int], stream: Secret) -> tuple[int, ...]:
    """The dimension of each slot of the deck that split flows are dealt from: the same shares as their
    buckets have, in an order of its own."""
    return deal(cards, "deck", Secret(expand(stream.reveal(), b"split", 64)))


def _draws(stream: Secret, count: int) -> list[float]:
    """Numbers in [0, 1) of 53 bits, so that no draw is visibly more likely than another."""
    if not count:
        return []
    drawn = expand(stream.reveal(), b"draws", 8 * count)
    return [(int.from_bytes(drawn[8 * j : 8 * j + 8]) >> 11) / 2**53 for j in range(count)]


def _shuffle(held: list[int], draws: list[float]) -> list[int]:
    """Fisher and Yates' shuffle (Knuth, The Art of Computer Programming, 3.4.2, algorithm P)."""
    shuffled = list(held)
    for j in range(len(shuffled) - 1, 0, -1):
        k = int(draws[j] * (j + 1))
        shuffled[j], shuffled[k] = shuffled[k], shuffled[j]
    return shuffled


def entropy_bits(counts: Sequence[float]) -> float:
    """Shannon's entropy of a distribution given as counts or weights, in bits; 0.0 where there are none."""
    total = math.fsum(counts)
    if total <= 0.0:
        return 0.0
    return -math.fsum(n / total * math.log2(n / total) for n in counts if n > 0) + 0.0
