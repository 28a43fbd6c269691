# SPDX-License-Identifier: GPL-3.0-or-later
"""Proof that the node which announces a WireGuard key holds its private half.

Curve25519 has two forms. WireGuard uses the Montgomery form (X25519, RFC 7748), Ed25519 signs with the
Edwards form (RFC 8032). RFC 7748 section 4.1 gives the map between them, so one private scalar has a public
key in each form, and an Ed25519 signature can prove possession of a WireGuard key. Perrin's XEdDSA and
libsodium's ``crypto_sign_ed25519_pk_to_curve25519`` rest on the same map. Degabriele, Lehmann, Paterson,
Smart and Strefler ("On the joint security of encryption and signature in EMV", CT-RSA 2012) and Thormarker
("On using the same key pair for Ed25519 and an X25519 based KEM", 2021) show that two such uses of a scalar
go together.

A WireGuard key belongs to two Edwards points, P and -P. Seeds are chosen so that the x of the point is even,
hence the WireGuard key alone tells the verifier which point signed. Signatures are made and verified by
`cryptography`; the one thing done here is the map, a modular division.
"""

import hashlib
import secrets
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from phantommesh.secret import Secret

SEED_BYTES: Final = 32  # RFC 8032 section 5.1.5
PROOF_BYTES: Final = 64  # RFC 8032 section 5.1.6

_CONTEXT: Final = b"phantommesh wireguard key v1"
_P: Final = 2**255 - 19  # RFC 7748 section 4.1
_ODD: Final = 0x80  # in the last byte of an Edwards point: its x is odd (RFC 8032 section 5.1.2)
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)
"""The u of the points of order 1, 2, 4 and 8, on the curve and on its twist (Bernstein, "Curve25519", 2006,
and cr.yp.to/ecdh.html): anybody could sign for some of these. Only -1 has no place on the map."""


def new_seed(random: Callable[[int], bytes] = secrets.token_bytes) -> Secret:
    """Return a new seed, 32 bytes, of a key whose Edwards point has an even x. About two are tried."""
    while True:
        seed = Secret(random(SEED_BYTES))
        if is_seed(seed):
            return seed


def is_seed(seed: Secret) -> bool:
    """Say whether these are 32 bytes whose key has an even x, as `new_seed` returns."""
    return len(seed) == SEED_BYTES and not _signer(seed).public_key().public_bytes_raw()[-1] & _ODD


def private_key(seed: Secret) -> Secret:
    """Return the X25519 private key, 32 bytes: the scalar that Ed25519 signs with (RFC 8032 section 5.1.5).

    It is clamped as RFC 7748 section 5 and `wg genkey` do.
    """
    scalar = bytearray(hashlib.sha512(seed.reveal()).digest()[:32])
    scalar[0] &= 0xF8
    scalar[31] = scalar[31] & 0x7F | 0x40
    return Secret(bytes(scalar))


def prove(seed: Secret, public_key: bytes, node_id: bytes, dimension: int) -> bytes:
    """Return the proof, 64 bytes, that this node holds the key that it uses in this dimension.

    The same proof each time. ``public_key`` is the X25519 public key of the seed, 32 bytes.
    """
    return _signer(seed).sign(_statement(public_key, node_id, dimension))


def proves(proof: bytes, public_key: bytes, node_id: bytes, dimension: int) -> bool:
    """Say whether a proof holds for a WireGuard key, a node and a dimension. Takes any bytes."""
    point = edwards(public_key)
    if point is None or len(proof) != PROOF_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(point).verify(proof, _statement(public_key, node_id, dimension))
    except (InvalidSignature, ValueError):
        return False
    return True


def edwards(public_key: bytes) -> bytes | None:
    """Return the Edwards point with an even x of an X25519 public key, encoded: y = (u - 1) / (u + 1).

    None for other than 32 bytes, for an encoding that RFC 7748 calls non-canonical, and for the points of low
    order. A u on the curve's twist gives bytes that are no point: no signature verifies under them.
    """
    u = int.from_bytes(public_key, "little")
    if len(public_key) != 32 or u >= _P or u in _LOW_ORDER:
        return None
    return ((u - 1) * pow(u + 1, -1, _P) % _P).to_bytes(32, "little")


def _statement(public_key: bytes, node_id: bytes, dimension: int) -> bytes:
    return _CONTEXT + node_id + bytes([dimension]) + public_key


def _signer(seed: Secret) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed.reveal())
