# SPDX-License-Identifier: GPL-3.0-or-later
"""Records: what each node says of itself, signed: where it is, its WireGuard keys. And the roster of all of
them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Annotated, Final, Self, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.trust.certificates import (
    EARLY,
    LONGEST_LIFE,
    MAX_CERTIFICATE_BYTES,
    Member,
    Mesh,
    TrustError,
    authority_node,
    validity,
    verify_chain,
)
from phantommesh.trust.identity import NODE_ID_BYTES, Identity, NodeId, format_node_id
from phantommesh.trust.issuing import choose_ip4
from phantommesh.trust.revocation import Revocations
from phantommesh.wireguard.possession import proves

ADDRESS_SHARED = FaultKind("address-shared", "medium")
KEYS_SHARED = FaultKind("keys-shared", "high")
EQUIVOCATION = FaultKind("record-equivocation", "high")

CONTEXT: Final = b"phantommesh record v1"
KEY_BYTES: Final = 32  # X25519
NO_KEY: Final = bytes(KEY_BYTES)
MAX_CONTROL_ENDPOINTS: Final = 8
MAX_VERSION_CHARS: Final = 32
MAX_BODY_BYTES: Final = 4_096
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
MAX_RECORD_BYTES: Final = MAX_BODY_BYTES + SIGNATURE_BYTES + 2 * MAX_CERTIFICATE_BYTES + 64
MAX_MEMBERS: Final = 16_384
HASH_BYTES: Final = 16
KEEP_EXPIRED: Final = 72 * 3_600.0  # s; nobody is forgotten sooner (docs/gossip.md, "Life of a member")
_MAX_SEQ: Final = 2**48 - 1  # as wide as in a gossip event


class RecordError(PhantomMeshError):
    """A record or a roster that is malformed, contradicts itself or another member's."""


class PossessionError(RecordError):
    """A record that names a WireGuard key without proof that its node holds the private half."""


class NodeRecord(msgspec.Struct, frozen=True, array_like=True):
    """One node's own word. A later one has a greater `seq`; fields that a newer version adds are ignored.

    `control` holds up to 8 ``host:port``, one per uplink, for UDP and TCP alike. `wg_keys` (X25519 public
    keys, 32 bytes), `wg_ports` (UDP) and `wg_proofs` (`possession.prove`, 64 bytes) have one entry per
    dimension, seven in all. Earlier versions sent no proofs.
    """

    node_id: bytes
    seq: int
    control: tuple[str, ...]
    wg_keys: tuple[bytes, ...]
    wg_ports: tuple[int, ...]
    version: str
    wg_proofs: tuple[bytes, ...] = ()


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


class _KeptRecord(SignedRecord, frozen=True, array_like=True):
    """A record on this node's own disk. ``proved``: this node has verified its proofs of possession.

    An earlier version, which verified none, neither writes the mark nor keeps it.
    """

    proved: bool = False


Kind = TypeVar("Kind", bound=SignedRecord)


def sign_record(
    identity: Identity, record: NodeRecord, node_cert: bytes, authority_cert: bytes
) -> SignedRecord:
    """Sign a record of our own. Raises RecordError if nobody would accept it."""
    _check(record)
    _check_possession(record, "this node")
    if record.node_id != identity.node_id:
        raise RecordError("a node signs only its own record")
    body = msgspec.msgpack.encode(record)
    return SignedRecord(body, identity.sign(body, CONTEXT), node_cert, authority_cert)


