# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers to GET /v1/federation and to what is done there: pacts with other meshes."""

from __future__ import annotations

from typing import Literal

import msgspec


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """Ports of a member, as ``tcp/443``, and who of the other mesh may use them. Members are names, or
    ``id:`` and a node id."""

    member: str
    ports: list[str]
    users: list[str]


class VisitorView(msgspec.Struct, frozen=True, kw_only=True):
    """A member of another mesh that this node links with."""

    name: str
    mesh: str
    node_id: str
    ip6: str
    linked: bool
    """Whether there are keys with it now."""
    inbound: list[str]
    """Ports of this node that it may use."""
    outbound: list[str]
    """Ports of it that this node may use."""


class PactView(msgspec.Struct, frozen=True, kw_only=True):
    """One pact of this mesh."""

    pact: str
    mesh: str | None
    """The other mesh's name; null while its half is not known."""
    state: Literal["in force", "resting", "ended"]
    """A pact rests while this node does not know whom the other mesh has revoked, or one half does not
    hold."""
    part: bool
    """Whether the pact names this node. One that it does not name asks no gateway: the pact rests here."""
    expires: str
    members: list[str]
    services: list[ServiceView]
    their_services: list[ServiceView]
    gateways: list[str]
    """The node ids of the other mesh's gateways."""
    silent: list[str]
    """Why a gateway does not answer this node, for each that does not."""


class FederationView(msgspec.Struct, frozen=True, kw_only=True):
    """All pacts that this node knows, and the members of other meshes that it links with."""

    node: str
    authority: bool
    """Whether this node can make and end pacts."""
    pacts: list[PactView]
    visitors: list[VisitorView]


class FederationInvited(msgspec.Struct, frozen=True, kw_only=True):
    """The line for the other mesh. It is a secret until it is used. ``notes``: names in the offer that nobody
    has, as far as is known."""

    invite: str
    pact: str
    expires: str
    notes: list[str] = []


class PactResult(msgspec.Struct, frozen=True, kw_only=True):
    """A pact that was made or ended, and the other mesh's name where it is known. ``notes``: names in the
    offer that nobody has, as far as is known."""

    pact: str
    mesh: str | None
    notes: list[str] = []
