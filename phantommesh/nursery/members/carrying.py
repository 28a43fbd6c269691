# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries handshakes, and passes channels, between members that cannot call each other, by way of a home of
both: see `node.carrying`.

This node has three parts in it. As an end it sends through its homes, and takes what they say is another's.
As a home it forwards to those that have lent it a connection. And it keeps connections lent to its own homes.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
import trio

from phantommesh.control import channel, messages
from phantommesh.control.sessions import Session
from phantommesh.endpoint import Address, by_way_of
from phantommesh.node.carrying import Carrier, Homes
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.members.attending import Attending
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.sockets.lent import Lent
from phantommesh.nursery.unexpected import left_out
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import NodeId, format_node_id, parse_node_id

# Tuning.
QUEUE = 256  # datagrams that wait for one member
WORKERS = 512  # members that something waits for at once
LINGER = 10.0  # s for which a connection to a home is kept for the next datagrams
TAKES = 3.0  # s that a member at the other end of a lent connection takes at most
ANSWERS = 0.75  # s that an answer to a passed question takes at most: less, since the home waits for it
MAX_LINES, LINES_OF_ONE = 256, 4  # channels that others have open to this node by way of homes
LIFE = 30.0  # s after the last frame until such a channel is forgotten

#: Requests that are not answered on a line: what is carried is not carried on, and a line is not lent.
_NOT_ON_A_LINE = (messages.Carry, messages.Carried, messages.Pass, messages.Passed, messages.Attend)

Serve = Callable[[Session, messages.Request, Address], Awaitable[messages.Answer]]

log = structlog.get_logger("phantommesh.carrying")


@dataclass(slots=True, eq=False)
class _Waiting:
    """Datagrams that wait for one member, each with the member at the other end."""

    datagrams: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    bell: Bell = field(default_factory=Bell)


@dataclass(slots=True, eq=False)
class _Open:
    """A channel that another member has open to this node by way of a home."""

    session: Session
    sealed: channel.Channel
    used: float


