# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt to shake hands with one peer, as the side that starts: cookie, INIT, RESP, AUTH, ACK.

It owns the retransmissions of its own messages. MACs of what arrives are checked by `refuses`, contents by
`handshake.Initiator`.

A peer may have several addresses, of which some lead nowhere: a name with IPv6 where IPv6 is broken, an
uplink that is down. So the attempt races for the cookie (after RFC 8305): it asks the first address, and with
each repetition one more. The address that gives a cookie first is the one that INIT goes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from phantommesh.endpoint import Address
from phantommesh.link import wire
from phantommesh.link.effects import Send
from phantommesh.link.handshake import Initiator, Random, SigningRequest, Verifier, prove
from phantommesh.link.keys import SessionKeys
from phantommesh.link.wire import Kind

# Tuning.
FIRST_RETRY = 0.25  # s; also RFC 8305's recommended Connection Attempt Delay (section 5)
RETRY_GROWTH = 1.7
TRIES = 5  # of each message: 0.25 s growing to about 5 s in all
IN_VAIN = 0.75  # s without an answer until an attempt of the peer's is taken in its place
COOKIE_DOUBT = 2  # INITs under a cookie from an earlier handshake before a new one is asked for
RESEND_GAP = 0.1  # s between two answers to RESEND: else a small datagram could be made to bring large ones
SIGN_BY = 15.0  # s from the start: the responder has forgotten the handshake by then


class Stage(Enum):
    """The stage of an attempt."""

    COOKIE = "waiting for a cookie"
    INIT = "waiting for RESP"
    SIGN = "signing AUTH"
    AUTH = "waiting for ACK"
    DONE = "done"
    FAILED = "failed"


