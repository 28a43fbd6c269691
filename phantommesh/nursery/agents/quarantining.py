# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out CIPHER's quarantine: a peer's overlay traffic is closed by the guard's rules, handshakes and
probes go on."""

from __future__ import annotations

from phantommesh.nursery.parts import Parts
from phantommesh.trust.identity import parse_node_id


async def quarantine(parts: Parts, peer: str, *, on: bool) -> None:
    """Close a peer's traffic in the kernel, or open it. Raises NftError. Then nothing is closed, as nobody
    would open it again: CIPHER proposes it anew. What is to be opened the guard opens by itself later.

    The guard drops what has the peer's own addresses. What the peer carries beyond the mesh has others: the
    interfaces take that from the peer, and nobody has it until another router does.
    """
    node_id, closed = parse_node_id(peer), False
    parts.peers.quarantine(node_id, on=on)
    parts.reconciler.kick()
    try:
        await parts.guarding.converge()
        closed = on
    finally:
        if on and not closed:
            parts.peers.quarantine(node_id, on=False)
        parts.guarding.kick()
