# SPDX-License-Identifier: GPL-3.0-or-later
"""API tokens: who asks over TCP, and what they may do.

A token is ``pmt_`` and 32 random bytes as base64url without padding (RFC 4648 section 5). The node keeps its
SHA-256 alone: with 256 random bits there is nothing to guess from a hash, so a slow one would only cost time.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Final, Literal, Protocol, TypeAlias

import msgspec

from phantommesh.errors import PhantomMeshError
from phantommesh.management.finding import UnknownMemberError
from phantommesh.management.scopes import Scope
from phantommesh.moments import rfc3339
from phantommesh.secret import Secret

PREFIX: Final = "pmt_"
RANDOM_BYTES: Final = 32
ID_BYTES: Final = 6
DEFAULT_LIFE: Final = 90 * 86_400.0  # s
MAX_LIFE: Final = 3_650 * 86_400.0  # s

# Tuning.
MAX_TOKENS: Final = 256  # kept at a time; each request with a token is compared with all of them
# s for which a token that is over can be told from one that never was, where there is room for it
REMEMBERED: Final = 30 * 86_400.0

_SHAPE: Final = re.compile(r"pmt_[A-Za-z0-9_-]{43}")

State: TypeAlias = Literal["good", "expired", "revoked"]
Standing: TypeAlias = Literal["good", "expired", "revoked", "unknown", "malformed"]
"""What a text that should be a token is. Callers are told apart only the good ones; the audit has all."""

# Python's `$` also matches before a newline at the end, which would stand in logs and in the audit trail.
TokenName: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._@-]*$(?!\n)")
]


class TokenError(PhantomMeshError):
    """A token that cannot be made."""


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token as it is kept. Times in Unix seconds; ``hash`` is the SHA-256 of its text in hexadecimal;
    ``revoked`` None: it was not. ``by``: who made it."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}$")]
    name: TokenName
    scope: Scope
    hash: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    made: float
    expires: float
    by: str
    revoked: float | None = None

    def state(self, now: float) -> State:
        """Whether it may be used at ``now``."""
        if self.revoked is not None:
            return "revoked"
        return "good" if now < self.expires else "expired"

    def __repr__(self) -> str:
        return f"Token(id={self.id!r}, name={self.name!r}, scope={self.scope})"


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """One token as the API shows it. ``used``: when this run of the node last saw it, null for never."""

    id: str
    name: str
    scope: Scope
    state: State
    made: str
    expires: str
    by: str
    used: str | None = None


class TokensView(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of GET /v1/tokens: all tokens, the newest first."""

    tokens: list[TokenView]


