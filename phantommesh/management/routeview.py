# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers to GET /v1/routes and to what is approved or withdrawn there: routes beyond the mesh."""

from __future__ import annotations

import msgspec


class RouteView(msgspec.Struct, frozen=True, kw_only=True):
    """One prefix of one member, this node among them."""

    prefix: str
    router: str
    node_id: str
    asked: bool
    """The member has asked this authority for it of late, or is this node itself and asks for it: its
    certificate does not have it yet."""
    approved: bool
    """An authority has approved it: its certificate has it, or it gets one as soon as it asks."""
    certified: bool
    """Its certificate has it, and it was not withdrawn."""
    claimed: bool
    """Its record says that it routes the prefix. Without a certificate that has it, this means nothing."""
    accepted: bool
    """This node takes the prefix, and this member is one of those that it goes to."""
    rank: int | None
    """The place of this member among those, 0 first."""
    carried: bool
    """This node sends packets for the prefix to this member now."""
    conflict: str = ""
    """Why this node does not take the prefix though its configuration accepts it."""


class RoutesView(msgspec.Struct, frozen=True, kw_only=True):
    """What this node advertises and accepts by its configuration, and all routes that are known here."""

    node: str
    authority: bool
    """Whether this node can approve: only then ``asked`` is known."""
    advertise: list[str]
    accept: list[str]
    exit: list[str]
    """The members by which this host's traffic is to leave, by name, the best first."""
    lan: bool
    """Whether the host's own private networks are reached directly all the same."""
    sites: dict[str, str] = {}
    """For some of ``advertise``, the network that is really there. Others' are not known here."""
    routes: list[RouteView]


class RouteResult(msgspec.Struct, frozen=True, kw_only=True):
    """A member's routes after some were approved or withdrawn. ``waiting`` are approved, and the member has
    not got a certificate with them yet."""

    name: str
    node_id: str
    prefixes: list[str]
    """Those that the request was about."""
    certified: list[str]
    waiting: list[str]
