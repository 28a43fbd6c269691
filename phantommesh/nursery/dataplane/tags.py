# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the rules in the kernel that write and clear the tags of leases (`routing.tagging`), and has
WireGuard send to a lease with a tag once its rules are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import structlog
import trio

from phantommesh.endpoint import Address
from phantommesh.faults import Fault, FaultKind
from phantommesh.node.peers import Peers
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.host.nft import NftError, Table
from phantommesh.routing import tagging
from phantommesh.routing.tagging import Tagged
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import Endpoint

TAGS_UNSET: Final = FaultKind("relay-tags-unset", "medium")

# Tuning.
ALIASES: Final = 50_000  # where the ports begin that stand for leases with a tag

log = structlog.get_logger("phantommesh.borrowing")

Key = tuple[NodeId, int]  # a peer and a dimension


class Tags:
    """The leases with a tag that this node uses. ``device`` is the interface whose name the rules' table has;
    ``changed`` is called with a peer to whom another way is to be taken. Ring ``bell`` after a change."""

    def __init__(self, device: str, peers: Peers, ways: Ways, changed: Callable[[NodeId], None]) -> None:
        self._device, self._peers, self._ways, self._changed = device, peers, ways, changed
        self.tagged: dict[Key, tuple[Tagged, Way]] = {}
        self._installed: frozenset[Tagged] = frozenset()
        self._untagged: NftError | None = None
        self.bell = Bell()

    def drop(self, key: Key) -> bool:
        """Use no lease with a tag here any more; return whether one was used."""
        return self.tagged.pop(key, None) is not None

    def put(self, key: Key, relay: NodeId, at: Address, own: int, tag: int) -> None:
        """Use a lease with a tag: of this relay, at its port, from this WireGuard port of this node's."""
        alias = self._alias(relay, at, own, tag)
        way = Way(Kind.RELAYED, Endpoint(at.host, alias), relay=relay)
        self.tagged[key] = Tagged(own, at, tag, alias), way

    def _alias(self, relay: NodeId, at: Address, own: int, tag: int) -> int:
        """A port that stands for a lease with a tag: none that the relay's node itself has, nor one that
        stands for another lease in this WireGuard port. Two relays may have one address: behind one NAT."""
        entry = self._peers.get(relay)
        taken = {at.port} if entry is None else {at.port, *entry.record.wg_ports}
        for other, _ in self.tagged.values():
            if other.relay.host == at.host and other.own == own:
                taken |= {other.alias, other.relay.port}
        return next((p for p in range(ALIASES + tag, 65536, 256) if p not in taken), ALIASES + tag)

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong."""
        if self._untagged is not None:
            yield TAGS_UNSET.fault(
                f"some peers are not reached over relays: {self._untagged}", self._untagged.fix
            )

    async def keep(self) -> None:
        """Have the rules that write and clear tags, then have WireGuard send there."""
        while True:
            wanted = dict(self.tagged)
            rules = frozenset(tagged for tagged, _ in wanted.values())
            try:
                if rules != self._installed:
                    table = Table(tagging.FAMILY, tagging.table_name(self._device))
                    if rules:
                        await table.install(tagging.render(self._device, rules))
                    else:
                        await table.remove()  # an empty one would stay after the node's end
                    self._installed, self._untagged = rules, None
            except NftError as error:
                self._untagged = error
                await trio.sleep(1.0)
                continue
            for (peer, dimension), (tagged, way) in wanted.items():
                if self.tagged.get((peer, dimension)) == (tagged, way) and self._ways.offer(
                    peer, dimension, way
                ):
                    self._changed(peer)
            if dict(self.tagged) == wanted:
                await self.bell.wait()

    async def remove(self) -> None:
        """Remove the rules."""
        if self._installed:
            try:
                await Table(tagging.FAMILY, tagging.table_name(self._device)).remove()
            except NftError as error:
                log.warning("the rules of tags are not removed", error=str(error), fix=error.fix)
        self._installed = frozenset()
