# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's identity: its ML-DSA-65 key (FIPS 204), its node id, and the overlay addresses that follow."""

import base64
import hashlib
import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NewType

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from phantommesh.errors import PhantomMeshError
from phantommesh.secret import Secret

NodeId = NewType("NodeId", bytes)

NODE_ID_BYTES: Final = 16
_SPKI_BYTES: Final = 1974  # RFC 9881: 22 bytes of header and a 1952-byte ML-DSA-65 public key
_NODE_ID_TEXT: Final = re.compile(r"[a-z2-7]{26}")


class IdentityError(PhantomMeshError):
    """A key or a node id that cannot be used."""


def node_id_of(spki_der: bytes) -> NodeId:
    """Return the id of the node with this SubjectPublicKeyInfo: SHA3-256 of the DER, first 16 bytes."""
    return NodeId(hashlib.sha3_256(spki_der).digest()[:NODE_ID_BYTES])


@lru_cache(maxsize=4096)  # the members of a mesh: whatever a node says of itself names them
def format_node_id(node_id: NodeId) -> str:
    """Write a node id as 26 characters of lower-case base32 without padding."""
    return base64.b32encode(node_id).decode("ascii").rstrip("=").lower()


def parse_node_id(text: str) -> NodeId:
    """Read what `format_node_id` wrote, and nothing else: one id has one spelling.

    Raises IdentityError.
    """
    if _NODE_ID_TEXT.fullmatch(text):
        node_id = NodeId(base64.b32decode(text.upper() + "======"))
        if format_node_id(node_id) == text:  # the last character carries two bits that must be zero
            return node_id
    raise IdentityError(
        f"{text[:40]!r} is not a node id",
        fix="a node id is 26 characters of a-z and 2-7, as `phantommesh status` prints it",
    )


def spki_of(public_key: MLDSA65PublicKey) -> bytes:
    """Return the DER SubjectPublicKeyInfo, 1974 bytes."""
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_key_of(spki_der: bytes) -> MLDSA65PublicKey:
    """Read an ML-DSA-65 SubjectPublicKeyInfo. Raises IdentityError for any other bytes."""
    if len(spki_der) == _SPKI_BYTES:
        try:
            key = serialization.load_der_public_key(spki_der)
        except (ValueError, UnsupportedAlgorithm):
            pass
        else:
            if isinstance(key, MLDSA65PublicKey):
                return key
    raise IdentityError("the public key is not an ML-DSA-65 SubjectPublicKeyInfo")


class Identity:
    """A node's ML-DSA-65 key pair. Its repr shows the node id only."""

    __slots__ = ("_key", "node_id", "public_key", "spki")

    node_id: NodeId
    spki: bytes
    public_key: MLDSA65PublicKey

    def __init__(self, key: MLDSA65PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key()
        self.spki = spki_of(self.public_key)
        self.node_id = node_id_of(self.spki)

    @classmethod
    def generate(cls) -> "Identity":
        """Make a new identity from the system's random source."""
        return cls(MLDSA65PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "Identity":
        """Derive the identity of a 32-byte FIPS 204 seed: for published test vectors and simulations."""
        if len(seed) != 32:
            raise IdentityError(f"an ML-DSA-65 seed is 32 bytes, not {len(seed)}")
        return cls(MLDSA65PrivateKey.from_seed_bytes(seed))

    @classmethod
    def from_pem(cls, pem: bytes) -> "Identity":
        """Read an unencrypted PKCS#8 key. Raises IdentityError, which never quotes the input."""
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, MLDSA65PrivateKey):
            raise IdentityError(
                "not an unencrypted ML-DSA-65 private key in PEM", fix="restore the key file from a backup"
            )
        return cls(key)

    def to_pem(self) -> Secret:
        """Return the private key as unencrypted PKCS#8 PEM (the seed form of RFC 9881)."""
        return Secret(
            self._key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    @property
    def private_key(self) -> MLDSA65PrivateKey:
        """The key itself, for the X.509 builders, which take nothing else."""
        return self._key

    def sign(self, data: bytes, context: bytes) -> bytes:
        """Sign (3309 bytes). `context` is the FIPS 204 context string, at most 255 bytes; one per use."""
        return self._key.sign(data, context)

    def __repr__(self) -> str:
        return f"Identity({format_node_id(self.node_id)})"


def overlay_network6(root_spki: bytes) -> IPv6Network:
    """Return the mesh's ULA /48 (RFC 4193: fd00::/8 and 40 bits, here from the root key's hash)."""
    digest = hashlib.sha3_256(b"phantommesh overlay6" + root_spki).digest()
    return IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48))


def overlay_ip6(root_spki: bytes, node_id: NodeId) -> IPv6Address:
    """Return the node's overlay address: the mesh's /48, then the first 80 bits of the node id."""
    return IPv6Address(overlay_network6(root_spki).network_address.packed[:6] + node_id[:10])


def overlay_ip4(network: IPv4Network, node_id: NodeId, attempt: int = 0) -> IPv4Address:
    """Return the address number `attempt` (0, 1, ...) that the node would take in `network`.

    It is never the network's own or its broadcast address. Raises IdentityError for a network smaller
    than a /30, which has no room for two nodes.
    """
    if network.prefixlen > 30:
        raise IdentityError(f"the overlay {network} has no room for two nodes", fix="use a /30 or larger")
    digest = hashlib.sha3_256(b"phantommesh overlay4" + node_id + attempt.to_bytes(4, "big")).digest()
    return network[1 + int.from_bytes(digest, "big") % (network.num_addresses - 2)]
