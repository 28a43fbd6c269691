# SPDX-License-Identifier: GPL-3.0-or-later
"""Which buckets of flows do not go where their epoch's map sends them, and which bucket should be moved.

A bucket is moved to a path that carries little from one that carries several buckets: the hash has
dealt them unevenly. A move keeps each flow on one path, so it costs a flow its order once, for a moment.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Final

# Tuning.
LEAST: Final = 20_000.0  # bytes a second of a bucket that counts as heavy; `paths.pace.FULL_RATE`
LIGHTER: Final = 0.8  # of what the busier path carried: neither path may carry more after a move


@dataclass(frozen=True, slots=True)
class Steering:
    """``split``: buckets that are dealt over all dimensions; ``moved``: buckets that have another dimension
    than the epoch's map gives them, until that epoch ends."""

    split: frozenset[int] = frozenset()
    moved: frozenset[tuple[int, int]] = frozenset()


NOTHING: Final = Steering()


def move(
    rates: Mapping[int, float],
    ways: Mapping[int, int],
    carried: Mapping[int, float],
    pinned: Container[int] = (),
) -> tuple[int, int] | None:
    """Return the bucket to move and its new dimension, such that the busiest path that can be eased carries
    much less and no path as much as that one did; None where there is no such move. ``rates``: bytes a
    second; ``ways``: the dimension of each bucket that has one; ``carried``: bytes a second by dimension in
    use; ``pinned``: the buckets that stay where they are."""
    for donor in sorted(carried, key=lambda way: -carried[way]):
        here = [b for b, way in ways.items() if way == donor and rates.get(b, 0.0) >= LEAST]
        free = [b for b in here if b not in pinned]
        if len(here) < 2 or not free:
            continue
        target = min(carried, key=lambda way: carried[way])
        best = min(free, key=lambda b: max(carried[donor] - rates[b], carried[target] + rates[b]))
        if max(carried[donor] - rates[best], carried[target] + rates[best]) <= LIGHTER * carried[donor]:
            return best, target
    return None
