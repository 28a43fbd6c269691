# SPDX-License-Identifier: GPL-3.0-or-later
"""Gossip's formats: the 48-byte event, the datagrams that carry events, and the messages of a full sync.

::

    event     node id 16 | generation 6 | incarnation 3 | state 1 | record seq 6 | record hash 16
              (in an accusation - suspect, dead - the last 16 bytes are the accuser's node id)
    datagram  version 1 | kind 1 | wait ms 2 | nonce 8 | sender 16 | target 16 | extra | events 48 each
    extra     of a ping-req: asker 16 | the asker's nonce 8 | hops 1;  of a carried answer: proof 16;
              of the others nothing

All integers are big-endian, so that the nine bytes of generation and incarnation, the event's *key*, order
as bytes do. The envelope around a datagram is another layer's; it may add `ENVELOPE_OVERHEAD` bytes.

Events stay `bytes` all through the protocol: most that arrive are known already, and one comparison says so.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from phantommesh.endpoint import MAX_DATAGRAM

VERSION: Final = 1
ENVELOPE_OVERHEAD: Final = 64
MAX_MESSAGE: Final = MAX_DATAGRAM - ENVELOPE_OVERHEAD
NODE_ID_SIZE: Final = 16
HASH_SIZE: Final = 16
NONCE_SIZE: Final = 8
NOBODY: Final = bytes(NODE_ID_SIZE)  # as target: whoever is at this address; as sender it is refused

EVENT_SIZE: Final = 48
KEY: Final = slice(16, 25)  # generation and incarnation
GENERATION: Final = slice(16, 22)
STATE: Final = 25
RECORD: Final = slice(26, 48)  # sequence number and hash
ACCUSER: Final = slice(32, 48)
MAX_GENERATION: Final = 2**48 - 1
MAX_INCARNATION: Final = 2**24 - 1
MAX_RECORD_SEQ: Final = 2**48 - 1

_HEADER: Final = struct.Struct("!BBH8s16s16s")
HEADER_SIZE: Final = _HEADER.size
MAX_EVENTS: Final = (MAX_MESSAGE - HEADER_SIZE) // EVENT_SIZE
_ERRAND: Final = struct.Struct("!16s8sB")
PROOF_SIZE: Final = 16
MAX_REQUEST_EVENTS: Final = (MAX_MESSAGE - HEADER_SIZE - _ERRAND.size) // EVENT_SIZE

BUCKETS: Final = 256  # of a sync's digest, by the node id's first byte
BUCKET_HASH_SIZE: Final = 8
_SYNC_HEADER: Final = struct.Struct("!BB16sI")
_DIGEST_SIZE: Final = BUCKETS * BUCKET_HASH_SIZE
_BITMAP_SIZE: Final = BUCKETS // 8
MAX_SYNC_EVENTS: Final = 16_384  # as many as a mesh has members
MAX_SYNC: Final = _SYNC_HEADER.size + _DIGEST_SIZE + _BITMAP_SIZE + MAX_SYNC_EVENTS * EVENT_SIZE
MAX_REST_EVENTS: Final = 1_300  # in a sync's last message: a request, which a channel limits to 64 KiB


class GossipError(Exception):
    """The bytes are not a message of this protocol. ``args[0]`` is a short, bounded reason."""


class State(IntEnum):
    """State that an event gives its node."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4


class Kind(IntEnum):
    """Kind of a datagram."""

    PING = 1
    PING_REQ = 2
    ACK = 3
    NACK = 4
    GOSSIP = 5
    QUERY = 6  # what do you, at first hand, say of these nodes?
    ANSWER = 7
    CARRIED = 8  # a member's answer to a ping-req, on its way back through those who carried the question


class SyncKind(IntEnum):
    """The three messages of a full sync over a stream."""

    DIGEST = 1
    DIFFERENCE = 2
    REST = 3


_STATES: Final = bytes(State)
ALIVE, SUSPECT, DEAD, LEFT = (int(state) for state in State)
# Enums are slow to compare.
PING, PING_REQ, ACK, NACK, GOSSIP, QUERY, ANSWER, CARRIED = (int(kind) for kind in Kind)
_KINDS: Final = frozenset(int(kind) for kind in Kind)
_EXTRA: Final = {PING_REQ: _ERRAND.size, CARRIED: PROOF_SIZE}


class Message(NamedTuple):
    """A decoded datagram. ``wait_ms`` is how long a ping-req's relay may take; ``events`` are raw; ``extra``
    is what its kind has besides."""

    kind: int
    wait_ms: int
    nonce: bytes
    sender: bytes
    target: bytes
    events: list[bytes]
    extra: bytes = b""


class Errand(NamedTuple):
    """The request in a ping-req: an answer to ``nonce`` of ``asker``, by at most ``hops`` more members."""

    asker: bytes
    nonce: bytes
    hops: int

    @classmethod
    def of(cls, extra: bytes) -> Errand:
        """Take a ping-req's extra apart."""
        return cls(*_ERRAND.unpack(extra))

    def encode(self) -> bytes:
        """Return the ping-req's extra."""
        return _ERRAND.pack(*self)


