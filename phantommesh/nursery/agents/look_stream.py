# SPDX-License-Identifier: GPL-3.0-or-later
"""What STREAM sees: the kernel's counters of flows and calls, and the paths of the peers that flows go to."""

from __future__ import annotations

from typing import Final

from phantommesh.agents.stream import FlowSeen, Seen, Ways
from phantommesh.nursery.parts import Parts
from phantommesh.scatter.flows import SAMPLE, Address, bucket_of, decode_key
from phantommesh.scatter.peermap import BUCKETS
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
WORTH: Final = 20_000 // SAMPLE  # sampled bytes from which on a flow's bucket is worked out: 20 us each


async def look(parts: Parts) -> Seen:
    """Read the counters. What the kernel does not count is not seen."""
    counts = await parts.flows.sent()
    calls = await parts.flows.calls()
    peers = dict[Address, NodeId]()
    for entry in parts.peers.entries if counts else ():
        peers[entry.member.ip4] = peers[entry.member.ip6] = entry.member.node_id
    found, ways = list[FlowSeen](), dict[str, Ways]()
    for (version, raw), (packets, size) in counts.items():
        key = decode_key(raw, version)
        if key is None:
            continue
        node_id = peers.get(key.destination)
        if node_id is None or size < WORTH:
            found.append(FlowSeen(key, packets, size))
            continue
        peer = format_node_id(node_id)
        if peer not in ways and (homes := parts.scattering.homes(node_id)) is not None:
            loads, flows = parts.splitter.loads(node_id), parts.splitter.of(node_id)
            ways[peer] = Ways(
                frozenset(i for i, load in enumerate(loads) if load.used),
                [load.loss for load in loads],
                homes,
                frozenset() if flows is None else flows.dealt,
                None if flows is None or flows.nominee is None else flows.nominee.bucket,
            )
        bucket = None
        if peer in ways:
            bucket = _bucket(parts, node_id, bucket_of(raw, parts.scattering.seed, BUCKETS))
        found.append(FlowSeen(key, packets, size, peer, bucket))
    return Seen(found, calls, ways)


def _bucket(parts: Parts, node_id: NodeId, number: int) -> int:
    """The bucket of a flow of this number among those of the peer's classes: the one that sends most."""
    flows = parts.splitter.of(node_id)
    rates = {} if flows is None else flows.rates()
    same = [bucket for bucket in rates if bucket % BUCKETS == number]
    return max(same, key=lambda bucket: rates[bucket], default=number)
