# SPDX-License-Identifier: GPL-3.0-or-later
"""What VELOCITY sees: the peers with traffic, and those of whom something stands for VELOCITY."""

from __future__ import annotations

import trio

from phantommesh.agents.velocity import Nominee, PeerSeen, Seen
from phantommesh.nursery.parts import Parts
from phantommesh.trust.identity import NodeId, format_node_id


async def look(parts: Parts) -> Seen:
    """Build VELOCITY's snapshot. Nothing of it is read from the kernel: the paths' driver and the splitter
    keep what they measure."""
    await trio.lowlevel.checkpoint()
    paths, now = parts.paths.paths, trio.current_time()
    seen = list[PeerSeen]()
    for entry in parts.peers.entries:
        node_id = entry.member.node_id
        rate, flows = paths.rate(node_id, now), parts.splitter.of(node_id)
        dealt = frozenset[int]() if flows is None else flows.dealt
        if rate or dealt or paths.weighed(node_id):
            seen.append(
                PeerSeen(
                    format_node_id(node_id),
                    parts.scattering.in_order(node_id),
                    rate,
                    paths.candidates(node_id, now),
                    _nominee(parts, node_id),
                    dealt,
                )
            )
    return Seen(seen)


def _nominee(parts: Parts, node_id: NodeId) -> Nominee | None:
    flows = parts.splitter.of(node_id)
    if flows is None or (one := flows.nominee) is None:
        return None
    load = parts.splitter.loads(node_id)[one.dimension]
    return Nominee(one.bucket, one.rate, one.dimension, load.queue, load.loss)
