# SPDX-License-Identifier: GPL-3.0-or-later
"""What if: divide a capture of one path over several by a rule, as TrafficSliver's authors judged theirs.

Pure. Nothing of the network is simulated: times stay as they were on one path, so what reordering does to TCP
is missing. This module finds rules worth building; only figures of real captures count.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.traffic.traces import Capture, Packet, Visit

LONGEST = 1484  # bytes; the longest packet of an interface with MTU 1420, padded by WireGuard


@dataclass(frozen=True, slots=True)
class Rule:
    """How the packets of each direction are dealt.

    ``batch``: least and most packets in a row on one path. ``alpha``: each load's weights are drawn from a
    symmetric Dirichlet distribution of this concentration (1 is TrafficSliver's; small is unequal); 0: equal.
    ``lengths``: packets are padded to the next of these; none: as they are.
    """

    name: str
    batch: tuple[int, int] = (1, 1)
    alpha: float = 0.0
    lengths: tuple[int, ...] = ()
    paths: int = 7


def deal(number: int, rule: Rule, rng: random.Random) -> list[int]:
    """Return the paths of so many packets in a row."""
    # A gamma variate each is a Dirichlet draw but for the sum; the least there is keeps the sum above 0.
    weights = [rng.gammavariate(rule.alpha, 1.0) + 1e-12 if rule.alpha else 1.0 for _ in range(rule.paths)]
    found: list[int] = []
    while len(found) < number:
        found += rng.choices(range(rule.paths), weights) * rng.randint(*rule.batch)
    return found[:number]


def padded(size: int, lengths: Sequence[int]) -> int:
    """Return the least of the lengths that is enough, or the size itself where none is; the sign stays."""
    longer = min((length for length in lengths if length >= abs(size)), default=abs(size))
    return longer if size > 0 else -longer


def split(visit: Visit, rule: Rule, seed: str) -> Visit:
    """Divide one load."""
    rng = random.Random(f"{seed}/{visit.repetition}/{visit.page}")
    ways = {
        way: iter(deal(sum((packet.size > 0) is way for packet in visit.packets), rule, rng))
        for way in (True, False)
    }
    packets = [
        Packet(packet.time, padded(packet.size, rule.lengths), next(ways[packet.size > 0]))
        for packet in visit.packets
    ]
    return Visit(visit.page, visit.repetition, visit.seconds, packets)


def split_all(capture: Capture, rule: Rule, seed: int) -> Capture:
    """Divide every load, each by a draw of its own."""
    visits = [split(visit, rule, str(seed)) for visit in capture.visits]
    return Capture(f"{rule.name} (simulated)", rule.paths, capture.pages, capture.settings, visits)
