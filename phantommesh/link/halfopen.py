# SPDX-License-Identifier: GPL-3.0-or-later
"""Handshakes that others started with this node, from INIT to ACK."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from phantommesh.endpoint import Address
from phantommesh.link import wire
from phantommesh.link.admission import SHARES, Standing, block_of
from phantommesh.link.effects import ResetSign
from phantommesh.link.handshake import Responder
from phantommesh.link.wire import Kind

# Tuning.
LIFE = 12.0  # s from INIT: longer than an initiator retries AUTH, so that a lost ACK can be sent again
REPEAT_GAP = 0.1  # s between two sendings of RESP or ACK, whatever arrives
SEEN_NONCES = (
    4096  # of proven INITs, and as many of others: a flood of the latter must not push out the former
)


@dataclass(slots=True)
class Response:
    """One handshake as its responder. ``standing`` is what its initiator has shown, ``name`` what the place
    counts for: the claimed node id, or a newcomer's invite."""

    handshake: Responder
    source: Address
    standing: Standing
    name: bytes
    mac_out: bytes = field(repr=False)
    born: float
    invite: bytes = b""
    sign: ResetSign | None = None
    judged_by: bytes | None = None  # this end's chain when INIT came
    fragments: list[wire.Fragment] = field(default_factory=list)
    verified_at: float | None = None
    ack: list[wire.Fragment] | None = None
    sent_at: float = float("-inf")
    resent_at: float = float("-inf")
    block: str = field(init=False)

    def __post_init__(self) -> None:
        """Note the source block that the place counts for."""
        self.block = block_of(self.source)

    @property
    def peer(self) -> bytes:
        """The initiator's node id."""
        return self.handshake.init.node_id

    @property
    def mode(self) -> wire.Mode:
        """Member or newcomer."""
        return self.handshake.init.mode

    def encode(self, fragments: list[wire.Fragment]) -> list[bytes]:
        """Return the datagrams of some fragments."""
        back = wire.return_cookie(self.handshake.init.nonce)
        return [fragment.encode(self.mac_out, back) for fragment in fragments]

    def repeat(self, now: float) -> list[bytes]:
        """Send again what the initiator seems not to have: ACK if there is one, else RESP."""
        if now < self.sent_at + REPEAT_GAP:
            return []
        self.sent_at = now
        return self.encode(self.fragments if self.ack is None else self.ack)

    def resent(self, missing: int, now: float) -> list[bytes]:
        """Send again the fragments of RESP that the initiator asked for."""
        if now < self.resent_at + REPEAT_GAP:
            return []
        self.resent_at = now
        return self.encode([fragment for fragment in self.fragments if missing >> fragment.index & 1])

    def to_initiator(self, kind: Kind, body: bytes, now: float) -> list[wire.Fragment]:
        """Cut a message for the initiator into fragments, and note that it is sent now."""
        self.sent_at = now
        return wire.fragments(kind, self.mode, self.handshake.init.session, body)


class Responses:
    """All half-open handshakes, by the initiator's session and by ours, and the nonces seen lately."""

    def __init__(self) -> None:
        self._by_initiator: dict[tuple[Address, bytes], Response] = {}
        self._by_own: dict[bytes, Response] = {}  # oldest first
        self._by_standing: dict[Standing, dict[bytes, Response]] = {standing: {} for standing in Standing}
        self._by_peer: dict[bytes, dict[bytes, Response]] = {}
        self._nonces: dict[bool, OrderedDict[bytes, None]] = {True: OrderedDict(), False: OrderedDict()}

    def __len__(self) -> int:
        return len(self._by_own)

    def by_initiator(self, source: Address, session: bytes) -> Response | None:
        """The handshake that this source started with this session id."""
        return self._by_initiator.get((source, session))

    def by_own(self, session: bytes) -> Response | None:
        """The handshake with our session id."""
        return self._by_own.get(session)

    def of_peer(self, peer: bytes) -> list[Response]:
        """All handshakes that were started in this peer's name."""
        return list(self._by_peer.get(peer, {}).values())

    def room_for(self, standing: Standing, peer: bytes, name: bytes, source: Address) -> bool:
        """Make room for one more, and say whether there is any. A handshake that gives way never has a better
        standing.

        An earlier handshake of the same peer from the same address gives way, finished or not: its initiator
        has started anew. So does any earlier one of a proven name, wherever it came from. If the places are
        taken, the oldest handshake of the source block that has most of them gives way.
        """
        share, held = SHARES[standing], self._by_standing[standing]
        for old in self.of_peer(peer):
            if old.standing is standing and (old.source == source or standing is Standing.PROVEN):
                self.drop(old)
        if standing is Standing.PROVEN:
            return len(held) < share.places
        block = block_of(source)
        same = [old for old in held.values() if old.block == block]
        if len(same) >= share.of_source:
            self.drop(same[0])
        named = [old for old in held.values() if old.name == name]
        if len(named) >= share.of_name:
            self.drop(_of_greediest(named))
        if len(held) >= share.places:
            self.drop(_of_greediest(list(held.values())))
        return True

    def verified(self, response: Response) -> None:
        """The initiator's AUTH held: it is who it says. A member's place is no unproven one any more."""
        proven, own = self._by_standing[Standing.PROVEN], response.handshake.own
        if response.standing is Standing.NEWCOMER or len(proven) >= SHARES[Standing.PROVEN].places:
            return
        del self._by_standing[response.standing][own]
        response.standing, proven[own] = Standing.PROVEN, response

    def replayed(self, nonce: bytes) -> bool:
        """Whether an INIT with this nonce was answered lately."""
        return any(nonce in nonces for nonces in self._nonces.values())

    def remember(self, nonce: bytes, *, proven: bool) -> None:
        """Let no INIT with this nonce be answered again."""
        nonces = self._nonces[proven]
        nonces[nonce] = None
        if len(nonces) > SEEN_NONCES:
            nonces.popitem(last=False)

    def add(self, response: Response) -> None:
        """Take in a handshake."""
        own = response.handshake.own
        self._by_initiator[response.source, response.handshake.init.session] = response
        self._by_own[own] = response
        self._by_standing[response.standing][own] = response
        self._by_peer.setdefault(response.peer, {})[own] = response

    def drop(self, response: Response) -> None:
        """Forget a handshake."""
        own = response.handshake.own
        self._by_initiator.pop((response.source, response.handshake.init.session), None)
        self._by_own.pop(own, None)
        self._by_standing[response.standing].pop(own, None)
        mine = self._by_peer.get(response.peer, {})
        mine.pop(own, None)
        if not mine:
            self._by_peer.pop(response.peer, None)

    @property
    def deadline(self) -> float:
        """When the oldest handshake, the first one in the table, is to be forgotten."""
        return next((r.born + LIFE for r in self._by_own.values()), float("inf"))

    def tick(self, now: float) -> None:
        """Forget handshakes that are too old."""
        while now >= self.deadline:
            self.drop(next(iter(self._by_own.values())))


def _of_greediest(responses: list[Response]) -> Response:
    """The oldest of the source block that has most of these, which are oldest first."""
    (block, _), *_ = Counter(response.block for response in responses).most_common(1)
    return next(response for response in responses if response.block == block)
