# SPDX-License-Identifier: GPL-3.0-or-later
"""Lends a connection to each member that has something to ask of this node and cannot call it: this node is
behind a NAT, or its control port is closed for TCP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
import trio

from phantommesh.control import messages
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.trust.identity import NodeId, format_node_id

QUEUE = 256  # members that wait to be called; one that finds no place says so again

log = structlog.get_logger("phantommesh.attending")


class Attending:
    """One connection a member at most, and only to one that has said that it waits."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._waiting, self._to_attend = trio.open_memory_channel[NodeId](QUEUE)
        self._attended = set[NodeId]()
        self.dropped = Counter[str]()

    def wanted(self, peer: NodeId) -> None:
        """This member waits."""
        if peer in self._attended:
            return
        try:
            self._waiting.send_nowait(peer)
        except trio.WouldBlock:
            self.dropped["attend"] += 1
        else:
            self._attended.add(peer)

    async def run(self, answer: Callable[[Client], Awaitable[None]]) -> None:
        """Attend until cancelled. ``answer`` answers all that comes over a connection, until it ends."""
        self._attended.clear()
        async with trio.open_nursery() as nursery:
            async for peer in self._to_attend.clone():
                self._attended.add(peer)
                nursery.start_soon(self._attend, peer, answer)

    async def _attend(self, peer: NodeId, answer: Callable[[Client], Awaitable[None]]) -> None:
        told = format_node_id(peer)
        with left_out(self.dropped, "attend-broken", "a member's questions were left out", peer=told):
            try:
                async with self._caller.dial(peer) as client:
                    if isinstance(await client.ask(messages.Attend()), messages.Done):
                        log.info("a member that cannot call this node asks over our connection", peer=told)
                        await answer(client)
            except StreamError as error:
                log.debug("a member is not attended", peer=told, error=str(error))
            finally:
                self._attended.discard(peer)
