# SPDX-License-Identifier: GPL-3.0-or-later
"""What OMNISCIENT sees."""

from __future__ import annotations

import trio

from phantommesh.agents.omniscient import Member, Seen, Service, Vitals
from phantommesh.nursery.host.vitals import descriptors, memory
from phantommesh.nursery.parts import Parts


async def look(parts: Parts) -> Seen:
    """Return the services' pulses, the vital signs, and how the members stand. Nothing here blocks."""
    await trio.lowlevel.checkpoint()
    held = parts.vitals.held()
    services = tuple(
        Service(name, pulse.due, pulse.slowest(held), pulse.ordered, pulse.restarts)
        for name, pulse in parts.services.running.items()
    )
    signs, opened = parts.vitals, descriptors()
    gone = parts.gossip.membership.gone
    members = tuple(
        Member(
            entry.member.name,
            not gone(entry.member.node_id),
            entry.record.condition.health,
            entry.record.condition.draining,
        )
        for entry in parts.peers.entries
    )
    vitals = Vitals(
        lag=signs.lag(),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        jump=signs.jump(),
        memory=memory(),
        descriptors=None if opened is None else opened[0],
        limit=None if opened is None else opened[1],
        free=signs.free,
    )
    return Seen(services, vitals, members)
