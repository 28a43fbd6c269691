# SPDX-License-Identifier: GPL-3.0-or-later
"""Revocations: authority-signed, grow-only, by node id, never by certificate: a renewal does not undo one."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Final, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from phantommesh.identity import NODE_ID_BYTES, NodeId
from phantommesh.issuing import Authority
from phantommesh.trust import TrustError, verify_authority

CONTEXT: Final = b"phantommesh revocation v1"
MAX_REVOCATION_BYTES: Final = 16_384
MAX_REVOCATIONS: Final = 100_000


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    """One node put out of the mesh at `at` (unix seconds), signed by an authority."""

    node_id: bytes
    at: int
    signature: bytes
    authority_cert: bytes


# Too long a list is refused at its head: one of 16 MiB may have a million entries.
_List = Annotated[list[Revocation], msgspec.Meta(max_length=MAX_REVOCATIONS)]


def revoke(authority: Authority, node_id: NodeId, now: float) -> Revocation:
    """Sign a revocation of the node."""
    at = int(now)
    return Revocation(node_id, at, authority.key.sign(_signed(node_id, at), CONTEXT), authority.der)


class Revocations:
    """The set of revoked nodes. It only grows; merging in any order gives the same set."""

    def __init__(self, root: x509.Certificate) -> None:
        self._root = root
        self._entries: dict[NodeId, Revocation] = {}
        self._digest: bytes | None = None

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, node_id: NodeId) -> Revocation | None:
        """The revocation of a node, or None while it has not been revoked."""
        return self._entries.get(node_id)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(self._entries.values())

    def add(self, revocation: Revocation, now: float) -> bool:
        """Verify a revocation and keep it; say whether the node was not yet revoked. Raises TrustError.

        Of two for one node the earlier is kept, so that all nodes end with the same.
        """
        node_id = NodeId(revocation.node_id)
        held = self._entries.get(node_id)
        if held is not None and _order(held) <= _order(revocation):
            return False
        if len(node_id) != NODE_ID_BYTES or not 0 <= revocation.at < 2**63:
            raise TrustError("the revocation's fields are out of range")
        if len(self._entries) >= MAX_REVOCATIONS:
            raise TrustError("there are too many revocations", fix="make the mesh anew")
        key = verify_authority(self._root, revocation.authority_cert, now)
        try:
            key.verify(revocation.signature, _signed(node_id, revocation.at), CONTEXT)
        except (InvalidSignature, ValueError) as error:
            raise TrustError("the revocation's signature is wrong") from error
        self._entries[node_id] = revocation
        self._digest = None
        return held is None

    def take(self, encoded: bytes, now: float) -> bool:
        """Add those of another's set (`encode`) that are new here, and say whether there were any. Raises
        TrustError; then nothing has changed. What is known already costs no signature check."""
        try:
            entries = msgspec.msgpack.decode(encoded, type=_List)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TrustError("the revocation list cannot be read") from error
        checked = Revocations(self._root)
        for entry in entries:
            held = self._entries.get(NodeId(entry.node_id))
            if held is None or _order(entry) < _order(held):
                checked.add(entry, now)
        if len(self) + len(checked) > MAX_REVOCATIONS:
            raise TrustError("there are too many revocations", fix="make the mesh anew")
        news = any(node_id not in self._entries for node_id in checked._entries)
        self._entries |= checked._entries
        self._digest = None
        return news

    def digest(self) -> bytes:
        """SHA3-256 over the sorted ids, 32 bytes: equal sets have equal digests, whoever signed them."""
        if self._digest is None:
            self._digest = hashlib.sha3_256(b"".join(sorted(self._entries))).digest()
        return self._digest

    def encode(self) -> bytes:
        """Return the set for the state directory (msgpack)."""
        return msgspec.msgpack.encode([self._entries[node_id] for node_id in sorted(self._entries)])

    @classmethod
    def decode(cls, data: bytes, root: x509.Certificate, now: float) -> Self:
        """Read what `encode` wrote, verifying each entry. Raises TrustError."""
        try:
            entries = msgspec.msgpack.decode(data, type=_List)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TrustError("the revocation list cannot be read") from error
        revocations = cls(root)
        for entry in entries:
            revocations.add(entry, now)
        return revocations


def decode_revocation_untrusted(data: bytes) -> Revocation:
    """Read one revocation in msgpack; nothing is verified yet. Raises TrustError only."""
    try:
        if len(data) <= MAX_REVOCATION_BYTES:
            return msgspec.msgpack.decode(data, type=Revocation)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    raise TrustError("the revocation cannot be read")


def _order(revocation: Revocation) -> tuple[int, bytes]:
    return revocation.at, revocation.signature


def _signed(node_id: bytes, at: int) -> bytes:
    return node_id + at.to_bytes(8, "big")
