# SPDX-License-Identifier: GPL-3.0-or-later
"""The two roles of one SIGMA-I handshake (Krawczyk 2003), with a KEM beside the Diffie-Hellman.

No timers, addresses or retries here: those are `initiation` and `machine`. Each step takes a parsed message
and returns the next one; signing is left to the caller because it is slow enough to belong in a thread. Every
failure is a `HandshakeError` whose reason is one of a few words, so that it can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hmac import compare_digest

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from phantommesh.dimensions import ALL
from phantommesh.errors import DecodeError
from phantommesh.kem import SEED_SIZE, Kem, KemError
from phantommesh.link import keys, wire

Random = Callable[[int], bytes]

_ONCE = bytes(12)  # every AEAD key here seals exactly one message


class HandshakeError(Exception):
    """This handshake cannot go on. ``args[0]`` is a short reason from a closed set."""


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """Bytes to be signed with the node's ML-DSA-65 key before the next message can go."""

    data: bytes
    context: bytes


#: Turns the peer's id and enrolment credential into the key its signature must verify under, or raises
#: HandshakeError. For members that is a look-up; in enrolment it verifies certificates or a bare key.
Verifier = Callable[[bytes, bytes], MLDSA65PublicKey]


def _seal(key: bytes, proof: wire.Proof, digest: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_ONCE, proof.encode(), digest)


def _open(key: bytes, sealed: bytes, digest: bytes) -> wire.Proof:
    try:
        return wire.decode_proof_untrusted(ChaCha20Poly1305(key).decrypt(_ONCE, sealed, digest))
    except (InvalidTag, DecodeError):
        raise HandshakeError("aead") from None


def _check(proof: wire.Proof, verifier: Verifier, confirm_key: bytes, digest: bytes, context: bytes) -> None:
    expected = keys.confirmation(confirm_key, digest, proof.node_id, proof.signature)
    if not compare_digest(proof.confirm, expected):
        raise HandshakeError("confirmation")
    try:
        verifier(proof.node_id, proof.credential).verify(proof.signature, digest + proof.node_id, context)
    except InvalidSignature:
        raise HandshakeError("signature") from None


