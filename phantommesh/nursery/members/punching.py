# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds direct ways to peers through NATs: gives `routing.punching` WireGuard's ports, a clock, the peers'
records and a channel to ask them by; and offers the ways that it wins."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Final, assert_never

import structlog
import trio

from phantommesh.control import messages
from phantommesh.dimensions import ALL, DIMENSIONS, bits
from phantommesh.endpoint import Address
from phantommesh.link.effects import Opened
from phantommesh.node.peers import Peers
from phantommesh.nursery.due import Due
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.news import Tell, WayChanged
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.nursery.unexpected import left_out
from phantommesh.paths.machine import Paths
from phantommesh.paths.state import PathState
from phantommesh.records.record import NodeRecord, each_wg_ports_at
from phantommesh.records.roster import Entry, name_of
from phantommesh.routing.knocks import MAGIC, Keys
from phantommesh.routing.punching import Punching
from phantommesh.routing.search import OTHER, Ask, Effect, Lost, Send, State, Target, Won, missing
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import Endpoint

# Tuning.
AHEAD: Final = 0.25  # s from the question to the start, so that the answer is back by then
PATIENCE: Final = 8.0  # s that the question may take

NO_SOCKET: Final = "this node has no raw socket"
BROKEN: Final = "a question to begin was left out after an unexpected error"

log = structlog.get_logger("phantommesh.punching")


