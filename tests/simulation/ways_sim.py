# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes that no direct way joins, relays, and frames over TCP, under a virtual clock.

What decides is real: `Paths`, `Lacking`, `Borrowing`, `LastWay`, `Ways` and `Insisting` at both ends,
`Relay`, `Leases` and `Challenger` at the relays. The network is a model, and so are WireGuard (which sends to
one endpoint, and roams to the source of what comes in), the channels, and how the drivers
`nursery/dataplane/borrowing.py` and `nursery/dataplane/framed.py` join the parts. Same seed, same run.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import cache, partial

from phantommesh.control import messages
from phantommesh.dimensions import ALL, DIMENSIONS, bits, has, only
from phantommesh.endpoint import Address
from phantommesh.node.lacking import Lacking
from phantommesh.node.relaying import Lends, Relay
from phantommesh.nursery.dataplane.borrowing import LOOK, MEASURE
from phantommesh.paths.effects import Effect, Rescore, Send
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import ON_WIRE
from phantommesh.paths.state import PathState
from phantommesh.paths.weights import FULL
from phantommesh.routing import lastway, legs
from phantommesh.routing.binding import Challenger
from phantommesh.routing.borrowing import Borrowing
from phantommesh.routing.lastway import Facts, LastWay
from phantommesh.routing.leases import Leases, Terms
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import DeviceState, Endpoint, PeerState
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from phantommesh.wireguard.insisting import Insisting

A, B, P, Q = (NodeId(bytes((n,)) * 16) for n in (1, 2, 11, 12))
HOSTS = {A: "192.0.2.1", B: "192.0.2.2", P: "192.0.2.11", Q: "192.0.2.12"}
FRAME = Endpoint("127.0.0.1", 40000)
PORT = 51810  # of the relays
NOTICED = 1.5  # s until an end's paths to a relay that is gone are dark
RULES = 0.1  # s until a relay's rules are what its leases say
POLL = 2.0  # s between passes of the reconciler
SIZE = 1400  # bytes of a packet of traffic
DELAY = 0.01  # s that a datagram takes to the next node


def device(peer: bytes, endpoint: Endpoint) -> DeviceState:
    """A device that sends to a peer at this endpoint; a peer's node id stands for its key."""
    state = PeerState(peer, Secret(bytes(32)), endpoint, frozenset())
    return DeviceState("", 1, True, None, 0, 1420, frozenset(), frozenset(), {peer: state})


