# SPDX-License-Identifier: GPL-3.0-or-later
"""Where this node sees other members: its word as a witness (`node.whereabouts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import trio

from phantommesh.control.messages import Sighting
from phantommesh.endpoint import Address
from phantommesh.node.peers import Peers
from phantommesh.node.whereabouts import sighting
from phantommesh.nursery.due import moment
from phantommesh.nursery.members.finding import Finding
from phantommesh.nursery.members.gossip import GossipDriver
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import DeviceState


def sight(
    names: Sequence[str], finding: Finding, gossip: GossipDriver, peers: Peers,
    actual: Callable[[], Mapping[str, DeviceState]], peer: NodeId,
) -> Sighting:  # fmt: skip
    """Say where a member is seen from here. ``actual`` gives the interfaces, by ``names``, as read last."""
    entry, (now, wall) = peers.get(peer), moment()
    states = []
    if entry is not None:
        devices = map(actual().get, names)
        keys = peers.wg_keys_of(entry)
        states = [None if d is None else d.peers.get(key) for d, key in zip(devices, keys, strict=True)]
    return sighting((*gossip.gossip.seen(peer, now), *finding.heard(peer)), states, now, wall)


def seen_at(finding: Finding, gossip: GossipDriver, peer: NodeId) -> Iterator[Address]:
    """Yield where a member has shown that it gets what is sent there: a source is easily forged."""
    proved = gossip.membership.proved_at(peer, trio.current_time())
    for address, _ in (*finding.heard(peer), *(() if proved is None else (proved,))):
        yield address
