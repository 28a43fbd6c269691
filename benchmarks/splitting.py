# SPDX-License-Identifier: GPL-3.0-or-later
"""What if: divide a capture of one path over several by a rule, as TrafficSliver (2020) judges its rules. Pure.

Nothing of the network is simulated: times stay as they were on one path, so what reordering does to TCP is
missing. For finding rules worth building; the figures that count are those of real captures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.traces import Capture, Packet, Visit


@dataclass(frozen=True, slots=True)
class Rule:
    """How packets of each direction are dealt.

    ``batch``: least and most packets in a row on one path. ``alpha``: weights are drawn from a symmetric
    Dirichlet distribution of this concentration (1 is TrafficSliver's; small is unequal), 0: equal weights.
    ``redraw``: packets of one direction after which weights are drawn anew, 0: once a load. ``flows``: a
    path is chosen for each of so many connections instead, packets being theirs at random in batches.
    ``pad``: lengths become multiples of so many bytes, 0: as they are.
    """

    name: str
    batch: tuple[int, int] = (1, 1)
    alpha: float = 0.0
    redraw: int = 0
    pad: int = 0
    paths: int = 7


def deal(number: int, rule: Rule, rng: random.Random) -> list[int]:
    """Return the paths of so many packets in a row."""
    found: list[int] = []
    weights = draw(rule, rng)
    since = 0
    while len(found) < number:
        if rule.redraw and since >= rule.redraw:
            weights, since = draw(rule, rng), 0
        size = rng.randint(*rule.batch)
        found += rng.choices(range(rule.paths), weights) * size
        since += size
    return found[:number]


def draw(rule: Rule, rng: random.Random) -> list[float]:
    """Return one weight a path."""
    if not rule.alpha:
        return [1.0] * rule.paths
    return [rng.gammavariate(rule.alpha, 1.0) + 1e-12 for _ in range(rule.paths)]


def padded(size: int, multiple: int, most: int = 1480) -> int:
    """Return a length padded as the rule says, at most to the longest packet there is; the sign stays."""
    if not multiple:
        return size
    longer = min(-(-abs(size) // multiple) * multiple, max(most, abs(size)))
    return longer if size > 0 else -longer


def split(visit: Visit, rule: Rule, seed: str) -> Visit:
    """Divide one load."""
    rng = random.Random(f"{seed}/{visit.repetition}/{visit.page}")
    ways = {
        way: iter(deal(sum((packet.size > 0) is way for packet in visit.packets), rule, rng))
        for way in (True, False)
    }
    packets = [
        Packet(packet.time, padded(packet.size, rule.pad), next(ways[packet.size > 0]))
        for packet in visit.packets
    ]
    return Visit(visit.page, visit.repetition, visit.seconds, packets)


def split_all(capture: Capture, rule: Rule, seed: int) -> Capture:
    """Divide every load, each by a draw of its own."""
    visits = [split(visit, rule, str(seed)) for visit in capture.visits]
    return Capture(f"{rule.name} (simulated)", rule.paths, capture.pages, capture.settings, visits)
