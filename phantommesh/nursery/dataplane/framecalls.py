# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls peers for frames over TCP: directly, else by way of a member that both ends reach.

A call ends where frames are carried by it (`framed`), or where no way is left to try.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from typing import Protocol

import structlog
import trio

from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.node.peers import Peers
from phantommesh.nursery.members.bridging import bridged
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.rates import Rates
from phantommesh.routing.constraints import FREE, Constraints
from phantommesh.routing.lastway import LastWay
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
CALLS = 16  # connections that are being made at once,
CALLS_BY_WORD = 4  # of them by the word of one member
OPENING = 10.0  # s that this may take
DIRECT = 5.0  # s for a direct one where there are members to try as well
CARRIERS = 3  # members by way of which a peer is called
PROMPTS, PROMPTS_BURST = 0.5, 6.0  # prompts of one member to call a peer, a second and at once

log = structlog.get_logger("phantommesh.framed")


class Carry(Protocol):
    """Carries frames over a connection to a peer until it ends. Raises `StreamError`."""

    async def __call__(self, peer: NodeId, client: Client, *, ours: bool, carrier: bytes = b"") -> None: ...


class Take(Protocol):
    """Answers a peer that asks for frames on a connection that ``carrier`` joins, and carries them. Raises
    `StreamError`."""

    async def __call__(self, client: Client, carrier: bytes = b"") -> None: ...


class _Call:
    """A call to a peer. ``carrier``: the member by whose word it is made. ``carried``: frames have been
    carried by it."""

    def __init__(self, carrier: NodeId | None = None) -> None:
        self.carrier, self.carried = carrier, False


class FrameCalls:
    """The calls of this node. ``homes`` gives the members that carry for this node: they may join it with a
    peer that takes no connection, as far as ``constraints`` lets them. ``stir`` is called with a peer to whom
    a call failed; ``named`` says what the log calls a peer."""

    def __init__(
        self, me: NodeId, last: LastWay, peers: Peers, caller: Caller, homes: Callable[[], Sequence[NodeId]],
        dropped: Counter[str], *,
        constraints: Constraints, carry: Carry, take: Take, stir: Callable[[bytes], None],
        named: Callable[[bytes], str],
    ) -> None:  # fmt: skip
        self._me, self._last, self._peers, self._caller, self._homes = me, last, peers, caller, homes
        self._constraints = constraints
        self._dropped, self._carry, self._take, self._stir, self._named = dropped, carry, take, stir, named
        self.seen: dict[bytes, Address] = {}  # where each peer finished its latest handshake
        self._calls = 0
        self._prompts = Rates[tuple[bytes, bytes]](PROMPTS, PROMPTS_BURST)  # of a peer by a carrier's word
        self._prompted = Counter[bytes]()  # calls that are being made, by whose word
        self._joining: set[tuple[bytes, bytes]] = set()  # peers that are called, by way of whom

    @property
    def free(self) -> bool:
        """Whether one more call may be made now."""
        return self._calls < CALLS

    def retain(self, peers: Container[bytes]) -> None:
        """Forget all other peers."""
        self.seen = {peer: seen for peer, seen in self.seen.items() if peer in peers}

    def start(self, nursery: trio.Nursery, peer: NodeId, carrier: NodeId | None = None) -> None:
        """Call a peer, in a task of the nursery: by every way, or by way of one member only."""
        self._calls += 1
        if carrier is not None:
            self._prompted[carrier] += 1
        nursery.start_soon(self._dial, peer, carrier)

    def prompted(self, nursery: trio.Nursery | None, peer: NodeId, carrier: NodeId) -> None:
        """A member says that a peer waits there for a connection of this node's to be joined with. Without a
        nursery nothing is called."""
        known = self._peers.get(peer) is not None and self._peers.get(carrier) is not None
        known = known and self._may(carrier)
        if (peer, carrier) in self._joining:
            return  # this node waits there already
        ready = self.free and self._prompted[carrier] < CALLS_BY_WORD and known
        if nursery is None or not ready or not self._prompts.allow((peer, carrier), trio.current_time()):
            self._dropped["frame-prompt"] += 1
            return
        self.start(nursery, peer, carrier)

    async def _dial(self, peer: NodeId, carrier: NodeId | None = None) -> None:
        """Call a peer for frames: directly, else by way of a member. ``carrier``: by way of that one only."""
        told, call = self._named(peer), _Call(carrier)
        with left_out(self._dropped, "frame-broken", "a connection for frames broke", peer=told):
            try:
                carriers = self._carriers(peer) if carrier is None else [carrier]
                for way in [None, *carriers] if carrier is None else carriers:
                    opening = trio.CancelScope(
                        deadline=trio.current_time() + (OPENING if way or not carriers else DIRECT)
                    )
                    try:
                        with opening:
                            await self._call(peer, way, call, opening)
                    except StreamError as error:
                        by = {} if way is None else {"by": self._named(way)}
                        log.debug("no frames with a peer", peer=told, error=str(error), **by)
                    if call.carried:
                        break
            finally:
                if not call.carried:
                    self._made(call)
                    if carrier is None:
                        self._last.failed(peer, trio.current_time())
                        self._stir(peer)

    async def _call(self, peer: NodeId, way: NodeId | None, call: _Call, opening: trio.CancelScope) -> None:
        """Call a peer, and carry frames until the connection ends. Raises `StreamError`."""

        def opened() -> None:
            opening.deadline, call.carried = float("inf"), True
            self._made(call)

        if way is None:
            async with self._caller.dial_direct(peer, self.seen.get(peer)) as client:
                if isinstance(await client.ask(messages.Frames()), messages.Done):
                    opened()
                    await self._carry(peer, client, ours=True)
            return
        if (peer, way) in self._joining:
            raise StreamError("it is being called by way of this member")
        self._joining.add((peer, way))
        try:
            await self._call_by(way, peer, opened)
        finally:
            self._joining.discard((peer, way))

    def _made(self, call: _Call) -> None:
        """The connection of a call is there, or will not be."""
        self._calls -= 1
        if call.carrier is not None:
            self._prompted[call.carrier] -= 1
            self._prompted += Counter()  # without those that are 0

    async def _call_by(self, way: NodeId, peer: NodeId, opened: Callable[[], None]) -> None:
        async with bridged(self._caller, self._me, way, peer) as (client, ours):
            self._joining.discard((peer, way))
            opened()
            if ours:
                await self._carry(peer, client, ours=True, carrier=way)
            else:
                self._last.failed(peer, trio.current_time())  # the peer made it
                await self._take(client, way)

    def _carriers(self, peer: NodeId) -> list[NodeId]:
        """The members to try as a way to a peer that takes no connection, in an order that all share: those
        that relay, the authorities first and those that are about to go last, then this node's homes."""
        relays = [e for e in self._peers.entries if e.record.relay is not None]
        relays.sort(
            key=lambda e: (
                e.record.condition.draining,
                e.member.role is not Role.AUTHORITY,
                e.member.node_id,
            )
        )
        found = dict.fromkeys((*(entry.member.node_id for entry in relays), *self._homes()))
        allowed = (one for one in found if one != peer and self._may(one))
        there = [one for one in allowed if self._caller.sessions.newest(one) is not None]
        return there[:CARRIERS]

    def _may(self, carrier: NodeId) -> bool:
        """Whether a member may join this node's connections."""
        if self._constraints == FREE:
            return True
        entry = self._peers.get(carrier)
        return entry is not None and not self._constraints.refuses(
            entry.member.name, entry.record.region, format_node_id(carrier)
        )
