# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster on disk: a file that grows by what changes, and is written anew when it has grown too much.

The file is `HEADER` and then frames (`diskframes.py`). The payload of each is a certificate, or a record
that names its two certificates by hash. A member's certificates change once in days and its record several
times a day, so most changes cost a third of a record.

Three things make every crash harmless. Frames are added at the end, and all that are added at once begin with
one that says how long they are. A disk may write their pages in any order, so a power cut may take any of
them; but the next addition only begins when they are on disk. So what cannot be read in the last addition, or
behind it, was cut off: nobody was told that it is on disk. The file is written anew before anything more is
added to it. The whole file is only ever replaced by a rename. A record is the whole of what a member says and
its last one counts, so those that stand before it do no harm.

A frame that cannot be read before that is damage, and costs what is in it. The mark shows where the next one
begins.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec
from cryptography import x509

from phantommesh.diskframes import OVERHEAD, Framing
from phantommesh.errors import PhantomMeshError
from phantommesh.records.record import NodeRecord, RecordError, SignedRecord, encoded_hash
from phantommesh.records.roster import Entry, Roster
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import MAX_FILE_BYTES, PlaceError, StateError
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations

HEADER: Final = b"phantommesh roster 1\n"
_MOST_PAYLOAD: Final = 16 * 1024  # bytes; a certificate has 8 KiB at most, a body and its signature less
_FRAMING: Final = Framing(b"\xc1PMr", _MOST_PAYLOAD)  # msgpack uses the byte 0xc1 for nothing

# Tuning.
# The file may grow to twice what it holds, or by so many bytes where that is more. Then it is written anew.
# So what is written is about twice what changed: three times where members come, or certificates change.
GROWTH: Final = 2
SLACK: Final = 1024 * 1024
MOST_MISSES: Final = 1_024  # marks without a frame behind them: each may cost a checksum over 16 KiB
MOST_NOTED: Final = 4_096  # records that wait for a disk that refuses; beyond, the whole roster is written


class _Certificate(msgspec.Struct, frozen=True, array_like=True, tag="c"):
    der: bytes


