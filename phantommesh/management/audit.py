# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit trail: who asked the API for which change, and what came of it."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from phantommesh.moments import rfc3339

WRITTEN: Final = "audit.written"
DENIED: Final = "audit.denied"
MOST_PATH: Final = 200  # characters
MOST_DETAIL: Final = 300
MOST_TEXT: Final = 100  # characters of one text of a body
MOST_ITEMS: Final = 16  # of one list or table of a body
HIDDEN: Final = "***"


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A request that would change something, answered. ``who``: ``uid 0``, ``token ID (NAME)`` or ``nobody``;
    ``address``: of a client over TCP; ``asked``: the body, cut and without secrets; ``status``: HTTP's;
    ``detail``: why it was refused or failed."""

    who: str
    address: str | None
    method: str
    path: str
    asked: dict[str, object] = {}
    status: int
    detail: str = ""

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
    return {key: HIDDEN if key in secret else _cut(value) for key, value in plain.items()}


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
