# SPDX-License-Identifier: GPL-3.0-or-later
"""The envelope of every gossip datagram: sealed under the mesh's group key, and told from a copy.

    format 1 | kind 1 | key id 8 | sender 16 | digest 8 | number 12 | sealed payload | tag 16

The header is the AEAD's associated data. ChaCha20-Poly1305 (RFC 8439) under a key of the sender's own, which
is SHA3-256 over the group key and the node id; the number is its nonce: a start number that grows with every
start of the sender, and a counter. A datagram that cannot be used costs a look in a table, or one AEAD check
at most.

An answer that is too long for a datagram goes over a stream, sealed under a key of its own (`seal_answer`):
SHA3-256 over the group key, the sealed request and a random salt, which stands before it.

Every member holds the group key, so a member can seal in another's name; nothing that needs to be believed
may rest on the envelope alone. Hence no window of numbers, as other protocols have against replays: one
datagram with the greatest number, in a member's name, would shut that member out. A copy is told by its tag
for as long as its key is held: exactly among the latest `SEEN`, by a filter (`seen`) among at least the
latest 700,000 of each key. Only who holds the key can make more than that in a day.
"""

import hashlib
import secrets
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.seen import Seen
from phantommesh.trust.groupkey import ID_BYTES, GroupKey, KeyId, Keyring
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId

FORMAT: Final = 0x47  # on the control port, `wire.VERSION` in its place is a handshake
GOSSIP: Final = b"phantommesh gossip v1"
REQUEST: Final = b"phantommesh request v1"
DIGEST_BYTES: Final = 8
_NUMBER_BYTES: Final = 12
_TAG_BYTES: Final = 16
_SALT_BYTES: Final = 16
_HEAD: Final = struct.Struct(f"!BB{ID_BYTES}s{NODE_ID_BYTES}s{DIGEST_BYTES}s{_NUMBER_BYTES}s")
OVERHEAD: Final = _HEAD.size + _TAG_BYTES
MAX_PAYLOAD: Final = MAX_DATAGRAM - OVERHEAD
_MAX_START: Final = 2**32 - 1

# Tuning.
SEEN: Final = 4_096  # datagrams, of all senders together, that are known again without a filter
MAX_FILTERS: Final = 3  # of keys, the latest used; a key gives way to the next once a day
MAX_SENDERS: Final = 16_384  # senders whose ciphers are kept


class EnvelopeError(Exception):
    """A datagram that is not used. ``reason`` is one of a few words, for a counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Opened:
    """The content of a datagram. ``digest`` is the sender's word on its revocations and keys."""

    kind: int
    sender: NodeId
    digest: bytes
    key: KeyId
    payload: bytes