class Carrying:
    """One node's part in carrying. ``deliver`` takes a datagram of a handshake; ``serve`` answers a request,
    as on any channel; ``session`` finds the session of a name; ``entries`` has the members, and ``usable``
    says of one whether it may be called. ``homes_changed`` is called when `homes` has."""

    def __init__(
        self,
        me: NodeId,
        carrier: Carrier,
        caller: Caller,
        attending: Attending,
        lent: Lent,
        *,
        deliver: Callable[[bytes, Address], None],
        serve: Serve,
        entries: Callable[[], Iterable[Entry]],
        usable: Callable[[NodeId], bool],
        homes_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._me, self.carrier, self._caller = me, carrier, caller
        self._attending, self._lent = attending, lent
        self._deliver, self._serve = deliver, serve
        self._entries, self._usable, self._homes_changed = entries, usable, homes_changed
        self._choice, self._homes = Homes(me), list[NodeId]()
        self._lent_to = set[NodeId]()  # the members that this part has had connections lent to
        self._bell = Bell()
        self._out = dict[tuple[str, bytes], _Waiting]()
        self._work, self._to_do = trio.open_memory_channel[tuple[str, bytes]](WORKERS)
        self._turns = dict[NodeId, trio.Lock]()
        self._lines = OrderedDict[tuple[bytes, bytes], _Open]()
        attending.changed, attending.failed = self.look, self._failed
        caller.by_way = self.line

    @property
    def dropped(self) -> Counter[str]:
        """Counts of what was not carried, by reason."""
        return self.carrier.dropped

    # What other parts use.

    @property
    def homes(self) -> list[NodeId]:
        """The members that carry for this node now, the first one first."""
        return list(self._homes)

    def ways(self, peer: bytes) -> list[Address]:
        """The addresses at which a handshake with this member may be tried by way of others."""
        if NodeId(peer) in self._lent:
            return [_at(self._me, peer)]
        return [_at(home, peer) for home in self._homes if home != peer]

    def send(self, datagram: bytes, to: Address) -> None:
        """Send a datagram of a handshake to such an address, or count it as not sent."""
        carrier, end = map(parse_node_id, to.host.split("/"))
        if carrier == self._me:
            self._queue("forward", end, self._me, datagram)
        else:
            self._queue("ask", carrier, end, datagram)

    def look(self) -> None:
        """The members, or the connections to homes, have changed."""
        self._bell.ring()
        live = self._attending.live
        homes = self._choice.ranked(entry for entry in self._entries() if entry.member.node_id in live)
        if homes != self._homes:
            self._homes = homes
            self._homes_changed()

    # Requests.

    async def answer(self, entry: Entry, request: messages.Request) -> messages.Answer:
        """Answer one of the four requests of carrying."""
        peer, now = entry.member.node_id, trio.current_time()
        match request:
            case messages.Carry(to, datagrams) if to == self._me:
                # A member that has lent this node a connection answers so.
                for datagram in self.carrier.take(peer, peer, datagrams, now):
                    self._deliver(datagram, _at(self._me, peer))
                return messages.Done()
            case messages.Carry(to, datagrams):
                if NodeId(to) not in self._lent:
                    self.dropped["carry-nowhere"] += len(datagrams)
                    return messages.Done()
                for datagram in self.carrier.carry(peer, to, datagrams, now):
                    self._queue("forward", to, peer, datagram)
                return messages.Done()
            case messages.Carried(origin, datagrams):
                for datagram in self.carrier.take(peer, origin, datagrams, now):
                    self._deliver(datagram, _at(peer, origin))
                return messages.Done()
            case messages.Pass():
                return await self._pass_on(peer, request, now)
            case messages.Passed():
                with trio.move_on_after(ANSWERS):
                    return messages.Frame(await self._passed(peer, request, now))
                self._lines.pop((request.origin, request.line), None)
                return messages.Frame(b"")
            case _:
                raise TypeError(request)

    async def _pass_on(self, peer: NodeId, request: messages.Pass, now: float) -> messages.Answer:
        if not self.carrier.passes(peer, request.to, len(request.frame), now):
            return messages.Frame(b"")
        passed = messages.Passed(peer, request.line, request.frame)
        answer: messages.Answer | None = None
        try:
            # One at a time of each asker: else one member with many would keep all others waiting.
            async with self._turns.setdefault(peer, trio.Lock()):
                with trio.fail_after(TAKES) as scope:
                    async with self._lent.use(request.to) as client:
                        scope.deadline = trio.current_time() + TAKES  # that it waited is not its fault
                        answer = None if client is None else await client.ask(passed)
        except (StreamError, trio.TooSlowError):
            answer = None
        finally:
            if peer in self._turns and not self._turns[peer].locked():
                del self._turns[peer]
        if not isinstance(answer, messages.Frame):
            self.dropped["carry-nowhere"] += 1
            return messages.Frame(b"")
        self.carrier.passed_back(peer, request.to, len(answer.frame), now)
        return answer

    async def _passed(self, carrier: NodeId, request: messages.Passed, now: float) -> bytes:
        """Return the frame that answers a frame of ``request.origin``; empty where that is none."""
        key, frame = (request.origin, request.line), request.frame
        for old in [k for k, found in self._lines.items() if now - found.used > LIFE]:
            del self._lines[old]
        try:
            if frame[:1] == bytes([channel.HELLO]):
                return self._begin(key, frame, now)
            found = self._lines.get(key)
            # A member that has gone, or was revoked, keeps no channel.
            if found is None or self._caller.sessions.get(found.session.name) is None:
                raise channel.ChannelError("line")
            asked = messages.decode_request_untrusted(found.sealed.open(frame))
        except (channel.ChannelError, messages.ControlError):
            self._lines.pop(key, None)
            self.dropped["line-refused"] += 1
            return b""
        found.used = now
        if isinstance(asked, _NOT_ON_A_LINE):
            answer: messages.Answer = messages.Refused("this is not answered by way of others")
        else:
            answer = await self._serve(found.session, asked, _at(carrier, request.origin))
        encoded = messages.encode(answer)
        if len(encoded) > messages.MAX_PASSED - channel.OVERHEAD:
            encoded = messages.encode(messages.Refused("the answer is too long to be passed on"))
        return found.sealed.seal(encoded)

    def _begin(self, key: tuple[bytes, bytes], hello: bytes, now: float) -> bytes:
        name, theirs = channel.parse_hello_untrusted(hello)
        session = self._caller.sessions.get(name)
        if session is None or session.peer != key[0] or session.invite:
            raise channel.ChannelError("session")
        mine = os.urandom(channel.RANDOM_SIZE)
        sealed = channel.Channel(session.key_out, session.key_in, theirs, mine)
        self._lines.pop(key, None)
        same = [other for other in self._lines if other[0] == key[0]]
        for old in same[: max(0, len(same) - LINES_OF_ONE + 1)]:
            del self._lines[old]
        if len(self._lines) >= MAX_LINES:
            self._lines.popitem(last=False)
        self._lines[key] = _Open(session, sealed, now)
        return channel.answer(mine)

    # Lines of our own.

    @asynccontextmanager
    async def line(self, member: NodeId) -> AsyncIterator[Client]:
        """Open a channel to a member by way of the first home that passes it on. Raises `StreamError`."""
        session = self._caller.sessions.newest(member)
        failure = StreamError("no member passes anything on to it")
        for home in self.homes if session is not None else ():  # a copy: it may change meanwhile
            if home == member:
                continue
            opened = False
            try:
                async with self._caller.dial_direct(home) as client:
                    assert session is not None
                    over = await Client.open(_Line(client, member), session)
                    opened = True
                    yield over
                    return
            except StreamError as error:
                if opened:
                    raise
                failure = StreamError(f"{self._caller.name_of(home)}: {error}")
        raise failure

    # The services.

    async def run(self) -> None:
        """Carry, and keep the homes, until cancelled."""
        self._out.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_homes)
            async for kind, member in self._to_do.clone():
                nursery.start_soon(self._carry, kind, NodeId(member))

    def _failed(self, peer: NodeId) -> None:
        self._choice.failed(peer, trio.current_time())

    async def _keep_homes(self) -> None:
        while True:
            now, live, trying = trio.current_time(), self._attending.live, self._attending.trying
            entries = list(self._entries())
            self._choice.retain({entry.member.node_id for entry in entries})
            for home in live:
                self._choice.lives(home)
            ranked = filter(self._usable, self._choice.ranked(entries))
            move = self._choice.look(ranked, live, trying, now)
            for member in move.call:
                self._attending.wanted(member)
            self._lent_to = {home for home in self._lent_to if home in live or home in trying} | set(
                move.call
            )
            for home in move.give_back:
                if home in self._lent_to:  # else it asks for other reasons
                    self._attending.give_back(home)
            with trio.move_on_at(move.due):
                await self._bell.wait()
            await trio.sleep(0.05)  # news come in swarms

    def _queue(self, kind: str, member: bytes, other: bytes, datagram: bytes) -> None:
        """Queue a datagram for a member: for a home, to ask it to carry (``ask``), or for one that has lent a
        connection (``forward``). ``other`` is the member at the far end."""
        key = kind, bytes(member)
        waiting = self._out.get(key)
        if waiting is None:
            try:
                self._work.send_nowait(key)
            except trio.WouldBlock:
                self.dropped["carry-unsent"] += 1
                return
            waiting = self._out[key] = _Waiting()
        if len(waiting.datagrams) >= QUEUE:
            self.dropped["carry-unsent"] += 1
            return
        waiting.datagrams.append((other, datagram))
        waiting.bell.ring()

    async def _carry(self, kind: str, member: NodeId) -> None:
        """Send what waits for a member, until nothing comes for a while."""
        key = kind, bytes(member)
        waiting, told = self._out.get(key), self._caller.name_of(member)
        if waiting is None:
            return
        with left_out(self.dropped, "carry-broken", "what was carried was left out", peer=told):
            try:
                if kind == "forward":
                    await self._forward(member, waiting)
                else:
                    async with self._caller.dial_direct(member) as client:
                        await self._ask(client, waiting)
                        del self._out[key]  # before the connection is closed, which takes a while
            except (StreamError, trio.TooSlowError) as error:
                log.debug("datagrams are not carried", peer=told, error=str(error))
            finally:
                self.dropped["carry-unsent"] += len(waiting.datagrams)
                if self._out.get(key) is waiting:
                    del self._out[key]

    async def _forward(self, member: NodeId, waiting: _Waiting) -> None:
        while waiting.datagrams:
            async with self._lent.use(member) as client:
                if client is None:
                    return
                origin, datagrams = _batch(waiting)
                with trio.fail_after(TAKES):
                    await client.ask(messages.Carried(origin, datagrams))

    async def _ask(self, client: Client, waiting: _Waiting) -> None:
        while True:
            while waiting.datagrams:
                to, datagrams = _batch(waiting)
                with trio.fail_after(TAKES):
                    await client.ask(messages.Carry(to, datagrams))
            with trio.move_on_after(LINGER):
                await waiting.bell.wait()
            if not waiting.datagrams:
                return


