# SPDX-License-Identifier: GPL-3.0-or-later
"""The answers to GET /v1/drain, and to the writes that begin and end draining."""

from __future__ import annotations

from typing import Literal

import msgspec


class DrainView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether this node drains. ``draining``: members are moving to others what goes over it. ``drained``:
    nothing was forwarded for others for some seconds, so that the node may go. Traffic of the node itself
    does not count."""

    state: Literal["working", "draining", "drained"]
    since: str | None = None
    until: str | None = None
    """When the node is at work again by itself."""
    forced: bool = False
    by: Literal["", "operator", "nexus"] = ""
    """Who has it drain. What NEXUS began, since the node is not ready for its own work, NEXUS ends, or
    `POST /v1/undrain`: NEXUS then leaves the node at work until it was ready again for a while."""
    packets: int | None = None
    """Packets to and from prefixes beyond the mesh that this node has forwarded; None: it routes none."""
    leases: int = 0
    """Pairs of members and dimensions that it forwards for as a relay, now."""
    bridges: int = 0
    """Connections that it joins for others now."""
    region: str = ""
    others: list[str] = []
    """Other members of the region that drain, or went away while they did: until they are at work again, this
    node is refused without ``force``."""
    ended: str = ""
    """Why the node stopped draining by itself the last time, if it did."""