class Envelope:
    """Seals what this node sends and opens what it receives. Sans-I/O; `drops` counts refusals by reason.

    ``start`` must be greater than at any earlier start of this node: it keeps numbers from coming twice.
    ``revoked`` holds nodes whose datagrams are refused; ``digest`` gives the 8 bytes that tell of our
    revocations and keys.
    """

    def __init__(
        self,
        node_id: NodeId,
        keyring: Keyring,
        *,
        start: int,
        revoked: Container[NodeId],
        digest: Callable[[], bytes],
        label: bytes = GOSSIP,
    ) -> None:
        """``label`` sets what is sealed for one purpose apart from what is sealed for another."""
        if not 0 <= start <= _MAX_START:
            raise ValueError("the start number has 32 bits")
        self._node_id, self._keyring = node_id, keyring
        self._start, self._count, self._label = start, 0, label
        self._revoked, self._digest = revoked, digest
        self._cipher: tuple[KeyId, ChaCha20Poly1305] | None = None
        self._ciphers: OrderedDict[NodeId, dict[KeyId, ChaCha20Poly1305]] = OrderedDict()
        self._seen: OrderedDict[bytes, KeyId] = OrderedDict()
        self._older: OrderedDict[KeyId, Seen] = OrderedDict()
        self.drops: Counter[str] = Counter()

    @property
    def ready(self) -> bool:
        """Whether there is a key to send with."""
        return self._keyring.active is not None

    def seal(self, kind: int, payload: bytes) -> bytes:
        """Return the datagram of one message. ``kind`` has 8 bits; the payload at most `MAX_PAYLOAD` bytes.

        Raises ValueError for a longer one, and where there is no key yet: see `ready`.
        """
        active = self._keyring.active
        if active is None or len(payload) > MAX_PAYLOAD:
            raise ValueError("no group key yet" if active is None else "the payload is too long")
        key_id = active.id
        if self._cipher is None or self._cipher[0] != key_id:
            self._cipher = key_id, _cipher(active, self._node_id, self._label)
        number = self._start.to_bytes(4) + self._count.to_bytes(8)
        self._count += 1
        head = _HEAD.pack(FORMAT, kind, key_id, self._node_id, self._digest(), number)
        return head + self._cipher[1].encrypt(number, payload, head)

    def open(self, datagram: bytes) -> Opened:
        """Return what a datagram from the network says. Raises EnvelopeError only, after counting it."""
        try:
            return self._open(datagram)
        except EnvelopeError as error:
            self.drops[error.reason] += 1
            raise

    def seal_answer(self, request: bytes, payload: bytes) -> bytes:
        """Return the answer to a request that `open` has just let in, of any length."""
        key = self._keyring.get(_HEAD.unpack(request[: _HEAD.size])[2])
        assert key is not None
        salt = secrets.token_bytes(_SALT_BYTES)
        return salt + _answer_cipher(key, request, salt).encrypt(bytes(_NUMBER_BYTES), payload, None)

    def open_answer(self, request: bytes, answer: bytes) -> bytes:
        """Return what the answer to a request of ours says. Raises EnvelopeError, after counting it."""
        key = self._keyring.get(_HEAD.unpack(request[: _HEAD.size])[2])
        salt, sealed = answer[:_SALT_BYTES], answer[_SALT_BYTES:]
        try:
            if key is not None:
                return _answer_cipher(key, request, salt).decrypt(bytes(_NUMBER_BYTES), sealed, None)
        except InvalidTag:
            pass
        self.drops["gossip-answer"] += 1
        raise EnvelopeError("gossip-answer")

    def _open(self, datagram: bytes) -> Opened:
        if not OVERHEAD <= len(datagram) <= MAX_DATAGRAM or datagram[0] != FORMAT:
            raise EnvelopeError("gossip-malformed")
        head, tag = datagram[: _HEAD.size], datagram[-_TAG_BYTES:]
        _, kind, key_bytes, sender_bytes, digest, number = _HEAD.unpack(head)
        key_id, sender = KeyId(key_bytes), NodeId(sender_bytes)
        key = self._keyring.get(key_id)
        if key is None:
            raise EnvelopeError("gossip-key")
        if sender == self._node_id:
            raise EnvelopeError("gossip-own")
        if sender in self._revoked:
            raise EnvelopeError("gossip-revoked")
        if tag in self._seen or (key_id in self._older and tag in self._older[key_id]):
            raise EnvelopeError("gossip-replay")
        known = self._ciphers.get(sender, {})
        cipher = known.get(key_id) or _cipher(key, sender, self._label)
        try:
            payload = cipher.decrypt(number, datagram[_HEAD.size :], head)
        except InvalidTag:
            raise EnvelopeError("gossip-seal") from None
        self._seen[tag] = key_id
        if len(self._seen) > SEEN:
            self._remember(*self._seen.popitem(last=False))
        if key_id not in known:
            kept = {held: old for held, old in known.items() if self._keyring.get(held)}
            self._ciphers[sender] = kept | {key_id: cipher}
        self._ciphers.move_to_end(sender)
        if len(self._ciphers) > MAX_SENDERS:
            self._ciphers.popitem(last=False)
        return Opened(kind, sender, digest, key_id, payload)

    def _remember(self, tag: bytes, key_id: KeyId) -> None:
        """Know a tag again that is not among the latest any more, for as long as its key is held."""
        if self._keyring.get(key_id) is None:
            return
        if key_id not in self._older:
            for gone in [held for held in self._older if self._keyring.get(held) is None]:
                del self._older[gone]
            self._older[key_id] = Seen()
            if len(self._older) > MAX_FILTERS:
                self._older.popitem(last=False)
        self._older.move_to_end(key_id)
        self._older[key_id].add(tag)


def _cipher(key: GroupKey, sender: NodeId, label: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(hashlib.sha3_256(label + key.key + sender).digest())


def _answer_cipher(key: GroupKey, request: bytes, salt: bytes) -> ChaCha20Poly1305:
    secret = hashlib.sha3_256(b"phantommesh answer v1" + key.key + hashlib.sha3_256(request).digest() + salt)
    return ChaCha20Poly1305(secret.digest())
