# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries WireGuard's datagrams over TCP to and from peers that no UDP reaches: `routing.lastway` decides.

A peer has one local UDP socket on 127.0.0.1, which all seven WireGuards of this host send to; the port that
a datagram comes from tells its dimension, and what comes from another port is dropped. It has one connection,
a channel of the pair's session: each message of the channel is a batch of frames (`routing.frames`). Gossip
goes by the same connection.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Protocol, assert_never

import structlog
import trio

from phantommesh.control import channel, messages
from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.endpoint import Address
from phantommesh.faults import Fault, FaultKind
from phantommesh.link.effects import Opened
from phantommesh.link.machine import Links
from phantommesh.node.peers import Peers
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.dataplane.framecalls import FrameCalls
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.news import Tell, WayChanged
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import FramedStream, StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.paths.state import PathState
from phantommesh.rates import Bucket, Rates
from phantommesh.records.roster import name_of
from phantommesh.routing.constraints import FREE, Constraints
from phantommesh.routing.frames import GOSSIP, MAX_WIREGUARD, FrameError, Queue, unpack_untrusted
from phantommesh.routing.lastway import Close, Dial, Effect, Facts, LastWay
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import Endpoint

UDP_BLOCKED = FaultKind("udp-blocked", "medium")

HOST = "127.0.0.1"

# Tuning.
BATCH = 64  # datagrams read in a row, or taken out of a connection, before other tasks have their turn
# Bytes that the kernel holds for a local socket (some fifty packets): what waits there gets old unseen.
EDGE_BUFFER = 64 * 1024
MOST = 128  # peers with a connection, each of which takes two descriptors
ALIVE = 15.0  # s without a frame to send after which an empty batch is sent
SILENCE = 45.0  # s without a batch after which the other end is taken for gone
FRAMES, FRAMES_BURST = 20_000.0, 40_000.0  # frames of one peer, a second and at once: more of them wait
TAKEN, TAKEN_BURST = 0.5, 6.0  # connections of one peer that are taken, a second and at once
NAMED = 5  # peers named in `status`

log = structlog.get_logger("phantommesh.framed")


class Gossiping(Protocol):
    """The part of `GossipDriver` that is needed here."""

    def receive_framed(self, datagram: bytes, source: Address, member: NodeId) -> None: ...


class _Line:
    """One connection. ``address`` is its other end's; ``carrier`` the member that joins it with the peer's,
    or empty."""

    def __init__(
        self, client: Client, framed: FramedStream, dropped: Counter[str], carrier: bytes = b""
    ) -> None:
        self.framed, self.sealed, self.queue, self.bell = framed, client.sealed, Queue(dropped), Bell()
        self.scope = trio.CancelScope()
        self.address, self.carrier = framed.address, carrier

    def put(self, kind: int, datagram: bytes) -> None:
        self.queue.put(kind, datagram, trio.current_time())
        self.bell.ring()


