# SPDX-License-Identifier: GPL-3.0-or-later
"""Handshakes that others started with this node, from INIT to ACK."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from phantommesh import wire
from phantommesh.link.effects import ResetSign
from phantommesh.link.handshake import Responder
from phantommesh.wire import Address, Kind

# Specification (DESIGN section 4).
HALF_OPEN = 256

# Tuning.
HALF_OPEN_PER_PEER = 4  # anyone may claim a node id in INIT: one claimant must not push out another
LIFE = 12.0  # s from INIT: longer than an initiator retries AUTH, so that a lost ACK can be sent again
REPEAT_GAP = 0.1  # s between two sendings of RESP or ACK, whatever arrives
SEEN_NONCES = 4096


@dataclass(slots=True)
class Response:
    """One handshake as its responder."""

    handshake: Responder
    source: Address
    mac_out: bytes = field(repr=False)
    born: float
    invite: bytes = b""
    sign: ResetSign | None = None
    fragments: list[wire.Fragment] = field(default_factory=list)
    verified_at: float | None = None
    ack: list[wire.Fragment] | None = None
    sent_at: float = float("-inf")
    resent_at: float = float("-inf")

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
        self._by_own: dict[bytes, Response] = {}
        self._nonces: OrderedDict[bytes, None] = OrderedDict()

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
        return [response for response in self._by_own.values() if response.peer == peer]

    def room_for(self, peer: bytes, source: Address) -> bool:
        """Whether one more may be opened in this peer's name. One from the same address gives way, finished
        or not: its initiator has started anew and listens for nothing of the old one."""
        for old in self.of_peer(peer):
            if old.source == source:
                self.drop(old)
        return len(self._by_own) < HALF_OPEN and len(self.of_peer(peer)) < HALF_OPEN_PER_PEER

    def replayed(self, nonce: bytes) -> bool:
        """Whether an INIT with this nonce was answered lately."""
        return nonce in self._nonces

    def remember(self, nonce: bytes) -> None:
        """Let no INIT with this nonce be answered again."""
        self._nonces[nonce] = None
        if len(self._nonces) > SEEN_NONCES:
            self._nonces.popitem(last=False)

    def add(self, response: Response) -> None:
        """Take in a handshake."""
        self._by_initiator[response.source, response.handshake.init.session] = response
        self._by_own[response.handshake.own] = response

    def drop(self, response: Response) -> None:
        """Forget a handshake."""
        self._by_initiator.pop((response.source, response.handshake.init.session), None)
        self._by_own.pop(response.handshake.own, None)

    @property
    def deadline(self) -> float:
        """When the oldest handshake, the first one in the table, is to be forgotten."""
        return next((r.born + LIFE for r in self._by_own.values()), float("inf"))

    def tick(self, now: float) -> None:
        """Forget handshakes that are too old."""
        while now >= self.deadline:
            self.drop(next(iter(self._by_own.values())))
