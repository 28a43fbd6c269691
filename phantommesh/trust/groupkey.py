# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys that a mesh's gossip is sealed with: made and signed by an authority, changed without a gap.

A new key goes round first and is used later: every holder can receive with it from the moment it has it, and
sends with it `PROMOTE_AFTER` seconds on. So nobody is cut off as long as it reaches everybody within that
time. The old one stays good for receiving for `RETIRE_AFTER` seconds more.

Each key names the revocations that it was made under. An authority that knows of more makes the next one; so
two that rotated apart from each other agree again, on a key that no node revoked by either has seen.
"""

import hashlib
import secrets
from collections.abc import Callable, Container, Iterable
from functools import lru_cache
from math import inf
from typing import Annotated, Final, NewType

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from phantommesh.trust.certificates import EARLY, TrustError, authority_node, verify_authority
from phantommesh.trust.identity import NodeId
from phantommesh.trust.issuing import Authority
from phantommesh.trust.revocations import Revocations

KeyId = NewType("KeyId", bytes)

CONTEXT: Final = b"phantommesh group key v1"
KEY_BYTES: Final = 32  # ChaCha20-Poly1305
ID_BYTES: Final = 8
MAX_EPOCH: Final = 2**32 - 1
# Epochs may run so far ahead of the mesh's age. A key a day needs one in 86,400 s; a rogue that makes the
# greatest there may be leaves room for the next one 10 s later. A clock that is behind has the first thousand
# to spare.
EPOCHS_AT_ONCE: Final = 1_024
EPOCH_SECONDS: Final = 10.0
NO_KEY: Final = KeyId(bytes(ID_BYTES))

# Tuning. A key must reach every member within PROMOTE_AFTER; the last to promote does so that long after the
# first, and what it sent before is on its way for some seconds.
PROMOTE_AFTER: Final = 10.0  # s
RETIRE_AFTER: Final = 20.0  # s
MAX_AGE: Final = 86_400.0  # s
MAX_KEYS: Final = 16


class GroupKey(msgspec.Struct, frozen=True, array_like=True):
    """One key: its epoch (32 bits), the digest of the revocations it was made under, when (unix seconds)."""

    epoch: int
    revoked: bytes
    made: int
    key: bytes
    signature: bytes
    authority_cert: bytes

    @property
    def id(self) -> KeyId:
        """Eight bytes that sort as keys do: the epoch, then four of the key's hash. The greatest is used."""
        return KeyId(self.epoch.to_bytes(4) + hashlib.sha3_256(b"phantommesh key id" + self.key).digest()[:4])

    def __repr__(self) -> str:
        return f"GroupKey({self.id.hex()})"


def make_group_key(
    authority: Authority,
    epoch: int,
    revocations: Revocations,
    now: float,
    random: Callable[[int], bytes] = secrets.token_bytes,
) -> GroupKey:
    """Make and sign a new random key. Raises TrustError when the epochs are used up."""
    if not 0 < epoch <= MAX_EPOCH:
        raise TrustError("the mesh has used up its group keys", fix="make the mesh anew")
    key, revoked, made = random(KEY_BYTES), revocations.digest(), int(now)
    signature = authority.key.sign(_signed(epoch, revoked, made, key), CONTEXT)
    return GroupKey(epoch, revoked, made, key, signature, authority.der)


def verify_group_key(key: GroupKey, root: x509.Certificate, revocations: Revocations, now: float) -> None:
    """Raise TrustError unless an authority in good standing made this key.

    `revocations` must include those that came with the key: a node that holds a key knows which nodes it
    shuts out.
    """
    if len(key.key) != KEY_BYTES or len(key.revoked) != 32:
        raise TrustError("the group key's fields have wrong lengths")
    if not 0 < key.epoch <= MAX_EPOCH or not 0 <= key.made < 2**63:
        raise TrustError("the group key's fields are out of range")
    if key.epoch > greatest_epoch(root, now) or key.made > now + EARLY:
        raise TrustError(f"the group key's epoch {key.epoch} is ahead of its time")
    public_key = verify_authority(root, key.authority_cert, now)
    if authority_node(key.authority_cert) in revocations:
        raise TrustError("the group key is a revoked authority's")
    try:
        public_key.verify(key.signature, _signed(key.epoch, key.revoked, key.made, key.key), CONTEXT)
    except (InvalidSignature, ValueError) as error:
        raise TrustError("the group key's signature is wrong") from error


def greatest_epoch(root: x509.Certificate, now: float) -> int:
    """The greatest epoch that a key may have at `now` (unix seconds): it grows with the age of the mesh."""
    age = max(0.0, now - root.not_valid_before_utc.timestamp())
    return min(MAX_EPOCH, EPOCHS_AT_ONCE + int(age / EPOCH_SECONDS))


def encode_keys(keys: Iterable[GroupKey]) -> bytes:
    """Return keys in msgpack, for a control channel."""
    return msgspec.msgpack.encode(list(keys))