class End:
    """One node. ``at``: where its WireGuard sends; ``given``: what it was told last."""

    def __init__(self, world: World, me: NodeId, peer: NodeId, seed: int) -> None:
        self.world, self.me, self.peer = world, me, peer
        self.ways, self.lacking, self.last, self.borrowing = Ways(), Lacking(), LastWay(me), Borrowing(me)
        self.paths = Paths(random=random.Random(seed), interval=0.1)
        self.scores: tuple[float, ...] = FULL
        self.at: list[Endpoint | None] = [None] * DIMENSIONS
        self.given: list[Endpoint | None] = [None] * DIMENSIONS
        self.sent, self.received = [0] * DIMENSIONS, [0] * DIMENSIONS
        self.measured = -1.0
        self.relays: dict[NodeId, float] = {}  # that it reaches, and when it last did
        self.calls = 0
        self.insisting = Insisting(self.ways.proved)
        self.back = 0  # dimensions that were seen to go over a relay that was left
        self._passes = 0

    def start(self) -> None:
        """The pair is keyed."""
        self.point()
        self.carry_out(self.paths.set_peers({self.peer: ALL}, self.world.now))
        self.world.later(0.0, self.look)
        self.read()

    # WireGuard.

    def read(self) -> None:
        """A pass of the reconciler: WireGuard's counters are read, and where it sends is put right."""
        for i, (at, given) in enumerate(zip(self.at, self.given, strict=True)):
            if at is not None and at == self.ways.left(self.peer, i):
                self.back |= only(i)
            # The local socket ends with the connection, and then the filter of endpoints refuses it.
            closed = self.world.line is None and not self.last.framed(self.peer) and at == FRAME
            if at is None or given is None:
                continue
            if closed or self.insisting.insists(str(i), self.peer, given, at):
                self.at[i] = given
        self.paths.read(self.peer, list(zip(self.sent, self.received, strict=True)), self.world.now)
        self._next_pass()

    def _next_pass(self) -> None:
        self._passes += 1
        due = self._passes

        def read() -> None:
            if due == self._passes:
                self.read()

        self.world.later(min(POLL, self.insisting.pause(self.world.now)), read)

    def point(self) -> None:
        """The reconciler: have WireGuard send where the best way on offer is, and tell the paths."""
        moved = 0
        for i, way in enumerate(self.ways.taken(self.peer)):
            held = has(self.ways.held(self.peer) | self.ways.quiet(self.peer), i)
            own = None if held else endpoint(self.peer, i)
            wanted = own if way is None else way.endpoint
            if wanted is not None and wanted != self.given[i]:
                if (at := self.at[i]) is not None and at != wanted:
                    moved |= only(i)
                    change = DeviceDiff(str(i), peers=(PeerDiff(self.peer, endpoint=wanted),))
                    self.insisting.applied([change], {str(i): device(self.peer, at)}, self.world.now)
                self.at[i] = wanted
            self.given[i] = wanted
        if moved:
            self._next_pass()
            self.paths.rouse(self.peer, moved, self.world.now)

    def carry_out(self, effects: list[Effect]) -> None:
        """Effects of the paths."""
        for effect in effects:
            match effect:
                case Send(_, dimension, datagram):
                    self.world.transmit(self, dimension, datagram)
                case Rescore(_, scores):
                    self.world.later(0.005, partial(self._apply, scores))
                case _:
                    pass

    def _apply(self, scores: tuple[float, ...]) -> None:
        self.scores = scores
        self.paths.in_force(self.peer, scores)

    def arrives(self, dimension: int, datagram: bytes | None, source: Endpoint) -> None:
        """WireGuard takes a packet, and sends to where the packet came from."""
        self.at[dimension] = source
        self.received[dimension] += SIZE
        if datagram is None:
            self.world.arrived += 1
        else:
            self.carry_out(self.paths.receive(datagram, self.peer, dimension, self.world.now))

    # Relays, as `Borrower` does.

    def look(self) -> None:
        """Both drivers look at the peer."""
        world, now = self.world, self.world.now
        self.carry_out(self.paths.tick(now))
        if now - self.measured >= MEASURE:
            self.measured = now
            self.relays |= {relay: now for relay in world.relays if world.reaches(self, relay)}
            near = {one: 0.02 for one, at in self.relays.items() if world.trusts(one) and now - at < NOTICED}
            self.borrow(self.borrowing.set_relays(near, now))
        views, ways = self.paths.view(self.peer, now), self.ways.taken(self.peer)
        wanted = self.lacking.look(ALL, views, ways, now, self.back)
        self.back = 0
        for relay in self.lacking.gone(views, ways, now):
            self.borrow(self.borrowing.failed(NodeId(relay), self.peer, now))
        self.borrow(self.borrowing.want(self.peer, [i for i in range(DIMENSIONS) if has(wanted, i)], now))
        if self.borrowing.deadline <= now:
            self.borrow(self.borrowing.tick(now))
        for effect in self.last.look(self.peer, self._facts(), now):
            self._frames(effect)
        self._sync()
        world.later(max(0.02, min(LOOK, self.borrowing.deadline - now, self.last.deadline - now)), self.look)

    def borrow(self, effects: list[legs.Effect]) -> None:
        """Effects of the borrowing."""
        for effect in effects:
            match effect:
                case legs.AskCost(relay, peer):
                    self._ask(relay, messages.AskRelay(peer, 0, tagging=True))
                case legs.AskLease(relay, peer, dimension):
                    self._ask(relay, messages.AskRelay(peer, 1 << dimension, tagging=True))
                case legs.LeaveLease(relay, peer, dimension):
                    self._ask(relay, messages.LeaveRelay(peer, 1 << dimension))
                case legs.SendFromPort(relay, _, dimension, datagram):
                    self.world.to_relay(self, relay, dimension, datagram)
                case legs.Use():
                    if effect.relay is None:
                        self.ways.withdraw(self.peer, effect.dimension, Kind.RELAYED)
                        continue
                    way = Way(Kind.RELAYED, endpoint(effect.relay), relay=effect.relay)
                    self.ways.offer(self.peer, effect.dimension, way)
        self.point()

    def _ask(self, relay: NodeId, request: messages.AskRelay | messages.LeaveRelay) -> None:
        self.world.later(2 * DELAY, lambda: self._answered(relay, request))

    def _answered(self, relay: NodeId, request: messages.AskRelay | messages.LeaveRelay) -> None:
        world, now, machine = self.world, self.world.now, self.borrowing
        there = world.relays.get(relay)
        if there is None:
            return  # no answer
        answer = there.answer(self.me, request, now)
        if isinstance(request, messages.LeaveRelay):
            return
        granted = isinstance(answer, messages.Relayed)
        if not request.dimensions:
            far = answer.far / 1e6 if isinstance(answer, messages.Relayed) else None
            self.borrow(machine.cost(relay, self.peer, far, now))
        for leg in answer.legs if isinstance(answer, messages.Relayed) else ():
            key = Secret(leg.key)
            self.borrow(machine.granted(relay, self.peer, leg.dimension, PORT, leg.tag, leg.ticket, key, now))
        if not granted:
            for i in range(DIMENSIONS):
                if has(request.dimensions, i):
                    self.borrow(machine.refused(relay, self.peer, i, now))

    # The last way, as `Framed` does.

    def _facts(self) -> Facts:
        found = [self.paths.path(self.peer, i) for i in range(DIMENSIONS)]
        alive = (PathState.UP, PathState.PROVING)
        return Facts(
            keyed=ALL,
            answers=bits(p is not None and p.state in alive and p.answered_at is not None for p in found),
            at_frame=bits(endpoint == FRAME for endpoint in self.at),
            otherwise=bits(w is not None and w.kind is not Kind.FRAMED for w in self.ways.taken(self.peer)),
            drained=self.paths.at_rest(self.peer),
            latest=tuple(-1.0 if path is None else path.latest for path in found),
        )

    def _frames(self, effect: lastway.Effect) -> None:
        match effect:
            case lastway.Dial():
                self.calls += 1
                self.world.later(4 * DELAY, lambda: self.world.connect(self))
            case lastway.Close():
                self.world.hang_up()

    def _sync(self) -> None:
        now, framed = self.world.now, self.last.framed(self.peer)
        for i in range(DIMENSIONS):
            if has(framed, i):
                self.ways.offer(self.peer, i, Way(Kind.FRAMED, FRAME))
            else:
                self.ways.withdraw(self.peer, i, Kind.FRAMED)
        self.ways.hold(self.peer, self.last.held(self.peer, now), by=Kind.FRAMED)
        self.carry_out(self.paths.set_aside(self.peer, self.last.aside(self.peer), now))
        self.point()

    # Statements.

    @property
    def kinds(self) -> list[Kind | None]:
        """The way of each dimension; None: the record's address."""
        return [None if way is None else way.kind for way in self.ways.taken(self.peer)]

    @property
    def over(self) -> set[bytes]:
        """The relays in use."""
        return {way.relay for way in self.ways.taken(self.peer) if way and way.kind is Kind.RELAYED}


