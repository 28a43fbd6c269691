# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of way that a dimension's packets take to a peer, as an operator is shown them."""

from __future__ import annotations

from typing import Final, Literal

WayKind = Literal["direct", "relayed", "tcp", "none"]
"""``direct``: to an address of the peer. ``relayed``: to a member that forwards what it cannot read. ``tcp``:
in frames over TCP, which is slow. ``none``: nothing arrives, or there are no keys yet."""
WAY_KINDS: Final[tuple[WayKind, ...]] = ("direct", "relayed", "tcp", "none")
