# SPDX-License-Identifier: GPL-3.0-or-later
"""How two nodes find out which records they do not share, in two questions and without sending the rest.

    who asks                  who answers
    256 digests, 2 KiB    ->  which buckets differ, and where its records in them stand: 40 bytes each
    the hashes it wants   ->  those records

Then the asker has what the other had, and `surplus` says what the other lacks. Pure: rosters in, bytes out.

A record that contradicts a member's present one travels beside it: so everybody comes to hold the proof.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from phantommesh.records.record import HASH_BYTES, MAX_MEMBERS, SignedRecord, record_hash
from phantommesh.records.roster import Entry, Roster
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId

BUCKETS: Final = 256  # by the first byte of the node id
DIGEST_BYTES: Final = 8
MAX_WANTED: Final = 256  # records in one question or answer, about 4 MB

_CONTRADICTED: Final = b"contradicted"
_BITMAP_BYTES: Final = BUCKETS // 8
_PLACE: Final = struct.Struct(f"!{NODE_ID_BYTES}sQ{HASH_BYTES}s")
MAX_DIFFERENCE: Final = _BITMAP_BYTES + MAX_MEMBERS * _PLACE.size


class AntiEntropyError(Exception):
    """The other node sent something that is no question or answer of this kind."""


class Place(NamedTuple):
    """Which record of a node somebody holds."""

    node_id: NodeId
    seq: int
    hash: bytes


class Difference(NamedTuple):
    """The buckets in which two rosters differ, and what the one that answered holds in them."""

    buckets: frozenset[int]
    places: tuple[Place, ...]


def buckets(roster: Roster, now: float) -> bytes:
    """Return a digest of each bucket, 8 bytes: of the records whose certificates hold at `now`.

    Others are left out because nobody would take them from us.
    """
    return _digests(roster, _valid(roster, now))


def differing(roster: Roster, theirs: bytes, now: float) -> bytes:
    """Answer somebody's `buckets`: which of ours differ, and the places of our records in those.

    Raises AntiEntropyError for what is not an answer of `buckets`.
    """
    if len(theirs) != BUCKETS * DIGEST_BYTES:
        raise AntiEntropyError("the digests have a wrong length")
    entries = _valid(roster, now)
    ours = _digests(roster, entries)
    apart = [i for i in range(BUCKETS) if _slot(ours, i) != _slot(theirs, i)]
    bitmap = sum(1 << i for i in apart).to_bytes(_BITMAP_BYTES)
    return bitmap + b"".join(
        _PLACE.pack(entry.member.node_id, entry.record.seq, digest)
        for entry in entries
        if entry.member.node_id[0] in apart
        for digest in _held(roster, entry)
    )


def parse_difference_untrusted(data: bytes) -> Difference:
    """Read what `differing` gave. Raises AntiEntropyError only."""
    places = len(data) - _BITMAP_BYTES
    if places < 0 or places % _PLACE.size or len(data) > MAX_DIFFERENCE:
        raise AntiEntropyError("the difference has a wrong length")
    bitmap = int.from_bytes(data[:_BITMAP_BYTES])
    return Difference(
        frozenset(i for i in range(BUCKETS) if bitmap >> i & 1),
        tuple(Place(NodeId(n), seq, hash_) for n, seq, hash_ in _PLACE.iter_unpack(data[_BITMAP_BYTES:])),
    )


def wanted(roster: Roster, difference: Difference) -> list[bytes]:
    """The hashes of the records to fetch: newer than ours, or other ones of the same number.

    One of the latter may be proof that the node said two things at once. Nodes known as revoked are left out,
    and those of which a record waits already.
    """
    hashes = []
    for place in difference.places:
        if place.node_id in roster.waiting:
            continue
        held = roster.get(place.node_id)
        if held is None or place.seq > held.record.seq or (
            place.seq == held.record.seq and place.hash not in _held(roster, held)
        ):  # fmt: skip
            hashes.append(place.hash)
    return hashes


def surplus(roster: Roster, difference: Difference, now: float) -> list[SignedRecord]:
    """Return our records that the node which gave this difference lacks."""
    theirs: dict[NodeId, list[Place]] = {}
    for place in difference.places:
        theirs.setdefault(place.node_id, []).append(place)
    return [
        signed
        for entry in _valid(roster, now)
        if entry.member.node_id[0] in difference.buckets
        for digest, signed in _held(roster, entry).items()
        if all(p.hash != digest and p.seq <= entry.record.seq for p in theirs.get(entry.member.node_id, ()))
    ]


def records(roster: Roster, hashes: Iterable[bytes], now: float) -> list[bytes]:
    """The encoded records of these hashes, as many as one answer takes; unknown ones are left out."""
    asked = frozenset(hashes)
    held = (item for entry in _valid(roster, now) for item in _held(roster, entry).items())
    found = [signed for digest, signed in held if digest in asked]
    return [signed.encode() for signed in found[:MAX_WANTED]]


def _held(roster: Roster, entry: Entry) -> dict[bytes, SignedRecord]:
    """A member's record by its hash, and one that contradicts it if there is one."""
    other = roster.contradiction(entry)
    return (
        {entry.hash: entry.signed} if other is None else {entry.hash: entry.signed, record_hash(other): other}
    )


def _valid(roster: Roster, now: float) -> list[Entry]:
    return [entry for entry in roster if entry.valid(now)]


def _digests(roster: Roster, entries: Iterable[Entry]) -> bytes:
    hashes: list[list[bytes]] = [[] for _ in range(BUCKETS)]
    for entry in entries:  # by node id, as a roster iterates
        hashes[entry.member.node_id[0]].append(entry.hash)
        if roster.contradiction(entry) is not None:  # whichever: one is proof enough
            hashes[entry.member.node_id[0]].append(_CONTRADICTED)
    return b"".join(hashlib.sha3_256(b"".join(held)).digest()[:DIGEST_BYTES] for held in hashes)


def _slot(digests: bytes, bucket: int) -> bytes:
    return digests[bucket * DIGEST_BYTES : (bucket + 1) * DIGEST_BYTES]
