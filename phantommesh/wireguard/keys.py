# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's seven WireGuard key pairs: their file, their ports, and when which of them is to be replaced.

A replaced dimension gets another port with its new key, so that an observer of either sees neither go on.
Ports take turns: dimension i has ``base_port + i``, or that plus 7, 14, ... as many as the configuration
says.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from phantommesh.dimensions import DIMENSIONS
from phantommesh.secret import Secret
from phantommesh.wireguard.device import public_key_of
from phantommesh.wireguard.possession import SEED_BYTES, is_seed, new_seed, private_key, prove

MAX_SLOT: Final = 8  # ports a dimension at most

# Tuning.
SPARE: Final = 1 / (DIMENSIONS + 1)
"""The share of a key's longest life that is the gap between two replacements. Seven fit into it and leave one
to spare."""
SEQ_AHEAD: Final = 16  # record numbers that a file of keys reserves for the records made with these keys


@dataclass(frozen=True, slots=True)
class WgKey:
    """One dimension's key, which of its ports it has, and when it was made (None: not known).

    ``seed`` is as `possession.new_seed` makes it: the private key follows from it.
    """

    seed: Secret = field(repr=False)
    slot: int = 0
    made: float | None = None

    @property
    def private(self) -> Secret:
        """The X25519 private key."""
        return private_key(self.seed)

    @property
    def public(self) -> bytes:
        """The X25519 public key, as WireGuard shows it."""
        return public_key_of(self.private)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    seeds: list[str]
    slots: list[int]
    made: list[float | None]
    seq: int


class _EarlierFile(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[str]
    slots: list[int]
    made: list[float | None]
    seq: int


@dataclass(frozen=True, slots=True)
class WgKeys:
    """All seven. ``seq`` bounds the record numbers that may have been used with them, after a crash too.

    ``in_place``: these are new keys in place of those in a file of an earlier version, which held private
    keys without seeds. Nobody can prove possession of such a key.
    """

    keys: tuple[WgKey, ...]
    seq: int = 0
    in_place: bool = field(default=False, compare=False)

    @classmethod
    def generate(cls) -> Self:
        """Make seven new ones."""
        return cls(tuple(WgKey(new_seed()) for _ in range(DIMENSIONS)))

    @property
    def private(self) -> tuple[Secret, ...]:
        """The private keys, by dimension."""
        return tuple(key.private for key in self.keys)

    @property
    def public(self) -> tuple[bytes, ...]:
        """The public keys, by dimension."""
        return tuple(key.public for key in self.keys)

    def proofs(self, node_id: bytes) -> tuple[bytes, ...]:
        """The proofs that this node holds the keys, by dimension; the same each time."""
        return tuple(prove(key.seed, key.public, node_id, i) for i, key in enumerate(self.keys))

    def agree(self, dimension: int, theirs: bytes) -> bytes | None:
        """The X25519 (RFC 7748) of one dimension's key and another public key, 32 bytes each; None for a key
        that agrees on nothing (RFC 7748 section 6.1: the result would be all zero)."""
        ours = X25519PrivateKey.from_private_bytes(self.private[dimension].reveal())
        try:
            return ours.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError:
            return None

    def ports(self, base: int, choices: int) -> tuple[int, ...]:
        """The UDP ports, by dimension, where each has ``choices`` of them."""
        return tuple(port(base, i, key.slot % choices) for i, key in enumerate(self.keys))

    def dated(self, now: float) -> Self:
        """These keys, those of unknown age taken to be made now (Unix seconds)."""
        return replace(
            self, keys=tuple(replace(k, made=now if k.made is None else k.made) for k in self.keys)
        )

    def replaced(self, dimension: int, slot: int, now: float, seq: int) -> Self:
        """These keys with a new one in one dimension, for records up to number ``seq``."""
        new = WgKey(new_seed(), slot, now)
        return replace(
            self,
            keys=tuple(new if i == dimension else key for i, key in enumerate(self.keys)),
            seq=max(self.seq, seq),
        )

    def next(self, longest: float, haste: float) -> tuple[float, int]:
        """When (Unix seconds) to replace which dimension, so that no key gets older than ``longest`` seconds.

        The oldest goes first, one ``SPARE`` of that life after the newest was made, times ``haste`` (0 to 1;
        the caller's dice, so that nobody can tell the moment), and at once where its life is over.
        """
        made = [0.0 if key.made is None else key.made for key in self.keys]
        oldest = min(range(DIMENSIONS), key=lambda i: (made[i], i))
        return min(made[oldest] + longest, max(made) + longest * SPARE * haste), oldest

    def encode(self) -> dict[str, object]:
        """Return plain data for JSON, for a file of mode 0600: the seeds in base64."""
        seeds = [base64.b64encode(key.seed.reveal()).decode("ascii") for key in self.keys]
        found: dict[str, object] = msgspec.to_builtins(
            _File(seeds, [key.slot for key in self.keys], [key.made for key in self.keys], self.seq)
        )
        return found

    @classmethod
    def decode(cls, given: object) -> Self:
        """Read what `encode` gave. Raises ValueError, which quotes no key.

        Earlier versions wrote private keys without seeds. Such a file gives new keys (``in_place``), with
        the ports and the record numbers of the old ones.
        """
        if isinstance(given, list):
            given = {"keys": given, "slots": [0] * DIMENSIONS, "made": [None] * DIMENSIONS, "seq": 0}
        earlier = isinstance(given, dict) and "keys" in given
        try:
            if earlier:
                old = msgspec.convert(given, _EarlierFile)
                file = _File(old.keys, old.slots, [None] * len(old.made), old.seq)
            else:
                file = msgspec.convert(given, _File)
            secrets = [base64.b64decode(text, validate=True) for text in file.seeds]
        except (ValueError, msgspec.ValidationError):
            raise ValueError("it does not hold WireGuard keys") from None
        if not len(secrets) == len(file.slots) == len(file.made) == DIMENSIONS:
            raise ValueError(f"it does not hold {DIMENSIONS} WireGuard keys")
        if len(set(secrets)) != DIMENSIONS or any(len(secret) != SEED_BYTES for secret in secrets):
            raise ValueError(f"it does not hold {DIMENSIONS} different WireGuard keys")
        if file.seq < 0 or any(not 0 <= slot < MAX_SLOT for slot in file.slots):
            raise ValueError("its numbers are out of range")
        seeds = [new_seed() for _ in secrets] if earlier else list(map(Secret, secrets))
        if not all(map(is_seed, seeds)):
            raise ValueError("it holds a seed that this program did not make")
        return cls(tuple(map(WgKey, seeds, file.slots, file.made)), file.seq, earlier)


def port(base: int, dimension: int, slot: int) -> int:
    """The UDP port of a dimension's slot."""
    return base + dimension + DIMENSIONS * slot
