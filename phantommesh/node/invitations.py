# SPDX-License-Identifier: GPL-3.0-or-later
"""What an authority says of its open invites, how one is made, and how one is taken back. Blocking: the book
is on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from phantommesh.config.reading import parse, refuse_overlay
from phantommesh.config.sections import Config
from phantommesh.config.writing import render
from phantommesh.endpoint import format_endpoint, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.management.bodies import InviteRequest
from phantommesh.management.finding import MAX_SHOWN, UnknownMemberError
from phantommesh.management.inviteview import InviteMade, InvitesView, InviteView, WithdrawnView
from phantommesh.moments import rfc3339
from phantommesh.node.returning import place_of
from phantommesh.records.record import callable_at
from phantommesh.state.invitebook import InviteBook, InviteEntry, check_invite
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.trust.invites import MAX_ENDPOINTS
from phantommesh.trust.issuing import Authority

MIN_PREFIX = 4  # characters of an id: fewer would be a slip of the hand


@dataclass(frozen=True, slots=True)
class Order:
    """An invite that can be made: all of it but its secret and its id. ``expires`` in s since 1970."""

    role: Role
    name: str | None
    expires: int
    uses: int
    endpoints: tuple[str, ...]
    tags: tuple[str, ...]
    replaces: NodeId | None = None
    ip4: str = ""


def ordered(node: NodeState, config: Config, wanted: InviteRequest, now: float) -> Order:
    """Check what an operator wants against the mesh and the configuration. Raises PhantomMeshError for what
    no joiner could use. Does not wait for a disk, but to see whether the root's key is here."""
    if node.authority is None:
        raise TrustError(
            "this node is no authority and cannot invite", fix="run `phantommesh invite` on an authority"
        )
    if wanted.endpoints:
        config = parse(render(config), {"node": {"endpoints": list(wanted.endpoints)}})
        refuse_overlay(config, (node.mesh.network4, node.mesh.network6))
    name, role, uses, tags = wanted.name, Role(wanted.role), wanted.uses, tuple(wanted.tags)
    replaces, ip4 = None, ""
    if wanted.replace is not None:
        if name is not None or role is not Role.NODE or uses != 1:
            raise TrustError(
                "whom an invite replaces says name, role and uses", fix="leave out name, role and uses"
            )
        place = place_of(node, wanted.replace)
        name, role, replaces, ip4 = place.name, place.role, place.replaces, str(place.ip4)
        tags = tags or place.tags
    if role is Role.AUTHORITY:
        node.root_key()  # else the joiner would find out
    endpoints = tuple(
        format_endpoint(*parse_endpoint(endpoint, config.control.port)) for endpoint in config.node.endpoints
    )
    mine = node.roster.get(node.identity.node_id)
    if not endpoints and config.nat.discover and mine is not None:
        endpoints = callable_at(mine.record)  # what the node has found out
    order = Order(role, name, int(now + wanted.seconds), uses, endpoints[:MAX_ENDPOINTS], tags, replaces, ip4)
    check_invite(order.endpoints, name, uses, tags)
    return order


def made(node: NodeState, order: Order, now: float) -> InviteMade:
    """Make an invite and put it into the book. Raises PhantomMeshError."""
    node.invites.expire(now)
    invite = node.invites.create(
        root_hash=node.mesh.root_hash, authority=node.identity.node_id, mesh=node.mesh.name,
        endpoints=order.endpoints, expires=order.expires, role=order.role, name=order.name, uses=order.uses,
        replaces=order.replaces, ip4=order.ip4, tags=order.tags,
    )  # fmt: skip
    return _told(order, invite.encode(), invite.invite_id.hex())


def planned(order: Order) -> InviteMade:
    """The same of an invite that is not made."""
    return _told(order, None, "")


def _told(order: Order, line: str | None, invite_id: str) -> InviteMade:
    notes = []
    if order.replaces is not None:
        notes.append(f"the use of this invite revokes the present {order.name} for ever")
    return InviteMade(
        invite=line, id=invite_id, expires=rfc3339(order.expires), role=order.role.value, name=order.name,
        uses=order.uses, replaces="" if order.replaces is None else format_node_id(order.replaces),
        notes=notes, dry_run=line is None,
    )  # fmt: skip


class Booked(Protocol):
    """The part of a node's state that this needs."""

    @property
    def authority(self) -> Authority | None: ...

    @property
    def invites(self) -> InviteBook: ...


def listed(node: Booked, now: float) -> InvitesView:
    """Return the invites that have not run out at ``now`` (s since 1970): those that are used up, too, for
    who joined by them. Raises TrustError where this node is no authority."""
    book = _book(node)
    open_ = [(name, entry) for name, entry in book.entries() if now < entry.expires]
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