class _Edge:
    """The local socket of one peer. Raises OSError."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, EDGE_BUFFER)
            self.socket.bind((HOST, 0))
        except BaseException:
            self.socket.close()
            raise
        self.scope = trio.CancelScope()
        self.endpoint = Endpoint(HOST, self.socket.getsockname()[1])


class Framed:
    """Runs one `LastWay`. ``ports`` gives the UDP ports of this node's WireGuards by dimension, ``homes`` the
    members that carry for this node: they may join it with a peer that takes no connection, as far as
    ``constraints`` lets them."""

    def __init__(
        self,
        me: NodeId,
        *,
        ways: Ways,
        peers: Peers,
        links: Links,
        paths: PathDriver,
        caller: Caller,
        gossip: Gossiping,
        ports: Callable[[], Sequence[int]],
        tell: Tell,
        homes: Callable[[], Sequence[NodeId]] = tuple,
        constraints: Constraints = FREE,
    ) -> None:
        self.last, self.dropped = LastWay(me), Counter[str]()
        self._ways, self._peers, self._links, self._paths = ways, peers, links, paths
        self._gossip, self._ports, self._tell = gossip, ports, tell
        self._calls = FrameCalls(
            me, self.last, peers, caller, homes, self.dropped,
            constraints=constraints, carry=self._carry, take=self.take, stir=self.stir, named=self._name_of,
        )  # fmt: skip
        self._lines: dict[bytes, _Line] = {}
        self._edges: dict[bytes, _Edge] = {}
        self._owned: set[Endpoint] = set()
        self._at: dict[bytes, Sequence[Endpoint | None]] = {}
        self._told: set[bytes] = set()  # peers of which the log says that they are reached over TCP
        self._stirred: dict[bytes, None] = {}
        self._bell, self._taken = Bell(), Rates[bytes](TAKEN, TAKEN_BURST)
        self._nursery: trio.Nursery | None = None

    # What the node tells it.

    def owns(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint is a local socket of this driver's."""
        return endpoint in self._owned

    def stir(self, peer: bytes) -> None:
        """Something of a peer has changed: its keys, or whether a path answers."""
        self._stirred[peer] = None
        self._bell.ring()

    def opened(self, opened: Opened) -> None:
        """A handshake with a member finished."""
        if opened.at is None or opened.invite:
            return
        self._calls.seen[opened.peer] = opened.at._replace(transport="tcp")
        if opened.at.transport == "udp":
            self.last.udp_heard(opened.peer, trio.current_time())
        if opened.at.transport == "tcp" and self._nursery is not None:
            self.last.over_tcp(opened.peer, trio.current_time())
            self._look(opened.peer)  # at once: the reconciler must not give WireGuard an endpoint before

    def located(self, peer: bytes, endpoints: Sequence[Endpoint | None]) -> None:
        """The reconciler has read where WireGuard sends to a peer, by dimension."""
        if self._at.get(peer) != endpoints:
            self._at[peer] = endpoints
            self.stir(peer)

    def udp_heard(self, member: NodeId) -> None:
        """Gossip of this member came by UDP."""
        if self._peers.get(member) is not None:
            self.last.udp_heard(member, trio.current_time())
            if member in self._lines:
                self._bell.ring()

    def retain(self, peers: Container[bytes]) -> None:
        """Forget all other peers, and end what they carry."""
        for effect in self.last.retain(peers):
            self._carry_out(effect)
        for line in self._lines.values():
            if line.carrier and line.carrier not in peers:
                line.scope.cancel()
        for edge in [peer for peer in self._edges if peer not in peers]:
            self._sync(edge)
        self._at = {peer: at for peer, at in self._at.items() if peer in peers}
        self._calls.retain(peers)

    def way_of(self, member: NodeId) -> Address | None:
        """The address by which `send` reaches a member over TCP; None where there is no connection."""
        line = self._lines.get(member)
        return None if line is None else line.address

    def send(self, datagram: bytes, to: Address) -> None:
        """Send a datagram of gossip by a connection."""
        line = next((line for line in self._lines.values() if line.address == to), None)
        if line is None:
            self.dropped["frame-unsent"] += 1
        else:
            line.put(GOSSIP, datagram)

    def faults(self) -> Iterator[Fault]:
        """What an operator is told of peers that are reached over TCP alone: one cause, so one fault. A peer
        of which nothing comes back by the frames either is not reached: that is for others to say."""
        lowest, highest = min(self._ports()), max(self._ports())
        known = [(peer, entry) for peer in self._told if (entry := self._peers.get(peer)) is not None]
        entries = [entry for peer, entry in known if self._facts(peer).answers]
        if not entries:
            return
        names = sorted(entry.member.name for entry in entries)
        named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        theirs = [port for entry in entries for port in entry.record.wg_ports]
        yield UDP_BLOCKED.fault(
            f"reached over TCP alone, which is slow: {named}; no UDP passes between those and this node",
            f"let UDP pass between this host's ports {lowest} to {highest} and their ports {min(theirs)} to "
            f"{max(theirs)}, and between the control ports; nothing has to be restarted",
            subject=names[0] if len(names) == 1 else "",
        )

    # The services.

    async def run(self) -> None:
        """Carry until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                for member in self._peers.standing:
                    self.stir(member)
                while True:
                    now = trio.current_time()
                    stirred, self._stirred = self._stirred, {}
                    for peer in (*stirred, *(p for p in self.last.due(now) if p not in stirred)):
                        with left_out(self.dropped, "frame-broken", "a peer's last way was left out"):
                            self._look(peer)
                    if not self._stirred:
                        with trio.move_on_at(self.last.deadline):
                            await self._bell.wait()
                    await trio.lowlevel.checkpoint()
        finally:
            self._nursery = None
            for effect in self.last.retain(()):
                self._carry_out(effect)
            for peer in list(self._edges):
                self._sync(peer)

    async def take(self, client: Client, carrier: bytes = b"") -> None:
        """A member asks for frames on its connection, or on one that ``carrier`` joins. Return when they are
        over. Raises `StreamError`."""
        peer, now = NodeId(client.session.peer), trio.current_time()
        full = peer not in self._lines and len(self._lines) >= MOST
        refused = "this node carries no frames for this member now"
        if self._nursery is None or full or self._peers.get(peer) is None:
            answer: messages.Answer = messages.Refused(refused, "ask later")
        elif not self._taken.allow(peer, now):
            answer = messages.Refused("too many connections for frames", "ask later")
        else:
            answer = messages.Done()
        await client.framed.send(client.sealed.seal(messages.encode(answer)))
        if isinstance(answer, messages.Done):
            await self._carry(peer, client, ours=False, carrier=carrier)
        else:
            self.dropped["frame-refused"] += 1

    def prompted(self, carrier: NodeId, word: messages.Bridged) -> None:
        """A member says that a peer waits there for a connection of this node's to be joined with."""
        peer = NodeId(word.origin)
        room = peer in self._lines or len(self._lines) < MOST
        self._calls.prompted(self._nursery if room else None, peer, carrier)

    # Deciding.

    def _look(self, peer: bytes) -> None:
        """Find out what is to be done about a peer, and do it."""
        if self._peers.get(peer) is not None:
            for effect in self.last.look(peer, self._facts(peer), trio.current_time()):
                self._carry_out(effect)
        self._sync(peer)

    def _facts(self, peer: bytes) -> Facts:
        measured, edge = self._paths.paths, self._edges.get(peer)
        found = [measured.path(peer, i) for i in range(DIMENSIONS)]
        ways = self._ways.taken(peer)
        at = self._at.get(peer, (None,) * DIMENSIONS)
        return Facts(
            keyed=self._links.bound(peer),
            answers=bits(
                path is not None
                and path.state in (PathState.UP, PathState.PROVING)
                and path.answered_at is not None
                for path in found
            ),
            at_frame=bits(edge is not None and endpoint == edge.endpoint for endpoint in at),
            otherwise=bits(way is not None and way.kind is not Kind.FRAMED for way in ways),
            drained=measured.at_rest(peer),
            latest=tuple(float("-inf") if path is None else path.latest for path in found),
        )

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Dial(peer):
                full = len(self._lines) >= MOST and peer not in self._lines
                if self._nursery is None or full or not self._calls.free:
                    self.last.failed(peer, trio.current_time())
                else:
                    self._calls.start(self._nursery, NodeId(peer))
            case Close(peer):
                if (line := self._lines.get(peer)) is not None:
                    line.scope.cancel()
            case _:
                assert_never(effect)

    def _sync(self, peer: bytes) -> None:
        """Have the interfaces, the paths and the local socket be as they should."""
        now, framed = trio.current_time(), self.last.framed(peer)
        edge, line, changed = self._edges.get(peer), self._lines.get(peer), False
        if edge is None and framed and self._nursery is not None:
            try:
                edge = self._edges[peer] = _Edge()
            except OSError as error:
                self.dropped["frame-socket"] += 1
                log.warning("no local socket for frames", error=error.strerror)
            else:
                self._owned.add(edge.endpoint)
                self._nursery.start_soon(self._read, peer, edge)
        carrier = b"" if line is None else line.carrier
        for i in range(DIMENSIONS):
            if edge is not None and has(framed, i):
                changed |= self._ways.offer(peer, i, Way(Kind.FRAMED, edge.endpoint, carrier))
            else:
                changed |= self._ways.withdraw(peer, i, Kind.FRAMED)
        changed |= self._ways.hold(peer, self.last.held(peer, now), by=Kind.FRAMED)
        self._paths.carry_out(self._paths.paths.set_aside(peer, self.last.aside(peer), now))
        if changed:
            self._tell(WayChanged(peer))
        if edge is not None and not framed and line is None:
            del self._edges[peer]
            self._owned.discard(edge.endpoint)
            edge.scope.cancel()  # `_read` closes the socket: it may have to run once more
        self._note(peer, framed)

    def _name_of(self, peer: bytes) -> str:
        return name_of(self._peers.get(peer), peer)

    def _note(self, peer: bytes, framed: int) -> None:
        told = self._name_of(peer)
        if framed and peer in self._lines and peer not in self._told:
            self._told.add(peer)
            log.warning(
                "peer over TCP: UDP does not pass", peer=told, fix="see `phantommesh status`, udp-blocked"
            )
        elif not framed and peer in self._told:
            self._told.discard(peer)
            log.info("peer is reached without TCP again, or not at all", peer=told)

    # Connections.

    async def _carry(self, peer: NodeId, client: Client, *, ours: bool, carrier: bytes = b"") -> None:
        """Carry frames over a connection until it ends. It takes the place of the one before. Raises
        `StreamError` for a channel that is no connection of its own."""
        framed = client.framed
        if not isinstance(framed, FramedStream):
            raise StreamError("another member passes this channel on")
        framed.keep_alive()
        framed.hold_little()
        line = _Line(client, framed, self.dropped, carrier)
        before, self._lines[peer] = self._lines.get(peer), line
        if before is not None:
            self.dropped["frame-displaced"] += 1
            before.scope.cancel()
        for effect in self.last.connected(peer, trio.current_time(), ours=ours):
            self._carry_out(effect)
        self._look(peer)
        try:
            with line.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send, line, nursery.cancel_scope)
                    self.dropped[await self._receive(peer, line)] += 1
                    nursery.cancel_scope.cancel()
        finally:
            if self._lines.get(peer) is line:
                del self._lines[peer]
                self.last.broke(peer, trio.current_time())
                self._sync(peer)
                self.stir(peer)

    async def _send(self, line: _Line, life: trio.CancelScope) -> None:
        framed, sealed = line.framed, line.sealed
        try:
            while True:
                alive = False
                if not line.queue:
                    with trio.move_on_after(ALIVE) as silence:
                        await line.bell.wait()
                    alive = silence.cancelled_caught
                if (batch := line.queue.take(trio.current_time())) or alive:
                    await framed.send(sealed.seal(batch))
        except StreamError:
            life.cancel()

    async def _receive(self, peer: NodeId, line: _Line) -> str:
        """Take what comes until the connection ends; return how it ended."""
        framed, sealed = line.framed, line.sealed
        bucket = Bucket(FRAMES, FRAMES_BURST, trio.current_time())
        while True:
            try:
                with trio.fail_after(SILENCE):
                    frame: bytes | None = await framed.receive(channel.MAX_REQUEST)
                count = 0
                while frame is not None:  # an empty batch costs as much as a frame
                    count += max(1, self._deliver(peer, line, sealed.open(frame)))
                    frame = framed.arrived(channel.MAX_REQUEST) if count < BATCH else None
            except (StreamError, trio.TooSlowError):
                return "frame-ended"
            except (channel.ChannelError, FrameError):
                return "frame-malformed"
            if (debt := bucket.owe(trio.current_time(), count)) > 0.0:
                await trio.sleep(debt)

    def _deliver(self, peer: NodeId, line: _Line, batch: bytes) -> int:
        """Hand the datagrams of a batch to WireGuard and to gossip; return how many there were. Raises
        `FrameError`."""
        edge, wanted, count = self._edges.get(peer), self.last.framed(peer), 0
        ports = self._ports()
        for kind, datagram in unpack_untrusted(batch):
            count += 1
            if kind == GOSSIP:
                with left_out(self.dropped, "frame-broken", "a datagram in a frame was left out"):
                    self._gossip.receive_framed(datagram, line.address, peer)
            elif edge is None or not has(wanted, kind):
                self.dropped["frame-unwanted"] += 1  # WireGuard would follow it back into the frames
            else:
                try:
                    edge.socket.sendto(datagram, (HOST, ports[kind]))
                except OSError:
                    self.dropped["frame-undelivered"] += 1
        return count

    async def _read(self, peer: bytes, edge: _Edge) -> None:
        """Put what this host's WireGuards send to a peer into frames."""
        with edge.scope, edge.socket:
            while True:
                await trio.lowlevel.wait_readable(edge.socket)
                kinds = {(HOST, port): i for i, port in enumerate(self._ports())}
                line, now = self._lines.get(peer), trio.current_time()
                for _ in range(BATCH):
                    try:
                        datagram, source = edge.socket.recvfrom(MAX_WIREGUARD + 1)
                    except BlockingIOError:
                        break
                    except OSError:
                        continue
                    kind = kinds.get(source)
                    if kind is None:
                        self.dropped["frame-source"] += 1
                    elif line is None:
                        self.dropped["frame-unsent"] += 1
                    else:
                        line.queue.put(kind, datagram, now)
                if line is not None:
                    line.bell.ring()
