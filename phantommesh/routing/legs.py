# SPDX-License-Identifier: GPL-3.0-or-later
"""A member's legs at relays as values, and what is to be done about them. `borrowing` decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Final

from phantommesh.routing.choice import Choice, Offer
from phantommesh.routing.leases import BOUND
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId

# Tuning.
OFFER_LIFE: Final = 75.0  # s that an answer is believed: two questions may go unanswered
HURRY: Final = 0.25  # s between two attempts at what has not worked yet


@dataclass(frozen=True, slots=True)
class AskCost:
    """Ask a relay what forwarding to the peer would cost."""

    relay: NodeId
    peer: NodeId


@dataclass(frozen=True, slots=True)
class AskLease:
    """Ask a relay for a leg, or renew it."""

    relay: NodeId
    peer: NodeId
    dimension: int


@dataclass(frozen=True, slots=True)
class LeaveLease:
    """Tell a relay that a lease is of no more use."""

    relay: NodeId
    peer: NodeId
    dimension: int


@dataclass(frozen=True, slots=True)
class SendFromPort:
    """Send a datagram from the WireGuard port of a dimension to the relay's port."""

    relay: NodeId
    port: int
    dimension: int
    datagram: bytes


@dataclass(frozen=True, slots=True)
class Use:
    """A dimension to a peer goes over this relay from now on; ``relay`` None: no more over any."""

    peer: NodeId
    dimension: int
    relay: NodeId | None = None
    port: int = 0
    tag: int = 0


Effect = AskCost | AskLease | LeaveLease | SendFromPort | Use


@dataclass(frozen=True, slots=True)
class Choosable:
    """A relay that a pair might use: its offer, the dimensions that it was chosen for, and for how many
    seconds it is left aside, as nothing came through by it."""

    offer: Offer
    dimensions: tuple[int, ...]
    aside: float


@dataclass(slots=True)
class Leg:
    """One dimension's lease at a relay, as this end knows it. Moments are those of the caller's clock."""

    relay: NodeId
    since: float
    ask_at: float
    asked: float = -inf  # when it was asked for last
    port: int = 0
    tag: int = 0
    ticket: bytes = b""
    key: Secret = field(default_factory=lambda: Secret(b""))
    bind_at: float = inf
    heard: float = -inf  # when the relay last said that it forwards
    used: bool = False
    ends: float = inf  # when it is given up, as another has taken its place


@dataclass(slots=True)
class Peer:
    """What is wanted of relays for one peer, what they offer, and the legs at them."""

    wanted: frozenset[int] = frozenset()
    choice: Choice = field(default_factory=Choice)
    offers: dict[NodeId, tuple[Offer, float]] = field(default_factory=dict)
    failed: dict[NodeId, float] = field(default_factory=dict)  # until when
    legs: dict[int, Leg] = field(default_factory=dict)
    before: dict[int, Leg] = field(default_factory=dict)  # legs whose place another takes or has taken
    cost_at: float = inf
    since: float = -inf  # when something was first wanted
    pause: float = HURRY
    awaited: set[NodeId] = field(default_factory=set)  # relays whose answers the first choice waits for,
    decide_at: float = inf  # until then
    # Of the end that follows: the relay whose place another took, and relays that failed it then, until when.
    last: dict[int, NodeId] = field(default_factory=dict)
    shunned: dict[NodeId, tuple[float, float]] = field(default_factory=dict)  # and for how long

    def all_legs(self) -> list[tuple[int, Leg]]:
        """The legs, each with its dimension."""
        return [*self.legs.items(), *self.before.items()]

    def moments(self) -> list[float]:
        """When something of this is due."""
        first = self.decide_at if self.awaited and self.offers and not self.legs else inf
        moments = [self.cost_at, first, *(then + OFFER_LIFE for _, then in self.offers.values())]
        for _, leg in self.all_legs():
            moments += [leg.ask_at, leg.bind_at, leg.ends]
            if leg.used:
                moments.append(leg.heard + BOUND)
        return moments
