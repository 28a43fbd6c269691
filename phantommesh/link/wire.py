# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagram formats of the control port. Layouts are drawn in docs/protocol.md.

Every datagram has a 16-byte header. All but the two cookie datagrams end in a 32-byte trailer: the first
MAC (does the sender belong to this mesh?) and the cookie MAC (can the sender receive at its address?).
A message that does not fit one datagram travels as fragments, each with header and trailer of its own.

Everything here is decoded from untrusted bytes: the ``*_untrusted`` functions raise only `DecodeError`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from hmac import compare_digest

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.errors import DecodeError
from phantommesh.kem import CT_SIZE, EK_SIZE

VERSION = 1
SUITE = 1  # ML-KEM-1024 + X25519, ML-DSA-65, SHA3-256/SHA-512, HKDF-SHA512, ChaCha20-Poly1305

HEADER_SIZE = 16
MAC_SIZE = 16
TRAILER_SIZE = 2 * MAC_SIZE
CHUNK_SIZE = MAX_DATAGRAM - HEADER_SIZE - TRAILER_SIZE
COOKIE_DATAGRAM_SIZE = 64  # request and reply alike: a reply is never larger than what asked for it

NODE_ID_SIZE = 16
SESSION_ID_SIZE = 8
NONCE_SIZE = 32
CHAIN_ID_SIZE = 16
HASH_SIZE = 32
X25519_SIZE = 32
SIGNATURE_SIZE = 3309  # FIPS 204, ML-DSA-65
CONFIRM_SIZE = 32
TAG_SIZE = 16

NO_CHAIN = bytes(CHAIN_ID_SIZE)
MAX_EPOCH = 2**63  # exclusive: whatever a peer sends, its successor can still be encoded

_HEADER = struct.Struct("!BBBBHH8s")


class Kind(IntEnum):
    """The kind of a datagram."""

    COOKIE_REQUEST = 1
    COOKIE_REPLY = 2
    INIT = 3
    RESP = 4
    AUTH = 5
    ACK = 6
    RESEND = 7


class Mode(IntEnum):
    """The kind of node that starts the handshake: a member of the mesh, or a newcomer with an invitation."""

    MEMBER = 0
    ENROL = 1


_INIT = struct.Struct(f"!BB8sQ{CHAIN_ID_SIZE}s{CHAIN_ID_SIZE}s16s32sB32s{EK_SIZE}s32s")
_CLAIM = struct.Struct(f"!B{MAC_SIZE}s")
_RESP = struct.Struct(f"!B8s8s32s{CHAIN_ID_SIZE}sQB32s{CT_SIZE}s32s")
_ACK = struct.Struct(f"!QB{MAC_SIZE}s")

INIT_FIXED_SIZE = _INIT.size
INIT_SIZE = INIT_FIXED_SIZE + _CLAIM.size
INIT_NODE_ID = slice(50, 50 + NODE_ID_SIZE)  # of the body, and so of the first fragment's chunk
RESP_FIXED_SIZE = _RESP.size
PROOF_SIZE = NODE_ID_SIZE + SIGNATURE_SIZE + CONFIRM_SIZE
MAX_CREDENTIAL = 2048  # in enrolment only: a bare ML-DSA-65 SubjectPublicKeyInfo of 1974 bytes (RFC 9881)
ACK_SIZE = _ACK.size + TAG_SIZE

