# SPDX-License-Identifier: GPL-3.0-or-later
"""The group keys that a node holds, the key that is due, and the authority whose turn it is. Sans-I/O.

``now`` is any clock that only goes forward, in seconds; ``wall`` is unix time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cryptography import x509

from phantommesh.records.roster import Entry
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.groupkey import (
    NO_KEY,
    GroupKey,
    KeyId,
    Keyring,
    encode_keys,
    gossip_digest,
    greatest_epoch,
    next_epoch,
    take_keys,
)
from phantommesh.trust.identity import NodeId
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocations import Revocations

# Tuning.
PATIENCE: Final = 5.0  # s that each authority gives those before it to make the key that is due


class Change(NamedTuple):
    """The changes to act on. ``keys``: the keys are to be written to disk. ``secrets``: the links are to be
    told the admission secrets."""

    keys: bool
    secrets: bool


NOTHING = Change(keys=False, secrets=False)


class Merged(NamedTuple):
    """The outcome of another member's keys: whether one is new here, why others were refused."""

    new: bool
    refused: list[TrustError]
    change: Change


class HeldKeys:
    """One node's `Keyring`, and the admission secrets that come with its keys."""

    def __init__(
        self, me: NodeId, root: x509.Certificate, revocations: Revocations, secrets: MeshSecrets
    ) -> None:
        self.ring, self.secrets = Keyring(), secrets
        self._me, self._root, self._revocations = me, root, revocations
        self._turn = KeyTurn()
        self.ring.shun(revocations)

    def restore(self, kept: bytes, now: float, wall: float) -> None:
        """Begin with the keyring that is on disk. Raises TrustError where it is damaged."""
        self.ring.restore(kept, now, greatest_epoch(self._root, wall))
        self._follow(wall)

    def digest(self) -> bytes:
        """Eight bytes that differ between nodes with other revocations or another newest key."""
        return gossip_digest(self._revocations, self.ring)

    def encode(self) -> bytes:
        """Every key, for a member in good standing."""
        return encode_keys(self.ring.keys)

    @property
    def active_id(self) -> KeyId:
        """The id of the key that this node sends with."""
        return NO_KEY if self.ring.active is None else self.ring.active.id

    def merge(self, keys: bytes, active: bytes, now: float, wall: float) -> Merged:
        """Take in the keys that another member gave out, after its revocations. ``active`` is the key that it
        sends with: so may we. Raises TrustError where no key can be read."""
        new, refused = take_keys(self.ring, keys, self._root, self._revocations, now, wall)
        promoted = self.ring.promote(active, now)
        return Merged(new, refused, self._follow(wall) if new or promoted else NOTHING)

    def in_use(self, key_id: bytes, now: float, wall: float) -> Change:
        """Another member sends with this key, so we may too."""
        return self._follow(wall) if self.ring.promote(key_id, now) else NOTHING

    def tick(self, now: float, wall: float) -> Change:
        """Promote and retire the keys that are due."""
        return self._follow(wall) if self.ring.tick(now) else NOTHING

    def due(self, wall: float) -> int | None:
        """The epoch of the key that an authority is to make now. None where no key is due, or this node was
        revoked."""
        return None if self._me in self._revocations else next_epoch(self.ring, self._revocations, wall)

    def ours(self, roster: Iterable[Entry], now: float, wall: float) -> bool:
        """Whether this node, an authority, is the one to make the key that is due. Ask about once a second:
        each authority before this one gets some time first."""
        due = next_epoch(self.ring, self._revocations, wall) is not None
        authorities = [
            entry.member.node_id
            for entry in roster
            if entry.member.role is Role.AUTHORITY and entry.valid(wall)
        ]
        return self._turn.ours(due, self._me, authorities, now)

    def install(self, key: GroupKey, now: float, wall: float) -> Change:
        """Use a key that this node made. The ring with this key in it (`Keyring.encode`) has to be on disk
        before."""
        self.ring.install(key, now)
        return self._follow(wall)  # the ring may have let others go for it, or have begun to send with it

    def _follow(self, wall: float) -> Change:
        return Change(keys=True, secrets=self.secrets.follow(self.ring.keys, self.ring.active, wall))


class KeyTurn:
    """Decides which authority makes the key that is due: the first by node id, or the next one once it has
    waited."""

    def __init__(self) -> None:
        self._due_since: float | None = None

    def ours(self, due: bool, mine: NodeId, authorities: Iterable[NodeId], now: float) -> bool:
        """Whether a key has been due for so long that the authorities before us seem to be away."""
        if not due:
            self._due_since = None
            return False
        if self._due_since is None:
            self._due_since = now
        return now >= self._due_since + PATIENCE * sum(other < mine for other in authorities)
