# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways: where WireGuard sends a peer's packets in each dimension, where that is not an address of the peer's
record. Sans-I/O.

NAT traversal finds direct ways, relays and frames over TCP are the ways for what no direct one reaches. Each
of the three offers here what it has, and withdraws what no longer works. The best way on offer is taken.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import IntEnum

from phantommesh.dimensions import DIMENSIONS, bits, only, without
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import Endpoint


class Kind(IntEnum):
    """The kinds of way, the best first."""

    DIRECT = 0
    RELAYED = 1
    FRAMED = 2

    @property
    def text(self) -> str:
        """As an operator reads it."""
        return ("direct", "relayed", "tcp")[self]


@dataclass(frozen=True, slots=True)
class Way:
    """``endpoint`` is what WireGuard gets for the peer. ``relay`` is the node id of the member that forwards
    (`Kind.RELAYED`), or that joins two connections (`Kind.FRAMED`). ``room``: the bytes that this way takes
    away from what the packets may have, for frames."""

    kind: Kind
    endpoint: Endpoint
    relay: bytes = b""
    room: int = 0


class Ways:
    """The ways on offer, by peer (node id), dimension and kind."""

    def __init__(self) -> None:
        self._offers: dict[bytes, dict[int, dict[Kind, Way]]] = {}
        self._held: dict[bytes, dict[Kind, int]] = {}
        self._quiet: dict[bytes, int] = {}
        self._lenders: dict[bytes, Mapping[int, frozenset[NodeId]]] = {}

    def known(self, peer: bytes) -> bool:
        """Whether there is a way on offer to this peer."""
        return any(self._offers.get(peer, {}).values())

    def chosen(self, peer: bytes, dimension: int) -> Way | None:
        """The way to take. None: an address of the peer's record."""
        offers = self._offers.get(peer, {}).get(dimension)
        return None if not offers else offers[min(offers)]

    def left(self, peer: bytes, dimension: int) -> Endpoint | None:
        """A relay's endpoint that is on offer yet, though a better way is taken: packets of the peer may come
        from there for a while, and WireGuard would follow them back."""
        relayed = self._offers.get(peer, {}).get(dimension, {}).get(Kind.RELAYED)
        return None if relayed is None or self.chosen(peer, dimension) is relayed else relayed.endpoint

    def at(self, peer: bytes, dimension: int, endpoint: Endpoint) -> Way | None:
        """The way on offer that has this endpoint, the best if there are several."""
        offers = self._offers.get(peer, {}).get(dimension, {})
        return next((offers[kind] for kind in sorted(offers) if offers[kind].endpoint == endpoint), None)

    def lend(self, peer: bytes, lenders: Mapping[int, frozenset[NodeId]]) -> bool:
        """From now on these relays, by dimension, may forward packets of a peer, used or not. Return whether
        they are others than before."""
        before = self._lenders.pop(peer, {})
        if lenders:
            self._lenders[peer] = lenders
        return before != lenders

    def lenders(self, peer: bytes) -> Mapping[int, frozenset[NodeId]]:
        """The relays that may forward packets of a peer: WireGuard follows the peer's packets there."""
        return self._lenders.get(peer, {})

    def proved(self) -> set[Endpoint]:
        """The endpoints of the direct and relayed ways on offer: packets have passed there, both ways. Frames
        are not among them: what comes in by any other way shows that the peer has left the frames."""
        offers = (found for dimensions in self._offers.values() for found in dimensions.values())
        return {way.endpoint for found in offers for way in found.values() if way.kind is not Kind.FRAMED}

    def taken(self, peer: bytes) -> list[Way | None]:
        """The ways to take, by dimension."""
        return [self.chosen(peer, i) for i in range(DIMENSIONS)]

    def on_offer(self, peer: bytes, kind: Kind) -> int:
        """The dimensions, as a bitmap, for which there is a way of this kind."""
        return bits(kind in self._offers.get(peer, {}).get(i, {}) for i in range(DIMENSIONS))

    def held(self, peer: bytes) -> int:
        """The dimensions, as a bitmap, in which nothing may be sent to the peer's own addresses for now."""
        held = 0
        for dimensions in self._held.get(peer, {}).values():
            held |= dimensions
        return held

    def quiet(self, peer: bytes) -> int:
        """The dimensions, as a bitmap, in which nothing at all may be sent to the peer: a direct way was lost
        there, and WireGuard cannot forget an address."""
        return self._quiet.get(peer, 0)

    def offer(self, peer: bytes, dimension: int, way: Way) -> bool:
        """Have a way. A later one of the same kind takes its place. Return whether another is to be taken
        than before."""
        before = self.chosen(peer, dimension)
        self._offers.setdefault(peer, {}).setdefault(dimension, {})[way.kind] = way
        self._quiet[peer] = without(self.quiet(peer), only(dimension))
        return self.chosen(peer, dimension) != before

    def withdraw(self, peer: bytes, dimension: int, kind: Kind) -> bool:
        """Have the way of this kind no longer. Return whether another is to be taken than before."""
        before = self.chosen(peer, dimension)
        self._offers.get(peer, {}).get(dimension, {}).pop(kind, None)
        if kind is Kind.DIRECT and self.chosen(peer, dimension) is None:
            self._quiet[peer] = self.quiet(peer) | self.held(peer) & only(dimension)
        return self.chosen(peer, dimension) != before

    def hold(self, peer: bytes, dimensions: int, *, by: Kind = Kind.DIRECT) -> bool:
        """Send nothing to the peer's own addresses in these dimensions, a bitmap: an early packet may spoil
        the peer's NAT (design, NAT traversal). ``by`` is the kind of way that is waited for; what another
        kind holds stays held. Return whether anything else is held than before."""
        before, holders = self.held(peer), self._held.setdefault(peer, {})
        holders.pop(by, None)
        if dimensions:
            holders[by] = dimensions
        if not holders:
            del self._held[peer]
        self._quiet[peer] = self.quiet(peer) & self.held(peer)
        return before != self.held(peer)

    def retain(self, peers: Container[bytes]) -> None:
        """Forget all other peers."""
        self._offers = {peer: offers for peer, offers in self._offers.items() if peer in peers}
        self._held = {peer: held for peer, held in self._held.items() if peer in peers}
        self._quiet = {peer: quiet for peer, quiet in self._quiet.items() if quiet and peer in peers}
        self._lenders = {peer: lenders for peer, lenders in self._lenders.items() if peer in peers}
