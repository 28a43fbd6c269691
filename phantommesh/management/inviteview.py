# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers about invites: what an authority keeps of each, without its secret."""

from __future__ import annotations

import msgspec


class InviteView(msgspec.Struct, frozen=True, kw_only=True):
    """One invite that is in the book of this authority. ``name``: who alone may use it, empty for anybody.
    ``replaces``: the node id of the lost member whose place it is for, or empty. ``joined``: under which
    names nodes have joined by it; node ids where an older version kept no names. ``expires``: RFC 3339."""

    id: str
    name: str
    role: str
    expires: str
    uses_left: int
    replaces: str
    joined: list[str]


class InvitesView(msgspec.Struct, frozen=True, kw_only=True):
    """All invites that have not run out, by when they end; also those that are used up. ``damaged``: names of
    files that cannot be read."""

    invites: list[InviteView]
    damaged: list[str]


class InviteMade(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of POST /v1/invites. ``invite`` is the only copy there is of the line by which a machine
    joins; null: a dry run, which has no ``id`` either. ``replaces``: the node id of the member that the use
    of the invite revokes, or empty. ``notes``: what to look at besides."""

    invite: str | None
    id: str
    expires: str
    role: str
    name: str | None
    uses: int
    replaces: str = ""
    notes: list[str] = []
    dry_run: bool = False

    def __repr__(self) -> str:
        return f"InviteMade(id={self.id!r}, name={self.name!r}, role={self.role!r}, invite=***)"


class WithdrawnView(msgspec.Struct, frozen=True, kw_only=True):
    """An invite that nobody can use any more. Who ``joined`` by it stays a member."""

    id: str
    joined: list[str]