def open_record(
    root: x509.Certificate, signed: SignedRecord, now: float, *, unproved: bool = False, proved: bool = False
) -> tuple[Member, NodeRecord]:
    """Verify the chain, the signature, that the record is the certified node's, and that the node holds the
    WireGuard keys in it.

    ``unproved`` lets a record of an earlier version pass, which has no proofs at all. ``proved`` says that
    this node has verified the proofs before. Raises TrustError (the certificates) or RecordError.
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
    if not proved and (record.wg_proofs or not unproved):
        _check_possession(record, f"member {member.name}")
    return member, record


@dataclass(frozen=True, slots=True)
class Entry:
    """A verified member of the roster: the certificate's word, its own word, and both as signed.

    ``hash`` is `record_hash` of the latter; ``issuer`` the node whose authority certified it, where it says.
    """

    member: Member
    record: NodeRecord
    signed: SignedRecord
    hash: bytes
    issuer: NodeId | None

    def valid(self, now: float) -> bool:
        """Say whether the certificate holds at `now`, by a clock that may be `EARLY` seconds behind, and the
        node proved to hold its WireGuard keys."""
        return bool(self.record.wg_proofs) and self.member.not_before - EARLY <= now <= self.member.not_after

    @property
    def called(self) -> tuple[str, str]:
        """The member's name and its node id as text: what operators call it by."""
        return self.member.name, format_node_id(self.member.node_id)

    @property
    def rank(self) -> tuple[int, bytes, float, bytes]:
        """If there are two records of one node, the greater rank wins, on every node alike: the later word.
        If two different words have one number, neither is better, so the greater hash wins; then the later
        certificate."""
        said = hashlib.sha3_256(self.signed.body).digest()
        return self.record.seq, said, self.member.not_after, self.hash


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Proof that a node signed two different records with one sequence number: the one kept, the other."""

    kept: SignedRecord
    other: SignedRecord


@dataclass(frozen=True, slots=True)
class Dispute:
    """Two members claim one thing (``address``, ``name`` or ``WireGuard key``); the loser has to change.

    ``key`` is the WireGuard key, else empty. Both proved that they hold its private half.
    """

    loser: NodeId
    winner: NodeId
    over: str
    key: bytes = b""


class Roster:
    """The newest record of each member. It never goes back to an older one and never holds a revoked node.

    A member whose certificate has run out stays known, for where to reach it; `members` leaves it out. Two
    authorities that do not hear of each other may certify one address or name twice: both records are kept,
    and `disputes` says who has to give way.
    """

    def __init__(self, root: x509.Certificate, revocations: Revocations) -> None:
        self._root = root
        self._revocations = revocations
        self._entries: dict[NodeId, Entry] = {}
        self._claims: dict[IPv4Address | str | bytes, list[NodeId]] = {}  # in the order they were made
        self._contested: set[IPv4Address | str | bytes] = set()
        self.equivocations: dict[NodeId, Equivocation] = {}
        # Verified, newer than what is in force, and put off by the owner: their nodes bring too many.
        self.waiting: dict[NodeId, Entry] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Entry]:
        """Every entry that is not revoked, by node id, expired ones too."""
        ordered = sorted(self._entries.items())
        return (entry for _, entry in ordered if not self._revocations or self._stands(entry))

    def get(self, node_id: NodeId) -> Entry | None:
        """Return the entry, or None for a node that is unknown or revoked. It may have expired."""
        entry = self._entries.get(node_id)
        return entry if entry is not None and self._stands(entry) else None

    def contradiction(self, entry: Entry) -> SignedRecord | None:
        """Return the other record that a member signed under the number of its present one, if it did."""
        found = self.equivocations.get(entry.member.node_id)
        if found is None or entry.signed.body not in (found.kept.body, found.other.body):
            return None
        return found.other if entry.signed.body == found.kept.body else found.kept

    def members(self, now: float) -> list[Member]:
        """The members in good standing at `now`, by node id."""
        return [entry.member for entry in self if entry.valid(now)]

    def add(self, signed: SignedRecord, now: float) -> bool:
        """Verify a record and keep it if it outranks what is held; say whether the roster changed.

        A record that contradicts the one held is noted in `equivocations`, whichever is kept. Raises
        TrustError (certificates, a revoked node) or RecordError (the record; a full roster). Then nothing
        has changed.
        """
        return self.keep(self.verify(signed, now), now)

    def verify(self, signed: SignedRecord, now: float) -> Entry:
        """The first half of `add`: verify a record, and change nothing. Raises TrustError or RecordError."""
        entry = self._open(signed, now)
        if not self._acceptable(entry):
            member = entry.member
            if member.node_id in self._revocations:
                raise TrustError(f"node {member.name} ({format_node_id(member.node_id)}) is revoked")
            raise TrustError(f"the authority that certified {member.name} is revoked")
        return entry

    def keep(self, entry: Entry, now: float) -> bool:
        """The second half: keep what `verify` gave, if it outranks what is held. Raises RecordError where the
        roster is full."""
        changed = self._keep(entry, now)
        ahead = self.waiting.get(entry.member.node_id)
        if ahead is not None and ahead.rank <= entry.rank:
            del self.waiting[entry.member.node_id]
        return changed

    def seen(self, node_id: NodeId) -> Entry | None:
        """The newest verified record of a node: one that waits, or else what `get` gives."""
        ahead = self.waiting.get(node_id)
        return ahead if ahead is not None and self._stands(ahead) else self.get(node_id)

    def holds(self, signed: SignedRecord, now: float) -> bool:
        """Whether this very record, valid at `now`, is in force or waits: then there is nothing to verify."""
        try:
            node_id = NodeId(msgspec.msgpack.decode(signed.body, type=NodeRecord).node_id)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return False
        known = (self.get(node_id), self.waiting.get(node_id))
        return any(
            entry is not None and entry.signed == signed and self._stands(entry) and entry.valid(now)
            for entry in known
        )

    def disputes(self, now: float) -> list[Dispute]:
        """Return what members in good standing both claim.

        The lowest node id keeps an address and a name, as everybody can tell. A WireGuard key stays with the
        member that claimed it first here.
        """
        found = []
        for claim in self._contested:
            claimants = [c for c in self._claims[claim] if (e := self.get(c)) is not None and e.valid(now)]
            winner = (claimants[0] if isinstance(claim, bytes) else min(claimants)) if claimants else None
            over = "name" if isinstance(claim, str) else "address"
            if isinstance(claim, bytes):
                over = "WireGuard key"
            key = claim if isinstance(claim, bytes) else b""
            found += [Dispute(loser, winner, over, key) for loser in claimants if winner not in (None, loser)]
        return sorted(found, key=lambda dispute: (dispute.loser, dispute.over, dispute.key))

    def everyone(self) -> list[Entry]:
        """Every entry, by node id: also those of revoked nodes, which may be taken back."""
        return [entry for _, entry in sorted(self._entries.items())]

    def digest(self) -> bytes:
        """SHA3-256, 32 bytes: equal for rosters that hold the same records."""
        return hashlib.sha3_256(b"".join(entry.hash for entry in self)).digest()

    def encode(self) -> bytes:
        """Return every entry in msgpack: for a joiner's first roster.

        In the order they came, but who lost a WireGuard key to another stands behind that one.
        """
        return msgspec.msgpack.encode([entry.signed for entry in self.in_order()])

    def in_order(self, *, revoked: bool = False) -> list[Entry]:
        """The entries as `encode` has them; with revoked nodes too, whom the root may take back."""
        later = {
            claimant for claim in self._contested if isinstance(claim, bytes)
            for claimant in self._claims[claim][1:]
        }  # fmt: skip
        entries = [entry for entry in self._entries.values() if revoked or self._stands(entry)]
        entries.sort(key=lambda entry: entry.member.node_id in later)
        return entries

    @classmethod
    def decode_kept(cls, data: bytes, root: x509.Certificate, revocations: Revocations, now: float) -> Self:
        """Read what an earlier version or `encode` wrote into this node's own state directory, as
        `decode_untrusted` does. Whoever can write there has this node's keys, so a mark is believed."""
        kept = _records(data, _KeptRecord)
        records = ((SignedRecord(k.body, k.signature, k.node_cert, k.authority_cert), k.proved) for k in kept)
        return cls._read(records, root, revocations, now)

    @classmethod
    def decode_untrusted(
        cls, data: bytes, root: x509.Certificate, revocations: Revocations, now: float
    ) -> Self:
        """Read and verify what `encode` wrote. Raises RecordError or TrustError.

        Its records were held when it was written, so they are judged as what is held (`_stands`). A
        certificate that is not valid at `now` is judged by a time it is good for: its node was a member, and
        its endpoints are how a node that slept a month finds the mesh again. The same goes for a record of an
        earlier version, which proves no WireGuard key: it counts as one that has run out.
        """
        records = ((signed, False) for signed in decode_records_untrusted(data))
        return cls._read(records, root, revocations, now)

    @classmethod
    def _read(
        cls,
        records: Iterable[tuple[SignedRecord, bool]],
        root: x509.Certificate,
        revocations: Revocations,
        now: float,
    ) -> Self:
        roster = cls(root, revocations)
        for signed, proved in records:
            if not roster.reopen(signed, now, proved=proved):
                raise RecordError("the roster holds two records of one node")
        return roster

    def reopen(self, signed: SignedRecord, now: float, *, proved: bool) -> bool:
        """Keep a record that was held when it was written, as `decode_untrusted` judges it; say whether it
        outranks what is held. Raises TrustError or RecordError."""
        not_before, not_after = validity(signed.node_cert)
        at = max(not_before, min(now, not_after))
        return self._keep(self._open(signed, at, unproved=True, proved=proved), now)

    def claimed_since(self, since: Mapping[NodeId, Mapping[bytes, int]]) -> None:
        """Say in which order members came to claim their WireGuard keys: for each member and key a number,
        smaller for who claimed it earlier."""
        for claim in self._contested:
            if isinstance(claim, bytes):
                self._claims[claim].sort(key=lambda node_id: since.get(node_id, {}).get(claim, 0))

    def _stands(self, entry: Entry) -> bool:
        """Whether a member that is held is not revoked.

        Its certificate holds to its end, also where the authority behind it was revoked since: in that time
        the node gets another one elsewhere. Else one revocation, dated back, could take all at once that an
        authority ever certified. Certificates are short (`LONGEST_LIFE`), so this ends by itself.
        """
        return entry.member.node_id not in self._revocations

    def _acceptable(self, entry: Entry) -> bool:
        """Whether a record may be taken in: its node is not revoked, and the authority behind it is not
        either, or had issued the certificate by then (so it says), or this node holds it already and hears of
        it again."""
        if not self._stands(entry):
            return False
        revoked = None if entry.issuer is None else self._revocations.get(entry.issuer)
        if revoked is None:
            return True
        held = self._entries.get(entry.member.node_id)
        if held is not None and held.signed.node_cert == entry.signed.node_cert:
            return True
        return entry.member.not_before <= revoked.at and entry.member.not_after <= revoked.at + LONGEST_LIFE

    def _open(
        self, signed: SignedRecord, verify_at: float, *, unproved: bool = False, proved: bool = False
    ) -> Entry:
        member, record = open_record(self._root, signed, verify_at, unproved=unproved, proved=proved)
        return Entry(member, record, signed, record_hash(signed), authority_node(signed.authority_cert))

    def _keep(self, entry: Entry, now: float) -> bool:
        node_id, record, signed = entry.member.node_id, entry.record, entry.signed
        held = self._entries.get(node_id)
        if held is not None:
            if held.record.seq == record.seq and held.signed.body != signed.body:
                kept, other = (signed, held.signed) if entry.rank > held.rank else (held.signed, signed)
                self.equivocations[node_id] = Equivocation(kept, other)
            if entry.rank <= held.rank:
                return False
            self._unclaim(held, entry)
        elif len(self._entries) >= MAX_MEMBERS:
            self._purge(now)
        self._entries[node_id] = entry
        for claim in _claims(entry):
            claimants = self._claims.setdefault(claim, [])
            if node_id not in claimants:
                claimants.append(node_id)
                if len(claimants) > 1:
                    self._contested.add(claim)
        return True

    def _unclaim(self, old: Entry, new: Entry | None) -> None:
        for claim in set(_claims(old)) - set(() if new is None else _claims(new)):
            self._claims[claim].remove(old.member.node_id)
            if len(self._claims[claim]) < 2:
                self._contested.discard(claim)
            if not self._claims[claim]:
                del self._claims[claim]

    def _purge(self, now: float) -> None:
        """Make room. Raises RecordError unless there is an entry that is long of no use."""
        oldest = min(self._entries.values(), key=lambda entry: entry.member.not_after)
        if oldest.member.not_after + KEEP_EXPIRED > now:
            raise RecordError(f"the roster is full at {MAX_MEMBERS} members")
        self._unclaim(oldest, None)
        del self._entries[oldest.member.node_id]


