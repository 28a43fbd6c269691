# SPDX-License-Identifier: GPL-3.0-or-later
"""What each node says of itself, signed: where it is, its WireGuard keys. And the roster of all of them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NODE_ID_BYTES, Identity, NodeId, format_node_id
from phantommesh.revocation import Revocations
from phantommesh.trust import MAX_CERTIFICATE_BYTES, Member, TrustError, validity, verify_chain

CONTEXT: Final = b"phantommesh record v1"
DIMENSIONS: Final = 7
KEY_BYTES: Final = 32  # X25519
MAX_CONTROL_ENDPOINTS: Final = 8
MAX_VERSION_CHARS: Final = 32
MAX_BODY_BYTES: Final = 4_096
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
MAX_RECORD_BYTES: Final = MAX_BODY_BYTES + SIGNATURE_BYTES + 2 * MAX_CERTIFICATE_BYTES + 64
MAX_MEMBERS: Final = 4_096
_MAX_SEQ: Final = 2**63 - 1


class RecordError(PhantomMeshError):
    """A record or a roster that is malformed, contradicts itself or another member's."""


class NodeRecord(msgspec.Struct, frozen=True, array_like=True):
    """One node's own word. A later one has a greater `seq`; fields that a newer version adds are ignored.

    `control` holds up to 8 ``host:port``, one per uplink, for UDP and TCP alike. `wg_keys` (X25519 public
    keys, 32 bytes) and `wg_ports` (UDP) have one entry per dimension, seven in all.
    """

    node_id: bytes
    seq: int
    control: tuple[str, ...]
    wg_keys: tuple[bytes, ...]
    wg_ports: tuple[int, ...]
    version: str


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record's msgpack, its signature (ML-DSA-65) and the certificates that say whose it is."""

    body: bytes
    signature: bytes
    node_cert: bytes
    authority_cert: bytes

    def encode(self) -> bytes:
        """Return the msgpack form, about 15 kB."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Read what `encode` wrote; nothing is verified yet. Raises RecordError only."""
        if len(data) > MAX_RECORD_BYTES:
            raise RecordError("the record is too long")
        try:
            signed = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RecordError("the record cannot be read") from error
        if len(signed.body) > MAX_BODY_BYTES or len(signed.signature) != SIGNATURE_BYTES:
            raise RecordError("the record's parts have wrong lengths")
        return signed


def sign_record(
    identity: Identity, record: NodeRecord, node_cert: bytes, authority_cert: bytes
) -> SignedRecord:
    """Sign a record of our own. Raises RecordError if nobody would accept it."""
    _check(record)
    if record.node_id != identity.node_id:
        raise RecordError("a node signs only its own record")
    body = msgspec.msgpack.encode(record)
    return SignedRecord(body, identity.sign(body, CONTEXT), node_cert, authority_cert)


