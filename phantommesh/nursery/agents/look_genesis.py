# SPDX-License-Identifier: GPL-3.0-or-later
"""What GENESIS sees of a node."""

from __future__ import annotations

from phantommesh.agents.genesis import GenesisSeen
from phantommesh.nursery.parts import Parts
from phantommesh.paths.probe import ON_WIRE


async def look(parts: Parts) -> GenesisSeen:
    """Count what the interfaces sent to all peers, as read last, what of it the dark took, and the probes."""
    devices = parts.reconciler.actual.values()
    sent = sum(peer.tx_bytes for device in devices for peer in device.peers.values())
    probes = parts.paths.sent * ON_WIRE
    return GenesisSeen(
        sent=float(max(0, sent - probes)),
        lost=parts.paths.paths.vain,
        probes=float(probes),
        configured=parts.tuning.configured,
        taken=parts.tuning.taken,
    )