def settle(roster: Roster, mesh: Mesh, member: Member, now: float) -> tuple[str, IPv4Address]:
    """Return the name and the address that a member's next certificate should say: those it has, unless it
    lost one to another member. Raises TrustError where no address is free."""
    name, ip4 = member.name, member.ip4
    lost = {dispute.over for dispute in roster.disputes(now) if dispute.loser == member.node_id}
    others = [entry.member for entry in roster if entry.member.node_id != member.node_id]
    if "address" in lost:
        ip4 = choose_ip4(mesh, member.node_id, (other.ip4 for other in others))
    if "name" in lost:
        taken = {other.name for other in others}
        marks = (format_node_id(member.node_id)[:length] for length in range(4, 27))
        name = next(
            free for mark in marks if (free := f"{member.name[: 62 - len(mark)]}-{mark}") not in taken
        )
    return name, ip4


def record_hash(signed: SignedRecord) -> bytes:
    """Return the 16 bytes that name a record: `encoded_hash` of its encoding."""
    return encoded_hash(signed.encode())


def encoded_hash(encoded: bytes) -> bytes:
    """Return the 16 bytes that name an encoded record: its SHA3-256, shortened."""
    return hashlib.sha3_256(encoded).digest()[:HASH_BYTES]


def _claims(entry: Entry) -> Iterator[IPv4Address | str | bytes]:
    """Yield what no other member may have: its address, its name, its WireGuard keys."""
    yield entry.member.ip4
    yield entry.member.name
    yield from entry.record.wg_keys


