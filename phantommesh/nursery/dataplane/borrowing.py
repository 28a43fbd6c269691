# SPDX-License-Identifier: GPL-3.0-or-later
"""Has this node go over relays where it has no direct way: `routing.borrowing` decides, `node.lacking` says
where.

Relays are asked over channels. Legs are bound from WireGuard's own ports, by the raw sockets. Where a lease
has a tag, the rules that write it are installed before WireGuard is sent there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

import structlog
import trio

from phantommesh.config.sections import RelaySection
from phantommesh.control import messages
from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.endpoint import Address
from phantommesh.faults import Fault, FaultKind
from phantommesh.node.lacking import Lacking, family, round_trip
from phantommesh.node.peers import Peers
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.dataplane.tags import Tags
from phantommesh.nursery.due import alive
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.nursery.unexpected import left_out
from phantommesh.paths.effects import PathView
from phantommesh.records.record import NodeRecord
from phantommesh.records.roster import Entry, name_of
from phantommesh.routing import binding
from phantommesh.routing.borrowing import Borrowing
from phantommesh.routing.constraints import constraints_of, relay_key
from phantommesh.routing.legs import AskCost, AskLease, Effect, LeaveLease, SendFromPort, Use
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import Endpoint

NO_RELAY: Final = FaultKind("no-relay", "medium")
NO_WAY_ALLOWED: Final = FaultKind("no-way-allowed", "medium")

# Tuning.
LOOK: Final = 0.2  # s between looks at the peers in doubt,
STEADY: Final = 15.0  # s after the last change;
SELDOM: Final = 1.0  # s between them later on
MEASURE: Final = 1.0  # s between looks at the relays
SOONEST: Final = 0.02  # s between any two
ANSWER: Final = 5.0  # s that a relay has for all that it is asked at once
UNHEARD: Final = 2  # requests without an answer until every second one goes to another address
NAMED: Final = 3  # relays that a fault names
ALONE: Final = 10.0  # s without any relay on offer until that is a fault

log = structlog.get_logger("phantommesh.borrowing")


@dataclass(slots=True)
class _Asked:
    """The questions for a relay about one peer: bitmaps of dimensions, and whether the cost."""

    cost: bool = False
    lease: int = 0
    leave: int = 0


@dataclass(slots=True)
class _Relay:
    """One relay: what it is to be asked, and the turn of its addresses that is tried."""

    asked: dict[NodeId, _Asked] = field(default_factory=dict)
    busy: bool = False
    turn: int = 0


class Borrower:
    """The borrowing of one node. ``record`` gives its own record; ``where`` the addresses of a member as far
    as they may be used; ``views`` its paths to a member; ``down`` whether gossip holds a member for gone;
    ``keyed`` the dimensions, as a bitmap, whose PSK both ends have. ``changed`` is called with a peer to whom
    another way is to be taken."""

    def __init__(
        self, me: NodeId, config: RelaySection, device: str, *,
        peers: Peers, ways: Ways, caller: Caller, ports: WireguardPorts,
        record: Callable[[], NodeRecord | None],
        own_ports: Callable[[], Sequence[int]],
        where: Callable[[Entry], Sequence[Address]],
        views: Callable[[NodeId], Sequence[PathView]],
        down: Callable[[NodeId], bool],
        keyed: Callable[[NodeId], int],
        changed: Callable[[NodeId], None],
    ) -> None:  # fmt: skip
        self.machine, self.dropped = Borrowing(me, peers.needs, peers.confined), Counter[str]()
        self._use, self._constraints = config.use, constraints_of(config)
        self._peers, self._ways, self._caller, self._ports = peers, ways, caller, ports
        self._record, self._own_ports, self._where, self._views = record, own_ports, where, views
        self._down, self._keyed, self._changed = down, keyed, changed
        self._lacking: dict[NodeId, Lacking] = {}
        self._relays: dict[NodeId, _Relay] = {}
        self._tickets: dict[bytes, tuple[NodeId, NodeId, int]] = {}  # to relay, peer and dimension
        self._heard_from: dict[tuple[NodeId, NodeId, int], str] = {}
        self._unheard = Counter[tuple[NodeId, NodeId, int]]()  # requests since
        self._used_at: dict[
            tuple[NodeId, int], tuple[NodeId, str]
        ] = {}  # relay and host, by peer and dimension
        self._tags = Tags(device, peers, ways, changed)
        self._alone: dict[NodeId, float] = {}  # since when no relay offers, by peer
        self._doubted = self._measured = -inf
        self._back: dict[NodeId, int] = {}  # dimensions that were seen to go over a relay that was left
        self._bell, self._asking = Bell(), Bell()
        if self._use:
            ports.listen(binding.MAGIC, self._receive)

    # Told from outside.

    def doubt(self, peers: Collection[bytes]) -> None:
        """Something about the ways to these peers has changed: look at them until they have settled."""
        if not self._use:
            return
        if not self._lacking:
            self._measured = -inf  # the relays that were known may be long ago
        for peer in peers:
            self._lacking.setdefault(NodeId(peer), Lacking())
        self._doubted = trio.current_time()
        self._bell.ring()

    def forget(self, members: Container[bytes]) -> None:
        """Others than these are no members any more."""
        self.machine.forget(members)
        self._tickets = {t: f for t, f in self._tickets.items() if f[0] in members and f[1] in members}
        self._heard_from = {f: h for f, h in self._heard_from.items() if f[0] in members and f[1] in members}
        for found in self._unheard.keys() - self._heard_from.keys():
            del self._unheard[found]

    def offered(self, relay: NodeId, word: messages.OfferRelay) -> None:
        """Take a relay's word that a peer of ours has asked it for leases."""
        peer = NodeId(word.peer)
        if not self._use or self._peers.get(peer) is None or peer not in self._peers.standing:
            self.dropped["relay-offer"] += 1
            return
        self.doubt((peer,))
        self._set_relays()
        dimensions = [i for i in range(DIMENSIONS) if has(word.dimensions, i)]
        self._do(self.machine.offered(relay, peer, dimensions, trio.current_time()))

    def located(self, peer: NodeId, endpoints: Sequence[Endpoint | None]) -> None:
        """Take a reading of where WireGuard sends to, by dimension."""
        if peer in self._lacking:
            left = [self._ways.left(peer, i) for i in range(DIMENSIONS)]
            self._back[peer] = self._back.get(peer, 0) | bits(
                here is not None and here == there for here, there in zip(left, endpoints, strict=True)
            )

    def moved(self) -> None:
        """This node may be at another address."""
        self._do(self.machine.moved(trio.current_time()))
        self._bell.ring()

    async def run(self) -> None:
        """Borrow until cancelled; then nothing goes over relays any more."""
        if not self._use:
            await trio.sleep_forever()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_all)
                nursery.start_soon(self._tags.keep)
                await self._look_all()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2.0):
                await self._tags.remove()

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong."""
        now = trio.current_time()
        for peer, since in self._alone.items():
            entry = self._peers.get(peer)
            if entry is None or now - since < ALONE:
                continue
            name, by = entry.member.name, self._offering(peer)
            if by:  # with these the fix is not to have another one
                named = ", ".join(by[:NAMED]) + (f" and {len(by) - NAMED} more" if len(by) > NAMED else "")
                yield NO_RELAY.fault(
                    f"no way to {name}: no direct way is found, and none of the members that relay forwards "
                    f"for the two yet: {named}",
                    f"see that {name} runs, that both ends reach the relay.port of one of these by UDP, and "
                    "that its relay.members leaves out neither",
                    subject=name,
                )
            elif refused := self._refused(peer):
                key, names = refused
                yield NO_WAY_ALLOWED.fault(
                    f"nothing is sent to {name}: no direct way is found, and by {key} no member that relays "
                    f"may serve: {names}",
                    f"let {name} and this node reach each other directly, or change {key} and restart",
                    subject=name,
                )
            else:
                yield NO_RELAY.fault(
                    f"no way to {name}: no direct way is found, and no member relays",
                    "set relay.offer = true on a node that both reach, and open its relay.port",
                    subject=name,
                )
        yield from self._tags.faults()

    def _offering(self, peer: NodeId) -> list[str]:
        """The names of the members that offer to relay, in a family of addresses that serves for the peer."""
        return sorted(e.member.name for e in self._relaying(peer) if not self._refuses(e))

    def _refused(self, peer: NodeId) -> tuple[str, str] | None:
        """The keys of the configuration that forbid members which offer to relay, and the names of these;
        None where there are none."""
        found = sorted((e.member.name, key) for e in self._relaying(peer) if (key := self._refuses(e)))
        if not found:
            return None
        names = [name for name, _ in found]
        named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        return " and ".join(sorted({key for _, key in found})), named

    def _relaying(self, peer: NodeId) -> Iterator[Entry]:
        for entry in self._peers.entries:
            relay = entry.member.node_id
            if not self._down(relay) and self._family(relay, peer) is not None:
                yield entry

    def _refuses(self, entry: Entry) -> str:
        """The key of the configuration that forbids a member as a relay, or nothing."""
        rule = self._constraints.refuses(
            entry.member.name, entry.record.region, format_node_id(entry.member.node_id)
        )
        return "" if rule is None else relay_key(rule)

    # Looking.

    async def _look_all(self) -> None:
        while True:
            if not self._lacking and self.machine.idle:
                alive(inf)
                await self._bell.wait()
            alive(SELDOM)
            self._look(now := trio.current_time())
            pause = LOOK if now - self._doubted < STEADY else SELDOM
            with trio.move_on_at(max(now + SOONEST, min(now + pause, self.machine.deadline))):
                await self._bell.wait()

    def _look(self, now: float) -> None:
        alone = set[NodeId]()
        if now - self._measured >= MEASURE:
            self._set_relays()
        for peer, lacking in list(self._lacking.items()):
            entry, paths = self._peers.get(peer), self._views(peer)
            wanted = 0
            if entry is not None and paths and not self._down(peer):
                ways = self._ways.taken(peer)
                wanted = lacking.look(self._keyed(peer), paths, ways, now, self._back.pop(peer, 0))
                for relay in lacking.gone(paths, ways, now):
                    self._do(self.machine.failed(NodeId(relay), peer, now))
            if wanted and not any(path.answers for path in paths) and not any(self._ways.taken(peer)):
                alone.add(peer)
            self._do(self.machine.want(peer, [i for i in range(DIMENSIONS) if has(wanted, i)], now))
            self._lend(peer)
            if not wanted and (entry is None or self._down(peer) or lacking.settled):
                del self._lacking[peer]
                self._back.pop(peer, None)
        if self.machine.deadline <= now:
            self._do(self.machine.tick(now))
        self._alone = {peer: self._alone.get(peer, now) for peer in alone}

    def _set_relays(self) -> None:
        self._measured = trio.current_time()
        near, leaving = dict[NodeId, float](), set[NodeId]()
        if self._lacking or not self.machine.idle:
            for entry in self._peers.entries:
                relay = entry.member.node_id
                if entry.record.relay is None or self._down(relay) or self._refuses(entry):
                    continue
                paths = self._views(relay)
                trip = round_trip(paths, self._ways.taken(relay)) if paths else None
                if trip is not None:
                    near[relay] = trip
                    if entry.record.condition.draining:
                        leaving.add(relay)
        self._relays = {relay: known for relay, known in self._relays.items() if relay in near or known.busy}
        self._do(self.machine.set_relays(near, trio.current_time(), leaving))

    # Effects.

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case AskCost(relay, peer):
                    if self._family(relay, peer) is None:
                        self._do(self.machine.cost(relay, peer, None, trio.current_time()))
                    else:
                        self._to_ask(relay, peer).cost = True
                case AskLease(relay, peer, dimension):
                    asked = self._to_ask(relay, peer)
                    asked.lease |= 1 << dimension
                    asked.leave &= ~(1 << dimension)
                case LeaveLease(relay, peer, dimension):
                    asked = self._to_ask(relay, peer)
                    asked.leave |= 1 << dimension
                    asked.lease &= ~(1 << dimension)
                case SendFromPort(relay, port, dimension, datagram):
                    self._send(relay, port, dimension, datagram)
                case Use():
                    self._take(effect)

    def _lend(self, peer: NodeId) -> None:
        """Say which relays may forward packets of a peer: what may not go by them is closed then."""
        if self._ways.lend(peer, self.machine.lenders(peer)) and self._peers.confining:
            self._changed(peer)

    def _to_ask(self, relay: NodeId, peer: NodeId) -> _Asked:
        self._asking.ring()
        return self._relays.setdefault(relay, _Relay()).asked.setdefault(peer, _Asked())

    def _send(self, relay: NodeId, port: int, dimension: int, datagram: bytes) -> None:
        told = binding.decode_untrusted(datagram)
        found = self._tickets.get(told.ticket)
        if found is None:
            return
        hosts = self._hosts(relay, found[1])
        known = self._heard_from.get(found)
        self._unheard[found] += told.kind is binding.Kind.ASK
        if known in hosts and (self._unheard[found] <= UNHEARD or self._unheard[found] % 2):
            host = known
        elif hosts:
            turns = self._relays.setdefault(relay, _Relay())
            host, turns.turn = hosts[turns.turn // (2 * DIMENSIONS) % len(hosts)], turns.turn + 1
        else:
            self.dropped["relay-nowhere"] += 1
            return
        self._ports.send(dimension, Address(host, port), datagram)

    def _hosts(self, relay: NodeId, peer: NodeId) -> list[str]:
        """The addresses of a relay, of the family in which it can forward to a peer."""
        entry, version = self._peers.get(relay), self._family(relay, peer)
        if entry is None or version is None:
            return []
        hosts = dict.fromkeys(address.host for address in self._where(entry))
        return [host for host in hosts if (":" in host) == (version == 6)]

    def _family(self, relay: NodeId, peer: NodeId) -> int | None:
        ends, own = (self._peers.get(relay), self._peers.get(peer)), self._record()
        if ends[0] is None or ends[1] is None or own is None:
            return None
        return family(ends[0].record, own, ends[1].record)

    def _take(self, use: Use) -> None:
        key, changed = (use.peer, use.dimension), False
        before = self._tags.drop(key)
        self._used_at.pop(key, None)
        if use.relay is None:
            changed = self._ways.withdraw(use.peer, use.dimension, Kind.RELAYED)
            log.info("a dimension goes over no relay", peer=self._name(use.peer), dimension=use.dimension)
        else:
            host = self._heard_from.get((use.relay, use.peer, use.dimension))
            if host is None:
                return
            self._used_at[key] = use.relay, host
            log.info(
                "a dimension goes over a relay", peer=self._name(use.peer), dimension=use.dimension,
                relay=self._name(use.relay), tag=use.tag,
            )  # fmt: skip
            if use.tag:
                relay = Address(host, use.port)
                own = self._own_ports()[use.dimension]
                self._tags.put(key, use.relay, relay, own, use.tag)
            else:
                way = Way(Kind.RELAYED, Endpoint(host, use.port), relay=use.relay)
                changed = self._ways.offer(use.peer, use.dimension, way)
        if before or key in self._tags.tagged:
            self._tags.bell.ring()
        if changed:
            self._changed(use.peer)

    def _name(self, member: NodeId) -> str:
        """What a member is called in the log: its name, or its node id where it is in the roster no more."""
        return name_of(self._peers.get(member), member)

    def _receive(self, dimension: int, source: Address, datagram: bytes) -> None:
        """Take a datagram that came to a WireGuard port and has a relay's magic."""
        found = self._tickets.get(datagram[5:13])
        if found is None or found[2] != dimension:
            self.dropped["relay-ticket"] += 1
            return
        relay, peer, _ = found
        if source.host not in self._hosts(relay, peer):
            self.dropped["relay-source"] += 1
            return
        before = self._heard_from.get(found)
        self._heard_from[found] = source.host
        used = self._used_at.get((peer, dimension))
        effects = self.machine.receive(
            relay, peer, dimension, datagram, trio.current_time(),
            elsewhere=used is not None and used[0] == relay and used[1] != source.host,
        )  # fmt: skip
        if effects:
            self._unheard.pop(found, None)
        elif before is None:
            del self._heard_from[found]
        else:
            self._heard_from[found] = before  # this one may be forged
        self._do(effects)

    # Questions.

    async def _ask_all(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                for relay, known in self._relays.items():
                    if known.asked and not known.busy:
                        known.busy = True
                        nursery.start_soon(self._ask, relay, known)
                await self._asking.wait()

    async def _ask(self, relay: NodeId, known: _Relay) -> None:
        """Ask one relay all that there is to ask, over one channel."""
        told = format_node_id(relay)
        try:
            with left_out(self.dropped, "relay-broken", "a relay's answer was left out", relay=told):
                try:
                    with trio.fail_after(ANSWER):
                        async with self._caller.call(relay) as client:
                            while known.asked:
                                peer, asked = known.asked.popitem()
                                for request in _requests(peer, asked):
                                    self._answered(relay, peer, request, await client.ask(request))
                except (StreamError, trio.TooSlowError) as error:
                    log.debug("a relay does not answer", relay=told, error=str(error))
                    self.dropped["relay-unanswered"] += 1
                    known.asked.clear()
        finally:
            known.busy = False
            self._asking.ring()

    def _answered(
        self, relay: NodeId, peer: NodeId, request: messages.AskRelay | messages.LeaveRelay,
        answer: messages.Answer,
    ) -> None:  # fmt: skip
        now = trio.current_time()
        if isinstance(request, messages.LeaveRelay):
            self._tickets = {t: f for t, f in self._tickets.items() if not _left(f, relay, request)}
            self._heard_from = {
                f: host for f, host in self._heard_from.items() if not _left(f, relay, request)
            }
            for found in self._unheard.keys() - self._heard_from.keys():
                del self._unheard[found]
            return
        if not isinstance(answer, messages.Relayed):
            if not request.dimensions:
                self._do(self.machine.cost(relay, peer, None, now))
            for i in range(DIMENSIONS):
                if has(request.dimensions, i):
                    self._do(self.machine.refused(relay, peer, i, now))
            return
        if not request.dimensions:
            self._do(self.machine.cost(relay, peer, answer.far / 1e6, now))
        legs = {leg.dimension: leg for leg in answer.legs}
        for i in range(DIMENSIONS):
            if not has(request.dimensions, i):
                continue
            if (leg := legs.get(i)) is None:
                self._do(self.machine.refused(relay, peer, i, now))
                continue
            which = (relay, peer, i)
            if self._tickets.get(leg.ticket, which) != which:
                # Another lease has this ticket. A relay that has seen it on the way would take that one over.
                self.dropped["relay-ticket-taken"] += 1
                self._do(self.machine.refused(relay, peer, i, now))
                continue
            if leg.ticket not in self._tickets:
                self._tickets = {t: f for t, f in self._tickets.items() if f != which}
                self._tickets[leg.ticket] = which
            key = Secret(leg.key)
            self._do(self.machine.granted(relay, peer, i, answer.port, leg.tag, leg.ticket, key, now))
        self._lend(peer)


def _requests(peer: NodeId, asked: _Asked) -> Iterator[messages.AskRelay | messages.LeaveRelay]:
    if asked.leave:
        yield messages.LeaveRelay(peer, asked.leave)
    if asked.cost:
        yield messages.AskRelay(peer, 0, tagging=True)
    if asked.lease:
        yield messages.AskRelay(peer, asked.lease, tagging=True)


def _left(found: tuple[NodeId, NodeId, int], relay: NodeId, request: messages.LeaveRelay) -> bool:
    return found[0] == relay and found[1] == request.peer and has(request.dimensions, found[2])
