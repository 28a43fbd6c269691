# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's admission secrets: what keys the first MAC of a handshake, and which of them still count.

Each group key gives one, so a new one comes with every revocation and goes the way of the group key: through
links, to members in the roster only. Unlike a group key it counts for long after another took its place: a
member that was away has no link to hear of the new one, and must be let in to get it.
`link.admission.Standing` says what the old one is worth then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import msgspec

from phantommesh.kdf import expand
from phantommesh.secret import Secret
from phantommesh.trust.certificates import DAY, NODE_LIFE
from phantommesh.trust.groupkey import ID_BYTES, NO_KEY, GroupKey, KeyId

SECRET_BYTES: Final = 32

# A member that was away for longer than its certificate lasts gets the newest when it is taken back.
# The day is for clocks, and for a certificate made from a clock that was ahead.
ACCEPT_REPLACED: Final = NODE_LIFE + DAY  # s

# Tuning.
MAX_REPLACED: Final = 16
"""Each costs a MAC for a datagram whose first MAC none of the others made."""


class _Held(msgspec.Struct, array_like=True):
    """One secret: the group key that it comes from, and unix seconds since when, and until when, it was one
    to send with; None while it is."""

    key: bytes
    secret: bytes
    since: float
    replaced: float | None

    def __repr__(self) -> str:
        return "_Held(***)"


def admission_secret(key: GroupKey) -> Secret:
    """The admission secret of a group key, 32 bytes. It tells nothing of the key."""
    return Secret(expand(key.key, b"admission secret", SECRET_BYTES, key.id))


class MeshSecrets:
    """The admission secrets that this node holds. Times are unix seconds."""

    def __init__(self, first: Secret) -> None:
        """``first`` is what the mesh begins with, or what an authority gave to a joiner."""
        self._held = {NO_KEY: _Held(NO_KEY, first.reveal(), 0.0, None)}
        self._active = NO_KEY

    def __repr__(self) -> str:
        return f"MeshSecrets({len(self._held)})"

    @property
    def newest(self) -> Secret:
        """The secret to send with, and to give to a joiner."""
        return Secret(self._held[self._active].secret)

    @property
    def current(self) -> list[Secret]:
        """Those of the group keys that are received with: the one to send with, then the newest first."""
        current = [held for held in self._held.values() if held.replaced is None]
        current.sort(key=lambda held: (held.key == self._active, held.key), reverse=True)
        return [Secret(held.secret) for held in current]

    @property
    def replaced(self) -> list[Secret]:
        """The others that still count, the last to be replaced first."""
        said = {held.secret for held in self._held.values() if held.replaced is None}
        ended = [(held.replaced, held.secret) for held in self._held.values() if held.replaced is not None]
        return [Secret(secret) for _, secret in sorted(ended, reverse=True) if secret not in said]

    def follow(self, keys: Sequence[GroupKey], active: GroupKey | None, now: float) -> bool:
        """Take in the keyring as it is now, and say whether anything changed.

        If more were replaced than are kept, the one that was in use for the shortest time goes: fewest
        members can have left the mesh with it.
        """
        if active is None:
            return False
        before = self.encode(), self._active
        for key in keys:
            if key.id not in self._held:
                self._held[key.id] = _Held(key.id, admission_secret(key).reveal(), now, None)
        wanted = {key.id for key in keys}
        for key_id, held in list(self._held.items()):
            if key_id in wanted:
                held.replaced = None
            elif held.replaced is None:
                held.replaced = now
            elif now >= held.replaced + ACCEPT_REPLACED:
                del self._held[key_id]
        ended = [held for held in self._held.values() if held.replaced is not None]
        ended.sort(key=lambda held: (held.replaced or 0.0) - held.since, reverse=True)
        for held in ended[MAX_REPLACED:]:
            del self._held[KeyId(held.key)]
        self._active = active.id
        return before != (self.encode(), self._active)

    def encode(self) -> bytes:
        """Return all of it for the state directory, in msgpack. Which one is sent with says the keyring."""
        return msgspec.msgpack.encode(list(self._held.values()))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what `encode` wrote, or the bare secret that a state directory held before there were several.
        Raises ValueError."""
        if len(data) == SECRET_BYTES:
            return cls(Secret(data))
        try:
            held = msgspec.msgpack.decode(data, type=list[_Held])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError("the admission secrets cannot be read") from error
        if not held or any(len(h.key) != ID_BYTES or len(h.secret) != SECRET_BYTES for h in held):
            raise ValueError("the admission secrets have wrong lengths")
        secrets = cls(Secret(held[0].secret))
        secrets._held = {KeyId(h.key): h for h in held}
        secrets._active = next((KeyId(h.key) for h in held if h.replaced is None), KeyId(held[-1].key))
        return secrets