class World:
    """The event loop and the network. ``direct``: packets pass between the two ends; ``no_udp``: the nodes
    whose UDP is blocked; ``tcp``: whether control ports are reached. ``rate``: packets a second each way."""

    def __init__(self, seed: int = 0, *, relays: tuple[NodeId, ...] = (P, Q), rate: float = 50.0) -> None:
        self.rng, self.now, self.rate = random.Random(seed), 1000.0, rate
        self.direct, self.tcp, self.no_udp = False, True, set[NodeId]()
        self.revoked = set[NodeId]()
        self.sent = self.arrived = 0
        self.last_arrival = self.gap = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.line: End | None = None  # the end that made the connection for frames
        self._rules = dict[NodeId, tuple[float, set[tuple[Address, Address]]]]()
        self.leases = dict[NodeId, Leases]()
        self.challengers = dict[NodeId, Challenger]()
        self.relays = dict[NodeId, Relay]()
        for relay in relays:
            self.start_relay(relay)
        self.ends = {A: End(self, A, B, seed), B: End(self, B, A, seed + 1)}
        for end in self.ends.values():
            self.later(self.rng.uniform(0.0, 0.3), end.start)
        self.later(0.0, self._traffic)

    def start_relay(self, relay: NodeId) -> None:
        """Start a relay, which knows of no lease. Taking it out of ``relays`` ends it."""
        lends = Lends(relay, lambda: {A, B}, frozenset, None)
        terms = Terms(rate=1 << 20, quota=1 << 40)
        leases = self.leases[relay] = Leases(terms, lends, lambda place: False, self.rng.randbytes)
        self.challengers[relay] = Challenger(leases, self.rng.randbytes)
        self.relays[relay] = Relay(
            leases, PORT,
            far=lambda peer: None if peer in self.no_udp else 0.02,
            tell=lambda to, word: self.later(DELAY, lambda: self._told(relay, to, word)),
            changed=lambda: None,
        )  # fmt: skip

    def _told(self, relay: NodeId, to: NodeId, word: messages.OfferRelay) -> None:
        end = self.ends[to]
        dimensions = [i for i in range(DIMENSIONS) if has(word.dimensions, i)]
        end.borrow(end.borrowing.offered(relay, NodeId(word.peer), dimensions, self.now))

    # The network.

    def trusts(self, relay: NodeId) -> bool:
        """Whether the relay is a member in good standing."""
        return relay not in self.revoked

    def reaches(self, end: End, relay: NodeId) -> bool:
        """Whether an end's own paths to a relay answer."""
        return relay in self.relays and end.me not in self.no_udp

    def passes(self, end: End, other: End, dimension: int) -> Endpoint | None:
        """Where a packet of an end seems to come from; None where it does not arrive."""
        at = end.at[dimension]
        if at == FRAME:
            there = self.tcp and self.line is not None and has(other.last.framed(end.me), dimension)
            return FRAME if there else None
        if at is None or self.no_udp & {end.me, other.me}:
            return None
        relay = next((one for one in self.relays if HOSTS[one] == at.host), None)
        if relay is None:
            own = self.direct and at.host == HOSTS[other.me]
            return endpoint(end.me, dimension) if own else None
        leg = place(end.me, dimension), place(other.me, dimension)
        return endpoint(relay) if leg in self._forwards(relay) else None

    def _forwards(self, relay: NodeId) -> set[tuple[Address, Address]]:
        """What a relay's kernel forwards: its rules follow its leases a moment later."""
        at, ways = self._rules.get(relay, (-1.0, set[tuple[Address, Address]]()))
        if self.now - at > RULES:
            ways = {(each.source, each.target) for each in self.leases[relay].forwards(self.now)}
            self._rules[relay] = self.now, ways
        return ways

    def transmit(self, end: End, dimension: int, datagram: bytes | None) -> None:
        """WireGuard sends a probe, or a packet of traffic (None)."""
        other = self.ends[end.peer]
        end.sent[dimension] += ON_WIRE if datagram is not None else SIZE
        source = self.passes(end, other, dimension)
        if source is not None:
            self.later(2 * DELAY, lambda: other.arrives(dimension, datagram, source))

    def to_relay(self, end: End, relay: NodeId, dimension: int, datagram: bytes) -> None:
        """A datagram from a WireGuard port to a relay's port, and what comes back."""
        if relay not in self.relays or end.me in self.no_udp:
            return
        heard = self.challengers[relay].receive(datagram, place(end.me, dimension), self.now)
        if heard.answer is not None:
            said = heard.answer
            self.later(
                2 * DELAY,
                lambda: end.borrow(end.borrowing.receive(relay, end.peer, dimension, said, self.now)),
            )

    def connect(self, end: End) -> None:
        """A call for frames has its outcome."""
        if not self.tcp:
            end.last.failed(end.peer, self.now)
            return
        self.line, other = end, self.ends[end.peer]
        for effect in end.last.connected(end.peer, self.now, ours=True):
            end._frames(effect)
        if self.line is end:
            other.last.connected(end.me, self.now, ours=False)

    def hang_up(self) -> None:
        """The connection for frames ends."""
        if self.line is not None:
            self.line = None
            for end in self.ends.values():
                end.last.broke(end.peer, self.now)

    def _traffic(self) -> None:
        for end in self.ends.values():
            if any(end.scores):
                (dimension,) = self.rng.choices(range(DIMENSIONS), end.scores)
                self.sent += 1
                before = self.arrived
                self.transmit(end, dimension, None)
                self.later(3 * DELAY, partial(self._note, before))
        self.later(1 / self.rate, self._traffic)

    def _note(self, before: int) -> None:
        if self.arrived > before:
            self.last_arrival = self.now
        self.gap = max(self.gap, self.now - self.last_arrival)

    # The loop.

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Call ``action`` in so many seconds."""
        heapq.heappush(self._heap, (self.now + delay, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        until = self.now + seconds
        while True:
            due = min(self._heap[0][0], *(end.paths.deadline for end in self.ends.values()))
            if due > until:
                self.now = until
                return
            self.now = max(self.now, due)
            while self._heap[0][0] <= self.now:
                heapq.heappop(self._heap)[2]()
            for end in self.ends.values():
                if end.paths.deadline <= self.now:
                    end.carry_out(end.paths.tick(self.now))

    def watch(self, seconds: float) -> tuple[float, float]:
        """Let time pass; return the longest time in which no packet arrived, and the share that was lost."""
        self.gap, self.last_arrival, self.sent, self.arrived = 0.0, self.now, 0, 0
        self.run(seconds)
        return self.gap, 1.0 - self.arrived / max(1, self.sent)

    def both(self, kind: Kind | None) -> bool:
        """Whether both ends use this kind of way in all dimensions."""
        return all(end.kinds == [kind] * DIMENSIONS for end in self.ends.values())


@cache
def place(member: NodeId, dimension: int) -> Address:
    """Where a relay sees a WireGuard port."""
    return Address(HOSTS[member], 51820 + dimension)


@cache
def endpoint(member: NodeId, dimension: int | None = None) -> Endpoint:
    """A WireGuard port, or a relay's port (None)."""
    return Endpoint(HOSTS[member], PORT if dimension is None else 51820 + dimension)
