# SPDX-License-Identifier: GPL-3.0-or-later
"""What an attacker computes from a trace: the features of k-fingerprinting (Hayes and Danezis, 2016), pure.

Three groups, each of a fixed length: what counts and order tell, what times tell, and what lengths tell.
Tor's cells have one length, so the paper has no use for the third; WireGuard pads only to 16 bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

from benchmarks.traffic.traces import Packet

CHUNK = 20  # packets; the paper's
EDGE = 30  # packets at either end; the paper's
BINS = 20  # a series of any length is summed into so many (the paper's "alternative" features)
# The paper counts packets per second; a load in the lab takes a tenth of one.
SLICE = 10_000  # microseconds
SIZES_FIRST = 20  # packets whose lengths count one by one
GRAIN = 16  # bytes; WireGuard pads to it
LONGEST = 1536  # bytes

Features = Callable[[Sequence[Packet]], list[float]]


def counts(packets: Sequence[Packet]) -> list[float]:
    """Numbers of packets each way, their order and concentration, the first and last 30, bursts."""
    outward = [packet.size > 0 for packet in packets]
    total, out = len(outward), sum(outward)
    found: list[float] = [total, total - out, out, out / total if total else 0.0]
    for way in (True, False):
        places = [place for place, each in enumerate(outward) if each is way]
        found += [_mean(places), _deviation(places)]
    chunks = [sum(outward[start : start + CHUNK]) for start in range(0, total, CHUNK)]
    found += [*_spread(chunks), *_binned(chunks)]
    for edge in (outward[:EDGE], outward[-EDGE:]):
        found += [sum(edge), len(edge) - sum(edge)]
    runs = [(way, len(list(run))) for way, run in groupby(outward)]
    for way in (True, False):
        lengths = [length for each, length in runs if each is way]
        found += [len(lengths), *_spread(lengths), sum(n > 2 for n in lengths), sum(n > 10 for n in lengths)]
    return found


def times(packets: Sequence[Packet]) -> list[float]:
    """Packets per slice of time, gaps, and when which share had come; from the first packet seen."""
    start = packets[0].time if packets else 0
    found: list[float] = []
    for wanted in (0, 1, -1):
        moments = [packet.time - start for packet in packets if wanted * packet.size >= 0]
        gaps = [b - a for a, b in pairwise(moments)]
        found += [*_spread(gaps), *_quantiles(gaps), *_quantiles(moments), max(moments, default=0)]
    moments = [packet.time - start for packet in packets]
    slices = [0] * (moments[-1] // SLICE + 1) if moments else []
    for moment in moments:
        slices[moment // SLICE] += 1
    return [*found, *_spread(slices), min(slices, default=0), *_binned(slices)]


def lengths(packets: Sequence[Packet]) -> list[float]:
    """Bytes each way, the distribution of lengths, how many had which length, the first packets' lengths."""
    found: list[float] = []
    for way in (1, -1):
        sizes = [way * packet.size for packet in packets if way * packet.size > 0]
        tally = [0] * (LONGEST // GRAIN)
        for size in sizes:
            tally[min(size, LONGEST - 1) // GRAIN] += 1
        found += [sum(sizes), *_spread(sizes), *_quantiles(sizes), *tally]
    first = [packet.size for packet in packets[:SIZES_FIRST]]
    return [*found, *first, *[0] * (SIZES_FIRST - len(first))]


def all_groups(packets: Sequence[Packet]) -> list[float]:
    """Everything: the attacker that WireGuard's observer can be."""
    return [*counts(packets), *times(packets), *lengths(packets)]


def no_lengths(packets: Sequence[Packet]) -> list[float]:
    """The paper's attacker on Tor: what is left when every packet has the same length."""
    return [*counts(packets), *times(packets)]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5)


def _spread(values: Sequence[float]) -> list[float]:
    """Mean, standard deviation, median, maximum."""
    if not values:
        return [0.0] * 4
    return [_mean(values), _deviation(values), sorted(values)[len(values) // 2], max(values)]


def _quantiles(values: Sequence[float]) -> list[float]:
    if not values:
        return [0.0] * 3
    ordered = sorted(values)
    return [ordered[len(ordered) * part // 4] for part in (1, 2, 3)]


def _binned(values: Sequence[float]) -> list[float]:
    edges = [len(values) * i // BINS for i in range(BINS + 1)]
    return [float(sum(values[a:b])) for a, b in pairwise(edges)]
