# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns in who calls whom inside the overlay: a scan, and a beacon's even distances.

A scan calls many ports of one host, or one port of many hosts, that it did not call before; vertical and
horizontal as in S. Staniford, J. Hoagland and J. McAlerney, Practical automated detection of stealthy
portscans (2002). A beacon calls one port of one host at even distances: what is compared is the median
distance and the median deviation from it, which a few late calls do not move. No I/O: counters and ``now``
in.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from phantommesh.scatter.flows import Address, FlowKey

# Tuning.
SCAN_OVER: Final = 60.0  # s in which a source's new targets are counted
HOSTS: Final = 3  # times as many hosts as ports: programs that call many hosts at one port are common
SEEN_FOR: Final = 600.0  # s that a pattern counts as seen after it showed last
EVEN: Final = 0.15  # of the median distance that the median deviation may be; chance gives more than 0.4
SHORTEST, LONGEST = 5.0, 450.0  # s between calls: less is a session, more the counters forget
MOST_KEYS: Final = 2048  # calls whose moments are remembered; the oldest go first
MOST_SOURCES: Final = 256  # sources whose new targets are remembered
MOST_TARGETS: Final = 512  # of one source

Kind = Literal["scan", "beacon"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """What shows. ``source`` calls; ``about`` says whom; ``count`` calls or targets; ``period`` of a beacon
    in seconds."""

    kind: Kind
    source: Address
    about: str
    count: int
    period: float = 0.0


class Patterns:
    """What calls showed so far, bounded."""

    def __init__(self, targets: int, contacts: int, expected: Collection[int]) -> None:
        self._targets, self._contacts, self._expected = targets, contacts, frozenset(expected)
        self._counts: OrderedDict[FlowKey, int] = OrderedDict()
        self._moments: OrderedDict[FlowKey, deque[float]] = OrderedDict()
        self._new: OrderedDict[Address, deque[tuple[float, FlowKey]]] = OrderedDict()
        self._seen: dict[tuple[Kind, Address, str], tuple[Pattern, float]] = {}
        self._first = True

    @property
    def remembered(self) -> int:
        """All that is kept, in entries."""
        moments = sum(map(len, self._moments.values())) + sum(map(len, self._new.values()))
        return len(self._counts) + moments + len(self._seen)

    def look(self, calls: Mapping[FlowKey, int], now: float) -> list[Pattern]:
        """Take in how often each call was made so far, and return the patterns that show. Calls that were
        there at the first look are nobody's scan: nothing says when they were made."""
        for key, count in calls.items():
            before = self._counts.get(key)
            if before is None:
                if not self._first:
                    self._note_new(key, now)
            elif count <= before:
                continue
            self._counts[key] = count
            self._counts.move_to_end(key)
            if key.destination_port not in self._expected and not self._first:
                moments = self._moments.setdefault(key, deque(maxlen=self._contacts + 1))
                moments.append(now)
                self._moments.move_to_end(key)
        while len(self._counts) > 2 * MOST_KEYS:
            self._counts.popitem(last=False)
        while len(self._moments) > MOST_KEYS:
            self._moments.popitem(last=False)
        while len(self._new) > MOST_SOURCES:
            self._new.popitem(last=False)
        self._first = False
        for one in (*self._scans(now), *self._beacons(now)):
            self._seen[one.kind, one.source, one.about] = one, now
        self._seen = {which: found for which, found in self._seen.items() if now - found[1] < SEEN_FOR}
        return [one for one, _ in self._seen.values()][:MOST_SOURCES]

    def _note_new(self, key: FlowKey, now: float) -> None:
        fresh = self._new.setdefault(key.source, deque(maxlen=MOST_TARGETS))
        fresh.append((now, key))
        self._new.move_to_end(key.source)

    def _scans(self, now: float) -> list[Pattern]:
        found = list[Pattern]()
        for source, fresh in list(self._new.items()):
            while fresh and now - fresh[0][0] > SCAN_OVER:
                fresh.popleft()
            if not fresh:
                del self._new[source]
                continue
            if len(fresh) < self._targets:
                continue
            ports, hosts = defaultdict[Address, set[int]](set), defaultdict[int, set[Address]](set)
            for _, key in fresh:
                ports[key.destination].add(key.destination_port)
                hosts[key.destination_port].add(key.destination)
            host, many = max(ports.items(), key=lambda one: len(one[1]))
            if len(many) >= self._targets:
                found.append(Pattern("scan", source, f"ports of {host}", len(many)))
            port, reached = max(hosts.items(), key=lambda one: len(one[1]))
            if len(reached) >= HOSTS * self._targets:
                found.append(Pattern("scan", source, f"port {port} of many hosts", len(reached)))
        return found

    def _beacons(self, now: float) -> list[Pattern]:
        found = list[Pattern]()
        for key, moments in self._moments.items():
            if len(moments) <= self._contacts or moments[-1] < now:
                continue  # too few, or none since the look before
            gaps = [later - earlier for earlier, later in zip(moments, list(moments)[1:], strict=False)]
            period = median(gaps)
            if not SHORTEST <= period <= LONGEST:
                continue
            if median(abs(gap - period) for gap in gaps) <= EVEN * period:
                about = f"port {key.destination_port} of {key.destination}"
                found.append(Pattern("beacon", key.source, about, len(moments), period))
        return found
