# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes beyond the mesh this node sends to members that route them, and to whom first. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from phantommesh.wireguard.device import Network


@dataclass(frozen=True, slots=True)
class Taken:
    """A prefix that this node takes, with the node ids of its routers in order of preference."""

    prefix: Network
    routers: tuple[bytes, ...]
