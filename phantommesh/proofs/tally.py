# SPDX-License-Identifier: GPL-3.0-or-later
"""Running totals of what WireGuard sent and received a peer and dimension, across keys and interfaces.

WireGuard's counters begin anew when a peer gets another key or its interface is made again; these totals do
not. Bytes that came between the last look and such a change are not in them, so `Tally.look` says that there
was one: nothing that is counted across it proves anything. A peer that leaves does not have its totals
forgotten by that: what it sent until then, and comes back to prove nothing of, is in the next receipt's
totals.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from phantommesh.proofs.statement import ZEROS, Seven
from phantommesh.trust.identity import NodeId

# Tuning.
MAX_GONE: Final = 1024  # peers that have left, whose totals are kept

Counters = tuple[bytes, int, int]  # the peer's WireGuard key, bytes received, bytes sent


@dataclass(slots=True)
class _Totals:
    last: dict[int, Counters] = field(default_factory=dict)  # of the dimensions that were there
    received: list[int] = field(default_factory=lambda: list(ZEROS))
    sent: list[int] = field(default_factory=lambda: list(ZEROS))


class Tally:
    """The totals of all peers, from the first look on."""

    def __init__(self) -> None:
        self._peers: dict[NodeId, _Totals] = {}
        self._gone: OrderedDict[NodeId, _Totals] = OrderedDict()

    def retain(self, peers: Collection[NodeId]) -> None:
        """All others have left."""
        for peer in sorted(self._peers.keys() - set(peers)):
            self._gone[peer] = totals = self._peers.pop(peer)
            totals.last = {}
        while len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)

    def peers(self) -> list[NodeId]:
        """The peers that are there."""
        return list(self._peers)

    def look(self, peer: NodeId, readings: Iterable[Counters | None]) -> bool:
        """Take in one look at a peer's counters, one a dimension; None for one that is not there now.

        Return whether the totals are whole: nothing can have been counted since the look before this one
        that is not in them. They are not where a counter has begun anew, or a dimension has come or gone.
        """
        known = self._peers.get(peer, self._gone.pop(peer, None))
        totals = self._peers[peer] = _Totals() if known is None else known
        now = {dimension: reading for dimension, reading in enumerate(readings) if reading is not None}
        whole = known is None or now.keys() == known.last.keys()
        for dimension, reading in now.items():
            key, received, sent = reading
            last = totals.last.get(dimension, reading)  # what was there before the first look does not count
            if last[0] != key or received < last[1] or sent < last[2]:
                whole, last = False, (key, 0, 0)
            totals.received[dimension] += received - last[1]
            totals.sent[dimension] += sent - last[2]
        totals.last = now
        return whole

    def received(self, peer: NodeId) -> Seven:
        """Bytes received from a peer so far."""
        return _seven(self._peers.get(peer, _Totals()).received)

    def sent(self, peer: NodeId) -> Seven:
        """Bytes sent to a peer so far."""
        return _seven(self._peers.get(peer, _Totals()).sent)


def _seven(values: Sequence[int]) -> Seven:
    a, b, c, d, e, f, g = values
    return a, b, c, d, e, f, g
