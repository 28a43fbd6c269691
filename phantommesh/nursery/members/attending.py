# SPDX-License-Identifier: GPL-3.0-or-later
"""Lends connections to members: this node may be behind a NAT, or its control port closed. A member gets one
that has something to ask of this node and cannot call it; and each home gets one (`members/carrying.py`)."""

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
from phantommesh.trust.identity import NodeId

QUEUE = 256  # members that wait to be called; one that finds no place says so again

log = structlog.get_logger("phantommesh.attending")


class Attending:
    """One connection a member at most. ``changed`` is called when `live` or `trying` has."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._waiting, self._to_attend = trio.open_memory_channel[NodeId](QUEUE)
        self.trying: dict[NodeId, float] = {}  # those that are being called, since when
        self.live: dict[NodeId, trio.CancelScope] = {}  # those that have a connection
        self.changed: Callable[[], None] = lambda: None
        self.failed: Callable[[NodeId], None] = lambda peer: None
        self.dropped = Counter[str]()

    def wanted(self, peer: NodeId) -> None:
        """This member waits, or is to be a home."""
        if peer in self.live or peer in self.trying:
            return
        try:
            self._waiting.send_nowait(peer)
        except trio.WouldBlock:
            self.dropped["attend"] += 1
        else:
            self.trying[peer] = trio.current_time()

    def give_back(self, peer: NodeId) -> None:
        """Attend this member no more."""
        if peer in self.live:
            self.live[peer].cancel()

    async def run(self, answer: Callable[[Client], Awaitable[None]]) -> None:
        """Attend until cancelled. ``answer`` answers all that comes over a connection, until it ends."""
        self.trying.clear()
        self.live.clear()
        async with trio.open_nursery() as nursery:
            async for peer in self._to_attend.clone():
                self.trying[peer] = trio.current_time()
                nursery.start_soon(self._attend, peer, answer)

    async def _attend(self, peer: NodeId, answer: Callable[[Client], Awaitable[None]]) -> None:
        told, taken = self._caller.name_of(peer), False
        with left_out(self.dropped, "attend-broken", "a member's questions were left out", peer=told):
            try:
                async with self._caller.dial_direct(peer) as client:
                    if isinstance(await client.ask(messages.Attend()), messages.Done):
                        log.info("a member may ask this node over a connection that it made", peer=told)
                        taken = True
                        with trio.CancelScope() as scope:
                            self.live[peer] = scope
                            self.trying.pop(peer, None)
                            self.changed()
                            await answer(client)
            except StreamError as error:
                log.debug("a member is not attended", peer=told, error=str(error))
            finally:
                self.live.pop(peer, None)
                self.trying.pop(peer, None)
                if not taken:
                    self.failed(peer)
                self.changed()
