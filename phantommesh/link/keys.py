# SPDX-License-Identifier: GPL-3.0-or-later
"""Transcript, hybrid combiner and key schedule of the link handshake. Pure functions on bytes.

The combiner is the "universal combiner" shape of X-Wing (draft-connolly-cfrg-xwing-kem) with every public
value hashed in; extraction and expansion are HKDF (RFC 5869) with SHA-512. A fresh secret is extracted with
the previous handshake's chain key as salt, so whoever missed one honest handshake is locked out again.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha3_256, sha512

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from phantommesh.dimensions import DIMENSIONS, bits
from phantommesh.kdf import expand
from phantommesh.link.wire import CHAIN_ID_SIZE, CONFIRM_SIZE, HASH_SIZE, MAC_SIZE, Init
from phantommesh.secret import Secret

COMBINER_LABEL = b"PhantomMesh 1 ML-KEM-1024 X25519"
FIRST_CHAIN = bytes(64)  # the salt where there is no previous chain key: RFC 5869 section 2.2

RESPONDER_CONTEXT = b"PhantomMesh 1 responder"  # FIPS 204 section 5.2: the context separates the two roles
INITIATOR_CONTEXT = b"PhantomMesh 1 initiator"
# In INIT's place of an invite's id: a member whose certificate ran out. No invite has it: theirs are random.
RETURNING = b"phantommesh back"
_KEY_HASH = 4  # bytes a dimension in the interface hash


class Transcript:
    """SHA-512 over everything both ends said, each part with its length before it."""

    def __init__(self) -> None:
        self._hash = sha512(b"PhantomMesh 1 transcript")

    def add(self, part: bytes) -> bytes:
        """Take in one part and return the 64-byte digest up to here."""
        self._hash.update(struct.pack("!Q", len(part)))
        self._hash.update(part)
        return self._hash.digest()

    def peek(self, part: bytes) -> bytes:
        """Return the digest as `add` would, and change nothing."""
        ahead = self._hash.copy()
        ahead.update(struct.pack("!Q", len(part)))
        ahead.update(part)
        return ahead.digest()


def init_transcript(init: Init) -> Transcript:
    """A transcript that has taken in INIT: its mode, which stands in no body, and its body without the
    proof."""
    transcript = Transcript()
    transcript.add(bytes([init.mode]))
    transcript.add(init.encode_public())
    return transcript


def interface_hash(ours: Sequence[bytes], theirs: Sequence[bytes]) -> bytes:
    """Each end's statement of the WireGuard keys it knows: for each dimension 4 bytes of the SHA3-256 of both
    ends' public keys, sorted so that either end computes the same; then 4 zero bytes. Chance collisions do no
    harm: the PSKs are bound to the whole keys."""
    hashes = (
        sha3_256(b"PhantomMesh 1 interface" + bytes([i]) + b"".join(sorted((ours[i], theirs[i])))).digest()
        for i in range(DIMENSIONS)
    )
    return b"".join(digest[:_KEY_HASH] for digest in hashes) + bytes(HASH_SIZE - _KEY_HASH * DIMENSIONS)


def common_interfaces(one: bytes, other: bytes) -> int:
    """The dimensions on which two interface hashes agree, as a bitmap."""
    parts = [slice(_KEY_HASH * i, _KEY_HASH * (i + 1)) for i in range(DIMENSIONS)]
    return bits(one[part] == other[part] for part in parts)


def combine(ss_pq: bytes, ss_x: bytes, ct: bytes, share_r: bytes, ek: bytes, share_i: bytes) -> bytes:
    """The hybrid secret: secure while either ML-KEM-1024 or X25519 is. All inputs have fixed lengths."""
    return sha3_256(ss_pq + ss_x + ct + share_r + ek + share_i + COMBINER_LABEL).digest()


@dataclass(frozen=True, slots=True)
class HandshakeKeys:
    """Keys that protect the handshake itself: one AEAD key and one confirmation key a role."""

    root: bytes = field(repr=False)
    seal_r: bytes = field(repr=False)
    seal_i: bytes = field(repr=False)
    confirm_r: bytes = field(repr=False)
    confirm_i: bytes = field(repr=False)


def handshake_keys(chain_key: bytes, combined: bytes, digest: bytes) -> HandshakeKeys:
    """Derive the handshake's keys. ``digest`` is the transcript through RESP's public part."""
    root = HKDF.extract(SHA512(), chain_key, combined)
    out = expand(root, b"handshake", 192, digest)
    return HandshakeKeys(root, out[:32], out[32:64], out[64:128], out[128:])


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """Keys that a finished handshake leaves behind. ``channel_*`` key the control streams, by direction;
    ``scatter`` is what both ends' scatter maps of this epoch come from."""

    chain_key: Secret
    chain_id: bytes
    wg_root: Secret
    scatter: Secret
    ack: Secret
    channel_i: Secret
    channel_r: Secret


