# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the whole mesh, as the view of the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import trio

from phantommesh.management.topoview import Advice, MeasuredLink, StationView, TopologyView
from phantommesh.nursery.members.surveying import Known, Surveying
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
PATIENCE: Final = 12.0  # s that a reader waits for members to be asked


def view(part: Surveying) -> TopologyView:
    """Return what the newest survey found."""
    known = part.known
    if known is None:
        return TopologyView()
    analysis = known.analysis
    degrees = Counter(end for ends in analysis.edges for end in ends)
    return TopologyView(
        age_s=round(trio.current_time() - known.at, 1),
        asked=known.asked,
        heard=known.heard,
        sweep_s=round(known.took, 3),
        analysis_s=round(known.thought, 4),
        members=[
            StationView(
                name=station.name,
                node_id=format_node_id(member),
                region=station.region,
                relay=station.relay,
                nat=station.nat,
                links=degrees[member],
                between=round(analysis.between.get(member, 0.0), 4),
            )
            for member, station in sorted(known.stations.items(), key=lambda one: one[1].name)
        ],
        links=[
            MeasuredLink(
                one=_name(known, one),
                two=_name(known, two),
                way=link.kind.text,
                rtt_s=round(link.rtt, 6),
                jitter_s=round(link.jitter, 6),
                loss=round(link.loss, 4),
                capacity=link.capacity,
                via=_names(known, link.relays),
            )
            for (one, two), link in analysis.edges.items()
        ],
        links_total=known.links,
        advice=[
            Advice(
                kind=finding.kind.text,
                members=_names(known, finding.members),
                text=finding.text,
                fix=finding.fix,
                cut=_names(known, finding.cut),
            )
            for finding in analysis.findings
        ],
    )


def _name(known: Known, member: NodeId) -> str:
    station = known.stations.get(member)
    return format_node_id(member) if station is None else station.name


def _names(known: Known, members: Iterable[NodeId]) -> list[str]:
    return [_name(known, member) for member in members]
