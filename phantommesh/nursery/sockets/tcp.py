# SPDX-License-Identifier: GPL-3.0-or-later
"""The control port over TCP: handshake datagrams where UDP is blocked, and requests between nodes.

Every frame has a 4-byte length before it. One that begins with `wire.VERSION` is a handshake datagram; one
that begins with `channel.HELLO` opens a request channel on a session that a finished handshake left behind;
one that begins with `ASK_REVOKED` asks whether a node was revoked, and is answered to anybody: a node that
was has no link to hear it on, and a revocation is signed. One that begins with `ASK_RUNS` asks which runs of
a node are known. Words of runs are signed too, and a run that has stepped aside has no link either. One that
begins with `ASK_RECORDS` asks for records, which two members need of each other before they can link; it is
sealed under the group key.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog
import trio

from phantommesh.control import channel, messages
from phantommesh.control.seats import Ruling, Seat, Seats
from phantommesh.control.sessions import Session, Sessions
from phantommesh.endpoint import MAX_DATAGRAM, Address
from phantommesh.errors import PhantomMeshError
from phantommesh.link import wire
from phantommesh.nursery.sockets.channels import ASK_RECORDS, ASK_REVOKED, ASK_RUNS, Client
from phantommesh.nursery.sockets.framing import IDLE, FramedStream, OversizeError, StreamError, connect
from phantommesh.nursery.sockets.furtherports import FurtherPorts
from phantommesh.nursery.sockets.lent import Lent
from phantommesh.rates import Rates, source_block
from phantommesh.records.runs import MAX_QUESTION
from phantommesh.trust.revocations import MAX_PLEA

# s that a connection lives on which nobody has proved to hold a session's keys. A handshake takes seconds, a
# question less, and a link over TCP connects anew for every handshake.
STRANGER = 30.0
MAX_DIALS = 64
QUEUE = 32  # datagrams that wait for one connection
LARGE_AT_ONCE = 4  # answers beyond `control.SMALL` that one peer has us make and hold
QUESTIONS_RATE, QUESTIONS_BURST = 4.0, 64  # a second and at once, of one host that has no channel

_HONEST = ("session",), ("ended",)  # refusals of what an honest member may say

# Bytes of a frame before anybody has proved anything.
MAX_STRANGE = max(MAX_DATAGRAM, 64 + MAX_PLEA, 1 + MAX_QUESTION)

_Sender = trio.MemorySendChannel[bytes]
_Receiver = trio.MemoryReceiveChannel[bytes]
_Dial = tuple[Address, _Sender, _Receiver]

Dispatch = Callable[[bytes, Address], None]
Serve = Callable[["Session", messages.Request, Address], Awaitable[messages.Answer]]
Carry = Callable[[Client], Awaitable[None]]
Join = Callable[[Client, bytes], Awaitable[None]]


log = structlog.get_logger("phantommesh.streams")


class _CrowdedError(Exception):
    """There is no place for one more channel of this peer."""


class TcpPort:
    """Serves the control port over TCP."""

    def __init__(
        self,
        port: int,
        *,
        sessions: Sessions,
        dispatch: Dispatch,
        serve: Serve,
        standing: Callable[[bytes, Address], bytes] = lambda question, source: b"",
        records: Callable[[bytes], bytes] = lambda sealed: b"",
        runs: Callable[[bytes], bytes] = lambda question: b"",
        seats: Seats | None = None,
        lent: Lent | None = None,
        carry: Carry | None = None,
        further: FurtherPorts | None = None,
        join: Join | None = None,
    ) -> None:
        """``standing`` answers how a node stands (`RosterKeeper.answer_standing`); ``records`` the sealed
        answer to a sealed question; ``runs`` which runs of a node are known (`node.runs.Witness`). ``seats``
        bounds the connections that are taken; ``lent`` gets those that members lend, ``carry`` those on which
        a member asks for frames, until they are over; ``join`` those on which it asks for another member's.
        ``further`` has more ports at which this is served."""
        self._port, self._standing, self._records, self._runs = port, standing, records, runs
        self._channels: dict[trio.CancelScope, Session] = {}
        self._sessions, self._dispatch, self._serve = sessions, dispatch, serve
        self._listeners: list[trio.SocketListener] = []
        self.further = FurtherPorts() if further is None else further
        self.callable: Mapping[Address, Sequence[int]] = {}  # with the further ports of each one's node
        self._outgoing: dict[Address, trio.MemorySendChannel[bytes]] = {}
        self._dial, self._to_dial = trio.open_memory_channel[_Dial](MAX_DIALS)
        self._seats = Seats() if seats is None else seats
        self._lent = Lent() if lent is None else lent
        self._carry, self._join = carry, join
        self._lives: dict[Seat, trio.CancelScope] = {}  # the connections taken
        self._questions = Rates[str](QUESTIONS_RATE, QUESTIONS_BURST)
        self._larges: dict[bytes, tuple[int, trio.Semaphore]] = {}  # by peer: how many use it
        self.dropped: Counter[str] = Counter()  # how connections ended
        self.blame: Callable[[str, str], None] = lambda reason, host: None
        """Told of each connection that a stranger abused: how, and from which host."""

    def send(self, datagram: bytes, destination: Address) -> None:
        """Queue a handshake datagram for the connection with that address. One is made only to an address in
        ``callable``: an answer to a stranger that has hung up is not a reason to call it."""
        queue = self._outgoing.get(destination)
        try:
            if queue is None:
                if destination not in self.callable:
                    raise trio.WouldBlock
                queue, waiting = trio.open_memory_channel[bytes](QUEUE)
                self._dial.send_nowait((destination, queue, waiting))
                self._outgoing[destination] = queue
            queue.send_nowait(datagram)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self.dropped["stream-unsent"] += 1

    async def listen(self) -> None:
        """Take the port, for the next `run`. Raises `PhantomMeshError` where it is taken."""
        try:
            self._listeners = await trio.open_tcp_listeners(self._port, host=None)
        except OSError as error:
            raise PhantomMeshError(
                f"cannot listen on TCP port {self._port}: {error.strerror or error}",
                fix="stop what uses the port (`ss -tanp`), or set control.port in the config; keep others' "
                "outgoing connections off the port by net.ipv4.ip_local_reserved_ports",
            ) from None
        await self.further.listen()

    async def run(self) -> None:
        """Accept until cancelled. Takes the port first if need be: raises as `listen` does."""
        if not self._listeners:
            await self.listen()
        listeners, self._listeners = self._listeners, []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._handle, listeners)
            nursery.start_soon(self.further.run, self._handle)
            async for destination, queue, waiting in self._to_dial.clone():
                nursery.start_soon(self._call, destination, queue, waiting)

    async def _call(self, destination: Address, queue: _Sender, waiting: _Receiver) -> None:
        """Carry a handshake over a connection of our own, until it falls silent."""
        try:
            further = self.callable.get(destination, ())
            async with connect(destination.host, destination.port, further) as framed:
                await self._converse(framed, queue, waiting, trio.CancelScope(), None)
        except StreamError:
            self.dropped["stream-unreachable"] += 1
        except Exception as error:  # as in `_handle`: what came over it is the other end's
            self.dropped["stream-failed"] += 1
            log.error("connection failed", source=str(destination), exc_info=error)
        finally:
            if self._outgoing.get(destination) is queue:
                del self._outgoing[destination]

    async def _handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                framed = FramedStream(stream)
            except OSError:
                return  # gone before it was looked at
            seat = Seat(source_block(framed.address.host))
            if not self._ruled(self._seats.admit(seat)):
                self.dropped["stream-limit"] += 1
                self.blame("stream-limit", framed.address.host)
                return
            life = self._lives[seat] = trio.CancelScope()
            queue, waiting = trio.open_memory_channel[bytes](QUEUE)
            # Two connections may come from one address and port, to two addresses of ours: the newer is used.
            self._outgoing[framed.address] = queue
            try:
                await self._converse(framed, queue, waiting, life, seat)
            except Exception as error:  # one connection is not the service's end
                self.dropped["stream-failed"] += 1
                log.error("connection failed", source=str(framed.address), exc_info=error)
            finally:
                self._seats.leave(seat)
                del self._lives[seat]
                if self._outgoing.get(framed.address) is queue:
                    del self._outgoing[framed.address]

    def _ruled(self, ruling: Ruling) -> bool:
        """Close the connection that has to make room, and return whether the other one may stay."""
        if ruling.displaced is not None:
            self.dropped["stream-displaced"] += 1
            self._blame_idle("stream-displaced", ruling.displaced)
            self._lives[ruling.displaced].cancel()
        return ruling.stays

    async def _converse(
        self,
        framed: FramedStream,
        queue: _Sender,
        waiting: _Receiver,
        life: trio.CancelScope,
        seat: Seat | None,
    ) -> None:
        life.deadline = trio.current_time() + STRANGER
        with life:
            async with queue, waiting, trio.open_nursery() as nursery:
                nursery.start_soon(self._send_queued, framed, waiting)
                self.dropped[await self._listen(framed, seat)] += 1
                nursery.cancel_scope.cancel()
        if life.cancelled_caught and life.deadline <= trio.current_time():
            self.dropped["stream-overdue"] += 1
            if seat is not None:
                self._blame_idle("stream-overdue", seat)

    def _blame_idle(self, reason: str, seat: Seat) -> None:
        if seat.holder is None and not seat.spoke:
            self.blame(reason, seat.host)

    async def _listen(self, framed: FramedStream, seat: Seat | None) -> str:
        """Serve one connection to its end, and return how it ended. A connection of our own has no seat, so
        nobody opens a channel on it: nothing would bound how many such a peer holds, or how long."""
        try:
            while True:
                with trio.fail_after(IDLE):
                    frame = await framed.receive(MAX_STRANGE)
                if seat is not None:
                    seat.spoke = True
                if frame[:1] == bytes([wire.VERSION]):
                    self._dispatch(frame, framed.address)
                elif frame[:1] == bytes([ASK_REVOKED]):
                    await self._slow_down(framed)
                    await framed.send(self._standing(frame[1:], framed.address))
                elif frame[:1] == bytes([ASK_RECORDS]):
                    await self._slow_down(framed)
                    await framed.send(self._records(frame[1:]))
                elif frame[:1] == bytes([ASK_RUNS]):
                    await self._slow_down(framed)
                    await framed.send(self._runs(frame[1:]))
                elif seat is None:
                    raise channel.ChannelError("channel")
                else:
                    await self._channel(framed, frame, seat)
        except (StreamError, trio.TooSlowError) as error:
            if isinstance(error, OversizeError) and seat is not None and seat.holder is None:
                self.blame("stream-refused", framed.address.host)
            return "stream-ended"
        except (channel.ChannelError, messages.ControlError) as error:
            # A member that knows an earlier session of ours is no attacker, and every channel ends.
            if seat is not None and seat.holder is None and error.args[:1] not in _HONEST:
                self.blame("stream-refused", framed.address.host)
            return "stream-refused"
        except _CrowdedError:
            return "stream-limit"

    async def _slow_down(self, framed: FramedStream) -> None:
        """Wait for as long as this host has asked too fast."""
        await trio.sleep(self._questions.owe(source_block(framed.address.host), trio.current_time()))

    @staticmethod
    async def _send_queued(framed: FramedStream, queue: trio.MemoryReceiveChannel[bytes]) -> None:
        try:
            async for datagram in queue:
                await framed.send(datagram)
        except StreamError:
            pass  # the reading side sees the same, and ends the connection

    async def _channel(self, framed: FramedStream, hello: bytes, seat: Seat) -> None:
        """Answer requests until the connection ends."""
        name, theirs = channel.parse_hello_untrusted(hello)
        session = self._sessions.get(name)
        if session is None:
            raise channel.ChannelError("session")
        mine = os.urandom(channel.RANDOM_SIZE)
        await framed.send(channel.answer(mine))
        sealed = channel.Channel(session.key_out, session.key_in, theirs, mine)
        with trio.CancelScope() as scope:
            self._channels[scope] = session
            try:
                await self._requests(framed, session, sealed, seat)
            finally:
                del self._channels[scope]
        raise channel.ChannelError("ended")

    async def _requests(
        self, framed: FramedStream, session: Session, sealed: channel.Channel, seat: Seat
    ) -> None:
        while True:
            with trio.fail_after(IDLE):
                frame = await framed.receive(channel.MAX_REQUEST)
            message = sealed.open(frame)
            # Not before: a session's name alone is on every handshake's datagrams.
            if not self._ruled(self._seats.prove(seat, session.holder)):
                raise _CrowdedError
            self._lives[seat].deadline = float("inf")
            request = messages.decode_request_untrusted(message)
            if (
                isinstance(request, messages.Attend)
                and not session.invite
                and self._lent.has_room(session.peer)
            ):
                await framed.send(sealed.seal(messages.encode(messages.Done())))
                await self._lent.keep(Client(framed, sealed, session))
                raise StreamError("it was lent, and given back")
            self._seats.begin(seat)
            try:
                if isinstance(request, messages.Frames) and self._carry is not None and not session.invite:
                    await self._carry(Client(framed, sealed, session))
                    raise StreamError("it carried frames, and does no more")
                if isinstance(request, messages.Bridge) and self._join is not None and not session.invite:
                    await self._join(Client(framed, sealed, session), request.to)
                    raise StreamError("it was joined with another, and does no more")
                await self._answer_in_turn(framed, session, sealed, request)
            finally:
                self._seats.done(seat)

    async def attend(self, client: Client) -> None:
        """Answer what a member asks over a connection that this node has made and lent, until it ends. Raises
        `StreamError`."""
        framed, session, sealed = client.framed, client.session, client.sealed
        if not isinstance(framed, FramedStream):
            raise StreamError("only a connection can be lent")
        framed.keep_alive()
        with trio.CancelScope() as scope:
            self._channels[scope] = session
            try:
                while True:
                    frame = await framed.receive(channel.MAX_REQUEST)
                    request = messages.decode_request_untrusted(sealed.open(frame))
                    await self._answer_in_turn(framed, session, sealed, request)
            except (channel.ChannelError, messages.ControlError) as error:
                raise StreamError("a question is not genuine") from error
            finally:
                del self._channels[scope]

    async def _answer_in_turn(
        self, framed: FramedStream, session: Session, sealed: channel.Channel, request: messages.Request
    ) -> None:
        if messages.answer_limit(request) > messages.SMALL:
            async with self._large(session.peer):
                await self._answer(framed, session, sealed, request)
        else:
            await self._answer(framed, session, sealed, request)

    async def _answer(
        self, framed: FramedStream, session: Session, sealed: channel.Channel, request: messages.Request
    ) -> None:
        encoded = messages.encode(await self._serve(session, request, framed.address))
        if len(encoded) > messages.SMALL:
            frame = await trio.to_thread.run_sync(sealed.seal, encoded)
        else:
            frame = sealed.seal(encoded)
        del encoded
        await framed.send(frame)

    @asynccontextmanager
    async def _large(self, peer: bytes) -> AsyncIterator[None]:
        """Wait until this peer has fewer large answers under way than it may, and count one more."""
        waiting, limit = self._larges.get(peer, (0, trio.Semaphore(LARGE_AT_ONCE)))
        self._larges[peer] = waiting + 1, limit
        try:
            async with limit:
                yield
        finally:
            waiting, _ = self._larges.pop(peer)
            if waiting > 1:
                self._larges[peer] = waiting - 1, limit

    def close_channels(self, gone: Container[bytes]) -> None:
        """End the open channels of these members at once."""
        for scope, session in self._channels.items():
            if session.peer in gone:
                scope.cancel()