def session_keys(root: bytes, digest: bytes) -> SessionKeys:
    """Derive what outlives the handshake. ``digest`` is the transcript through RESP's sealed part."""
    chain_key = expand(root, b"chain", 64, digest)
    return SessionKeys(
        chain_key=Secret(chain_key),
        chain_id=expand(chain_key, b"chain id", CHAIN_ID_SIZE),
        wg_root=Secret(expand(root, b"wireguard", 64, digest)),
        scatter=Secret(expand(root, b"scatter", 32, digest)),
        ack=Secret(expand(root, b"ack", 32, digest)),
        channel_i=Secret(expand(root, b"channel initiator", 32, digest)),
        channel_r=Secret(expand(root, b"channel responder", 32, digest)),
    )


def preshared_keys(
    wg_root: Secret, ours: Sequence[bytes], theirs: Sequence[bytes], epoch: int
) -> tuple[Secret, ...]:
    """One WireGuard preshared key a dimension, bound to that dimension's two public keys and the epoch."""
    return tuple(
        Secret(
            expand(
                wg_root.reveal(), b"wg-psk", 32, bytes([i]), *sorted((ours[i], theirs[i])), epoch.to_bytes(8)
            )
        )
        for i in range(DIMENSIONS)
    )


def confirmation(key: bytes, digest: bytes, node_id: bytes, signature: bytes) -> bytes:
    """SIGMA's MAC over the sender's identity. Mandatory here: ML-KEM rejects implicitly, so this is what
    shows that both ends hold the same key."""
    return hmac.digest(key, digest + node_id + signature, "sha512")[:CONFIRM_SIZE]


def member_mac_key(admission: Secret, receiver: bytes) -> bytes:
    """Key of the first MAC between members: the mesh's admission secret, bound to the receiver's node id."""
    return expand(admission.reveal(), b"first mac", 32, receiver)


def enrol_mac_key(root_hash: bytes, receiver: bytes) -> bytes:
    """Key of the first MAC of an enrolment: a node that was given any token of this mesh knows the root's
    hash."""
    return expand(root_hash, b"enrol first mac", 32, receiver)


def invite_chain(secret: Secret) -> bytes:
    """The chain key of an enrolment: the invite's secret salts the key schedule, so each end proves to the
    other that it holds the secret by the key confirmation, and neither ever sends it."""
    return expand(secret.reveal(), b"invite chain", 64)


def invite_proof_key(secret: Secret) -> bytes:
    """Key of a newcomer's proof in INIT (64 bytes): it holds the invite's secret."""
    return expand(secret.reveal(), b"invite proof", 64)


def returning_secret(root_hash: bytes, authority: bytes, node_id: bytes) -> Secret:
    """In place of an invite's secret (32 bytes), for a member whose certificate ran out. Everybody who knows
    the mesh can compute it: the two ends are shown by their signatures alone."""
    return Secret(expand(root_hash, b"returning member", 32, authority, node_id))


def pair_proof_key(shared: bytes, initiator: bytes, responder: bytes) -> bytes:
    """Key of a member's proof in INIT (64 bytes). ``shared`` is the X25519 of both ends' WireGuard keys of
    one dimension (32 bytes); the node ids make each direction's key its own. The label keeps the key apart
    from all that WireGuard derives of the same X25519, by another hash."""
    return expand(shared, b"pair proof", 64, initiator, responder)


def init_proof(key: bytes, init: Init, cookie: bytes) -> bytes:
    """Sixteen bytes that show the responder, before it computes anything dear, that INIT's sender may claim
    its node id. They cover the cookie, and so the sender's address: the same INIT proves nothing from
    another address, nor when the cookie's time is over."""
    said = bytes([init.mode, init.dimension]) + cookie + init.encode_public()
    return hmac.digest(key, said, "sha512")[:MAC_SIZE]
