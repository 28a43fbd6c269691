# SPDX-License-Identifier: GPL-3.0-or-later
"""What CIPHER sees: keys, certificate and links of this node, as its own parts have them."""

from __future__ import annotations

from collections.abc import Iterator
from time import time

import trio

from phantommesh.agents.cipher import LinkSeen, Seen, SignKind, SignSeen
from phantommesh.link.context import GLARE_DELAY
from phantommesh.nursery.parts import Parts
from phantommesh.records.roster import Entry, name_of
from phantommesh.trust.identity import NodeId, format_node_id


async def look(parts: Parts) -> Seen:
    """Return CIPHER's snapshot."""
    await trio.lowlevel.checkpoint()
    now, wall = trio.current_time(), time()
    wireguard, own = parts.config.wireguard, parts.own
    handshakes = handshake_ages(parts, wall)
    visitors = [visitor.entry for visitor in parts.peers.visitors.values()]
    return Seen(
        links=tuple(_link(parts, entry, handshakes, now) for entry in (*parts.peers.entries, *visitors)),
        signs=tuple(_signs(parts, now)),
        period=parts.links.timing.latest + GLARE_DELAY,
        promise=parts.links.timing.stale_alarm,
        random=parts.links.timing.stale_random,
        key_life=wireguard.key_seconds,
        key_ages=tuple(None if key.made is None else wall - key.made for key in own.wg_keys.keys),
        renewal_late=wall - own.renewal_due(),
        renewal_failing=own.renewal_error is not None,
        group_key_due=parts.keys.due(),
        forged=parts.links.drops["signature"],
    )


def handshake_ages(parts: Parts, wall: float) -> dict[bytes, float]:
    """The seconds since WireGuard's newest handshake with each public key, as the interfaces were last read;
    0 for one whose time is in the future, so that it counts as one of now."""
    return {
        peer.public_key: peer.age(wall) or 0.0
        for device in parts.reconciler.actual.values()
        for peer in device.peers.values()
        if peer.last_handshake
    }


def _link(parts: Parts, entry: Entry, handshakes: dict[bytes, float], now: float) -> LinkSeen:
    member = entry.member
    state = parts.links.state(member.node_id, now)
    ages = [handshakes[key] for key in parts.peers.wg_keys_of(entry) if key in handshakes]
    return LinkSeen(
        peer=format_node_id(member.node_id),
        name=member.name,
        age=state.age,
        failing=state.last_error is not None,
        handshake_age=min(ages, default=None),
        closed=member.ip6 in parts.guarding.quarantined,
    )


def _signs(parts: Parts, now: float) -> Iterator[SignSeen]:
    def sign(node: bytes | None, kind: SignKind, since: float | None) -> SignSeen:
        peer = "" if node is None else format_node_id(NodeId(node))
        name = parts.own.name() if node is None else name_of(parts.keeper.roster.get(NodeId(node)), node)
        return SignSeen(peer=peer, name=name, kind=kind, age=None if since is None else now - since)

    for node, since in parts.copies.unexplained.items():
        yield sign(node, "chain-reset", since)
    for suspicion in parts.copies.suspicions:
        yield sign(suspicion.node, "copied", suspicion.last)
    for node in parts.keeper.roster.equivocations:
        yield sign(node, "equivocation", None)