def open_record(root: x509.Certificate, signed: SignedRecord, now: float) -> tuple[Member, NodeRecord]:
    """Verify the chain, the signature and that the record is the certified node's.

    Raises TrustError (the certificates) or RecordError (the record).
    """
    member = verify_chain(root, signed.authority_cert, signed.node_cert, now)
    try:
        member.public_key.verify(signed.signature, signed.body, CONTEXT)
    except (InvalidSignature, ValueError) as error:
        raise RecordError("the record's signature is wrong") from error
    try:
        record = msgspec.msgpack.decode(signed.body, type=NodeRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError("the record's body cannot be read") from error
    if record.node_id != member.node_id:
        raise RecordError("the record is another node's than its certificate")
    _check(record)
    return member, record


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified member of the roster: the certificate's word, its own word, and both as signed."""

    member: Member
    record: NodeRecord
    signed: SignedRecord


class Roster:
    """The newest record of each member. It never goes back to an older one and never holds a revoked node.

    A member whose certificate has run out stays known, for where to reach it; `members` leaves it out.
    """

    def __init__(self, root: x509.Certificate, revocations: Revocations) -> None:
        self._root = root
        self._revocations = revocations
        self._entries: dict[NodeId, Entry] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Entry]:
        """Every entry that is not revoked, by node id, expired ones too."""
        return (self._entries[id_] for id_ in sorted(self._entries) if id_ not in self._revocations)

    def get(self, node_id: NodeId) -> Entry | None:
        """Return the entry, or None for a node that is unknown or revoked. It may have expired."""
        return None if node_id in self._revocations else self._entries.get(node_id)

    def members(self, now: float) -> list[Member]:
        """The members in good standing at `now`, by node id."""
        return [entry.member for entry in self if entry.member.not_before <= now <= entry.member.not_after]

    def add(self, signed: SignedRecord, now: float) -> bool:
        """Verify a record and keep it if it is newer than what is held; say whether the roster changed.

        Raises TrustError (certificates, a revoked node) or RecordError (the record; an IPv4 address or a
        WireGuard key that another member holds; a full roster). Then nothing has changed.
        """
        return self._add(signed, now, now)

    def digest(self) -> bytes:
        """SHA3-256, 32 bytes: equal for rosters that hold the same records."""
        held = hashlib.sha3_256()
        for entry in self:
            held.update(hashlib.sha3_256(entry.signed.encode()).digest())
        return held.digest()

    def encode(self) -> bytes:
        """Return every entry in msgpack: for the state directory, and for a joiner's first roster."""
        return msgspec.msgpack.encode([entry.signed for entry in self])

    @classmethod
    def decode_untrusted(
        cls, data: bytes, root: x509.Certificate, revocations: Revocations, now: float
    ) -> Self:
        """Read and verify what `encode` wrote. Raises RecordError or TrustError.

        A certificate that is not valid at `now` is judged by a time it is good for: its node was a member,
        and its endpoints are how a node that slept a month finds the mesh again.
        """
        records = decode_records_untrusted(data)
        roster = cls(root, revocations)
        for signed in records:
            not_before, not_after = validity(signed.node_cert)
            if not roster._add(signed, max(not_before, min(now, not_after)), now):
                raise RecordError("the roster holds two records of one node")
        return roster

    def _add(self, signed: SignedRecord, verify_at: float, now: float) -> bool:
        member, record = open_record(self._root, signed, verify_at)
        if member.node_id in self._revocations:
            raise TrustError(f"node {member.name} ({format_node_id(member.node_id)}) is revoked")
        held = self._entries.get(member.node_id)
        if held is not None and record.seq <= held.record.seq:
            return False
        expired: list[NodeId] = []
        for other in self:
            if other.member.node_id == member.node_id:
                continue
            same_ip4 = other.member.ip4 == member.ip4
            if not same_ip4 and set(record.wg_keys).isdisjoint(other.record.wg_keys):
                continue
            if other.member.not_after >= now:
                what = f"address {member.ip4}" if same_ip4 else "WireGuard key"
                raise RecordError(f"{member.name} claims the {what} of {other.member.name}")
            expired.append(other.member.node_id)
        if held is None and len(self._entries) - len(expired) >= MAX_MEMBERS:
            raise RecordError(f"the roster is full at {MAX_MEMBERS} members")
        for node_id in expired:
            del self._entries[node_id]
        self._entries[member.node_id] = Entry(member, record, signed)
        return True


def decode_records_untrusted(data: bytes) -> list[SignedRecord]:
    """Read what `Roster.encode` wrote; nothing is verified yet. Raises RecordError only."""
    try:
        records = msgspec.msgpack.decode(data, type=list[SignedRecord])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError("the roster cannot be read") from error
    if len(records) > MAX_MEMBERS:
        raise RecordError("the roster has too many members")
    return records


def _check(record: NodeRecord) -> None:
    """Raise RecordError for values that no node may publish."""
    if len(record.node_id) != NODE_ID_BYTES or not 0 <= record.seq <= _MAX_SEQ:
        raise RecordError("the record's node id or sequence number is out of range")
    if len(record.control) > MAX_CONTROL_ENDPOINTS:
        raise RecordError("the record has too many control endpoints")
    for endpoint in record.control:
        try:
            parse_endpoint(endpoint)
        except ValueError as error:
            raise RecordError(f"the record's endpoint {endpoint[:64]!r}: {error}") from None
    keys, ports = record.wg_keys, record.wg_ports
    if len(keys) != DIMENSIONS or any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) != DIMENSIONS:
        raise RecordError("the record needs seven different WireGuard keys")
    if bytes(KEY_BYTES) in keys:
        raise RecordError("the record has an all-zero WireGuard key")
    if len(set(ports)) != DIMENSIONS or any(not 1 <= port <= 65535 for port in ports):
        raise RecordError("the record needs seven different WireGuard ports")
    if len(record.version) > MAX_VERSION_CHARS or not record.version.isprintable():
        raise RecordError("the record's version is not a short text")
