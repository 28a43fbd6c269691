# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit trail: who asked the API for which change, and what came of it."""

from __future__ import annotations

from typing import Final, Protocol
from urllib.parse import unquote

import msgspec
from msgspec.structs import force_setattr

from phantommesh.errors import shortened
from phantommesh.moments import rfc3339
from phantommesh.secret import HIDDEN, starred

WRITTEN: Final = "audit.written"
DENIED: Final = "audit.denied"
MOST_PATH: Final = 200  # characters
MOST_DETAIL: Final = 300
MOST_TEXT: Final = 100  # characters of one text of a body
MOST_ITEMS: Final = 16  # of one list or table of a body


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A request that would change something, answered. ``who``: ``uid 0``, ``token ID (NAME)`` or ``nobody``;
    ``address``: of a client over TCP; ``asked``: the body, cut and without secrets; ``status``: HTTP's;
    ``detail``: why it was refused or failed.

    Whatever looks like a secret is starred out as it is made, wherever it stands: clients put tokens into
    URLs, and the trail is kept, and told to others. Path and detail are cut after that: no secret in two.
    """

    who: str
    address: str | None
    method: str
    path: str
    asked: dict[str, object] = {}
    status: int
    detail: str = ""

    def __post_init__(self) -> None:
        force_setattr(self, "who", starred(self.who))
        force_setattr(self, "path", shortened(_starred_path(self.path), MOST_PATH))
        force_setattr(self, "asked", _starred(self.asked))
        force_setattr(self, "detail", shortened(starred(self.detail), MOST_DETAIL))

    @property
    def denied(self) -> bool:
        """Whether it was refused for who asked."""
        return self.status in (401, 403, 429)


class AuditEntry(Write, frozen=True, kw_only=True):
    """A line of the audit trail. ``seq`` goes on over all runs of the node."""

    seq: int
    time: str


class AuditTrail(Protocol):
    """The audit trail, as the API uses it."""

    async def wrote(self, write: Write) -> None:
        """Put a write on record. Returns once that is on disk, or soon where the disk refuses."""
        ...

    def read(self, after: int, limit: int) -> list[AuditEntry]:
        """At most so many entries with a number above ``after``, oldest first."""
        ...


def entry(write: Write, seq: int, at: float) -> AuditEntry:
    """A write as it is shown; ``at`` in Unix seconds."""
    return AuditEntry(
        seq=seq, time=rfc3339(at, milliseconds=True),
        **{name: getattr(write, name) for name in Write.__struct_fields__},
    )  # fmt: skip


def asked(body: msgspec.Struct, secret: frozenset[str]) -> dict[str, object]:
    """A body as plain data of bounded size, without its ``secret`` fields."""
    plain: dict[str, object] = msgspec.to_builtins(body)
    return {key: HIDDEN if key in secret else _cut(_starred(value)) for key, value in plain.items()}


def _starred_path(path: str) -> str:
    """A path and query as they came; decoded where that brings a secret to light."""
    decoded = unquote(path)
    return starred(path) if starred(decoded) == decoded else starred(decoded)


def _starred(value: object) -> object:
    match value:
        case str():
            return starred(value)
        case list():
            return [_starred(one) for one in value]
        case dict():
            return {starred(str(key)): _starred(one) for key, one in value.items()}
        case _:
            return value


def _cut(value: object) -> object:
    match value:
        case str() if len(value) > MOST_TEXT:
            return f"{value[:MOST_TEXT]}..."
        case list() if len(value) > MOST_ITEMS:
            return [*map(_cut, value[:MOST_ITEMS]), f"{len(value) - MOST_ITEMS} more"]
        case list():
            return [_cut(one) for one in value]
        case dict() if len(value) > MOST_ITEMS:
            return {"items": len(value)}
        case dict():
            return {str(key)[:MOST_TEXT]: _cut(one) for key, one in value.items()}
        case _:
            return value