class PunchDriver:
    """Runs one `Punching`. Call `look` when peers, or addresses of this node, may be others; `opened` after
    each handshake; `watch` when a peer's paths may have changed."""

    def __init__(
        self,
        me: NodeId,
        ports: WireguardPorts,
        ways: Ways,
        peers: Peers,
        places: Places,
        paths: Callable[[], Paths],
        caller: Caller,
        tell: Tell,
    ) -> None:
        self._ports, self._ways, self._peers, self._places = ports, ways, peers, places
        self._paths, self._caller, self._tell = paths, caller, tell
        self.punching = Punching(
            me, targets=self._targets, may=places.may, random=os.urandom,
            chance=Random(os.urandom(16)),  # noqa: S311  # spreads timers, keys nothing
        )  # fmt: skip
        self._records: dict[NodeId, tuple[object, ...]] = {}  # what each peer's record said of its addresses
        self._own: object = None  # the same of this node
        self._deaf: set[NodeId] = set()  # peers that cannot be knocked at
        self._dropped: Counter[str] = Counter()
        self._due = Due(lambda: self.punching.deadline)
        self._to_ask, self._asking = trio.open_memory_channel[Ask](1024)
        ports.listen(MAGIC, self._receive)

    @property
    def dropped(self) -> Counter[str]:
        """Counts of what was dropped, by reason."""
        return self._dropped + self.punching.dropped

    def state(self, peer: bytes) -> State:
        """What the search for direct ways to a peer is at."""
        return self.punching.state(peer)

    def again_at(self, peer: bytes) -> float:
        """When the search begins again; infinity where none is wanted, or one is under way."""
        return self.punching.again_at(peer)

    # What the node tells it.

    def look(self) -> None:
        """Take in who the peers are and where, and hold WireGuard back where an early packet may do harm."""
        if not self._ports.able:
            return
        now = trio.current_time()
        own = self._places.whereabouts()
        moved, self._own = own != self._own, own
        records = {e.member.node_id: _addresses(e.record) for e in self._peers.entries}
        changed = [peer for peer, record in records.items() if self._records.get(peer, record) != record]
        self._records = records
        self._deaf &= records.keys()
        self.punching.retain(records)
        for entry in self._peers.entries:
            self._hold(entry)
        for peer in records if moved else changed:
            self._deaf.discard(peer)
            self.punching.anew(peer, now)
        self._settle()

    def opened(self, opened: Opened) -> None:
        """A handshake with a member left keys."""
        entry = self._peers.get(opened.peer)
        if entry is None or opened.invite:
            return
        self.punching.key(opened.peer, Keys.of(opened.key_out, opened.key_in), trio.current_time())
        self.watch(entry.member.node_id)

    def watch(self, peer: NodeId) -> None:
        """Look for ways in the dimensions that have none that answers."""
        entry = self._peers.get(peer)
        if entry is None or not self._ports.able:
            return
        if self._places.whereabouts() != self._own:
            self.look()
        paths, direct = self._paths(), self._ways.on_offer(peer, Kind.DIRECT)
        states = [None if (p := paths.path(peer, i)) is None else p.state for i in range(DIMENSIONS)]
        up = bits(state is PathState.UP for state in states)
        dark = bits(state is PathState.DARK for state in states)
        chosen = self._ways.taken(peer)
        detour = bits(way is not None and way.kind is not Kind.DIRECT for way in chosen)
        keyed = bits(any(key) for key in self._peers.wg_keys_of(entry))
        wanted = missing(keyed, up=up, dark=dark, direct=direct, detour=detour)
        # A dimension that carried packets and fell silent is out of WireGuard's hands.
        soon = bool(self._ways.held(peer) | (wanted & dark))
        self._carry_out(self.punching.want(peer, wanted, trio.current_time(), soon=soon, up=up))

    def meet(self, peer: NodeId, request: messages.Meet) -> messages.Answer:
        """Answer a member that asks to knock at one moment."""
        if not self._ports.able:
            return messages.Refused(NO_SOCKET)
        ahead, now = request.in_ms / 1000, trio.current_time()
        refused = self.punching.asked(peer, request.dimensions, ahead, request.turn, now)
        self._settle()
        return messages.Refused(refused) if refused else messages.Done()

    def _hold(self, entry: Entry) -> None:
        peer = entry.member.node_id
        hidden = peer not in self._deaf and self._places.hidden_from(entry)
        if self._ways.hold(peer, ALL if hidden else 0):
            self._tell(WayChanged(peer))

    def _targets(self, peer: bytes) -> Sequence[Sequence[Target]]:
        entry = self._peers.get(peer)
        if entry is None:
            return ()
        found = [
            (host, rank, opening, ports)
            for host, rank, opening in self._places.targets(entry)
            for ports in each_wg_ports_at(entry.record, host)
        ]
        # A dimension that was dark for a moment is not to change to another of the peer's uplinks: one uplink
        # would then show more than its share.
        uplinks = [frozenset(hosts) for hosts in self._places.uplinks(entry) if hosts]
        others = [
            frozenset[str]().union(*uplinks) - uplinks[i % len(uplinks)] if uplinks else frozenset[str]()
            for i in range(DIMENSIONS)
        ]
        return [
            sorted(
                dict.fromkeys(
                    Target(Address(host, ports[i]), rank + (OTHER if host in others[i] else 0), opening)
                    for host, rank, opening, ports in found
                ),
                key=lambda target: target.rank,
            )
            for i in range(DIMENSIONS)
        ]

    # The services.

    async def run(self) -> None:
        """Do what is due until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_each, nursery)
            while True:
                await self._due.sleep()
                self._carry_out(self.punching.tick(trio.current_time()))

    def _receive(self, dimension: int, source: Address, data: bytes) -> None:
        self._carry_out(self.punching.receive(dimension, source, data, trio.current_time()))

    def _carry_out(self, effects: list[Effect]) -> None:
        changed = dict[bytes, None]()
        for effect in effects:
            match effect:
                case Send(dimension, destination, datagram, hops):
                    self._ports.send(dimension, destination, datagram, hops)
                case Ask():
                    try:
                        self._to_ask.send_nowait(effect)
                    except trio.WouldBlock:
                        self._apart(NodeId(effect.peer), "too many peers are asked at once")
                case Won(peer, dimension, address):
                    way = Way(Kind.DIRECT, Endpoint(address.host, address.port))
                    if self._ways.offer(peer, dimension, way):
                        changed[peer] = None
                    log.info(
                        "direct way", peer=self._name(NodeId(peer)), dimension=dimension, at=str(address)
                    )
                case Lost(peer, dimension):
                    if self._ways.withdraw(peer, dimension, Kind.DIRECT):
                        changed[peer] = None
                    log.info("direct way lost", peer=self._name(NodeId(peer)), dimension=dimension)
                case _:
                    assert_never(effect)
        for peer in changed:
            self._tell(WayChanged(peer))
        self._settle()

    def _name(self, member: NodeId) -> str:
        """What a member is called in the log: its name, or its node id where it is in the roster no more."""
        return name_of(self._peers.get(member), member)

    def _settle(self) -> None:
        self._ports.keep("punching", self.punching.busy)
        self._due.look()

    async def _ask_each(self, nursery: trio.Nursery) -> None:
        async for ask in self._asking.clone():
            nursery.start_soon(self._ask, NodeId(ask.peer), ask)

    async def _ask(self, peer: NodeId, ask: Ask) -> None:
        told, why = format_node_id(peer), "it gave no answer"
        question = messages.Meet(ask.dimensions, round(AHEAD * 1000), ask.turn)
        with left_out(self._dropped, "meet-broken", BROKEN, peer=told):
            try:
                answer, took = await self._caller.ask(peer, question, PATIENCE)
                if isinstance(answer, messages.Done):  # it took the question half of the time ago
                    now = trio.current_time()
                    self.punching.agreed(peer, now - took / 2 + AHEAD, now)
                    self._settle()
                    return
                if isinstance(answer, messages.Refused):
                    why = answer.message[:128]
                    if why == NO_SOCKET:
                        self._deaf.add(peer)
                        if (entry := self._peers.get(peer)) is not None:
                            self._hold(entry)
            except StreamError as error:
                why = str(error)
        log.debug("a peer is not asked to begin", peer=told, why=why)
        self._apart(peer, why)

    def _apart(self, peer: NodeId, why: str) -> None:
        alone = not self._ways.held(peer)
        self.punching.apart(peer, why, trio.current_time(), alone=alone)
        self._settle()


def _addresses(record: NodeRecord) -> tuple[object, ...]:
    return record.control, record.candidates, record.wg_ports