class _Line(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """A record. ``node_cert`` and ``authority_cert`` are `encoded_hash` of the certificates. ``proved``: this
    node has verified its proofs of possession, and the next start does not do it again."""

    body: bytes
    signature: bytes
    node_cert: bytes
    authority_cert: bytes
    proved: bool


class _Start(msgspec.Struct, frozen=True, array_like=True, tag="s"):
    """The frames of the next ``length`` bytes were written at once. ``whole``: they were put in place by a
    rename when all of them were on disk."""

    length: int
    whole: bool


_DECODER: Final = msgspec.msgpack.Decoder(_Certificate | _Line | _Start)


@dataclass(frozen=True, slots=True)
class Damage:
    """The part of the file that cannot be read: ``bytes`` of it, the first at offset ``at``, and ``records``
    that can be read and do not hold, or lack a certificate. ``reason`` is why the first of those does not."""

    at: int = 0
    bytes: int = 0
    records: int = 0
    reason: str = ""

    def __bool__(self) -> bool:
        return bool(self.bytes or self.records)

    def __str__(self) -> str:
        parts = [f"{self.bytes} bytes from byte {self.at} on cannot be read"] if self.bytes else []
        return "; ".join(parts + [f"{self.records} records do not hold ({self.reason})"] * bool(self.records))


@dataclass(slots=True)
class Content:
    """A file that was read. ``certificates`` are the hashes of those in it. ``end`` is the offset behind the
    last whole frame, ``torn`` the number of bytes after that, and of those before it that a power cut took.
    ``closed``: nothing can be added to it, since it does not end with the end of an addition. It is the list
    of an earlier version, or the last addition was cut off."""

    roster: Roster
    certificates: set[bytes] = field(default_factory=set)
    end: int = 0
    torn: int = 0
    closed: bool = False
    damage: Damage = Damage()


@dataclass(frozen=True, slots=True)
class Job:
    """The bytes to be written now: `RosterLog.take`. ``whole``: nothing can be added to the file that is
    there. ``anew``: it is to be written anew, also where something can."""

    noted: list[Entry]
    added: bytes
    certificates: set[bytes]
    everything: list[Entry]
    whole: bool
    anew: bool


def encode(entries: Iterable[Entry]) -> bytes:
    """Return a whole file of these entries, in their order."""
    return _encode(entries)[0]


def _encode(entries: Iterable[Entry]) -> tuple[bytes, set[bytes]]:
    """Return a whole file and the hashes of the certificates in it. The certificate of an authority, which
    several records name, is there twice: damage to one copy loses no record."""
    frames, known = bytearray(), set[bytes]()
    uses, certificates = Counter[bytes](), dict[bytes, bytes]()
    for entry in entries:
        names = _add(frames, entry, known)
        uses.update(names)
        certificates |= zip(names, (entry.signed.node_cert, entry.signed.authority_cert), strict=True)
    for name, count in uses.items():
        if count > 1:
            frames += _frame(_Certificate(certificates[name]))
    return HEADER + _frame(_Start(len(frames), whole=True)) + frames, known


def _add(frames: bytearray, entry: Entry, known: set[bytes]) -> tuple[bytes, bytes]:
    """Add a record and those of its certificates that are not yet ``known``; return their hashes."""
    signed = entry.signed
    names = encoded_hash(signed.node_cert), encoded_hash(signed.authority_cert)
    for name, der in zip(names, (signed.node_cert, signed.authority_cert), strict=True):
        if name not in known:
            known.add(name)
            frames += _frame(_Certificate(der))
    frames += _frame(_Line(signed.body, signed.signature, *names, bool(entry.record.wg_proofs)))
    return names


def _frame(item: _Certificate | _Line | _Start) -> bytes:
    return _FRAMING.frame(msgspec.msgpack.encode(item))


@dataclass(slots=True)
class _Frames:
    """The contents of a file's frames, each with its offset; where the last whole one ends; and the ranges
    before that in which none can be read."""

    items: list[tuple[int, _Certificate | _Line | _Start]]
    end: int
    gaps: list[tuple[int, int]]


def _frames(data: bytes) -> _Frames:
    items, gaps = list[tuple[int, _Certificate | _Line | _Start]](), list[tuple[int, int]]()
    view, misses = memoryview(data), 0
    at = end = len(HEADER) if data.startswith(HEADER) else 0
    while at != -1 and at < len(data):
        payload = _FRAMING.payload_at(view, at)
        if payload is None:
            misses += data.startswith(_FRAMING.mark, at)
            at = data.find(_FRAMING.mark, at + 1) if misses <= MOST_MISSES else -1
            continue
        if at > end:
            gaps.append((end, at))
        at, start = at + OVERHEAD + len(payload), at
        try:
            items.append((start, _DECODER.decode(payload)))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            gaps.append((start, at))
        end = at
    return _Frames(items, end, gaps)


def _settled(items: Sequence[tuple[int, _Certificate | _Line | _Start]], size: int) -> tuple[int, bool]:
    """Return up to which offset a file of this size was on disk before the last addition began, and whether
    it ends where an addition does. A power cut may have taken part of what is behind that offset."""
    at, start = next(((at, item) for at, item in reversed(items) if isinstance(item, _Start)), (0, None))
    if start is None:  # a version that wrote none, or damage
        return size, False
    end = at + len(_frame(start)) + start.length
    # If something is behind its end, the first frame of the addition that followed is lost.
    return (end if start.whole or size > end else at), size == end


def decode(
    data: bytes,
    root: x509.Certificate,
    revocations: Revocations,
    now: float,
    certificates: Iterable[bytes] = (),
) -> Content:
    """Read what `encode` and `RosterLog` wrote, or the list of an earlier version, and verify it.

    Parts that cannot be read are left out, and `Content.damage` says so. ``certificates`` (DER) are others
    that this node has, in place of some that are damaged. Whoever can write the file has this node's keys, so
    its marks are believed. Raises RecordError or TrustError where nothing of it can be read.
    """
    found = _frames(data)
    items, gaps = found.items, found.gaps
    if not items and not data.startswith(HEADER):
        kept = Roster.decode_kept(data, root, revocations, now)
        return Content(kept, end=len(data), closed=True)
    settled, whole = _settled(items, len(data))
    ders = [item.der for _, item in items if isinstance(item, _Certificate)]
    named = {encoded_hash(der): der for der in (*certificates, *ders)}
    cut = [(start, until) for start, until in gaps if start >= settled]
    lost = [(start, until) for start, until in gaps if start < settled]
    lines = [(at, item) for at, item in items if isinstance(item, _Line)]
    # The part of a cut-off addition that is there may need the part that is not: that is no damage.
    roster, failed = _replay(lines, named, Roster(root, revocations), now, settled if cut else len(data))
    return Content(
        roster,
        set(map(encoded_hash, ders)),
        found.end,
        len(data) - found.end + sum(until - start for start, until in cut),
        closed=bool(cut) or not whole,
        damage=replace(
            failed, at=lost[0][0] if lost else 0, bytes=sum(until - start for start, until in lost)
        ),
    )


def _replay(
    lines: Sequence[tuple[int, _Line]],
    certificates: dict[bytes, bytes],
    roster: Roster,
    now: float,
    settled: int,
) -> tuple[Roster, Damage]:
    """Fill the roster with the last line of each node that holds. Lines before it are not verified: they only
    tell since when the node claims its WireGuard keys. Those at ``settled`` and behind it need not hold."""
    of_node, since = dict[NodeId, list[tuple[int, _Line]]](), dict[NodeId, dict[bytes, int]]()
    reasons = list[str]()
    for number, (at, line) in enumerate(lines):
        try:
            record = msgspec.msgpack.decode(line.body, type=NodeRecord)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            reasons += ["a record's body cannot be read"] * (at < settled)
            continue
        node_id = NodeId(record.node_id)
        before = since.get(node_id, {})
        since[node_id] = {key: before.get(key, number) for key in record.wg_keys}
        of_node.setdefault(node_id, []).append((at, line))
    for own in of_node.values():
        for at, line in reversed(own):
            try:
                node_cert, authority_cert = certificates[line.node_cert], certificates[line.authority_cert]
                signed = SignedRecord(line.body, line.signature, node_cert, authority_cert)
                roster.reopen(signed, now, proved=line.proved)
                break
            except (PhantomMeshError, KeyError) as error:
                why = "a certificate is missing" if isinstance(error, KeyError) else str(error)
                reasons += [why] * (at < settled)
    roster.claimed_since(since)
    return roster, Damage(records=len(reasons), reason=reasons[0] if reasons else "")


class RosterLog:
    """The file of one state directory, in the hands of the node that holds the directory's lock.

    `note` what the roster took in; `take` it on the loop and `write` it in a thread, one at a time. When
    `write` has returned, its job is on disk. ``damage`` and ``torn`` say what was found when it was read;
    ``refused`` why the file could not be made smaller the last time; ``replaced`` why the last write did not
    add to the file that was there.
    """

    def __init__(self, state: StateDir, content: Content) -> None:
        self._state = state
        self._place = state.place(directory.ROSTER)
        self.damage, self.torn = content.damage, content.torn
        self.refused: StateError | None = None
        self.replaced: PlaceError | None = None
        self._certificates = content.certificates
        self._noted = list[Entry]()
        self._changed = bool(content.damage)
        # Or it has changed since it was read.
        self._whole = content.closed or bool(content.damage) or self._place.end != content.end
        self._lost = False  # nobody knows what is on the disk, or it is not what was written
        self._most = _most(sum(_size(entry) for entry in content.roster.in_order(revoked=True)))

    @property
    def unsaved(self) -> bool:
        """Whether the roster has what is not on disk, or the disk what cannot be read."""
        return self._changed

    def note(self, entry: Entry) -> None:
        """The roster took this in: it is to be written."""
        self._changed = True
        self._noted.append(entry)
        if len(self._noted) > MOST_NOTED:
            self._whole = True
            self._noted.clear()

    def take(self, roster: Roster) -> Job:
        """Return what is to be written now. Changes that come in later are the next job's."""
        frames, known = bytearray(), set(self._certificates)
        for entry in self._noted:
            _add(frames, entry, known)
        if frames:
            frames[:0] = _frame(_Start(len(frames), whole=False))
        end = self._place.end + len(frames)
        whole = self._whole or self._lost or end > MAX_FILE_BYTES
        job = Job(
            self._noted, bytes(frames), known, roster.in_order(revoked=True), whole, whole or end > self._most
        )
        self._noted, self._changed, self._whole = [], False, False
        return job

    def give_back(self, job: Job) -> None:
        """Let `write` have failed: the next job has this one's records, too."""
        self._changed = True
        self._whole |= job.whole
        self._noted[:0] = job.noted

    def write(self, job: Job) -> int:
        """Write it; return how many bytes that were. Blocks. Raises StateError: then `give_back` the job."""
        written, whole, self.replaced = 0, job.whole, None
        if not whole:
            try:
                self._place = self._state.append(directory.ROSTER, self._place, job.added)
                self._certificates = job.certificates
                written = len(job.added)
            except PlaceError as error:
                self._lost, whole, self.replaced = True, True, error
        if whole or job.anew:
            data, certificates = _encode(job.everything)
            written += len(data)
            try:
                self._state.write(directory.ROSTER, data)
                self._place = self._state.place(directory.ROSTER)
            except StateError as error:
                if whole:
                    raise
                self.refused = error  # nothing is lost: try again when it has grown some more
                self._most = self._place.end + max(SLACK, self._place.end // 4)
            else:
                self._certificates, self._most = certificates, _most(len(data))
                self._lost, self.refused = False, None
        return written


def _most(size: int) -> int:
    """How large a file may grow that had this size when it was written."""
    return min(max(GROWTH * size, size + SLACK), MAX_FILE_BYTES)


def _size(entry: Entry) -> int:
    """About how many bytes of a file that holds nothing old are this entry's."""
    signed = entry.signed
    return len(signed.body) + len(signed.signature) + len(signed.node_cert) + 4 * OVERHEAD + 32


def load(
    state: StateDir,
    root: x509.Certificate,
    revocations: Revocations,
    me: NodeId,
    now: float,
    certificates: Iterable[bytes] = (),
) -> tuple[Roster, RosterLog]:
    """Read the roster of a state directory, as `decode` does. Raises StateError, RecordError or TrustError.

    Damage does not stop a node that knows another member still: that one gives the rest again.
    """
    content = decode(state.read(directory.ROSTER), root, revocations, now, certificates)
    alone = all(entry.member.node_id == me for entry in content.roster)
    if alone and (content.damage or (content.torn and not len(content.roster))):
        left = content.damage or Damage(content.end, content.torn)
        raise RecordError(f"{left}, and no other member is left in it to ask")
    return content.roster, RosterLog(state, content)
