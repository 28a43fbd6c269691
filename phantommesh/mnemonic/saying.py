# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says of attackers to others: a short list of hints, signed whole with its identity key.

The newest list of a node is all that it says: it takes the place of the lists before, so a hint is withdrawn
by leaving it out, and a list that somebody shows again later says nothing new. `SignedHints` is what travels;
how many members passed it on travels beside it, as its origin cannot know that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.errors import PhantomMeshError
from phantommesh.mnemonic.canaries import everybodys
from phantommesh.rates import source_block
from phantommesh.trust.identity import NODE_ID_BYTES, Identity

CONTEXT: Final = b"phantommesh hints v1"
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65

# Tuning.
MOST_HINTS: Final = 32  # of one node at a time: an eighth of the hinted set (`hints.MOST_HINTED`)
LIFE: Final = 6 * 3600.0  # s that a list holds at most
RENEWED: Final = 600.0  # s between signatures of a list that has not changed: newcomers hear of it so
MOST_KIND: Final = 16  # characters
MAX_HINTS_BYTES: Final = SIGNATURE_BYTES + 64 + MOST_HINTS * 80

_Moment = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class HintError(PhantomMeshError):
    """Bytes that are no list of hints, or are not signed by the node whose they are to be."""


class Hint(msgspec.Struct, frozen=True, array_like=True):
    """``source`` (a block as `rates.source_block` writes it) did what ``kind`` names, until Unix second
    ``until``. ``strength`` is how sure its origin is, in percent."""

    kind: Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_KIND)]
    source: Annotated[str, msgspec.Meta(max_length=39)]
    strength: Annotated[int, msgspec.Meta(ge=1, le=100)]
    until: _Moment


class Said(msgspec.Struct, frozen=True, array_like=True):
    """All that a node says. ``made``: Unix milliseconds, greater in each of a node's lists."""

    origin: Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
    made: _Moment
    hints: Annotated[tuple[Hint, ...], msgspec.Meta(max_length=MOST_HINTS)]

    @property
    def at(self) -> float:
        """When it was made, in Unix seconds."""
        return self.made / 1000


class SignedHints(msgspec.Struct, frozen=True, array_like=True):
    """A list's msgpack, and its signature (ML-DSA-65)."""

    body: Annotated[bytes, msgspec.Meta(max_length=MAX_HINTS_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


def sign_hints(identity: Identity, said: Said) -> bytes:
    """Sign a list of our own; return its `SignedHints`, encoded. Takes milliseconds."""
    body = msgspec.msgpack.encode(said)
    return msgspec.msgpack.encode(SignedHints(body, identity.sign(body, CONTEXT)))


def decode_hints_untrusted(data: bytes) -> tuple[SignedHints, Said]:
    """Read what `sign_hints` wrote. The signature is not verified yet. Raises HintError."""
    if len(data) > MAX_HINTS_BYTES:
        raise HintError("the list of hints is too long")
    try:
        signed = msgspec.msgpack.decode(data, type=SignedHints)
        said = msgspec.msgpack.decode(signed.body, type=Said)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise HintError("the list of hints cannot be read") from error
    if not all(
        hint.kind.isascii() and hint.kind.isprintable() and _block(hint.source) for hint in said.hints
    ):
        raise HintError("a hint is not about a block of addresses")
    if len({hint.source for hint in said.hints}) != len(said.hints):
        raise HintError("two hints of a list are about one block")
    return signed, said


def check_signature(signed: SignedHints, key: MLDSA65PublicKey) -> None:
    """Raise HintError unless this is the key that signed it."""
    try:
        key.verify(signed.signature, signed.body, CONTEXT)
    except (InvalidSignature, ValueError) as error:
        raise HintError("the signature under the list of hints is wrong") from error


def _block(source: str) -> bool:
    try:
        return source_block(source) == source
    except ValueError:
        return False


class OwnHints:
    """What this node says. Of more than `MOST_HINTS` the ones that end first are left out, and private
    addresses always: elsewhere they mean another machine."""

    def __init__(self) -> None:
        self._hints = dict[str, Hint]()
        self._changed = False
        self._made = 0

    def __len__(self) -> int:
        return len(self._hints)

    def tell(self, kind: str, address: str, strength: float, until: float, now: float) -> None:
        """Say that ``address`` did what ``kind`` names, as sure as ``strength`` (0 to 1), until then (Unix
        seconds), `LIFE` from now at most. Raises ValueError for what is no address."""
        until, source = min(until, now + LIFE), source_block(address)
        if until <= now or not everybodys(source):
            return
        hint = Hint(kind[:MOST_KIND], source, max(1, min(100, round(100 * strength))), int(until))
        if self._hints.get(hint.source) == hint:
            return
        self._hints[hint.source] = hint
        if len(self._hints) > MOST_HINTS:
            del self._hints[min(self._hints.values(), key=lambda one: one.until).source]
        self._changed = True

    def withdraw(self, address: str) -> None:
        """Say no more of an address."""
        self._changed |= self._hints.pop(source_block(address), None) is not None

    def withhold(self, never: Callable[[str], float | None]) -> None:
        """Say no more of what is never banned (`hints.Never`): a member may be there now."""
        for source in [source for source in self._hints if never(source) is not None]:
            self.withdraw(source)

    def due(self, now: float) -> bool:
        """Whether there is a list to be signed: another one than the last, or that again, lest it ends."""
        ended = [source for source, hint in self._hints.items() if hint.until <= now]
        for source in ended:
            del self._hints[source]
        return self._changed or (bool(self._hints) and now - self._made / 1000 >= RENEWED)

    def take(self, origin: bytes, now: float) -> Said:
        """The list to be signed now."""
        self._made, self._changed = max(self._made + 1, int(now * 1000)), False
        return Said(origin, self._made, tuple(self._hints.values()))
