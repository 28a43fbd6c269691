# SPDX-License-Identifier: GPL-3.0-or-later
"""An operator's ping of one peer inside each dimension, as the view of the API."""

from __future__ import annotations

from collections.abc import Sequence

from phantommesh.management.pingview import PingDimension, PingResult
from phantommesh.management.views import PathView
from phantommesh.paths.burst import Tally
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import format_node_id


def result(
    entry: Entry, tallies: Sequence[Tally], paths: Sequence[PathView], *, count: int, size: int | None
) -> PingResult:
    """Put what came of the pings beside each path as it is now; a peer that is gone has none."""
    return PingResult(
        peer=entry.member.name,
        node_id=format_node_id(entry.member.node_id),
        ip4=str(entry.member.ip4),
        count=count,
        size=size,
        dimensions=[_dimension(path, tally) for path, tally in zip(paths, tallies, strict=False)],
    )


def _dimension(path: PathView, tally: Tally) -> PingDimension:
    times = [round(one, 6) for one in tally.times]
    return PingDimension(
        dimension=path.dimension,
        interface=path.interface,
        sent=tally.sent,
        received=len(times),
        loss=round(tally.loss, 4),
        rtt_min_s=min(times, default=None),
        rtt_avg_s=round(sum(times) / len(times), 6) if times else None,
        rtt_max_s=max(times, default=None),
        way=path.way,
        via=path.via,
        endpoint=path.endpoint,
        mtu=path.mtu,
        why=path.why,
    )
