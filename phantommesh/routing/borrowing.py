# SPDX-License-Identifier: GPL-3.0-or-later
"""A member's side of relays: which leases it asks for, and how its legs are bound and kept. Pure.

The end with the lower node id asks the nearest relays what each would cost, chooses (`routing.choice`), and
asks for leases. The other end hears of them from the relay and asks for the same. Both bind their legs from
their WireGuard ports. Once the relay says that it forwards, a dimension may use it. A dimension that moves to
another relay keeps the lease before until the new one forwards, and some seconds more.

The driver carries out effects and reports: what a relay answered, what it said of its own accord, and which
datagrams came to a WireGuard port from a relay.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from math import inf
from typing import Final

from phantommesh.routing import binding
from phantommesh.routing.choice import Need, Offer, needed
from phantommesh.routing.leases import BOUND, LIFE
from phantommesh.routing.legs import (
    HURRY,
    OFFER_LIFE,
    AskCost,
    AskLease,
    Choosable,
    Effect,
    LeaveLease,
    Leg,
    Peer,
    SendFromPort,
    Use,
)
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId

# Tuning.
ASKED: Final = 5  # relays, the nearest, that are asked what they would cost
COST_EVERY: Final = 30.0  # s between two such questions
COST_SOON: Final = 2.0  # s the same while no relay offers, at most,
EAGER: Final = 30.0  # s from when one was first wanted
TOGETHER: Final = 0.3  # s for which the first choice waits for the answers of the others
RENEW: Final = LIFE / 3  # s between two requests for a lease
REBIND: Final = BOUND / 3  # s between two bindings of a leg that is forwarded
AGAIN: Final = 1.0  # s between two requests for a lease that does not forward yet
DOUBT: Final = 4.0  # s the same for one that has forwarded and nothing comes through, or after `PATIENCE`
PATIENCE: Final = 3.0  # s of attempts; then another relay is tried, or they are `AGAIN` apart,
SLOW: Final = 30.0  # s of these; then they are as far apart as a renewal
STALE: Final = 12.0  # s after which a leg that never forwarded gives way to one that does
FAILED: Final = 30.0  # s for which a relay that did not forward for a pair is chosen only if no other offers
SHUNNED: Final = (
    30.0,
    960.0,
)  # s for which the end that follows does not leave another relay for one that failed it
LINGER: Final = 5.0  # s that the lease before is kept after a move: the ends move one after the other
HEARD: Final = 75.0  # s that a relay's word of a lease is remembered, for when this end has need of it too


class Borrowing:
    """The leases that one member has of relays. ``own`` is its node id; ``needs`` returns what the classes of
    the traffic to a peer need of relays. Legs to peers that are ``confined`` are bound `HURRY` after they
    are granted: WireGuard follows the peer's first packet to the relay, so what may not go by that relay has
    to be closed before that."""

    def __init__(
        self, own: NodeId, needs: Callable[[NodeId], Sequence[Need]] = lambda peer: (),
        confined: Callable[[NodeId], bool] = lambda peer: False,
    ) -> None:  # fmt: skip
        self._own, self._needs, self._confined = own, needs, confined
        self._relays: dict[NodeId, float] = {}
        self._leaving: Container[NodeId] = frozenset()
        self._peers: dict[NodeId, Peer] = {}
        self._hints: dict[tuple[NodeId, int], tuple[NodeId, float]] = {}  # by peer and dimension

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted."""
        return not self._peers

    def lenders(self, peer_id: NodeId) -> dict[int, frozenset[NodeId]]:
        """The relays from which a peer's packets may come, by dimension: from the grant of a leg on."""
        found, peer = dict[int, frozenset[NodeId]](), self._peers.get(peer_id)
        for dimension, leg in () if peer is None else peer.all_legs():
            if leg.ticket:
                found[dimension] = found.get(dimension, frozenset()) | {leg.relay}
        return found

    def offered_for(self, peer_id: NodeId, now: float) -> list[Choosable]:
        """The relays that offer to forward to a peer, the cheapest first; none where the other end chooses,
        or where no relay is wanted. At most `ASKED` were asked each time."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return []
        taken = {relay: [d for d, r in peer.choice.relays.items() if r == relay] for relay in peer.offers}
        offers = sorted((offer for offer, _ in peer.offers.values()), key=lambda one: (one.cost, one.relay))
        return [
            Choosable(one, tuple(sorted(taken[one.relay])), max(0.0, peer.failed.get(one.relay, -inf) - now))
            for one in offers
        ]

    def set_relays(
        self, relays: Mapping[NodeId, float], now: float, leaving: Container[NodeId] = frozenset()
    ) -> list[Effect]:
        """Make these the relays that this node trusts and reaches, with their round trips in seconds. A relay
        that is not among them is left at once. Those that are ``leaving`` are about to go: another is chosen
        where one offers, and the leg at the one that goes is kept until the new one forwards."""
        self._leaving = leaving
        self._relays = {relay: near for relay, near in relays.items() if relay != self._own}
        effects = list[Effect]()
        for peer_id, peer in self._peers.items():
            for dimension, leg in peer.all_legs():
                if leg.relay not in self._relays:
                    effects += self._drop(peer_id, peer, dimension, leg, told=False)
            effects += self._choose(peer_id, peer, now)
        return effects

    def want(self, peer_id: NodeId, dimensions: Iterable[int], now: float) -> list[Effect]:
        """Go over relays to a peer in these dimensions and in no others: those that have no direct way."""
        peer = self._peers.setdefault(peer_id, Peer())
        before, peer.wanted = peer.wanted, frozenset(dimensions)
        effects = list[Effect]()
        for dimension, leg in peer.all_legs():
            if dimension not in peer.wanted:
                effects += self._drop(peer_id, peer, dimension, leg)
        if not peer.wanted:
            del self._peers[peer_id]
            return effects
        if self._own < peer_id:
            if not before:
                peer.cost_at = peer.since = now
            return effects + self._choose(peer_id, peer, now)
        for dimension in sorted(peer.wanted - before):
            relay, heard = self._hints.pop((peer_id, dimension), (peer_id, -inf))
            if now - heard < HEARD and relay in self._relays:
                effects += self._begin(peer_id, peer, dimension, relay, now)
        return effects

    def forget(self, members: Container[bytes]) -> None:
        """Forget what relays said of others than these."""
        self._hints = {which: hint for which, hint in self._hints.items() if which[0] in members}

    def cost(self, relay: NodeId, peer_id: NodeId, far: float | None, now: float) -> list[Effect]:
        """Take a relay's answer to `AskCost`: its round trip to the peer in seconds; None: it does not
        offer."""
        peer, near = self._peers.get(peer_id), self._relays.get(relay)
        if peer is None or near is None:
            return []
        peer.awaited.discard(relay)
        if far is None:
            peer.offers.pop(relay, None)
        else:
            peer.offers[relay], peer.pause = (Offer(relay, near, far), now), HURRY
        return self._choose(peer_id, peer, now)

    def offered(self, relay: NodeId, peer_id: NodeId, dimensions: Iterable[int], now: float) -> list[Effect]:
        """Take a relay's word that a peer has asked for leases. The end that does not choose follows, in the
        dimensions that have no direct way, if it trusts the relay. In others it follows once they have
        none."""
        if relay not in self._relays or self._own < peer_id:
            return []
        peer, effects = self._peers.get(peer_id), list[Effect]()
        for dimension in sorted(set(dimensions)):
            if peer is None or dimension not in peer.wanted:
                self._hints[peer_id, dimension] = relay, now
                continue
            leg = peer.legs.get(dimension)
            if leg is not None and leg.relay == relay:
                if now - leg.heard > DOUBT and now - leg.asked >= AGAIN:
                    leg.ask_at = now  # the lease may be another one than this end knows of
            elif leg is None or not self._shuns(peer, relay, leg, now):
                effects += self._begin(peer_id, peer, dimension, relay, now)
        return effects

    @staticmethod
    def _shuns(peer: Peer, relay: NodeId, leg: Leg, now: float) -> bool:
        """Whether a relay's word is no reason to leave a leg at another one: any member may say that it
        relays."""
        until, _ = peer.shunned.get(relay, (-inf, 0.0))
        return until > now and peer.failed.get(leg.relay, -inf) <= now

    def granted(
        self, relay: NodeId, peer_id: NodeId, dimension: int, port: int, tag: int, ticket: bytes, key: Secret,
        now: float,
    ) -> list[Effect]:  # fmt: skip
        """Take a leg that a relay has given, or renewed."""
        leg = self._leg(relay, peer_id, dimension)
        if leg is None:
            return []
        age = now - leg.since
        leg.ask_at = now + (RENEW if leg.used or age >= SLOW else AGAIN if age < PATIENCE else DOUBT)
        if (leg.port, leg.tag, leg.ticket) == (port, tag, ticket):
            return []
        effects = self._unused(
            peer_id, dimension, leg, now
        )  # the relay has begun anew, or the lease had ended
        leg.port, leg.tag, leg.ticket, leg.key = port, tag, ticket, key
        if self._confined(peer_id):
            leg.bind_at = now + HURRY
            return effects
        return effects + self._bind(leg, dimension, now)

    def _unused(self, peer_id: NodeId, dimension: int, leg: Leg, now: float) -> list[Effect]:
        """A leg that forwarded does so no more as it was: it is bound anew in a hurry, and used again when
        the relay says that it forwards."""
        if not leg.used:
            return []
        leg.used, leg.since, leg.bind_at = False, now, now
        both = (self._peers[peer_id].legs.get(dimension), self._peers[peer_id].before.get(dimension))
        other = next((one for one in both if one is not None and one is not leg and one.used), None)
        if other is None:
            return [Use(peer_id, dimension)]
        return [Use(peer_id, dimension, other.relay, other.port, other.tag)] if leg is both[0] else []

    def refused(self, relay: NodeId, peer_id: NodeId, dimension: int, now: float) -> list[Effect]:
        """Take a relay's refusal of a lease: the relay counts as one that does not offer, until it is asked
        for its cost again."""
        peer, leg = self._peers.get(peer_id), self._leg(relay, peer_id, dimension)
        if peer is None or leg is None:
            return []
        peer.offers.pop(relay, None)
        return self._drop(peer_id, peer, dimension, leg, told=False) + self._choose(peer_id, peer, now)

    def failed(self, relay: NodeId, peer_id: NodeId, now: float) -> list[Effect]:
        """Nothing comes through to a peer by this relay any more. Another is chosen where there is one."""
        peer = self._peers.get(peer_id)
        if peer is None:
            return []
        known = peer.failed.get(relay, -inf) > now
        for _, leg in peer.all_legs():
            # The relay may have begun anew, or the other end: both hear of the lease by this question.
            if leg.relay == relay and (not known or now - leg.asked >= DOUBT):
                leg.ask_at = now
                leg.bind_at = now if leg.ticket else inf
        if known:
            return []
        peer.failed[relay] = now + FAILED
        peer.offers.pop(relay, None)
        if self._own < peer_id:
            peer.cost_at = min(peer.cost_at, now + HURRY)
            return self._choose(peer_id, peer, now)
        return self._go_back(peer_id, peer, relay, now)

    def _go_back(self, peer_id: NodeId, peer: Peer, relay: NodeId, now: float) -> list[Effect]:
        """This end followed a relay's word, and nothing comes through: it may be the word of that relay
        alone. So the relay before is asked again."""
        effects, came = list[Effect](), False
        for dimension, leg in list(peer.legs.items()):
            old = peer.before.get(dimension)
            to = peer.last.get(dimension) if old is None else old.relay
            if leg.relay != relay or to is None or to == relay or to not in self._relays:
                continue
            if peer.failed.get(to, -inf) > now:
                continue
            came = True
            effects += self._begin(peer_id, peer, dimension, to, now)
            if old is not None and old.used:
                leg.ends = now + LINGER
                effects.append(Use(peer_id, dimension, old.relay, old.port, old.tag))
        if came:
            _, pause = peer.shunned.get(relay, (now, SHUNNED[0] / 2))
            pause = min(SHUNNED[1], 2 * pause)
            peer.shunned[relay] = now + pause, pause
        return effects

    def moved(self, now: float) -> list[Effect]:
        """This node may be at another address: bind all legs anew, or what it sends is a stranger's."""
        effects = list[Effect]()
        for peer in self._peers.values():
            for dimension, leg in peer.all_legs():
                if leg.ticket:
                    effects += self._bind(leg, dimension, now)
        return effects

    def receive(
        self,
        relay: NodeId,
        peer_id: NodeId,
        dimension: int,
        datagram: bytes,
        now: float,
        *,
        elsewhere: bool = False,
    ) -> list[Effect]:
        """Take a datagram that came from a relay to the WireGuard port of a dimension. ``elsewhere``: from
        another address than the dimension uses. A relay that has moved keeps its leases, and forwards by
        their addresses there from then on."""
        peer, leg = self._peers.get(peer_id), self._leg(relay, peer_id, dimension)
        if peer is None or leg is None or not leg.ticket:
            return []
        said = binding.answer(datagram, leg.ticket, leg.key)
        if isinstance(said, bytes):
            return [SendFromPort(relay, leg.port, dimension, said)]
        if said is None or not said.forwarding:
            return []
        leg.heard, leg.bind_at = now, now + REBIND
        if leg.used:
            here = elsewhere and leg is peer.legs.get(dimension)
            return [Use(peer_id, dimension, relay, leg.port, leg.tag)] if here else []
        leg.used = True
        if leg is peer.before.get(dimension):  # the other end has chosen this one after all
            peer.before[dimension], peer.legs[dimension] = peer.legs[dimension], leg
        if (old := peer.before.get(dimension)) is not None:
            leg.ends, old.ends = inf, now + LINGER
        return [Use(peer_id, dimension, relay, leg.port, leg.tag)]

    @property
    def deadline(self) -> float:
        """When `tick` has something to do; inf when nothing is wanted."""
        return min((at for peer in self._peers.values() for at in peer.moments()), default=inf)

    def tick(self, now: float) -> list[Effect]:
        """Ask, renew and bind what is due; give up what the relay no longer confirms."""
        effects = list[Effect]()
        for peer_id, peer in self._peers.items():
            if peer.cost_at <= now:
                peer.cost_at = now + (COST_EVERY if peer.offers else peer.pause)
                eager = now - peer.since < EAGER  # the relay may be about to find its way to the peer
                peer.pause = min(2 * peer.pause, COST_SOON) if eager else COST_EVERY
                asked = self._to_ask(peer_id)
                effects += [AskCost(relay, peer_id) for relay in asked]
                peer.awaited, peer.decide_at = set(asked), now + TOGETHER
            for relay in [r for r, (_, then) in peer.offers.items() if now - then >= OFFER_LIFE]:
                del peer.offers[relay]
            effects += self._choose(peer_id, peer, now)
            for dimension, leg in peer.all_legs():
                if leg.ends <= now:
                    if self._own > peer_id:
                        peer.last[dimension] = leg.relay
                    effects += self._drop(peer_id, peer, dimension, leg, told=self._own < peer_id)
                    continue
                effects += self._keep(peer_id, peer, dimension, leg, now)
        return effects

    def _to_ask(self, peer_id: NodeId) -> list[NodeId]:
        """The nearest relays, and the nearest that a class of traffic needs if these do not serve."""
        relays, leaving = self._relays, self._leaving
        nearest = sorted(relays.keys() - {peer_id}, key=lambda one: (one in leaving, relays[one], one))
        return nearest[:ASKED] + needed(nearest[:ASKED], nearest[ASKED:], self._needs(peer_id))

    def _keep(self, peer_id: NodeId, peer: Peer, dimension: int, leg: Leg, now: float) -> list[Effect]:
        effects = list[Effect]()
        if leg.used and now - leg.heard >= BOUND:
            if leg is not peer.legs.get(dimension):
                return self._drop(peer_id, peer, dimension, leg)
            effects += self._unused(peer_id, dimension, leg, now)
        hurried = now - leg.since < PATIENCE
        better = any(r != leg.relay and peer.failed.get(r, -inf) <= now for r in peer.offers)
        if not leg.used and not hurried and leg.relay in peer.offers and better:
            effects += self.failed(leg.relay, peer_id, now)
            if peer.legs.get(dimension) is not leg:
                return effects
        both = (peer.legs.get(dimension), peer.before.get(dimension))
        if not leg.used and now - leg.since >= STALE and any(o is not None and o.used for o in both):
            return effects + self._drop(peer_id, peer, dimension, leg, told=False)
        # The other end may take a while to start, to be keyed and to hear of the lease.
        slow = not leg.used and now - leg.since < SLOW
        pause = HURRY if hurried else AGAIN if slow else RENEW
        if leg.ask_at <= now:
            leg.asked = now
            leg.ask_at = now + (RENEW if leg.ticket else pause)
            effects.append(AskLease(leg.relay, peer_id, dimension))
        if leg.bind_at <= now:
            effects += self._bind(leg, dimension, now, pause)
        return effects

    def _choose(self, peer_id: NodeId, peer: Peer, now: float) -> list[Effect]:
        if peer_id < self._own:
            return []  # the other end chooses
        if not peer.legs and peer.awaited and now < peer.decide_at:
            return []  # a choice made at once is undone by the next answer
        offers = [
            offer for relay, (offer, _) in peer.offers.items() if relay in self._relays and relay != peer_id
        ]
        staying = [offer for offer in offers if offer.relay not in self._leaving]
        # It may be the peer that was away: a relay that failed is better than none.
        good = [offer for offer in staying or offers if peer.failed.get(offer.relay, -inf) <= now]
        effects = list[Effect]()
        for dimension, relay in peer.choice.decide(
            peer.wanted, good or staying or offers, now, self._needs(peer_id)
        ).items():
            leg = peer.legs.get(dimension)
            if leg is None or leg.relay != relay:
                effects += self._begin(peer_id, peer, dimension, relay, now)
        return effects

    def _begin(self, peer_id: NodeId, peer: Peer, dimension: int, relay: NodeId, now: float) -> list[Effect]:
        """Have a leg at this relay. The one before stays until the new one forwards."""
        leg, old, effects = peer.legs.get(dimension), peer.before.get(dimension), list[Effect]()
        if old is not None and old.relay == relay:  # back to where the dimension still is
            peer.legs[dimension], old.ends = old, inf
            del peer.before[dimension]
            if leg is not None and leg.used:
                peer.before[dimension], leg.ends = leg, inf
            elif leg is not None:
                effects += self._end(peer_id, dimension, leg)
            return effects
        if leg is not None and (leg.used or (old is None and peer_id < self._own)):
            # The end that follows keeps a leg that does not forward yet, too: it hears of choices out of
            # order.
            if old is not None:
                effects += self._end(peer_id, dimension, old)
            peer.before[dimension] = leg
        elif leg is not None:
            effects += self._end(peer_id, dimension, leg)
        peer.legs[dimension] = Leg(relay, now, now + HURRY, now)
        return [*effects, AskLease(relay, peer_id, dimension)]

    def _end(self, peer_id: NodeId, dimension: int, leg: Leg) -> list[Effect]:
        """Tell a relay that a leg is given up. The end that chooses does: the other one may be behind."""
        return [LeaveLease(leg.relay, peer_id, dimension)] if self._own < peer_id else []

    def _drop(
        self, peer_id: NodeId, peer: Peer, dimension: int, leg: Leg, *, told: bool = True
    ) -> list[Effect]:
        """Give up a leg, the present one or the one before."""
        effects = list[Effect]()
        if peer.legs.get(dimension) is leg:
            del peer.legs[dimension]
            if (old := peer.before.pop(dimension, None)) is not None:
                old.ends, peer.legs[dimension] = inf, old
            if leg.used and old is not None and old.used:
                effects.append(Use(peer_id, dimension, old.relay, old.port, old.tag))
            elif leg.used:
                effects.append(Use(peer_id, dimension))
        elif peer.before.get(dimension) is leg:
            del peer.before[dimension]
            now_at = peer.legs.get(dimension)
            if leg.used and (now_at is None or not now_at.used):
                effects.append(Use(peer_id, dimension))
        else:
            return effects
        if told:
            effects.append(LeaveLease(leg.relay, peer_id, dimension))
        return effects

    def _leg(self, relay: NodeId, peer_id: NodeId, dimension: int) -> Leg | None:
        peer = self._peers.get(peer_id)
        if peer is None:
            return None
        both = (peer.legs.get(dimension), peer.before.get(dimension))
        return next((leg for leg in both if leg is not None and leg.relay == relay), None)

    def _bind(self, leg: Leg, dimension: int, now: float, pause: float = HURRY) -> list[Effect]:
        leg.bind_at = now + pause
        return [SendFromPort(leg.relay, leg.port, dimension, binding.ask(leg.ticket, leg.key))]
