# SPDX-License-Identifier: GPL-3.0-or-later
"""A revocation: signed by an authority, by node id, never by certificate: a renewal does not undo one."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from phantommesh.faults import FaultKind
from phantommesh.idtree import ID_BYTES
from phantommesh.trust.certificates import (
    MAX_CERTIFICATE_BYTES,
    TrustError,
    authority_node,
)
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId
from phantommesh.trust.issuing import Authority
from phantommesh.trust.rootword import WORD_ID_BYTES, RootWord, check_word

REVOKED = FaultKind("node-revoked", "critical")
MOOT = FaultKind("revocations-moot", "high")

CONTEXT: Final = b"phantommesh revocation v1"
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
MAX_REVOCATIONS: Final = 100_000
_FORMAT: Final = 2


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    """One node put out of the mesh at `at` (unix seconds), signed by an authority.

    ``after`` is the id of the newest root's word that the authority knew, empty for none; ``origin`` the
    authority from which it was taken over, empty for none.
    """

    node_id: bytes
    at: int
    signature: bytes
    authority_cert: bytes
    after: bytes = b""
    origin: bytes = b""

    @property
    def id(self) -> bytes:
        """16 bytes that name this very statement."""
        said = _signed(self.node_id, self.at, self.after, self.origin) + self.signature
        cert = hashlib.sha3_256(self.authority_cert).digest()
        return hashlib.sha3_256(b"phantommesh revocation id" + cert + said).digest()[:ID_BYTES]


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """Statements and the root's words, for a file or a channel. Each authority's certificate is in it once; a
    row is (node id, at, signature, number of the certificate, after, origin)."""

    format: int
    words: Annotated[list[RootWord], msgspec.Meta(max_length=MAX_REVOCATIONS)]
    certs: Annotated[list[bytes], msgspec.Meta(max_length=MAX_REVOCATIONS)]
    rows: Annotated[
        list[tuple[bytes, int, bytes, int, bytes, bytes]], msgspec.Meta(max_length=MAX_REVOCATIONS)
    ]


# Too long a list is refused at its head: one of 16 MiB may have a million entries.
_List = Annotated[list[Revocation], msgspec.Meta(max_length=MAX_REVOCATIONS)]


def revoke(
    authority: Authority, node_id: NodeId, now: float, *, after: bytes = b"", origin: bytes = b""
) -> Revocation:
    """Sign a revocation of the node."""
    at = int(now)
    signature = authority.key.sign(_signed(node_id, at, after, origin), CONTEXT)
    return Revocation(node_id, at, signature, authority.der, after, origin)


def _encode(statements: Iterable[Revocation | RootWord], skip: frozenset[bytes] = frozenset()) -> bytes:
    words, numbers, rows = list[RootWord](), dict[bytes, int](), []
    for one in statements:
        if isinstance(one, RootWord):
            words.append(one)
        else:
            number = numbers.setdefault(one.authority_cert, len(numbers))
            rows.append((one.node_id, one.at, one.signature, number, one.after, one.origin))
    certs = [digest if (digest := _hash(der)) in skip else der for der in numbers]
    return msgspec.msgpack.encode(Packed(_FORMAT, words, certs, rows))


def _decode_untrusted(data: bytes, known: dict[bytes, bytes]) -> Sequence[Revocation | RootWord]:
    """Read what `_encode` wrote, or a version before 0.6 (a plain list). Raises TrustError only."""
    try:
        packed = msgspec.msgpack.decode(data, type=Packed)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _decode_plain_untrusted(data)
    if packed.format != _FORMAT:
        raise TrustError("the revocation list is of another version", fix="run one version on all nodes")
    certs = [known.get(der, der) for der in packed.certs]
    if any(not 0 <= row[3] < len(certs) for row in packed.rows):
        raise TrustError("the revocation list names a certificate that it has not")
    statements = [
        Revocation(n, at, sig, certs[cert], after, of) for n, at, sig, cert, after, of in packed.rows
    ]
    told: list[Revocation | RootWord] = [*packed.words, *statements]
    for one in told:
        _check(one)
    return told


def _decode_plain_untrusted(data: bytes) -> list[Revocation]:
    try:
        told = msgspec.msgpack.decode(data, type=_List)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TrustError("the revocation list cannot be read") from error
    for one in told:
        _check(one)
    return told


def _check(one: Revocation | RootWord) -> None:
    """Raise TrustError for fields that no statement has. Nothing else may be done with one before."""
    if isinstance(one, RootWord):
        check_word(one)
    elif (
        len(one.node_id) != NODE_ID_BYTES
        or not 0 <= one.at < 2**63
        or len(one.after) not in (0, WORD_ID_BYTES)
        or len(one.origin) not in (0, NODE_ID_BYTES)
        or len(one.signature) != SIGNATURE_BYTES
        or len(one.authority_cert) > MAX_CERTIFICATE_BYTES
    ):
        raise TrustError("the revocation's fields are out of range")


def _signed(node_id: bytes, at: int, after: bytes, origin: bytes) -> bytes:
    """Return the bytes that are signed. Without the last two fields they are what versions before those
    signed."""
    more = after.ljust(WORD_ID_BYTES, b"\0") + origin.ljust(NODE_ID_BYTES, b"\0") if after or origin else b""
    return node_id + at.to_bytes(8) + more


def _signer(der: bytes) -> NodeId:
    """The node of an authority, by its certificate."""
    return authority_node(der) or NodeId(_hash(der)[:NODE_ID_BYTES])


def _hash(der: bytes) -> bytes:
    return hashlib.sha3_256(der).digest()
