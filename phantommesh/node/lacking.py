# SPDX-License-Identifier: GPL-3.0-or-later
"""Which dimensions to a peer have no direct way, so that a relay is to be used; and which relays could serve.
Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.endpoint import parse_endpoint
from phantommesh.paths.effects import PathView
from phantommesh.paths.state import PathState
from phantommesh.records.record import RELAYS_IPV4, RELAYS_IPV6, NodeRecord
from phantommesh.routing.ways import Kind, Way

# Tuning.
LACK: Final = 0.5  # s that a dimension is dark, or leads nowhere, until it counts as one without a direct way
UNPROVED: Final = 1.5  # s the same while it has an address and has not carried anything yet
KEEP: Final = 5.0  # s for which the lease is kept once there is one: the ends move one after the other
GONE: Final = 1.0  # s that all dimensions over one relay are dark until the relay counts as gone

_DOWN: Final = (PathState.CLOSED, PathState.DARK)


@dataclass(slots=True)
class _Dimension:
    lacks: float | None = None  # since when it has no direct way
    works: float | None = None  # since when it has one again
    wanted: bool = False


class Lacking:
    """What is known of one peer's dimensions."""

    def __init__(self) -> None:
        self._dimensions = [_Dimension() for _ in range(DIMENSIONS)]
        self._dark: dict[bytes, float] = {}  # since when, by relay

    def look(
        self, keyed: int, paths: Sequence[PathView], ways: Sequence[Way | None], now: float, back: int = 0
    ) -> int:
        """Return the dimensions, as a bitmap, that are to go over relays now. ``keyed`` is the bitmap of
        those whose PSK both ends have; ``paths`` and ``ways`` are as they are now, by dimension. ``back``:
        those in which WireGuard was seen to go over the relay again since the last look, though a better way
        is taken."""
        for i, (known, path, way) in enumerate(zip(self._dimensions, paths, ways, strict=True)):
            if not has(keyed, i):
                known.lacks, known.works, known.wanted = None, None, False
            elif _lacks(path, way):
                known.works = None
                known.lacks = now if known.lacks is None else known.lacks
                known.wanted |= now - known.lacks >= (LACK if path.state in _DOWN else UNPROVED)
            else:
                known.lacks = None
                known.works = now if known.works is None or has(back, i) else known.works
                known.wanted &= now - known.works < KEEP
        return bits(known.wanted for known in self._dimensions)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: all dimensions work, or none is keyed."""
        return not any(known.wanted or known.lacks is not None for known in self._dimensions)

    def gone(self, paths: Sequence[PathView], ways: Sequence[Way | None], now: float) -> list[bytes]:
        """Return the relays over which nothing comes through, by node id: all dimensions that go over one are
        dark."""
        states: dict[bytes, list[bool]] = {}
        for path, way in zip(paths, ways, strict=True):
            if way is not None and way.kind is Kind.RELAYED:
                states.setdefault(way.relay, []).append(path.state is PathState.DARK)
        dark = {relay for relay, each in states.items() if all(each)}
        self._dark = {relay: self._dark.get(relay, now) for relay in dark}
        found = [relay for relay, since in self._dark.items() if now - since >= GONE]
        for relay in found:
            self._dark[relay] = now  # told again after another while
        return found


def _lacks(path: PathView, way: Way | None) -> bool:
    if way is not None and way.kind is not Kind.DIRECT:
        return True  # until a direct way is on offer, which takes precedence
    return path.state in _DOWN or path.answered is None


def round_trip(paths: Sequence[PathView], ways: Sequence[Way | None]) -> float | None:
    """The least round trip in seconds to a member by a direct way; None where no direct way answers."""
    found = [
        path.rtt
        for path, way in zip(paths, ways, strict=True)
        if path.answers and path.rtt is not None and (way is None or way.kind is Kind.DIRECT)
    ]
    return min(found, default=None)


def family(relay: NodeRecord, one: NodeRecord, two: NodeRecord) -> int | None:
    """The version of IP in which a relay can forward for two members, by their records: 4, 6, or None where
    it can in neither. Both ends come to the same."""
    if relay.relay is None:
        return None
    for version, flag in ((4, RELAYS_IPV4), (6, RELAYS_IPV6)):
        if relay.relay.families & flag and all(version in _versions(each) for each in (one, two)):
            return version
    return None


def _versions(record: NodeRecord) -> set[int]:
    """The versions of IP in which a node is reached. A record that names no address says nothing; a DNS name
    may lead to either."""
    hosts: Iterable[str] = [parse_endpoint(endpoint)[0] for endpoint in record.control]
    found: set[int] = {one.ip.version for one in record.candidates}
    for host in hosts:
        try:
            found.add(ip_address(host).version)
        except ValueError:
            return {4, 6}
    return found or {4, 6}
