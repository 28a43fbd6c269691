# SPDX-License-Identifier: GPL-3.0-or-later
"""The newest record of each member: disputes about what two claim, and what nodes said twice."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Self

import msgspec
from cryptography import x509

from phantommesh.faults import FaultKind
from phantommesh.records.record import (
    MAX_MEMBERS,
    NodeRecord,
    RecordError,
    SignedRecord,
    _KeptRecord,
    _records,
    decode_records_untrusted,
    open_record,
    record_hash,
)
from phantommesh.trust.certificates import (
    EARLY,
    LONGEST_LIFE,
    Member,
    Mesh,
    TrustError,
    authority_node,
    validity,
)
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.trust.issuing import choose_ip4
from phantommesh.trust.revocations import Revocations

EQUIVOCATION = FaultKind("record-equivocation", "high")
KEEP_EXPIRED: Final = 72 * 3_600.0  # s; nobody is forgotten sooner (docs/gossip.md, "Life of a member")


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
        smaller for a member that claimed it earlier."""
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
    lost one to another member. Raises TrustError where no address or no name is free."""
    name, ip4 = member.name, member.ip4
    lost = {dispute.over for dispute in roster.disputes(now) if dispute.loser == member.node_id}
    others = [entry.member for entry in roster if entry.member.node_id != member.node_id]
    if member.not_after < now:  # it was away: whoever took something meanwhile keeps it
        present = [other for other in others if other.not_after >= now]
        lost |= {"name"} if any(other.name == member.name for other in present) else set()
        lost |= {"address"} if any(other.ip4 == member.ip4 for other in present) else set()
    if "address" in lost:
        ip4 = choose_ip4(mesh, member.node_id, (other.ip4 for other in others))
    if "name" in lost:
        taken = {other.name for other in others}
        name = next((name for name in _other_names(member.node_id, member.name) if name not in taken), "")
        if not name:
            raise TrustError(f"every other name for {member.name} is taken", fix="join with another --name")
    return name, ip4


def name_of(entry: Entry | None, node: bytes) -> str:
    """A member as logs and views call it: by its name, or by its node id where it has no entry."""
    return format_node_id(NodeId(node)) if entry is None else entry.member.name


def is_settled_name(member: Member, wanted: str) -> bool:
    """Say whether the member has its name because it lost ``wanted`` to another member: see `settle`."""
    return member.name in _other_names(member.node_id, wanted)


def _other_names(node_id: NodeId, lost: str) -> Iterator[str]:
    """Yield the names that a member may get in place of one that it lost, the shortest first."""
    marks = (format_node_id(node_id)[:length] for length in range(4, 27))
    return (f"{lost[: 62 - len(mark)]}-{mark}" for mark in marks)


def _claims(entry: Entry) -> Iterator[IPv4Address | str | bytes]:
    """Yield what no other member may have: its address, its name, its WireGuard keys."""
    yield entry.member.ip4
    yield entry.member.name
    yield from entry.record.wg_keys
