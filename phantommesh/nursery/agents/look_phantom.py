# SPDX-License-Identifier: GPL-3.0-or-later
"""What PHANTOM sees: each peer's traffic, cover and goal, and this node's keys."""

from __future__ import annotations

from time import time

import trio

from phantommesh.agents.phantom import PeerSeen, Seen
from phantommesh.nursery.parts import Parts
from phantommesh.records.roster import Entry
from phantommesh.scatter.goals import goal_of
from phantommesh.trust.identity import format_node_id


async def look(parts: Parts) -> Seen:
    """Build PHANTOM's snapshot. Nothing of it is read from the kernel."""
    await trio.lowlevel.checkpoint()
    now, wall = trio.current_time(), time()
    hosts = _hosts(parts)
    ages = tuple(None if key.made is None else wall - key.made for key in parts.own.wg_keys.keys)
    return Seen(tuple(_peer(parts, entry, hosts, now) for entry in parts.peers.entries), ages)


def _peer(parts: Parts, entry: Entry, hosts: dict[bytes, set[str]], now: float) -> PeerSeen:
    member = entry.member
    classes = parts.settings.intents.classes(member.name)
    private = goal_of(member.name, parts.config.scatter) == "private" or any(
        one.goal == "private" for one in classes
    )
    reached = set[str]()
    for key in parts.peers.wg_keys_of(entry) if private else ():
        reached |= hosts.get(key, set())
    return PeerSeen(
        format_node_id(member.node_id),
        private,
        parts.paths.paths.rate(member.node_id, now),
        len(reached),
        parts.cover.sent(member.node_id),
    )


def _hosts(parts: Parts) -> dict[bytes, set[str]]:
    """The hosts that the interfaces send to, as last read, by the peer's public key."""
    found = dict[bytes, set[str]]()
    for device in parts.reconciler.actual.values():
        for peer in device.peers.values():
            if peer.endpoint is not None:
                found.setdefault(peer.public_key, set()).add(peer.endpoint.host)
    return found