class Initiation:
    """One attempt. ``macs`` are the keys of the first MAC for the receiver and for this node, of the newest
    admission secret first: a peer that was away has not the newest. Which one it has is found out by asking
    for a cookie under each; before that the newest counts. ``candidates`` are the peer's addresses, the
    likeliest first; ``destination`` is the one that INIT goes to. ``cookie`` is the first candidate's.
    ``proof_key`` keys INIT's proof of this node's id; None where there is none, and the proof is zeros. A
    member's is made with the WireGuard keys of ``dimension``."""

    def __init__(
        self,
        handshake: Initiator,
        *,
        candidates: Sequence[Address],
        macs: Sequence[tuple[bytes, bytes]],
        cookie: bytes | None,
        random: Random,
        now: float,
        proof_key: bytes | None = None,
        dimension: int = 0,
    ) -> None:
        self.handshake = handshake
        self._proof_key, self._dimension = proof_key, dimension
        self.destination = candidates[0]
        self._candidates = list(candidates)
        self._asked: dict[Address, tuple[bytes, int]] = {}  # with which nonce for a cookie, and how often
        self.cookie = cookie
        self._old_cookie = cookie is not None
        self.started = now
        self.reached = Stage.COOKIE if cookie is None else Stage.INIT
        self.stage = self.reached
        self._macs = macs
        self._mac_out, self._mac_in = macs[0]
        self._back = wire.return_cookie(handshake.init.nonce)
        self._random = random
        self._fragments: list[wire.Fragment] = []
        self._kind = Kind.INIT
        self._tries = 0
        self._resent_at = float("-inf")
        self.deadline = now
        self.credential = b""

    @property
    def session(self) -> bytes:
        """This node's id of the session."""
        return self.handshake.init.session

    @property
    def finished(self) -> bool:
        """Whether this attempt is over, well or badly."""
        return self.stage in (Stage.DONE, Stage.FAILED)

    @property
    def keys(self) -> SessionKeys:
        """The session's keys; there are any from the SIGN stage on."""
        assert self.handshake.session is not None
        return self.handshake.session

    @property
    def epoch(self) -> int:
        """The epoch that RESP settled."""
        assert self.handshake.resp is not None
        return self.handshake.resp.epoch

    def refuses(self, datagram: bytes) -> str | None:
        """Check both MACs of a fragment sent back to us; return the reason to drop it, or None."""
        if not wire.cookie_mac_ok(datagram, self._back):
            return "cookie"
        return None if wire.first_mac_ok(datagram, self._mac_in, with_cookie=True) else "mac"

    def in_vain(self, now: float) -> bool:
        """Whether nothing has answered for a while: the peer may be out of reach, and call itself."""
        waiting = self.stage is Stage.COOKIE or (self.stage is Stage.INIT and self._old_cookie)
        return waiting and now >= self.started + IN_VAIN

    def offer(self, candidates: Sequence[Address]) -> None:
        """The peer may be at these addresses, too: what is not asked for a cookie yet may be."""
        self._candidates += [address for address in candidates if address not in self._candidates]

    def waits(self, candidates: Sequence[Address]) -> bool:
        """Whether it waits for a cookie, and has not asked all of these addresses for one."""
        return self.stage is Stage.COOKIE and any(address not in self._asked for address in candidates)

    def resend_request(self, bitmap: int) -> list[Send]:
        """Ask the responder for fragments of RESP."""
        body = wire.Resend(Kind.RESP, bitmap).encode()
        return self._encode(wire.fragments(Kind.RESEND, self.handshake.init.mode, self.session, body))

    def resent(self, resend: wire.Resend, now: float) -> list[Send]:
        """Answer the responder's request for fragments of our message."""
        if resend.kind is not self._kind or self.stage not in (Stage.INIT, Stage.AUTH):
            return []
        if now < self._resent_at + RESEND_GAP:
            return []
        self._resent_at = now
        return self._encode([f for f in self._fragments if resend.missing >> f.index & 1])

    def asked(self, reply: wire.CookieReply) -> bool:
        """Whether this attempt waits for this cookie."""
        return self.stage is Stage.COOKIE and any(reply.nonce == nonce for nonce, _ in self._asked.values())

    def mac_ok(self, reply: bytes) -> bool:
        """Whether a cookie reply's MAC holds. The secret that it holds under is the one to go on with."""
        for mac_out, mac_in in self._macs:
            if wire.first_mac_ok(reply, mac_in, with_cookie=False):
                self._mac_out, self._mac_in = mac_out, mac_in
                return True
        return False

    def on_cookie(self, reply: wire.CookieReply, now: float) -> list[Send]:
        """Take a cookie that was `asked` for, and send INIT to the address that gave it. The nonce names the
        address: where the reply came from is easily forged."""
        self.destination = next(a for a, (nonce, _) in self._asked.items() if nonce == reply.nonce)
        self.cookie, self._old_cookie = reply.cookie, False
        self._fragments = []  # the proof covers the cookie
        return self._enter(Stage.INIT, now)

    def on_resp(self, resp: wire.Resp, chain_key: bytes, verifier: Verifier) -> SigningRequest:
        """Check RESP, and return what to sign. Raises `HandshakeError`, and is then unchanged."""
        _, request = self.handshake.on_resp(resp, chain_key, verifier)
        self.stage = self.reached = Stage.SIGN
        self.deadline = self.started + SIGN_BY
        return request

    def on_signed(self, signature: bytes, now: float) -> list[Send]:
        """Send AUTH."""
        assert self.handshake.resp is not None
        auth = self.handshake.auth(signature, self.credential)
        self._kind = Kind.AUTH
        self._fragments = wire.fragments(
            Kind.AUTH, self.handshake.init.mode, self.handshake.resp.own, auth.encode()
        )
        return self._enter(Stage.AUTH, now)

    def on_ack(self, body: bytes) -> wire.Ack:
        """Finish. Raises `HandshakeError`, and is then unchanged."""
        ack = self.handshake.on_ack(body)
        self.stage = self.reached = Stage.DONE
        self.deadline = float("inf")
        return ack

    def _enter(self, stage: Stage, now: float) -> list[Send]:
        self.stage = self.reached = stage
        self._tries = 0
        return self.tick(now, force=True)

    def tick(self, now: float, *, force: bool = False) -> list[Send]:
        """Send or resend what this stage waits an answer to; give up after `TRIES`."""
        if self.finished or (now < self.deadline and not force):
            return []
        if self.stage is Stage.SIGN or self._tries >= TRIES:
            self.stage = Stage.FAILED
            self.deadline = float("inf")
            return []
        if self.stage is Stage.INIT and self._old_cookie and self._tries >= COOKIE_DOUBT:
            return self._enter(Stage.COOKIE, now)  # the other end has restarted, or sees another address
        self.deadline = now + FIRST_RETRY * RETRY_GROWTH**self._tries
        self._tries += 1
        if self.stage is Stage.COOKIE:
            return [
                Send(datagram, candidate)
                for candidate in self._candidates[: self._tries]
                for datagram in self._ask(candidate)
            ]
        if not self._fragments:
            init = self.handshake.init
            if self._proof_key is not None:
                assert self.cookie is not None
                init = prove(init, self._proof_key, self._dimension, self.cookie)
            self._fragments = wire.fragments(Kind.INIT, init.mode, init.session, init.encode())
        return self._encode(self._fragments)

    def _ask(self, candidate: Address) -> list[bytes]:
        nonce, times = self._asked.get(candidate, (b"", 0))
        self._asked[candidate] = nonce, times = nonce or self._random(wire.SESSION_ID_SIZE), times + 1
        init = self.handshake.init
        request = wire.CookieRequest(init.mode, nonce, init.node_id)
        return [request.encode(mac_out) for mac_out, _ in (self._macs[:1] if times == 1 else self._macs)]

    def _encode(self, fragments: Sequence[wire.Fragment]) -> list[Send]:
        assert self.cookie is not None
        datagrams = (fragment.encode(self._mac_out, self.cookie) for fragment in fragments)
        return [Send(datagram, self.destination) for datagram in datagrams]
