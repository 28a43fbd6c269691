# SPDX-License-Identifier: GPL-3.0-or-later
"""What an authority says of its open invites, and how one is taken back. Blocking: the book is on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from phantommesh.errors import PhantomMeshError
from phantommesh.management.finding import MAX_SHOWN, UnknownMemberError
from phantommesh.management.inviteview import InvitesView, InviteView, WithdrawnView
from phantommesh.moments import rfc3339
from phantommesh.state.invitebook import InviteBook, InviteEntry
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.issuing import Authority

MIN_PREFIX = 4  # characters of an id: fewer would be a slip of the hand


class Booked(Protocol):
    """The part of a node's state that this needs."""

    @property
    def authority(self) -> Authority | None: ...

    @property
    def invites(self) -> InviteBook: ...


def listed(node: Booked, now: float) -> InvitesView:
    """Return the invites that may be used at ``now`` (s since 1970). Raises TrustError where this node is no
    authority."""
    book = _book(node)
    open_ = [(name, entry) for name, entry in book.entries() if now < entry.expires and entry.uses_left]
    return InvitesView(
        invites=[_view(name, entry) for name, entry in sorted(open_, key=lambda one: one[1].expires)],
        damaged=[Path(path).name for path in book.damaged()],
    )


def withdrawn(node: Booked, wanted: str) -> WithdrawnView:
    """Take back the invite whose id begins with ``wanted``. Raises UnknownMemberError where there is none,
    PhantomMeshError where there are several, TrustError where this node is no authority, StateError."""
    book = _book(node)
    prefix = wanted.strip().lower()
    found = [(name, entry) for name, entry in book.entries() if name.startswith(prefix)]
    if len(prefix) < MIN_PREFIX or not found:
        raise UnknownMemberError(
            f"there is no invite {wanted[:MAX_SHOWN]!r}",
            fix=f"give at least {MIN_PREFIX} characters of an ID of `phantommesh invite list`",
        )
    if len(found) > 1:
        raise PhantomMeshError(
            f"{len(found)} invites begin with {prefix[:MAX_SHOWN]}", fix="give more characters of the ID"
        )
    ((name, entry),) = found
    book.withdraw(bytes.fromhex(name))
    return WithdrawnView(id=name, joined=_joined(entry))


def _book(node: Booked) -> InviteBook:
    if node.authority is None:
        raise TrustError(
            "this node is no authority: it holds no invites", fix="run this on the authority that made it"
        )
    return node.invites


def _view(name: str, entry: InviteEntry) -> InviteView:
    return InviteView(
        id=name,
        name=entry.name or "",
        role=entry.role.value,
        expires=rfc3339(entry.expires),
        uses_left=entry.uses_left,
        replaces=entry.replaces,
        joined=_joined(entry),
    )


def _joined(entry: InviteEntry) -> list[str]:
    names = dict(zip(entry.enrolled, entry.names, strict=False))
    return [names.get(node_id, "") or node_id for node_id in entry.enrolled]
