# SPDX-License-Identifier: GPL-3.0-or-later
"""Cover traffic: when dummies of which size go to which peer. Pure: times in seconds on the owner's clock,
sizes in bytes.

The shape is FRONT's (Gong and Wang, "Zero-delay Lightweight Defenses against Website Fingerprinting", USENIX
Security 2020): dummies come in *fronts*, each with a number and a width drawn anew, and its dummies' times
follow a Rayleigh distribution of that width. So how much cover a load meets, and where, differs from load to
load. Three things are not FRONT's. A front is drawn in bytes, since the budget is in bytes. Fronts follow
each other for as long as a peer is covered, since a node does not know where a load begins. And nothing
depends on how much traffic there is: cover in proportion to it would tell each path the total.

The budget is a bound, not an aim: over any time T the node sends at most ``rate * (T + SAVED)`` bytes, and
each peer at most that of its own rate. A dummy for which there is no budget is left out, and not sent later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf, log, sqrt
from random import Random
from typing import Final, Generic, TypeVar

from phantommesh.rates import Bucket

DISCARD: Final = 9  # the discard port (RFC 863)
HEADERS: Final = 28  # bytes of IPv4 and UDP, of the dummy itself and again on the uplink
WIREGUARD: Final = 32  # bytes of a data message around the packet (whitepaper, section 5.4.6)
PAD: Final = 16  # bytes to whose multiple WireGuard pads a packet

# Tuning.
LEAST: Final = 40  # bytes of payload: as short as packets with data are
WIDTHS: Final = 0.1, 1.5  # s, least and greatest width of a front: a page takes 0.2 to 3 s to load
END: Final = 0.95  # of the Rayleigh distribution: a front is over then, at 2.4 widths, and none is later
SAVED: Final = 5.0  # s of its rate that a budget holds: one front of the widest, drawn large
LATE: Final = 0.1  # s after its time within which a dummy is sent: a node that slept sends no burst
MOST_DUMMIES: Final = (
    2048  # of one front; the widest of the greatest rate that an agent may ask for has fewer
)
MOST_PEERS: Final = 64  # that are covered at once

Peer = TypeVar("Peer", bound=Hashable)
_SPAN: Final = sqrt(-2.0 * log(1.0 - END))


def on_wire(payload: int) -> int:
    """The bytes of a dummy on an uplink of IPv4, which is what the budget is spent in."""
    return HEADERS + WIREGUARD + -(-(payload + HEADERS) // PAD) * PAD


def draw_size(random: Random, most: int) -> int:
    """Draw a dummy's payload, log-uniform: packets that tell pages apart are short ones, and the same bytes
    make more of them."""
    return min(most, round(LEAST * (most / LEAST) ** random.random())) if most > LEAST else most


def draw_front(random: Random, rate: float, most: int) -> tuple[float, list[tuple[float, int]]]:
    """Draw a front: how long it is, and each dummy's time since its beginning and payload, in order. In the
    mean over fronts it sends ``rate`` bytes a second; this one between nothing and twice that."""
    width = random.uniform(*WIDTHS)
    length = width * _SPAN
    left, dummies = random.uniform(0.0, 2.0) * rate * length, list[tuple[float, int]]()
    while len(dummies) < MOST_DUMMIES:
        size = draw_size(random, most)
        cost = on_wire(size)
        # The last one goes with the chance that makes the mean right.
        if cost > left and random.random() * cost > left:
            break
        left -= cost
        at = width * sqrt(-2.0 * log(1.0 - END * random.random()))
        dummies.append((min(at, length), size))
        if left <= 0.0:
            break
    return length, sorted(dummies)


@dataclass(slots=True)
class _Covered:
    """One peer: bytes a second that may go to it, the longest payload, the front under way and its next."""

    rate: float
    most: int
    bucket: Bucket
    began: float
    ends: float
    dummies: list[tuple[float, int]]
    next: int = 0

    @property
    def due(self) -> float:
        """When the next dummy is due, or the next front."""
        return self.began + self.dummies[self.next][0] if self.next < len(self.dummies) else self.ends


@dataclass(frozen=True, slots=True)
class Dummy(Generic[Peer]):
    """A dummy to be sent now."""

    peer: Peer
    payload: int


class Covering(Generic[Peer]):
    """All peers that are covered, and the node's budget of ``rate`` bytes a second."""

    def __init__(self, random: Random, rate: float, now: float) -> None:
        self.dropped: Counter[str] = Counter()
        self._random, self._peers = random, dict[Peer, _Covered]()
        self._rate, self._bucket = 0.0, Bucket(0.0, 0.0, now)
        self.limit(rate, now)

    def limit(self, rate: float, now: float) -> None:
        """The node's budget is another one from now on. What was saved of the one before is given up where
        the new one is less, or nothing is saved: no change makes the budget more than it says."""
        if rate != self._rate:
            self._rate, self._bucket = rate, _spent(rate, now)

    def covered(self) -> list[Peer]:
        """The peers that are covered."""
        return list(self._peers)

    def cover(self, peer: Peer, rate: float, most: int, now: float) -> bool:
        """Send cover to a peer from now on: at most ``rate`` bytes a second, and ``most`` bytes of payload in
        a dummy. False where too many peers are covered already."""
        if rate <= 0.0:
            self.uncover(peer)
            return True
        known = self._peers.get(peer)
        if known is not None and known.rate == rate:
            known.most = most
            return True
        if known is None and len(self._peers) >= MOST_PEERS:
            return False
        self._peers[peer] = _Covered(rate, most, _spent(rate, now), now, now, [])
        return True

    def uncover(self, peer: Peer) -> None:
        """Send nothing more to a peer."""
        self._peers.pop(peer, None)

    @property
    def deadline(self) -> float:
        """When `tick` has something to do."""
        return min((one.due for one in self._peers.values()), default=inf)

    def tick(self, now: float) -> list[Dummy[Peer]]:
        """The dummies that go now, paid for from both budgets."""
        found = list[Dummy[Peer]]()
        for peer, one in self._peers.items():
            while one.due <= now:
                if one.next == len(one.dummies):
                    self._begin(one, now)
                    continue
                (at, size), one.next = one.dummies[one.next], one.next + 1
                if now > one.began + at + LATE:
                    self.dropped["cover-late"] += 1
                elif size <= one.most and self._pay(one, on_wire(size), now):
                    found.append(Dummy(peer, size))
                else:
                    self.dropped["cover-over-budget"] += 1
        return found

    def _begin(self, one: _Covered, now: float) -> None:
        """Begin the next front where the last one ended, or now, where that is long ago. Peers share the
        node's budget evenly."""
        rate = min(one.rate, self._rate / len(self._peers))
        length, one.dummies = draw_front(self._random, rate, one.most)
        one.began = one.ends if one.ends > now - LATE else now
        one.ends, one.next = one.began + length, 0

    def _pay(self, one: _Covered, cost: int, now: float) -> bool:
        if one.bucket.wait(now, cost) > 0.0 or not self._bucket.take(now, cost):
            return False
        return one.bucket.take(now, cost)


def _spent(rate: float, now: float) -> Bucket:
    """A budget of which nothing is saved yet."""
    bucket = Bucket(rate, rate * SAVED, now)
    bucket.take(now, rate * SAVED)
    return bucket