class TokenMade(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of POST /v1/tokens. ``token`` is the only copy there is; null: a dry run."""

    id: str
    name: str
    scope: Scope
    expires: str
    token: str | None
    dry_run: bool = False

    def __repr__(self) -> str:
        return f"TokenMade(id={self.id!r}, name={self.name!r}, scope={self.scope}, token=***)"


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/tokens: what the token may do, for how many seconds, and a name to know it by."""

    scope: Scope
    seconds: Annotated[float, msgspec.Meta(ge=1, le=MAX_LIFE)] = DEFAULT_LIFE
    name: TokenName = "unnamed"


@dataclass(frozen=True, slots=True)
class Looked:
    """What a text that should be a token is. ``token``: the one it is or was; None where there is none."""

    standing: Standing
    token: Token | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A new token, and its text, which nothing keeps."""

    token: Token
    text: Secret


@dataclass(frozen=True, slots=True)
class TokenBook:
    """All tokens that the node knows."""

    tokens: tuple[Token, ...] = ()

    def look(self, text: str, now: float) -> Looked:
        """Say what a text is. The time it takes tells neither which token comes near nor whether any does:
        every hash is compared, in constant time."""
        if _SHAPE.fullmatch(text) is None:
            return Looked("malformed")
        wanted, found = digest(text), None
        for token in self.tokens:
            if hmac.compare_digest(bytes.fromhex(token.hash), wanted):
                found = token
        if found is None:
            return Looked("unknown")
        return Looked(found.state(now), found)

    def make(self, request: TokenRequest, random: bytes, *, by: str, now: float) -> tuple[TokenBook, Made]:
        """Return the book with a new token, and that. ``random`` has `ID_BYTES` + `RANDOM_BYTES` bytes. In a
        full book it takes the place of the one that has been over for longest. Raises TokenError where all
        count."""
        kept = self.pruned(now).tokens
        over = sorted((token for token in kept if token.state(now) != "good"), key=_end)
        if len(kept) - len(over) >= MAX_TOKENS:
            raise TokenError(
                f"there are {len(kept)} tokens that count, which is the most",
                fix="revoke those that nobody uses (`phantommesh token list`)",
            )
        gone = {token.id for token in over[: max(0, len(kept) + 1 - MAX_TOKENS)]}
        kept = tuple(token for token in kept if token.id not in gone)
        assert len(random) == ID_BYTES + RANDOM_BYTES
        text = PREFIX + urlsafe_b64encode(random[ID_BYTES:]).decode().rstrip("=")
        token = Token(
            id=random[:ID_BYTES].hex(), name=request.name, scope=request.scope, hash=digest(text).hex(),
            made=now, expires=now + request.seconds, by=by,
        )  # fmt: skip
        return TokenBook((*kept, token)), Made(token, Secret(text.encode()))

    def revoke(self, token_id: str, now: float) -> tuple[TokenBook, Token]:
        """Return the book without the right to use one token, and that token. One that was revoked before
        keeps its time. Raises UnknownMemberError."""
        for index, token in enumerate(self.tokens):
            if token.id == token_id:
                over = token if token.revoked is not None else msgspec.structs.replace(token, revoked=now)
                tokens = (*self.tokens[:index], over, *self.tokens[index + 1 :])
                return replace(self, tokens=tokens), over
        raise UnknownMemberError("there is no token of this id", fix="see `phantommesh token list`")

    def pruned(self, now: float) -> TokenBook:
        """The same without tokens that have been over for long."""
        return TokenBook(tuple(t for t in self.tokens if now < _end(t) + REMEMBERED))


class TokenDesk(Protocol):
    """The node's tokens, as the API uses them."""

    @property
    def book(self) -> TokenBook: ...

    @property
    def used(self) -> dict[str, float]:
        """When each token was used last in this run, in Unix seconds, by id."""
        ...

    async def make(self, request: TokenRequest, *, by: str) -> Made:
        """Make a token; it is on disk then. Raises TokenError or StateError."""
        ...

    async def revoke(self, token_id: str) -> Token:
        """Revoke a token; that is on disk then. Raises UnknownMemberError or StateError."""
        ...


def digest(text: str) -> bytes:
    """The SHA-256 of a token's text."""
    return sha256(text.encode()).digest()


def view(token: Token, now: float, used: float | None = None) -> TokenView:
    """A token as the API shows it."""
    return TokenView(
        id=token.id, name=token.name, scope=token.scope, state=token.state(now), made=rfc3339(token.made),
        expires=rfc3339(token.expires), by=token.by, used=None if used is None else rfc3339(used),
    )  # fmt: skip


def _end(token: Token) -> float:
    return token.expires if token.revoked is None else min(token.expires, token.revoked)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Annotated[list[Token], msgspec.Meta(max_length=MAX_TOKENS)]


class TokenFileError(ValueError):
    """Bytes that are no book of tokens."""


def encode(book: TokenBook) -> bytes:
    """The book as JSON: hashes, and no token."""
    return msgspec.json.format(msgspec.json.encode(_File(list(book.tokens))), indent=1)


def decode(data: bytes) -> TokenBook:
    """Read what `encode` wrote. Raises TokenFileError."""
    try:
        tokens = tuple(msgspec.json.decode(data, type=_File).tokens)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TokenFileError("it is no book of tokens") from error
    if not _distinct(token.id for token in tokens) or not _distinct(token.hash for token in tokens):
        raise TokenFileError("it has a token twice")
    return TokenBook(tokens)


def _distinct(texts: Iterable[str]) -> bool:
    found = list(texts)
    return len(set(found)) == len(found)