def decode_keys_untrusted(data: bytes) -> list[GroupKey]:
    """Read what `encode_keys` wrote; nothing is verified yet. Raises TrustError only."""
    try:
        keys: list[GroupKey] = msgspec.msgpack.decode(
            data, type=Annotated[list[GroupKey], msgspec.Meta(max_length=MAX_KEYS)]
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TrustError("the group keys cannot be read") from error
    if len(keys) > MAX_KEYS or any(not 0 < key.epoch <= MAX_EPOCH for key in keys):
        raise TrustError("the group keys are too many, or out of range")
    return keys


class Keyring:
    """The keys this node receives with, and the one it sends with. ``now`` is any clock that goes forward."""

    def __init__(self, *, promote_after: float = PROMOTE_AFTER, retire_after: float = RETIRE_AFTER) -> None:
        self._promote_after, self._retire_after = promote_after, retire_after
        self._keys: dict[KeyId, GroupKey] = {}
        self._promotions: dict[KeyId, float] = {}  # of keys that are not sent with yet
        self._retirements: dict[KeyId, float] = {}  # of keys that are not sent with any more
        self._active: KeyId = NO_KEY
        self._floors: dict[bytes, KeyId] = {}  # by authority's node, its greatest key that was ever retired
        self._revoked: Container[NodeId] = frozenset()

    @property
    def active(self) -> GroupKey | None:
        """The key to send with; None before the first."""
        return self._keys.get(self._active)

    @property
    def newest(self) -> GroupKey | None:
        """The greatest key, whether it is sent with yet or not; None where a revoked authority made all."""
        return self._keys[max(held)] if (held := [k for k in self._keys if not self._shunned(k)]) else None

    @property
    def keys(self) -> list[GroupKey]:
        """Every key that is received with, oldest first."""
        return [self._keys[key_id] for key_id in sorted(self._keys)]

    def shun(self, revoked: Container[NodeId]) -> None:
        """Rank the keys of authorities whose nodes are revoked below all others, whatever their epochs. The
        one that is sent with is sent with until another has been here long enough; nobody is cut off by
        it."""
        self._revoked = revoked

    @property
    def _floor(self) -> KeyId:
        return max((k for who, k in self._floors.items() if who not in self._revoked), default=NO_KEY)

    def _shunned(self, key_id: KeyId) -> bool:
        return _maker(self._keys[key_id].authority_cert) in self._revoked

    @property
    def next_epoch(self) -> int:
        """The epoch after every one that counts here, of keys held and retired."""
        newest = self.newest
        return max(0 if newest is None else newest.epoch, int.from_bytes(self._floor[:4])) + 1

    def _rank(self, key_id: KeyId) -> tuple[bool, KeyId]:
        return key_id not in self._keys or not self._shunned(key_id), key_id

    def get(self, key_id: bytes) -> GroupKey | None:
        """The key to open a datagram with; None for one that is unknown or retired."""
        return self._keys.get(KeyId(key_id))

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return min((*self._promotions.values(), *self._retirements.values()), default=inf)

    def install(self, key: GroupKey, now: float) -> bool:
        """Receive with a verified key from now on; say if it is new here. The first is sent with at once.

        A key that was retired, or is older than one that was, does not come back.
        """
        key_id = key.id
        if key_id in self._keys or key_id <= self._floor:
            return False
        self._keys[key_id] = key
        if self.active is None:
            self._activate(key_id, now)
        elif self._rank(key_id) < self._rank(self._active):
            self._retirements[key_id] = now + self._retire_after
        else:
            self._promotions[key_id] = now + self._promote_after
        while len(self._keys) > MAX_KEYS:
            self._drop(self._least(self._keys))
        return True

    def promote(self, key_id: bytes, now: float) -> bool:
        """Send with a key at once: another member does already. An older or unknown one changes nothing."""
        known = KeyId(key_id)
        if known == self._active or known not in self._keys or self._rank(known) <= self._rank(self._active):
            return False
        self._activate(known, now)
        return True

    def retire(self, key_id: bytes) -> bool:
        """Stop receiving with a key before its time. The one that is sent with stays."""
        known = KeyId(key_id)
        if known not in self._keys or known == self._active:
            return False
        self._drop(known)
        return True

    def tick(self, now: float) -> bool:
        """Promote and retire what is due; say whether anything changed."""
        due = [key_id for key_id, moment in self._promotions.items() if moment <= now]
        if due:
            if (best := max(due, key=self._rank)) and self._rank(best) > self._rank(self._active):
                self._activate(best, now)
            for key_id in due:  # one whose authority was revoked since is not sent with any more
                if self._promotions.pop(key_id, None) is not None:
                    self._retirements.setdefault(key_id, now + self._retire_after)
        over = [key_id for key_id, moment in self._retirements.items() if moment <= now]
        for key_id in over:
            self._drop(key_id)
        return bool(due or over)

    def encode(self, *more: GroupKey) -> bytes:
        """Return the ring, and keys about to join it, for the state directory, in msgpack."""
        keys = {key.id: key for key in (*self.keys, *more)}
        while len(keys) > MAX_KEYS:  # as `install` is going to
            del keys[self._least(keys)]
        floors = list(self._floors.items())
        return msgspec.msgpack.encode((floors, self._active, list(keys.values())))

    def restore(self, data: bytes, now: float, greatest: int = MAX_EPOCH) -> None:
        """Take over what `encode` wrote, but for epochs above the ``greatest`` that may be
        (`greatest_epoch`); the waits begin anew. Raises TrustError.

        Nothing is verified: it was when it was written, and an authority may have been revoked since.
        """
        try:
            floors, active, keys = msgspec.msgpack.decode(
                data, type=tuple[list[tuple[bytes, bytes]] | bytes, bytes, list[GroupKey]]
            )
            held = {key.id: key for key in keys if key.epoch <= greatest}
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise TrustError("the group keys cannot be read") from error
        if isinstance(floors, bytes):  # of a version before: nobody's in particular
            floors = [(b"", floors)]
        if len(keys) > MAX_KEYS or any(len(key.key) != KEY_BYTES for key in keys):
            raise TrustError("the group keys cannot be used")
        if any(len(floor) != ID_BYTES for _, floor in floors):
            raise TrustError("the group keys cannot be used")
        self._floors = {who: KeyId(k) for who, k in floors if int.from_bytes(k[:4]) <= greatest}
        if active in held:
            self.install(held[KeyId(active)], now)
        for key in held.values():
            self.install(key, now)

    def _activate(self, key_id: KeyId, now: float) -> None:
        self._active = key_id
        for held in self._keys:
            if self._rank(held) <= self._rank(key_id):
                self._promotions.pop(held, None)
            if self._rank(held) < self._rank(key_id):
                self._retirements.setdefault(held, now + self._retire_after)

    def _drop(self, key_id: KeyId) -> None:
        who = _maker(self._keys.pop(key_id).authority_cert) or b""
        self._promotions.pop(key_id, None)
        self._retirements.pop(key_id, None)
        self._floors[who] = max(self._floors.get(who, NO_KEY), key_id)

    def _least(self, keys: Iterable[KeyId]) -> KeyId:
        """The key that a full ring can best do without."""
        return min((key_id for key_id in keys if key_id != self._active), key=self._rank)


@lru_cache(maxsize=64)
def _maker(authority_cert: bytes) -> NodeId | None:
    """The node whose authority signed a key; None where its certificate does not say."""
    try:
        return authority_node(authority_cert)
    except TrustError:
        return None


def next_epoch(keyring: Keyring, revocations: Revocations, now: float) -> int | None:
    """The epoch of the key that an authority should make now, or None where the newest still does.

    It does not where nodes were revoked since, where it is `MAX_AGE` old, where it was made by a clock that
    was ahead, so that nobody else takes it, or where all are keys of authorities that are revoked: their
    epochs do not count. Statements of authorities that were revoked already are no reason for one. `now` is
    unix seconds.
    """
    keyring.shun(revocations)
    newest, epoch = keyring.newest, keyring.next_epoch
    if epoch > greatest_epoch(revocations.root, now):
        return None  # in EPOCH_SECONDS it may be
    fresh = newest is not None and newest.made - EARLY <= now < newest.made + MAX_AGE
    if newest is not None and revocations.covered(newest.revoked) and fresh:
        return None
    return epoch


def gossip_digest(revocations: Revocations, keyring: Keyring) -> bytes:
    """Eight bytes that differ between nodes with other revocations or another newest key."""
    newest = keyring.newest
    said = revocations.digest() + (NO_KEY if newest is None else newest.id)
    return hashlib.sha3_256(b"phantommesh gossip digest" + said).digest()[:8]


def take_keys(
    keyring: Keyring,
    encoded: bytes,
    root: x509.Certificate,
    revocations: Revocations,
    now: float,
    wall: float,
) -> tuple[bool, list[TrustError]]:
    """Take in what another member gave out, after its revocations: say whether a key is new here, and why
    others were refused. ``now`` is the ring's clock, ``wall`` unix time. Raises TrustError where none can be
    read."""
    keyring.shun(revocations)
    came, refused = False, list[TrustError]()
    for key in decode_keys_untrusted(encoded) if encoded else ():
        if keyring.get(key.id) is not None:
            continue
        try:
            verify_group_key(key, root, revocations, wall)
        except TrustError as error:
            refused.append(error)
        else:
            came |= keyring.install(key, now)
    return came, refused


def _signed(epoch: int, revoked: bytes, made: int, key: bytes) -> bytes:
    return epoch.to_bytes(4) + revoked + made.to_bytes(8) + hashlib.sha3_256(key).digest()
