# SPDX-License-Identifier: GPL-3.0-or-later
"""The enrolment handshake from the side of a machine that holds an invite and no certificate. Sans-I/O."""

from __future__ import annotations

from collections import Counter

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.kem import Kem
from phantommesh.link import keys, wire
from phantommesh.link.attempt import Initiation, Stage
from phantommesh.link.effects import Effect, Opened, Sign
from phantommesh.link.fragments import Pool, QuotaError, Reassembler
from phantommesh.link.handshake import HandshakeError, Initiator, Random
from phantommesh.link.responder import bare_key
from phantommesh.link.wire import Fragment, Kind, Mode
from phantommesh.secret import Secret


class Newcomer:
    """One attempt to enrol with one authority. Ends in an `Opened` effect, or in `failed`."""

    def __init__(
        self,
        *,
        node_id: bytes,
        spki: bytes,
        authority: bytes,
        root_hash: bytes,
        invite: bytes,
        secret: Secret,
        destination: Address,
        kem: Kem,
        random: Random,
        now: float,
    ) -> None:
        self._authority = authority
        self._chain = keys.invite_chain(secret)
        self._reassembler = Reassembler()
        self._destination = destination
        self.drops: Counter[str] = Counter()
        handshake = Initiator(
            kem=kem,
            random=random,
            mode=Mode.ENROL,
            node_id=node_id,
            epoch=1,
            credential=invite + bytes(16),
            interface_hash=bytes(wire.HASH_SIZE),
            bitmap=0,
        )
        self._initiation = Initiation(
            handshake,
            candidates=[destination],
            macs=[(keys.enrol_mac_key(root_hash, authority), keys.enrol_mac_key(root_hash, node_id))],
            cookie=None,
            random=random,
            now=now,
            proof_key=keys.invite_proof_key(secret),
        )
        self._initiation.credential = spki

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._initiation.deadline

    @property
    def reached(self) -> Stage:
        """How far it came: an authority that does not know the invite answers a cookie and no INIT."""
        return self._initiation.reached

    @property
    def failed(self) -> bool:
        """Whether it has given up."""
        return self._initiation.stage is Stage.FAILED

    def tick(self, now: float) -> list[Effect]:
        """Send what is due."""
        return list(self._initiation.tick(now))

    def signed(self, signature: bytes, now: float) -> list[Effect]:
        """Go on with the signature that a Sign effect asked for."""
        return list(self._initiation.on_signed(signature, now))

    def receive(self, datagram: bytes, now: float) -> list[Effect]:
        """Take one datagram from the authority."""
        try:
            parsed = wire.decode_untrusted(datagram)
            match parsed:
                case wire.CookieReply() if self._initiation.asked(parsed) and self._initiation.mac_ok(
                    datagram
                ):
                    return list(self._initiation.on_cookie(parsed, now))
                case Fragment() if parsed.session == self._initiation.session:
                    if self._initiation.refuses(datagram) is None:
                        return self._on_fragment(parsed, now)
            return self._drop("unexpected")
        except DecodeError:
            return self._drop("malformed")
        except QuotaError:
            return self._drop("quota")
        except HandshakeError as error:
            return self._drop(error.args[0])

    def _drop(self, reason: str) -> list[Effect]:
        self.drops[reason] += 1
        return []

    def _on_fragment(self, fragment: Fragment, now: float) -> list[Effect]:
        if fragment.kind is Kind.RESEND:
            resend = wire.decode_resend_untrusted(fragment.chunk)
            return list(self._initiation.resent(resend, now))
        awaited = Stage.INIT if fragment.kind is Kind.RESP else Stage.AUTH
        if fragment.kind not in (Kind.RESP, Kind.ACK) or self._initiation.stage is not awaited:
            return self._drop("unexpected")
        body = self._reassembler.add(self._destination, fragment, now, Pool.SESSIONS)
        if body is None:
            return []
        if fragment.kind is Kind.RESP:
            resp = wire.decode_resp_untrusted(body)
            return [
                Sign(self._initiation.session, self._initiation.on_resp(resp, self._chain, self._verifier))
            ]
        self._initiation.on_ack(body)
        session, seconds = self._initiation.keys, now - self._initiation.started
        return [
            Opened(
                self._authority,
                "initiator",
                self._initiation.session,
                session.channel_i,
                session.channel_r,
                1,
                seconds,
            )
        ]

    def _verifier(self, node_id: bytes, credential: bytes) -> MLDSA65PublicKey:
        if node_id != self._authority:
            raise HandshakeError("identity")
        return bare_key(node_id, credential)