class _Line:
    """The frames of a channel to a member, passed on by a home: each frame sent has one that comes back."""

    def __init__(self, client: Client, member: NodeId) -> None:
        self._client, self._member = client, member
        self._name, self._frame = os.urandom(messages.LINE_SIZE), b""

    async def send(self, frame: bytes) -> None:
        """Note the frame that `receive` has passed on. Raises `StreamError`."""
        await trio.lowlevel.checkpoint()
        if len(frame) > messages.MAX_PASSED:
            raise StreamError("the question is too long to be passed on")
        self._frame = frame

    async def receive(self, limit: int) -> bytes:
        """Return the frame that comes back. Raises `StreamError`."""
        answer = await self._client.ask(messages.Pass(self._member, self._name, self._frame))
        if isinstance(answer, messages.Frame) and 0 < len(answer.frame) <= limit:
            return answer.frame
        reason = answer.message if isinstance(answer, messages.Refused) else "nothing came back"
        raise StreamError(reason)


def _at(carrier: bytes, end: bytes) -> Address:
    return by_way_of(format_node_id(NodeId(carrier)), format_node_id(NodeId(end)))


def _batch(waiting: _Waiting) -> tuple[bytes, tuple[bytes, ...]]:
    """Take the next datagrams that are for or of one member."""
    other = waiting.datagrams[0][0]
    batch = list[bytes]()
    while waiting.datagrams and waiting.datagrams[0][0] == other and len(batch) < messages.MAX_CARRIED:
        batch.append(waiting.datagrams.popleft()[1])
    return other, tuple(batch)
