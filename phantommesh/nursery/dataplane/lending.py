# SPDX-License-Identifier: GPL-3.0-or-later
"""Has this node relay for others, for as long as its configuration and its addresses say so.

`Relaying` runs the leases at certain addresses. When these change, another takes its place: the leases stay,
and their ends bind them anew.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import structlog
import trio

from phantommesh.config.sections import Config
from phantommesh.control import messages
from phantommesh.dimensions import all_names, master_name
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault, FaultKind
from phantommesh.node.peers import Peers
from phantommesh.node.relaying import Lends, Named, Relay
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.dataplane.relaying import Relaying, close_killed
from phantommesh.nursery.host.forwarding import forwards
from phantommesh.nursery.host.hostaddresses import read_addresses
from phantommesh.nursery.host.nft import NftError
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.places import Places
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.reachable import HostAddress, of_a_site
from phantommesh.records.record import RELAYS_IPV4, RELAYS_IPV6, RelayOffer
from phantommesh.routing.forwarding import RELAY_MARK, Frame, table_name
from phantommesh.routing.leases import Leases, Terms
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import OUTER_MASK

CANNOT_RELAY: Final = FaultKind("cannot-relay", "medium")
RELAY_BLOCKED: Final = FaultKind("relay-blocked", "medium")

# Tuning.
SETTLE: Final = 1.0  # s between looks at the host's addresses
RETRY: Final = 30.0  # s between attempts at a port that is taken
ANSWER: Final = 5.0  # s that a member has to take the word of a lease
AT_ONCE: Final = 32  # members that are told at once
QUEUE: Final = 256  # members that wait to be told; the relay says it again when its asker asks again
WORDS: Final = 256  # askers of which one member waits to be told

log = structlog.get_logger("phantommesh.lending")


class Lending:
    """The relay that this node is. ``far`` gives the round trip to a member in seconds by a direct way, None
    where there is none. ``publish`` has the record follow ``offer``. ``read`` gives the host's addresses but
    those of the interfaces with these names. ``clear`` removes what a run that was killed has left."""

    def __init__(
        self,
        config: Config,
        me: NodeId,
        peers: Peers,
        places: Places,
        caller: Caller,
        *,
        far: Callable[[NodeId], float | None],
        publish: Callable[[], None],
        read: Callable[[Collection[str]], Awaitable[Sequence[HostAddress]]] = partial(
            trio.to_thread.run_sync, read_addresses
        ),
        clear: Callable[[str], Awaitable[None]] = close_killed,
    ) -> None:
        section = config.relay
        self._config, self._places, self._caller, self._publish = config, places, caller, publish
        self._read, self._clear, self._names = read, clear, frozenset(all_names(config.wireguard.prefix))
        self._named = [parse_endpoint(e, config.control.port)[0] for e in config.node.endpoints]
        among = Named(section.members, peers) if section.members else None
        self.leases = Leases(
            Terms(section.rate, section.quota),
            Lends(me, lambda: peers.standing, frozenset, among),
            lambda address: not places.may(None, address.host),
            os.urandom,
        )
        self.relay = Relay(
            self.leases,
            section.port,
            far=lambda peer: far(peer) if self.relaying is not None else None,
            tell=self._to_tell,
            changed=self.changed,
        )
        self.relaying: Relaying | None = None
        self.problem: PhantomMeshError | None = None
        self._bell = Bell()
        self._telling, self._told = trio.open_memory_channel[NodeId](QUEUE)
        # To whom, then of which asker: the dimensions. A member is in it while it waits or is being told.
        self._words = dict[NodeId, dict[bytes, int]]()
        self._dropped = Counter[str]()

    @property
    def dropped(self) -> Counter[str]:
        """What the relay has dropped, by reason."""
        return self._dropped + (Counter() if self.relaying is None else self.relaying.dropped)

    @property
    def offer(self) -> RelayOffer | None:
        """What the record says of it."""
        if self.relaying is None or not self.relaying.useful:
            return None
        frame = self.relaying.frame
        families = (RELAYS_IPV4 if frame.here4 else 0) | (RELAYS_IPV6 if frame.here6 else 0)
        return RelayOffer(frame.port, families)

    @property
    def forwarding(self) -> int:
        """The leases, each of a pair of members in one dimension, that are forwarded now."""
        return 0 if self.relaying is None else len(self.relaying.forwarded) // 2

    def changed(self) -> None:
        """Members, what they may, or this host's addresses may be others than before."""
        if self.relaying is not None:
            self.relaying.changed()
        self._bell.ring()

    def moved(self) -> None:
        """This host's links, addresses or routes may be others than before."""
        if self.relaying is not None:
            self.relaying.moved()
        self._bell.ring()

    async def run(self) -> None:
        """Relay until cancelled."""
        try:  # also where this run does not relay: the kernel would go on for pairs that are revoked since
            await self._clear(table_name(master_name(self._config.wireguard.prefix)))
        except NftError as error:
            log.warning("what an earlier run relayed cannot be ended", error=str(error), fix=error.fix)
        if self._config.relay.offer is False or self._config.routes.exit:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_all)
            while True:
                frame = await self._frame()
                if frame is None:
                    await self._bell.wait()
                    await trio.sleep(SETTLE)
                else:
                    await self._serve(frame)

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong."""
        problem = self.problem
        if problem is None and self.relaying is not None:
            problem = self.relaying.problem
        if problem is not None:
            yield CANNOT_RELAY.fault(f"this node does not relay: {problem}", problem.fix)
        if self.relaying is not None and self.relaying.blocked:
            mark = f"meta mark & {OUTER_MASK:#x} == {RELAY_MARK:#x}"
            yield RELAY_BLOCKED.fault(
                "what this node is to relay does not leave this host: its firewall drops it",
                f'accept it in each chain of the hook forward, in nftables by "{mark} accept", or set '
                "relay.offer = false",
            )

    async def _serve(self, frame: Frame) -> None:
        """Relay at these addresses until they change, or for as long as the port can be had."""
        self._rest()
        self.relaying = relaying = Relaying(
            self.leases, frame, forbids=self._places.forbids, told=self._publish
        )
        async with trio.open_nursery() as nursery:

            async def relay() -> None:
                try:
                    await relaying.run()
                except PhantomMeshError as error:
                    if str(error) != str(self.problem):
                        log.warning("this node does not relay", error=str(error), fix=error.fix)
                    self.problem, self.relaying = error, None
                    self._publish()
                    await trio.sleep(RETRY)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(relay)
            await trio.lowlevel.checkpoint()
            if self.relaying is not None:
                self.problem = None
                log.info("this node relays", port=frame.port, addresses=[str(a) for _, a, _ in frame.here])
                self._publish()
            while await self._frame() == frame:
                await self._bell.wait()
                await trio.sleep(SETTLE)
            nursery.cancel_scope.cancel()
        self._rest()
        self._publish()

    def _rest(self) -> None:
        if self.relaying is not None:
            self._dropped += self.relaying.dropped
        self.relaying = None

    async def _frame(self) -> Frame | None:
        """The addresses at which this node relays now; None: at none."""
        try:
            found = self._places.reach.offers(await self._read(self._names))
        except PhantomMeshError as error:
            self.problem = error
            return None
        section = self._config.relay
        # `"auto"`: the operator has said that others reach this node, or its address says so itself. Each
        # host with IPv6 has a public address of that family, behind a firewall as a rule.
        public = any(isinstance(a.address, IPv4Address) and not of_a_site(a.address) for a in found)
        if section.offer is False or not found or not (section.offer is True or self._named or public):
            return None
        ordered = sorted(found, key=lambda one: (str(one.address) not in self._named, of_a_site(one.address)))
        here4 = next((a.address for a in ordered if isinstance(a.address, IPv4Address)), None)
        here6 = next((a.address for a in ordered if isinstance(a.address, IPv6Address)), None)
        if not forwards(6):  # its switch also ends what the host learns from routers: it is the operator's
            here6 = None
        if here4 is None and here6 is None:
            return None
        opened = tuple(dict.fromkeys(one.name for one in ordered))
        device = master_name(self._config.wireguard.prefix)
        mesh = all_names(self._config.wireguard.prefix)
        return Frame(device, section.port, here4, here6, section.rate, opened, mesh)

    # Telling the other end.

    def _to_tell(self, member: NodeId, word: messages.OfferRelay) -> None:
        """Have a member told. One that is slow to answer holds up no other: it has one turn at a time."""
        words = self._words.get(member)
        if words is None:
            if not self._queue(member):
                return
            words = self._words[member] = {}
        if word.peer not in words and len(words) >= WORDS:
            self._dropped["relay-untold"] += 1
            return
        words[word.peer] = words.get(word.peer, 0) | word.dimensions

    def _queue(self, member: NodeId) -> bool:
        try:
            self._telling.send_nowait(member)
        except trio.WouldBlock:
            self._dropped["relay-untold"] += 1
            return False
        return True

    async def _tell_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._tell_some)

    async def _tell_some(self) -> None:
        while True:
            member = await self._told.receive()
            more = False
            try:
                peer = next(iter(words := self._words[member]))
                await self._tell(member, messages.OfferRelay(peer, words.pop(peer)))
                more = bool(words) and self._queue(member)
            finally:
                if not more:
                    del self._words[member]

    async def _tell(self, member: NodeId, word: messages.OfferRelay) -> None:
        told = format_node_id(member)
        with left_out(self._dropped, "relay-untold", "a member was not told of a lease", peer=told):
            try:
                await self._caller.ask(member, word, ANSWER)
            except StreamError as error:
                self._dropped["relay-untold"] += 1
                log.debug("a member was not told of a lease", peer=told, error=str(error))
