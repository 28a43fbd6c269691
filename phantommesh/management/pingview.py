# SPDX-License-Identifier: GPL-3.0-or-later
"""The answer to POST /v1/pings: what came of pings to one peer inside each dimension."""

from __future__ import annotations

import msgspec

from phantommesh.management.wayview import WayKind


class PingDimension(msgspec.Struct, frozen=True, kw_only=True):
    """One dimension. ``rtt_*`` are seconds, None where nothing came back; ``loss`` is a ratio, 0 to 1. The
    rest is as in `views.PathView`."""

    dimension: int
    interface: str
    sent: int
    received: int
    loss: float
    rtt_min_s: float | None
    rtt_avg_s: float | None
    rtt_max_s: float | None
    way: WayKind
    via: str | None
    endpoint: str | None
    mtu: int | None
    why: str


class PingResult(msgspec.Struct, frozen=True, kw_only=True):
    """``size`` is that of each ping in bytes as a packet of the overlay; None: as small as a probe."""

    peer: str
    node_id: str
    ip4: str
    count: int
    size: int | None
    dimensions: list[PingDimension]

    @property
    def answered(self) -> int:
        """The number of dimensions in which something came back."""
        return sum(bool(one.received) for one in self.dimensions)
