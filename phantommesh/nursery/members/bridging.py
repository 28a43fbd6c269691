# SPDX-License-Identifier: GPL-3.0-or-later
"""Joins the connections that two members have made to this node, for frames over TCP (`node.bridging`); and
makes such a connection, as an end.

Either end calls the common member and asks for the other (`control.messages.Bridge`). What goes over the
joined connections is a channel of the pair's own session: the lower node id opens it, and asks for frames.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
import trio

from phantommesh.control import channel, messages
from phantommesh.endpoint import by_way_of
from phantommesh.node.bridging import Bridges
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import FramedStream, StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
COMES: Final = 6.0  # s that the other end has to come
OPENS: Final = 4.0  # s that the pair has to open its channel
SILENCE: Final = 60.0  # s without a frame after which the connections end: the ends send one every 15 s

log = structlog.get_logger("phantommesh.bridging")


class _End:
    """One of two connections. ``told``: its member knows that they are joined."""

    def __init__(self, client: Client) -> None:
        self.client, self.other, self.scope = client, None, trio.CancelScope()
        self.joined, self.told = trio.Event(), trio.Event()

    client: Client
    other: _End | None


class Bridging:
    """Joins connections. ``offers``: whether this node relays at all."""

    def __init__(self, bridges: Bridges, caller: Caller, offers: Callable[[], bool]) -> None:
        self.bridges, self._caller, self.offers = bridges, caller, offers
        self._waiting: dict[tuple[bytes, bytes], _End] = {}

    @property
    def dropped(self) -> Counter[str]:
        """Counts of what was not joined or passed on, by reason."""
        return self.bridges.dropped

    async def join(self, client: Client, to: bytes) -> None:
        """A member asks on its connection for that of another; return when the connection is of no more use.
        Raises `StreamError`."""
        origin = client.session.peer
        why = (
            self.bridges.admit(origin, to, trio.current_time())
            if self.offers()
            else "this node does not relay"
        )
        if why:
            return await _answer(client, messages.Refused(why, "choose another relay"))
        end = _End(client)
        try:
            if not await self._meet(end, origin, to):
                return await _answer(client, messages.Refused("the other member did not come", "ask again"))
            await self._pass_on(end, origin, to)
        finally:
            self.bridges.over(origin)
            if self._waiting.get((origin, to)) is end:
                del self._waiting[origin, to]
            if end.other is not None:
                end.other.scope.cancel()

    async def _meet(self, end: _End, origin: bytes, to: bytes) -> bool:
        """Wait for the other end, and have it called."""
        other = self._waiting.pop((to, origin), None)
        if other is not None:
            end.other, other.other = other, end
            other.joined.set()
            return True
        if (before := self._waiting.get((origin, to))) is not None:
            before.scope.cancel()
        self._waiting[origin, to] = end
        with end.scope, trio.move_on_after(COMES):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._call, NodeId(to), origin)
                await end.joined.wait()
                nursery.cancel_scope.cancel()
        return end.other is not None

    async def _call(self, to: NodeId, origin: bytes) -> None:
        with left_out(
            self.dropped, "bridge-broken", "a member was not asked to call", peer=self._caller.name_of(to)
        ):
            try:
                async with self._caller.call(to) as client:
                    await client.ask(messages.Bridged(origin))
            except StreamError as error:
                log.debug("a member cannot be asked to call", peer=self._caller.name_of(to), error=str(error))

    async def _pass_on(self, end: _End, origin: bytes, to: bytes) -> None:
        """Pass on what comes by this connection until either ends."""
        other, framed = end.other, end.client.framed
        if other is None or not isinstance(framed, FramedStream):
            raise StreamError("only connections can be joined")
        end.scope = scope = trio.CancelScope()
        with scope:
            framed.keep_alive()
            framed.hold_little()
            await _answer(end.client, messages.Done())
            end.told.set()
            with trio.move_on_after(COMES):
                await other.told.wait()
            if not other.told.is_set():
                raise StreamError("the other end has gone")
            while True:
                with trio.move_on_after(SILENCE) as silence:
                    frame = await framed.receive(channel.MAX_REQUEST)
                if silence.cancelled_caught:
                    raise StreamError("nothing comes")
                debt = self.bridges.owe(origin, to, len(frame), trio.current_time())
                if debt is None:
                    raise StreamError("no more is passed on for these two")
                await other.client.framed.send(frame)
                await trio.sleep(debt)


async def _answer(client: Client, answer: messages.Answer) -> None:
    await client.framed.send(client.sealed.seal(messages.encode(answer)))


@asynccontextmanager
async def bridged(
    caller: Caller, me: NodeId, carrier: NodeId, peer: NodeId
) -> AsyncIterator[tuple[Client, bool]]:
    """Open a channel with a member by way of one that joins connections. Yield the channel, and whether this
    end opened it: else the other end has asked for frames and waits for the answer. Raises `StreamError`."""
    async with caller.dial_direct(carrier) as client:
        answer = await client.ask(messages.Bridge(peer))
        if isinstance(answer, messages.Refused):
            raise StreamError(answer.message)
        framed = client.framed
        if not isinstance(framed, FramedStream):
            raise StreamError("only connections can be joined")
        framed.address = by_way_of(format_node_id(carrier), format_node_id(peer))
        try:
            with trio.fail_after(OPENS):
                over = await (_open(caller, framed, peer) if me < peer else _accept(caller, framed, peer))
        except trio.TooSlowError as error:
            raise StreamError("the other end opens no channel") from error
        except (channel.ChannelError, messages.ControlError) as error:
            raise StreamError("the other end is another") from error
        yield over, me < peer


async def _open(caller: Caller, framed: FramedStream, peer: NodeId) -> Client:
    session = caller.sessions.newest(peer)
    if session is None:
        raise StreamError("there is no link with this member")
    over = await Client.open(framed, session)
    if not isinstance(await over.ask(messages.Frames()), messages.Done):
        raise StreamError("the other end takes no frames")
    return over


async def _accept(caller: Caller, framed: FramedStream, peer: NodeId) -> Client:
    name, theirs = channel.parse_hello_untrusted(await framed.receive(channel.HELLO_SIZE))
    session = caller.sessions.get(name)
    if session is None or session.peer != peer or session.invite:
        raise channel.ChannelError("session")
    mine = os.urandom(channel.RANDOM_SIZE)
    await framed.send(channel.answer(mine))
    sealed = channel.Channel(session.key_out, session.key_in, theirs, mine)
    request = messages.decode_request_untrusted(sealed.open(await framed.receive(channel.MAX_REQUEST)))
    if not isinstance(request, messages.Frames):
        raise StreamError("the other end asks for something else")
    return Client(framed, sealed, session)