def decode_records_untrusted(data: bytes) -> list[SignedRecord]:
    """Read what `Roster.encode` wrote; nothing is verified yet. Raises RecordError only."""
    return _records(data, SignedRecord)


def _records(data: bytes, kind: type[Kind]) -> list[Kind]:
    try:
        # Too long a list is refused at its head: one of 16 MiB may have a million members.
        bounded = Annotated[list[kind], msgspec.Meta(max_length=MAX_MEMBERS)]  # type: ignore[valid-type]
        records: list[Kind] = msgspec.msgpack.decode(data, type=bounded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(f"the roster cannot be read, or has more than {MAX_MEMBERS} members") from error
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
    if NO_KEY in keys:
        raise RecordError("the record has an all-zero WireGuard key")
    if len(set(ports)) != DIMENSIONS or any(not 1 <= port <= 65535 for port in ports):
        raise RecordError("the record needs seven different WireGuard ports")
    if len(record.version) > MAX_VERSION_CHARS or not record.version.isprintable():
        raise RecordError("the record's version is not a short text")


def _check_possession(record: NodeRecord, whose: str) -> None:
    """Raise PossessionError unless the record proves that its node holds each of its WireGuard keys."""
    keys, proofs = record.wg_keys, record.wg_proofs
    if not proofs:
        raise PossessionError(
            f"the record of {whose} proves no WireGuard key: it was made by an earlier version",
            fix="upgrade that node",
        )
    if len(proofs) != DIMENSIONS:
        raise PossessionError(f"the record of {whose} needs seven proofs of its WireGuard keys")
    for i, (proof, key) in enumerate(zip(proofs, keys, strict=True)):
        if not proves(proof, key, record.node_id, i):
            raise PossessionError(
                f"the record of {whose} does not prove that it holds its WireGuard key of dimension {i}",
                fix="revoke that member if it keeps announcing a key that is not its own",
            )