class Event(NamedTuple):
    """An event taken apart, for those who look at one closely."""

    node: bytes
    generation: int
    incarnation: int
    state: State
    record_seq: int
    record_hash: bytes

    @classmethod
    def of(cls, raw: bytes) -> Event:
        """Take 48 bytes apart. They are an event already: `decode_untrusted` let them in."""
        return cls(
            raw[:16], int.from_bytes(raw[16:22]), int.from_bytes(raw[22:25]), State(raw[25]),
            int.from_bytes(raw[26:32]), raw[32:],
        )  # fmt: skip

    def encode(self) -> bytes:
        """Return the 48 bytes. For an accusation ``record_hash`` is the accuser's id."""
        return (
            self.node + make_key(self.generation, self.incarnation) + bytes((self.state,))
            + self.record_seq.to_bytes(6) + self.record_hash
        )  # fmt: skip


def make_key(generation: int, incarnation: int) -> bytes:
    """Return the nine bytes by which events about one node are ordered."""
    return generation.to_bytes(6) + incarnation.to_bytes(3)


def accusation(node: bytes, key: bytes, state: int, accuser: bytes) -> bytes:
    """Return the event with which ``accuser`` says that ``node`` is suspect, dead or gone."""
    return node + key + bytes((state, 0, 0, 0, 0, 0, 0)) + accuser


def encode(
    kind: int, nonce: bytes, sender: bytes, target: bytes, events: list[bytes], wait_ms: int = 0,
    extra: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a datagram. No more than `MAX_EVENTS` events fit, in a ping-req `MAX_REQUEST_EVENTS`."""
    return _HEADER.pack(VERSION, kind, wait_ms, nonce, sender, target) + extra + b"".join(events)


def decode_untrusted(datagram: bytes) -> Message:
    """Take a datagram apart. Raises `GossipError` and nothing else."""
    size = len(datagram)
    if size < HEADER_SIZE or size > MAX_MESSAGE:
        raise GossipError("length")
    version, kind, wait_ms, nonce, sender, target = _HEADER.unpack_from(datagram)
    start = HEADER_SIZE + _EXTRA.get(kind, 0)
    if size < start or (size - start) % EVENT_SIZE:
        raise GossipError("length")
    if version != VERSION:
        raise GossipError("version")
    if kind not in _KINDS:
        raise GossipError("kind")
    if sender == NOBODY:
        raise GossipError("sender")
    if datagram[start + STATE :: EVENT_SIZE].strip(_STATES):
        raise GossipError("state")
    return Message(
        kind, wait_ms, nonce, sender, target,
        [datagram[i : i + EVENT_SIZE] for i in range(start, size, EVENT_SIZE)],
        datagram[HEADER_SIZE:start],
    )  # fmt: skip


class SyncMessage(NamedTuple):
    """A decoded message of a sync: a digest's bucket hashes, or the buckets that differ, and events."""

    kind: SyncKind
    sender: bytes
    hashes: tuple[int, ...]
    buckets: list[int]
    events: list[bytes]


def encode_digest(sender: bytes, hashes: list[int], own: bytes) -> bytes:
    """Return a sync's opening: 256 bucket hashes and the sender's own event."""
    return (
        _SYNC_HEADER.pack(VERSION, SyncKind.DIGEST, sender, 1)
        + struct.pack(f"!{BUCKETS}Q", *hashes) + own
    )  # fmt: skip


def encode_events(kind: SyncKind, sender: bytes, buckets: list[int], events: list[bytes]) -> bytes:
    """Return the answer to a digest, or the answer to that: which buckets differ, and what is in them."""
    bitmap = sum(1 << bucket for bucket in buckets).to_bytes(_BITMAP_SIZE, "little")
    return _SYNC_HEADER.pack(VERSION, kind, sender, len(events)) + bitmap + b"".join(events)


def decode_sync_untrusted(data: bytes) -> SyncMessage:
    """Take a sync's message apart. Raises `GossipError` and nothing else."""
    if len(data) < _SYNC_HEADER.size:
        raise GossipError("length")
    version, kind_byte, sender, count = _SYNC_HEADER.unpack_from(data)
    if version != VERSION:
        raise GossipError("version")
    if kind_byte not in (1, 2, 3):
        raise GossipError("kind")
    if sender == NOBODY:
        raise GossipError("sender")
    kind = SyncKind(kind_byte)
    start = _SYNC_HEADER.size + (_DIGEST_SIZE if kind is SyncKind.DIGEST else _BITMAP_SIZE)
    if count > MAX_SYNC_EVENTS or len(data) != start + count * EVENT_SIZE:
        raise GossipError("length")
    if data[start + STATE :: EVENT_SIZE].strip(_STATES):
        raise GossipError("state")
    events = [data[i : i + EVENT_SIZE] for i in range(start, len(data), EVENT_SIZE)]
    if len({event[:NODE_ID_SIZE] for event in events}) != count:
        raise GossipError("twice")  # a table has one claim of each node, and each newer one here is a change
    if kind is SyncKind.DIGEST:
        return SyncMessage(
            kind, sender, struct.unpack_from(f"!{BUCKETS}Q", data, _SYNC_HEADER.size), [], events
        )
    bitmap = int.from_bytes(data[_SYNC_HEADER.size : start], "little")
    return SyncMessage(kind, sender, (), [b for b in range(BUCKETS) if bitmap >> b & 1], events)
