# SPDX-License-Identifier: GPL-3.0-or-later
"""What observers of the underlay saw of each page load: times, lengths, directions, paths, and no more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec

# Lengths of IPv4 packets that carry WireGuard's own messages (whitepaper, section 5.4): keepalive, cookie,
# handshake response and initiation. Anyone can tell them from data, so an attacker sets them aside.
WIREGUARD_OWN = frozenset({60, 92, 120, 176})


class Packet(NamedTuple):
    """A packet on an uplink. ``time`` in microseconds; ``size`` in bytes with IP header, inbound below 0."""

    time: int
    size: int
    path: int


class Visit(msgspec.Struct, frozen=True):
    """One page load. ``page`` is a label, ``repetition`` the number of the round it belongs to."""

    page: int
    repetition: int
    seconds: float
    packets: list[Packet]

    def on(self, path: int) -> list[Packet]:
        """Return what an observer of one path sees of it."""
        return [packet for packet in self.packets if packet.path == path]


class Capture(msgspec.Struct, frozen=True):
    """All loads under one condition. ``settings`` says how they were made."""

    condition: str
    paths: int
    pages: list[str]
    settings: dict[str, str | int | float]
    visits: list[Visit]

    @property
    def bytes(self) -> int:
        """Return the bytes on all paths in both directions, IP headers included."""
        return sum(abs(packet.size) for visit in self.visits for packet in visit.packets)


@dataclass(frozen=True, slots=True)
class Load:
    """What the client says of a load: when it began and ended, in seconds of the wall clock."""

    page: int
    repetition: int
    began: float
    ended: float


def cut(packets: Sequence[Packet], loads: Sequence[Load]) -> Iterator[Visit]:
    """Give every load the packets from its beginning to the next one's; both in the order of time."""
    times = [packet.time for packet in packets]
    ends = [load.began for load in loads[1:]] + [float("inf")]
    for load, end in zip(loads, ends, strict=True):
        first = bisect_left(times, load.began * 1e6)
        last = bisect_left(times, end * 1e6)
        data = [packet for packet in packets[first:last] if abs(packet.size) not in WIREGUARD_OWN]
        seconds = round(load.ended - load.began, 6)
        yield Visit(load.page, load.repetition, seconds, data)


def save(capture: Capture, file: Path) -> None:
    """Write a capture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.msgpack.encode(capture))


def load(file: Path) -> Capture:
    """Read a capture. Raises OSError or msgspec.MsgspecError."""
    return msgspec.msgpack.decode(file.read_bytes(), type=Capture)


def folds(repetitions: Iterable[int], number: int) -> list[set[int]]:
    """Divide the repetitions into sets of neighbours, each to be tested once and never trained on then.

    Neighbours, since what changes with time (maps, weights, the machine's load) is alike for them: a random
    division would train on the very epoch that is tested.
    """
    ordered = sorted(set(repetitions))
    if not 2 <= number <= len(ordered):
        raise ValueError(f"{len(ordered)} repetitions do not make {number} folds")
    edges = [len(ordered) * i // number for i in range(number + 1)]
    return [set(ordered[a:b]) for a, b in pairwise(edges)]