def _exchange(private: X25519PrivateKey, share: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError:  # RFC 7748 section 6.1: an all-zero result
        raise HandshakeError("x25519") from None


class Initiator:
    """The side that sends INIT and AUTH."""

    def __init__(
        self,
        *,
        kem: Kem,
        random: Random,
        mode: wire.Mode,
        node_id: bytes,
        epoch: int,
        credential: bytes,
        interface_hash: bytes,
        bitmap: int = ALL,
    ) -> None:
        ek, self._decapsulator = kem.keypair(random(SEED_SIZE))
        self._x = X25519PrivateKey.from_private_bytes(random(32))
        self.init = init = wire.Init(
            mode,
            random(wire.SESSION_ID_SIZE),
            epoch,
            credential,
            node_id,
            random(wire.NONCE_SIZE),
            bitmap,
            interface_hash,
            ek,
            self._x.public_key().public_bytes_raw(),
        )
        self._transcript = keys.init_transcript(init)
        self._keys: keys.HandshakeKeys | None = None
        self._digest = b""
        self.session: keys.SessionKeys | None = None
        self.resp: wire.Resp | None = None

    def on_resp(
        self, resp: wire.Resp, chain_key: bytes, verifier: Verifier
    ) -> tuple[wire.Proof, SigningRequest]:
        """Check RESP under ``chain_key`` (64 bytes: the chain that RESP names). Return the responder's proof
        and what to sign. A failed check changes nothing: a true RESP may still come."""
        if resp.epoch < self.init.epoch:
            raise HandshakeError("epoch")
        public = resp.encode_public()
        digest = self._transcript.peek(public)
        combined = keys.combine(
            self._decapsulator.decapsulate(resp.ct),
            _exchange(self._x, resp.share),
            resp.ct,
            resp.share,
            self.init.ek,
            self.init.share,
        )
        handshake = keys.handshake_keys(chain_key, combined, digest)
        proof = _open(handshake.seal_r, resp.sealed, digest)
        _check(proof, verifier, handshake.confirm_r, digest, keys.RESPONDER_CONTEXT)
        self._transcript.add(public)
        self._digest = self._transcript.add(resp.sealed)
        self._keys, self.resp = handshake, resp
        self.session = keys.session_keys(handshake.root, self._digest)
        return proof, SigningRequest(self._digest + self.init.node_id, keys.INITIATOR_CONTEXT)

    @property
    def common(self) -> int:
        """The dimensions whose WireGuard keys both ends know alike, as a bitmap; there is one after RESP."""
        assert self.resp is not None
        return keys.common_interfaces(self.init.interface_hash, self.resp.interface_hash)

    def auth(self, signature: bytes, credential: bytes = b"") -> wire.Auth:
        """Return AUTH, given the signature that `on_resp` asked for."""
        assert self._keys is not None and self.resp is not None
        confirm = keys.confirmation(self._keys.confirm_i, self._digest, self.init.node_id, signature)
        proof = wire.Proof(self.init.node_id, signature, confirm, credential)
        return wire.Auth(self.resp.own, _seal(self._keys.seal_i, proof, self._digest))

    def on_ack(self, body: bytes) -> wire.Ack:
        """Open and check an ACK body."""
        assert self.session is not None and self.resp is not None
        try:
            plain = ChaCha20Poly1305(self.session.ack.reveal()).decrypt(_ONCE, body, self.init.session)
            ack = wire.decode_ack_untrusted(plain)
        except (InvalidTag, DecodeError):
            raise HandshakeError("ack") from None
        if ack.epoch != self.resp.epoch:
            raise HandshakeError("ack")
        return ack


class Responder:
    """The side that answers INIT with RESP and AUTH with ACK."""

    def __init__(
        self,
        init: wire.Init,
        *,
        kem: Kem,
        random: Random,
        node_id: bytes,
        epoch: int,
        chain_id: bytes,
        chain_key: bytes,
        interface_hash: bytes,
        bitmap: int = ALL,
    ) -> None:
        self.init = init
        try:
            ct, ss_pq = kem.encapsulate(init.ek)
        except KemError:
            raise HandshakeError("encapsulation key") from None
        x = X25519PrivateKey.from_private_bytes(random(32))
        share = x.public_key().public_bytes_raw()
        self._public = wire.Resp(
            init.session,
            random(wire.SESSION_ID_SIZE),
            random(wire.NONCE_SIZE),
            chain_id,
            epoch,
            bitmap,
            interface_hash,
            ct,
            share,
        )
        self._node_id = node_id
        self._transcript = keys.init_transcript(init)
        self._digest = self._transcript.add(self._public.encode_public())
        combined = keys.combine(ss_pq, _exchange(x, init.share), ct, share, init.ek, init.share)
        self._keys = keys.handshake_keys(chain_key, combined, self._digest)
        self.own = self._public.own
        self.common = keys.common_interfaces(init.interface_hash, interface_hash)
        self.chain_id = chain_id
        self.epoch = epoch
        self.session: keys.SessionKeys | None = None

    def signing_request(self) -> SigningRequest:
        """Return what `resp` needs signed."""
        return SigningRequest(self._digest + self._node_id, keys.RESPONDER_CONTEXT)

    def resp(self, signature: bytes, credential: bytes = b"") -> wire.Resp:
        """Return RESP, and derive the session keys. To be called once."""
        confirm = keys.confirmation(self._keys.confirm_r, self._digest, self._node_id, signature)
        proof = wire.Proof(self._node_id, signature, confirm, credential)
        resp = replace(self._public, sealed=_seal(self._keys.seal_r, proof, self._digest))
        self._digest = self._transcript.add(resp.sealed)
        self.session = keys.session_keys(self._keys.root, self._digest)
        return resp

    def on_auth(self, auth: wire.Auth, verifier: Verifier) -> wire.Proof:
        """Check AUTH and return the initiator's proof. A failed check changes nothing."""
        proof = _open(self._keys.seal_i, auth.sealed, self._digest)
        if proof.node_id != self.init.node_id:
            raise HandshakeError("identity")
        _check(proof, verifier, self._keys.confirm_i, self._digest, keys.INITIATOR_CONTEXT)
        return proof

    def ack(self, bitmap: int, cookie: bytes) -> bytes:
        """Return the sealed ACK body. To be called once: its key seals one message."""
        assert self.session is not None
        plain = wire.Ack(self.epoch, bitmap, cookie).encode()
        return ChaCha20Poly1305(self.session.ack.reveal()).encrypt(_ONCE, plain, self.init.session)


def prove(init: wire.Init, key: bytes, dimension: int, cookie: bytes) -> wire.Init:
    """INIT with the proof of its node id, for the address that ``cookie`` was given to."""
    init = replace(init, dimension=dimension)
    return replace(init, proof=keys.init_proof(key, init, cookie))


def proven(init: wire.Init, key: bytes, cookies: Iterable[bytes]) -> bool:
    """Whether INIT's proof holds under one of the cookies that its sender's address was given."""
    return any(compare_digest(init.proof, keys.init_proof(key, init, cookie)) for cookie in cookies)


def pick_chain(offered: Sequence[bytes], held: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Choose the chain to build on: the newest of ours (``held``: id and key, newest first) that the other
    end offers too, else none."""
    for chain_id, chain_key in held:
        if chain_id in offered:
            return chain_id, chain_key
    return wire.NO_CHAIN, keys.FIRST_CHAIN
