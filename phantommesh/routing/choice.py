# SPDX-License-Identifier: GPL-3.0-or-later
"""Which relays a pair of members uses in its dimensions. Pure.

A pair uses the `WAYS` relays that cost least, and its dimensions go over them in turn: so a node with one
uplink has paths that part after the first hop, and the end of one relay does not end the pair. The end with
the lower node id chooses; the relay tells the other end, which asks for the same leases.

A choice is kept until another is worth a change: its relay no longer offers, or another one costs less by
more than a margin and the last change is some time ago. A class of traffic that may go by some relays only,
or that needs several, has further ones chosen beside the cheapest, as long as there are dimensions for them.

Costs are round trips by way of the relay: those from this node to the relay are this node's own measurements,
those from the relay to the peer are the relay's word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import inf
from typing import Final

from phantommesh.paths.cost import cost, worth
from phantommesh.routing.neighbours import Link
from phantommesh.trust.identity import NodeId

# Tuning.
WAYS: Final = 2  # relays of one pair, where there are two
HOLD: Final = 30.0  # s from any change of relays to the next one for cost's sake


@dataclass(frozen=True, slots=True)
class Offer:
    """A relay that would forward for the pair: round trips in seconds from this node to the relay, as this
    node measures it, and from the relay to the peer, as the relay says."""

    relay: NodeId
    near: float
    far: float

    @property
    def cost(self) -> float:
        """The round trip by way of this relay in seconds. What the relay says cannot make it less than what
        this node measures."""
        return self.near + max(0.0, self.far)


@dataclass(frozen=True, slots=True)
class Need:
    """The need of a class of traffic: so many different relays among those that ``may`` have its packets."""

    may: Callable[[NodeId], bool]
    relays: int = 1


def latency(link: Link) -> float:
    """Return what a link costs traffic that waits for answers, in seconds."""
    return cost(link.rtt, link.jitter, link.loss)


def hop(
    direct: float, near: Mapping[NodeId, float], far: Mapping[NodeId, float], held: NodeId | None = None
) -> tuple[NodeId | None, float]:
    """Return the relay by which a peer costs least, None for the direct way, and the cost. ``near`` are costs
    from here to relays, ``far`` from relays to the peer. The way that is ``held`` is left for one that costs
    less by as much as is `worth` a change; one that is there no more, at once."""
    best, least, rest = None, inf, far.get
    for relay, here in near.items():
        if here < least and (cost := here + rest(relay, inf)) < least:
            best, least = relay, cost
    now = direct
    if held is not None and held in near and held in far:
        now = near[held] + far[held]
        if direct < least:
            best, least = None, direct
    else:
        held = None
    if least < now and (now == inf or worth(now, least)):
        return best, least
    return held, now


class Choice:
    """The relays that one pair uses now, by dimension."""

    def __init__(self) -> None:
        self.relays: dict[int, NodeId] = {}
        self._cheapest: frozenset[NodeId] = frozenset()  # of them, those that were chosen for their cost
        self._changed = -inf

    def decide(
        self, dimensions: Iterable[int], offers: Sequence[Offer], now: float, needs: Iterable[Need] = ()
    ) -> Mapping[int, NodeId]:
        """Choose a relay for each of these dimensions; none for any where nobody offers. ``offers`` are those
        of now: a relay that is in no offer is left at once. ``needs`` are met as far as dimensions and offers
        go, the first ones first."""
        wanted = sorted(set(dimensions))
        costs = {offer.relay: offer.cost for offer in offers}
        before = {d: r for d, r in self.relays.items() if d in wanted}
        held = set(before.values())
        ways = self._ways(costs, self._cheapest & held, min(WAYS, len(wanted)), now)
        self._cheapest = frozenset(ways)
        ways += needed(ways, sorted(costs, key=lambda one: (one not in held, costs[one], one)), needs)
        ways = ways[: len(wanted)]
        kept = {d: r for d, r in before.items() if r in ways}
        self.relays = _deal(wanted, ways, kept) if ways else {}
        return dict(self.relays)

    def _ways(
        self, costs: Mapping[NodeId, float], before: Set[NodeId], number: int, now: float
    ) -> list[NodeId]:
        """The relays to use, the cheapest first."""
        order = sorted(costs, key=lambda relay: (costs[relay], relay))
        held = [relay for relay in order if relay in before]
        ways = held[:number]
        others = [relay for relay in order if relay not in ways]
        if len(ways) < number:
            ways += others[: number - len(ways)]
        elif others and number and now - self._changed >= HOLD:
            worst, best = ways[-1], others[0]
            if worth(costs[worst], costs[best]):
                ways[-1] = best
        if set(ways) != set(held):
            self._changed = now
        return sorted(ways, key=order.index)


def needed(ways: Sequence[NodeId], order: Sequence[NodeId], needs: Iterable[Need]) -> list[NodeId]:
    """The relays that are needed beside these ways, the first in ``order`` that serve."""
    more = list[NodeId]()
    for need in needs:
        able = [relay for relay in order if need.may(relay)]
        there = sum(map(need.may, (*ways, *more)))
        more += [relay for relay in able if relay not in (*ways, *more)][: max(0, need.relays - there)]
    return more


def _deal(wanted: Sequence[int], ways: Sequence[NodeId], kept: Mapping[int, NodeId]) -> dict[int, NodeId]:
    """Give each dimension one of the ways. Those that have one keep it, as far as no way has two dimensions
    more than another."""
    dealt = {way: [d for d in wanted if kept.get(d) == way] for way in ways}
    free = [d for d in wanted if d not in kept]
    share = -(-len(wanted) // len(ways))
    for way in ways:
        free += dealt[way][share:]
        del dealt[way][share:]
    for dimension in sorted(free):
        dealt[min(ways, key=lambda way: len(dealt[way]))].append(dimension)
    while True:
        most, least = max(ways, key=lambda way: len(dealt[way])), min(ways, key=lambda way: len(dealt[way]))
        if len(dealt[most]) - len(dealt[least]) < 2:
            break
        dealt[least].append(dealt[most].pop())
    return {dimension: way for way, some in dealt.items() for dimension in some}
