# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the members stand on the map of the mesh: near each other where the round trip between them is short.

The distances are fitted by stochastic gradient descent on the stress (Zheng, Pawar, Goodman: "Graph Drawing
by Stochastic Gradient Descent", 2018). NetworkX has layouts, and each of them needs NumPy, which a node does
without: docs/decisions/0089-a-map-by-round-trips.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from random import Random
from typing import Final

# Tuning.
SWEEPS: Final = 30  # over all pairs, for a map that begins anew,
AGAIN: Final = 6  # and for one that has most of its places already, so that these hardly move
STEP: Final = (
    0.9  # the part of its error that a pair mends in the first sweep; the last mends a tenth of that
)
SMALL_STEP: Final = 0.1  # the same for such a map
CALM: Final = 0.2  # of the way to a better place that a member on the map goes at a time: eyes follow that
APART: Final = 24  # sweeps in which members that stand too near each other are moved apart
MARGIN: Final = 0.04  # of the picture, left free at each edge
ROOM: Final = 0.55  # of the distance that members would have if they stood on a square lattice
SHORTEST_S: Final = 0.0005  # round trips below that are the same on the map
# Regions stand on a ring of this radius until round trips move them; a region is a disc of that radius.
RING: Final = 0.33
DISC: Final = 0.14


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the unit square."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A measured pair: two members' node ids, and the round trip in seconds."""

    one: str
    two: str
    rtt: float


def lay_out(
    regions: Mapping[str, str], pairs: Sequence[Pair], before: Mapping[str, Place] | None = None
) -> dict[str, Place]:
    """Return a place for each member. ``regions`` are the members by node id; pairs of others are ignored.
    ``before`` are the places of the last map. The same input gives the same map."""
    regions, known = dict(sorted(regions.items())), before or {}
    spots = {node: [known[node].x, known[node].y] for node in regions if node in known}
    fresh = len(spots) * 2 < len(regions)
    seeds = _seeds(regions)
    spots = seeds if fresh else {node: spots.get(node, seeds[node]) for node in regions}
    wanted = _wanted(regions, pairs)
    if fresh:
        _fit(spots, wanted, SWEEPS, STEP)
        _into_the_square(spots)
    else:
        _fit(spots, _to_the_scale_of(spots, wanted), AGAIN, SMALL_STEP)
    _apart(spots)
    if not fresh:
        for node in spots.keys() & known.keys():
            x, y = known[node].x, known[node].y
            spots[node] = [x + CALM * (spots[node][0] - x), y + CALM * (spots[node][1] - y)]
    return {node: Place(round(_within(x), 4), round(_within(y), 4)) for node, (x, y) in spots.items()}


def _seeds(regions: Mapping[str, str]) -> dict[str, list[float]]:
    """Places by region and node id alone, so that a member that comes or goes moves no other."""
    names = sorted(set(regions.values()))
    ring = RING if len(names) > 1 else 0.0
    disc = DISC if len(names) > 1 else 0.5 - MARGIN
    spots = {}
    for node, region in regions.items():
        turn = 2 * math.pi * names.index(region) / len(names)
        digest = blake2s(node.encode(), digest_size=8).digest()
        angle = 2 * math.pi * int.from_bytes(digest[:4]) / 2**32
        radius = disc * math.sqrt(int.from_bytes(digest[4:]) / 2**32)
        spots[node] = [
            0.5 + ring * math.cos(turn) + radius * math.cos(angle),
            0.5 + ring * math.sin(turn) + radius * math.sin(angle),
        ]
    return spots


def _wanted(regions: Mapping[str, str], pairs: Sequence[Pair]) -> list[tuple[str, str, float]]:
    """The distance that each pair should have. The root of the round trip: a mesh has pairs in one rack and
    pairs across an ocean, and one would be a dot beside the other."""
    found = [
        (pair.one, pair.two, math.sqrt(max(pair.rtt, SHORTEST_S)))
        for pair in pairs
        if pair.one in regions and pair.two in regions and pair.one != pair.two
    ]
    longest = max((distance for _, _, distance in found), default=1.0)
    return [(one, two, (1 - 2 * MARGIN) * distance / longest) for one, two, distance in found]


def _to_the_scale_of(
    spots: Mapping[str, list[float]], wanted: Sequence[tuple[str, str, float]]
) -> list[tuple[str, str, float]]:
    """The same distances, in the scale at which they fit these places best by least squares."""
    there = sum(
        distance * math.hypot(spots[one][0] - spots[two][0], spots[one][1] - spots[two][1])
        for one, two, distance in wanted
    )
    scale = there / (sum(distance * distance for _, _, distance in wanted) or 1.0)
    return [(one, two, distance * scale) for one, two, distance in wanted]


def _fit(
    spots: Mapping[str, list[float]], wanted: Sequence[tuple[str, str, float]], sweeps: int, step: float
) -> None:
    order, chance = sorted(wanted), Random(len(wanted))  # noqa: S311  # the same map each time, and no secret
    for sweep in range(sweeps):
        part = step * 0.1 ** (sweep / sweeps) / 2
        chance.shuffle(order)
        for one, two, distance in order:
            a, b = spots[one], spots[two]
            dx, dy = a[0] - b[0], a[1] - b[1]
            length = math.hypot(dx, dy) or 1e-9
            move = part * (distance - length) / length
            a[0] += move * dx
            a[1] += move * dy
            b[0] -= move * dx
            b[1] -= move * dy


def _into_the_square(spots: Mapping[str, list[float]]) -> None:
    if len(spots) < 2:
        return
    xs, ys = [x for x, _ in spots.values()], [y for _, y in spots.values()]
    wide = max(max(xs) - min(xs), max(ys) - min(ys)) or 1.0
    scale = (1 - 2 * MARGIN) / wide
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    for spot in spots.values():
        spot[0] = 0.5 + (spot[0] - middle[0]) * scale
        spot[1] = 0.5 + (spot[1] - middle[1]) * scale


def _apart(spots: Mapping[str, list[float]]) -> None:
    """Move members apart that stand on each other. Only those in the same or the next field of a grid meet,
    and of each field at most so many: the work is bounded by the number of members."""
    room = ROOM * (1 - 2 * MARGIN) / math.sqrt(max(1, len(spots)))
    for _ in range(APART):
        fields = defaultdict[tuple[int, int], list[list[float]]](list)
        for spot in spots.values():
            fields[int(spot[0] / room), int(spot[1] / room)].append(spot)
        for (column, row), here in fields.items():
            near = [
                other
                for right, below in ((0, 0), (1, 0), (0, 1), (1, 1), (-1, 1))
                for other in fields.get((column + right, row + below), ())[:16]
            ]
            for spot in here[:16]:
                for other in near:
                    _push(spot, other, room)
        for spot in spots.values():
            spot[0], spot[1] = _within(spot[0]), _within(spot[1])


def _push(spot: list[float], other: list[float], room: float) -> None:
    dx, dy = spot[0] - other[0], spot[1] - other[1]
    length = math.hypot(dx, dy)
    if spot is other or length >= room:
        return
    if length < 1e-9:
        dx, dy, length = 1e-9, 0.0, 1e-9
    move = (room - length) / (2 * length)
    spot[0] += move * dx
    spot[1] += move * dy
    other[0] -= move * dx
    other[1] -= move * dy


def _within(value: float) -> float:
    return min(1 - MARGIN, max(MARGIN, value))