#: Longest body of each fragmented kind. Enrolment messages also carry the sender's public key.
MAX_BODY = {
    Kind.INIT: INIT_SIZE,
    Kind.RESP: RESP_FIXED_SIZE + PROOF_SIZE + MAX_CREDENTIAL + TAG_SIZE,
    Kind.AUTH: SESSION_ID_SIZE + PROOF_SIZE + MAX_CREDENTIAL + TAG_SIZE,
    Kind.ACK: ACK_SIZE,
    Kind.RESEND: 3,
}
MAX_FRAGMENTS = -(-max(MAX_BODY.values()) // CHUNK_SIZE)


@dataclass(frozen=True, slots=True)
class CookieRequest:
    """Asks for a cookie. ``nonce`` (8 bytes) comes back in the reply."""

    mode: Mode
    nonce: bytes
    node_id: bytes

    def encode(self, mac_key: bytes) -> bytes:
        """Return the 64-byte datagram, its first MAC keyed for the receiver."""
        head = _HEADER.pack(VERSION, Kind.COOKIE_REQUEST, 0, 1, 0, self.mode, self.nonce)
        return sign_first(head + self.node_id + bytes(16), mac_key)


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Gives the 16-byte cookie that the asking address has to key its fragments with."""

    mode: Mode
    nonce: bytes
    cookie: bytes

    def encode(self, mac_key: bytes) -> bytes:
        """Return the 64-byte datagram, its first MAC keyed for the receiver."""
        head = _HEADER.pack(VERSION, Kind.COOKIE_REPLY, 0, 1, 0, self.mode, self.nonce)
        return sign_first(head + self.cookie + bytes(16), mac_key)


@dataclass(frozen=True, slots=True)
class Fragment:
    """One datagram's share of a message. ``session`` is the id by which the receiver finds its state."""

    kind: Kind
    mode: Mode
    index: int
    count: int
    total: int
    session: bytes
    chunk: bytes

    def encode(self, mac_key: bytes, cookie: bytes) -> bytes:
        """Return the datagram with both MACs."""
        head = _HEADER.pack(VERSION, self.kind, self.index, self.count, self.total, self.mode, self.session)
        return sign_cookie(sign_first(head + self.chunk, mac_key), cookie)


Datagram = CookieRequest | CookieReply | Fragment


def mac(key: bytes, data: bytes) -> bytes:
    """Return the 16-byte keyed BLAKE2s (RFC 7693) of ``data``: WireGuard's choice for the same two jobs."""
    return blake2s(data, key=key, digest_size=MAC_SIZE).digest()


def return_cookie(nonce: bytes) -> bytes:
    """The cookie that keys fragments back to the initiator: only who saw its INIT can make it."""
    return blake2s(nonce, digest_size=MAC_SIZE, person=b"pm1 back").digest()


def sign_first(data: bytes, mac_key: bytes) -> bytes:
    """Append the first MAC."""
    return data + mac(mac_key, data)


def sign_cookie(data: bytes, cookie: bytes) -> bytes:
    """Append the cookie MAC."""
    return data + mac(cookie, data)


def cookie_mac_ok(datagram: bytes, cookie: bytes) -> bool:
    """Whether the last 16 bytes are the cookie MAC of the rest."""
    return compare_digest(datagram[-MAC_SIZE:], mac(cookie, datagram[:-MAC_SIZE]))


def first_mac_ok(datagram: bytes, mac_key: bytes, *, with_cookie: bool) -> bool:
    """Whether the first MAC holds; it stands before the cookie MAC where there is one."""
    signed = datagram[:-MAC_SIZE] if with_cookie else datagram
    return compare_digest(signed[-MAC_SIZE:], mac(mac_key, signed[:-MAC_SIZE]))


def decode_untrusted(datagram: bytes) -> Datagram:
    """Parse one datagram. MACs are not checked here. Raises `DecodeError` and nothing else."""
    size = len(datagram)
    if size < HEADER_SIZE + TRAILER_SIZE or size > MAX_DATAGRAM:
        raise DecodeError("length")
    version, kind_byte, index, count, total, mode_word, session = _HEADER.unpack_from(datagram)
    if version != VERSION:
        raise DecodeError("version")
    try:
        kind, mode = Kind(kind_byte), Mode(mode_word)
    except ValueError:
        raise DecodeError("kind") from None
    if kind in (Kind.COOKIE_REQUEST, Kind.COOKIE_REPLY):
        if size != COOKIE_DATAGRAM_SIZE or index or count != 1 or total or any(datagram[32:48]):
            raise DecodeError("cookie")
        field = datagram[16:32]
        if kind is Kind.COOKIE_REQUEST:
            return CookieRequest(mode, session, field)
        return CookieReply(mode, session, field)
    if not 0 < total <= MAX_BODY[kind] or count != -(-total // CHUNK_SIZE) or index >= count:
        raise DecodeError("fragment")
    chunk = datagram[HEADER_SIZE:-TRAILER_SIZE]
    if len(chunk) != min(CHUNK_SIZE, total - index * CHUNK_SIZE):
        raise DecodeError("fragment")
    return Fragment(kind, mode, index, count, total, session, chunk)


def fragments(kind: Kind, mode: Mode, session: bytes, body: bytes) -> list[Fragment]:
    """Cut a message body into its fragments."""
    count = -(-len(body) // CHUNK_SIZE)
    return [
        Fragment(kind, mode, i, count, len(body), session, body[i * CHUNK_SIZE : (i + 1) * CHUNK_SIZE])
        for i in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Init:
    """First message. ``credential`` is, for a member, its committed and staged chain ids (16 bytes each);
    for a newcomer, the invite's id and 16 zero bytes.

    ``proof`` (16 bytes) shows that the sender may claim ``node_id``; see `link.keys.init_proof`. A member's
    is keyed by the WireGuard keys that both ends have in ``dimension``. The proof covers the cookie, so it
    changes when the cookie does: neither field is in the transcript.
    """

    mode: Mode
    session: bytes
    epoch: int
    credential: bytes
    node_id: bytes
    nonce: bytes
    bitmap: int
    interface_hash: bytes
    ek: bytes
    share: bytes
    dimension: int = 0
    proof: bytes = bytes(MAC_SIZE)

    def encode(self) -> bytes:
        """Return the whole body, `INIT_SIZE` bytes."""
        return self.encode_public() + _CLAIM.pack(self.dimension, self.proof)

    def encode_public(self) -> bytes:
        """Return the part before dimension and proof, `INIT_FIXED_SIZE` bytes: what the keys are bound to."""
        return _INIT.pack(
            VERSION,
            SUITE,
            self.session,
            self.epoch,
            self.credential[:CHAIN_ID_SIZE],
            self.credential[CHAIN_ID_SIZE:],
            self.node_id,
            self.nonce,
            self.bitmap,
            self.interface_hash,
            self.ek,
            self.share,
        )


def decode_init_untrusted(body: bytes, mode: Mode) -> Init:
    """Parse an INIT body. Raises `DecodeError`."""
    if len(body) != INIT_SIZE:
        raise DecodeError("init length")
    version, suite, session, epoch, first, second, node, nonce, bitmap, hash_, ek, share = _INIT.unpack_from(
        body
    )
    dimension, proof = _CLAIM.unpack_from(body, INIT_FIXED_SIZE)
    if version != VERSION or suite != SUITE:
        raise DecodeError("suite")
    if bitmap != (ALL if mode is Mode.MEMBER else 0):
        raise DecodeError("init bitmap")
    if epoch >= MAX_EPOCH:
        raise DecodeError("init epoch")
    if mode is Mode.ENROL and any(second):
        raise DecodeError("init credential")
    if dimension >= (DIMENSIONS if mode is Mode.MEMBER else 1):
        raise DecodeError("init dimension")
    return Init(mode, session, epoch, first + second, node, nonce, bitmap, hash_, ek, share, dimension, proof)


@dataclass(frozen=True, slots=True)
class Resp:
    """Second message. ``session`` is the initiator's id, ``own`` the responder's. ``sealed`` is the AEAD of
    the responder's proof (and, for a newcomer, its public key)."""

    session: bytes
    own: bytes
    nonce: bytes
    chain: bytes
    epoch: int
    bitmap: int
    interface_hash: bytes
    ct: bytes
    share: bytes
    sealed: bytes = b""

    def encode_public(self) -> bytes:
        """Return the part before the AEAD: what the handshake keys are bound to."""
        return _RESP.pack(
            VERSION,
            self.session,
            self.own,
            self.nonce,
            self.chain,
            self.epoch,
            self.bitmap,
            self.interface_hash,
            self.ct,
            self.share,
        )

    def encode(self) -> bytes:
        """Return the whole body."""
        return self.encode_public() + self.sealed


def decode_resp_untrusted(body: bytes) -> Resp:
    """Parse a RESP body. Raises `DecodeError`."""
    if len(body) < RESP_FIXED_SIZE + PROOF_SIZE + TAG_SIZE:
        raise DecodeError("resp length")
    version, session, own, nonce, chain, epoch, bitmap, hash_, ct, share = _RESP.unpack_from(body)
    if version != VERSION:
        raise DecodeError("version")
    if bitmap != ALL:
        raise DecodeError("resp bitmap")
    if epoch >= MAX_EPOCH:
        raise DecodeError("resp epoch")
    return Resp(session, own, nonce, chain, epoch, bitmap, hash_, ct, share, body[RESP_FIXED_SIZE:])


@dataclass(frozen=True, slots=True)
class Auth:
    """Third message: the initiator's id and the AEAD of its proof (and, for a newcomer, its public key)."""

    session: bytes
    sealed: bytes

    def encode(self) -> bytes:
        """Return the body."""
        return self.session + self.sealed


def decode_auth_untrusted(body: bytes) -> Auth:
    """Parse an AUTH body. Raises `DecodeError`."""
    if len(body) < SESSION_ID_SIZE + PROOF_SIZE + TAG_SIZE:
        raise DecodeError("auth length")
    return Auth(body[:SESSION_ID_SIZE], body[SESSION_ID_SIZE:])


@dataclass(frozen=True, slots=True)
class Proof:
    """The content of either AEAD: who I am, my signature, my key confirmation, and in enrolment my
    credential."""

    node_id: bytes
    signature: bytes
    confirm: bytes
    credential: bytes = b""

    def encode(self) -> bytes:
        """Return the plaintext."""
        return self.node_id + self.signature + self.confirm + self.credential


def decode_proof_untrusted(plain: bytes) -> Proof:
    """Parse a decrypted proof. Raises `DecodeError`."""
    if not PROOF_SIZE <= len(plain) <= PROOF_SIZE + MAX_CREDENTIAL:
        raise DecodeError("proof length")
    a, b = NODE_ID_SIZE, NODE_ID_SIZE + SIGNATURE_SIZE
    return Proof(plain[:a], plain[a:b], plain[b:PROOF_SIZE], plain[PROOF_SIZE:])


@dataclass(frozen=True, slots=True)
class Ack:
    """Fourth message's plaintext: the epoch, the interfaces whose PSK was read back, the next cookie."""

    epoch: int
    bitmap: int
    cookie: bytes

    def encode(self) -> bytes:
        """Return the plaintext."""
        return _ACK.pack(self.epoch, self.bitmap, self.cookie)


def decode_ack_untrusted(plain: bytes) -> Ack:
    """Parse a decrypted ACK. Raises `DecodeError`."""
    if len(plain) != _ACK.size:
        raise DecodeError("ack length")
    epoch, bitmap, cookie = _ACK.unpack(plain)
    if bitmap > ALL:
        raise DecodeError("ack bitmap")
    return Ack(epoch, bitmap, cookie)


@dataclass(frozen=True, slots=True)
class Resend:
    """Asks for the missing fragments of one message of a session; bit i of ``missing`` is fragment i."""

    kind: Kind
    missing: int

    def encode(self) -> bytes:
        """Return the 3-byte body."""
        return struct.pack("!BH", self.kind, self.missing)


def decode_resend_untrusted(body: bytes) -> Resend:
    """Parse a RESEND body. Raises `DecodeError`."""
    if len(body) != MAX_BODY[Kind.RESEND]:
        raise DecodeError("resend length")
    kind_byte, missing = struct.unpack("!BH", body)
    if kind_byte not in (Kind.INIT, Kind.RESP, Kind.AUTH) or not missing:
        raise DecodeError("resend")
    return Resend(Kind(kind_byte), missing)
