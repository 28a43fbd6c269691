# SPDX-License-Identifier: GPL-3.0-or-later
"""What NEXUS sees."""

from __future__ import annotations

from phantommesh import __version__
from phantommesh.agents.nexus import Member, Seen
from phantommesh.nursery.parts import Parts


async def look(parts: Parts) -> Seen:
    """Return how this node, its file and the members' records stand. The file is read in a thread."""
    await parts.configfile.look(parts.config, parts.settings.waiting)
    gone, holding = parts.gossip.membership.gone, {e.member.node_id for e in parts.drainer.holding()}
    members = tuple(
        Member(
            name=entry.member.name,
            region=entry.record.region,
            version=entry.record.version,
            draining=entry.member.node_id in holding,
            answers=not gone(entry.member.node_id),
            policy=entry.record.condition.policy,
        )
        for entry in parts.peers.entries
    )
    return Seen(
        region=parts.config.node.region,
        version=__version__,
        ready=parts.drainer.able,
        draining=parts.drainer.by,
        taken_back=parts.drainer.taken_back,
        policy=parts.drainer.policy,
        members=members,
        drift=parts.configfile.drift,
        unusable=parts.configfile.unusable,
    )
