# SPDX-License-Identifier: GPL-3.0-or-later
"""A node as a relay: what it answers to members that ask for leases, and whom it tells of them. Sans-I/O."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from phantommesh.control import messages
from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.node.peers import Peers
from phantommesh.routing.leases import Grant, Leases, Refusal
from phantommesh.trust.identity import NodeId

MOST_FAR: Final = 60_000_000  # microseconds: what `Relayed` can say


class Lends:
    """Whether this node forwards for a pair: both are ``standing``, members whose certificates hold and who
    are not revoked; neither is this node itself, nor banned or drained; and both are ``among`` those for whom
    the operator relays (None: all). All are asked each time: they change while the node runs."""

    def __init__(
        self,
        own: NodeId,
        standing: Callable[[], Container[bytes]],
        barred: Callable[[], Container[bytes]],
        among: Container[bytes] | None,
    ) -> None:
        self._own, self._standing, self._barred, self._among = own, standing, barred, among

    def __call__(self, one: NodeId, two: NodeId) -> bool:
        standing, barred, among = self._standing(), self._barred(), self._among
        return all(
            member != self._own
            and member in standing
            and member not in barred
            and (among is None or member in among)
            for member in (one, two)
        )


class Named:
    """The members with certain names: those for whom the operator relays."""

    def __init__(self, names: Container[str], peers: Peers) -> None:
        self._names, self._peers = names, peers

    def __contains__(self, member: object) -> bool:
        entry = self._peers.get(member) if isinstance(member, bytes) else None
        return entry is not None and entry.member.name in self._names


class Relay:
    """Answers members' requests for leases. ``far`` gives the round trip to a member in seconds, as this node
    measures it, or None where nothing is measured: then this node does not offer. ``tell`` takes the word for
    the other end of a lease, and ``changed`` is called when what is forwarded may have changed."""

    def __init__(
        self,
        leases: Leases,
        port: int,
        *,
        far: Callable[[NodeId], float | None],
        tell: Callable[[NodeId, messages.OfferRelay], None],
        changed: Callable[[], None],
    ) -> None:
        self.leases, self._port = leases, port
        self._far, self._tell, self._changed = far, tell, changed

    def answer(
        self, asker: NodeId, request: messages.AskRelay | messages.LeaveRelay, now: float
    ) -> messages.Answer:
        """Answer one request of a member in good standing."""
        peer = NodeId(request.peer)
        match request:
            case messages.AskRelay(_, dimensions, tagging):
                return self._ask(asker, peer, dimensions, tagging, now)
            case messages.LeaveRelay(_, dimensions):
                for dimension in range(DIMENSIONS):
                    if has(dimensions, dimension):
                        self.leases.leave(asker, peer, dimension)
                self._changed()
                return messages.Done()

    def _ask(
        self, asker: NodeId, peer: NodeId, dimensions: int, tagging: bool, now: float
    ) -> messages.Answer:
        far = self._far(peer)
        if far is None:
            return messages.Refused("this relay has no way to that member", "choose another relay")
        legs, refusals = list[messages.Leg](), list[Refusal]()
        for dimension in range(DIMENSIONS):
            if not has(dimensions, dimension):
                continue
            match self.leases.ask(asker, peer, dimension, now, tagging=tagging):
                case Grant() as grant:
                    legs.append(_leg(grant))
                case Refusal() as refusal:
                    refusals.append(refusal)
        if dimensions and not legs:
            return messages.Refused(refusals[0].text, refusals[0].fix)
        # The end that chooses asks again where nothing comes through: the other one may have started anew,
        # and know nothing of a lease that it seems to hold here.
        told = [leg.dimension for leg in legs if leg.waiting or asker < peer]
        if told:
            self._tell(peer, messages.OfferRelay(asker, bits(d in told for d in range(DIMENSIONS))))
        refused = refusals[0].label if refusals else ""
        return messages.Relayed(self._port, min(MOST_FAR, round(far * 1e6)), tuple(legs), refused)


def _leg(grant: Grant) -> messages.Leg:
    return messages.Leg(grant.dimension, grant.tag, grant.ticket, grant.key.reveal(), grant.waiting)
