# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds out where this node may be reached, and has its record follow: `node.whereabouts` decides.

The kernel tells of changes (`host/changes.py`); other members are asked how they see this node. A machine
that slept, or a process that was stopped, hears of neither. So a beat that comes late, by a clock that goes
on in a sleep, counts as a move.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Container, Iterator, Sequence
from functools import partial
from random import Random
from typing import Final

import structlog
import trio

from phantommesh.config.sections import Config
from phantommesh.control import messages
from phantommesh.endpoint import Address, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault, FaultKind
from phantommesh.node.whereabouts import Found, Mapped, Pace, Rounds, Whereabouts
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.host.hostaddresses import read_addresses
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.rates import Bucket
from phantommesh.reachable import HostAddress, IpAddress, Reach, all_loopback
from phantommesh.trust.identity import NodeId

ADDRESS_MISSING = FaultKind("address-missing", "medium")

# Tuning.
READS: Final = 1 / 5, 6  # readings of the host's addresses and routes a second, and at once
SETTLE: Final = 0.05  # s from the first word of a change to a reading: several come together
ANSWER: Final = 5.0  # s that a witness has
MUTE: Final = 300.0  # s for which a member that gives no answer is not asked again
BEAT: Final = 1.0  # s between looks at the clock
SLEPT: Final = 5.0  # s that a beat is late after a sleep
LONG: Final = 60.0  # s of sleep after which the links' keys may be of an epoch that is over for others

log = structlog.get_logger("phantommesh.finding")


class Finding:
    """Where this node may be reached, as far as it knows. ``found`` is what its record says of it,
    ``on`` whether it finds out at all.

    ``refresh`` reads the host's networks anew, ``reach`` judges by them, ``home`` hears which own addresses
    count; ``authorities`` are the members that are one. ``publish`` has the record follow; ``rehomed`` is
    called when this node may be somewhere else, or has slept, ``woken`` before that if it slept, and
    ``overslept`` too if it slept for long; ``read`` gives the host's addresses but those of the interfaces
    with these names.
    """

    def __init__(
        self,
        config: Config,
        names: Collection[str],
        caller: Caller,
        *,
        refresh: Callable[[], Awaitable[None]],
        reach: Callable[[], Reach],
        home: Callable[[Sequence[str]], None],
        authorities: Callable[[], Collection[NodeId]],
        publish: Callable[[], None],
        rehomed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        woken: Callable[[], None] = lambda: None,
        overslept: Callable[[], None] = lambda: None,
        read: Callable[[Collection[str]], Awaitable[Sequence[HostAddress]]] = partial(
            trio.to_thread.run_sync, read_addresses
        ),
    ) -> None:
        now = trio.current_time()
        port = config.control.port
        local = all_loopback(parse_endpoint(endpoint, port)[0] for endpoint in config.node.endpoints)
        self.whereabouts = Whereabouts(port)
        self.dropped = self.whereabouts.dropped
        self.found = Found()
        self._configured = bool(config.node.endpoints)
        self.on = config.nat.discover and not local
        self._names, self._caller = frozenset(names), caller
        self._refresh, self._reach, self._home = refresh, reach, home
        self._authorities, self._publish, self._woken = authorities, publish, woken
        self._overslept = overslept
        self._read, self._rehomed, self._ways = read, rehomed, frozenset[int]()
        self._pace, self._rounds, self._reads = Pace(now), Rounds(now), Bucket(*READS, now)
        self._mute: dict[NodeId, float] = {}
        self._news, self._due = Bell(), Bell()
        self._dirty = self._stale = self._complained = False
        self._heard: dict[bytes, tuple[Address, float]] = {}
        self._rng = Random()  # noqa: S311  # orders members, keys nothing

    # Told from outside.

    def moved(self) -> None:
        """A link, an address or a way out of this host is another."""
        if self.on:
            self._dirty = True
            self._news.ring()

    def mapped(self, found: tuple[Mapped, ...]) -> None:
        """Gateways forward this to this node."""
        self.whereabouts.mapped = found
        self._news.ring()

    def hinted(self, place: str) -> None:
        """A member says unasked that this node is there: see `Whereabouts.hinted`."""
        now = trio.current_time()
        if self.on and self.whereabouts.hinted(place, now):
            log.info("a member sees this node at another place", place=place)
            self._stale = True
            self._news.ring()
            self._rounds.again(now)
            self._due.ring()

    def linked(self, peer: bytes, at: Address | None) -> None:
        """A handshake with a member finished, who answered from there: it may be the first witness."""
        now = trio.current_time()
        if at is not None:
            self._heard[peer] = at, now
        if self.on and not self.whereabouts.witnesses(now):
            self._rounds.soon(now)
            self._due.ring()

    def heard(self, peer: bytes) -> Iterator[tuple[Address, float]]:
        """Yield where a member finished its last handshake with this node, and when."""
        if peer in self._heard:
            yield self._heard[peer]

    def retain(self, members: Container[bytes]) -> None:
        """Forget where others than these were heard."""
        self._heard = {peer: at for peer, at in self._heard.items() if peer in members}

    async def begin(self) -> None:
        """Read what the host has, before the first record is made. The host's networks are read already."""
        if self.on:
            await self._look()
            self.found = self.whereabouts.found(trio.current_time())

    async def run(self) -> None:
        """Follow all changes until cancelled."""
        if not self.on:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._ask)
            nursery.start_soon(self._watch_clocks)

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong with where this node is reached."""
        if self.on and not self._configured and not self.found.candidates:
            yield ADDRESS_MISSING.fault(
                "this host has no address by which others could reach this node",
                "connect it to a network, or name an address in node.endpoints",
            )

    def public(self) -> frozenset[IpAddress]:
        """The addresses at which others see this node."""
        return self.whereabouts.public(trio.current_time())

    # What the host has.

    async def _follow(self) -> None:
        while True:
            if not self._dirty and not self._stale:
                with trio.move_on_at(self._pace.due(trio.current_time())):
                    await self._news.wait()
            if self._dirty:
                await trio.sleep(max(SETTLE, self._reads.owe(trio.current_time())))
                self._dirty = False  # before the reading: a change during it has another follow
                await self._refresh()
                self._stale |= await self._look()
            if self._stale:
                self._stale = False
                await self._rehomed()
            self._compare()
            if self._pace.take(trio.current_time()):
                self.found = self.whereabouts.found(trio.current_time())
                log.info("this node's record says anew where it is reached", endpoints=self.found.endpoints)
                self._publish()

    async def _look(self) -> bool:
        """Read the host's addresses. Return whether its peers may have to find it anew."""
        try:
            addresses = await self._read(self._names)
        except PhantomMeshError as error:
            if not self._complained:
                log.warning("the host's addresses are not known", error=str(error), fix=error.fix)
            self._complained = True
            return False
        self._complained = False
        now, reach = trio.current_time(), self._reach()
        before, self._ways = self._ways, reach.host.uplinks
        moved = self.whereabouts.host(reach.offers(addresses), now)
        if moved:
            self._home([str(one.address) for one in self.whereabouts.own])
            self._rounds.again(now)
            self._due.ring()
        return moved or before != self._ways

    def _compare(self) -> None:
        now = trio.current_time()
        if self.whereabouts.found(now) != self.found:
            self._pace.changed(now, first_only=True)

    # What others see.

    async def _ask(self) -> None:
        while True:
            while (due := self._rounds.due) > trio.current_time():
                with trio.move_on_at(due):
                    await self._due.wait()
            asked = trio.current_time()
            await self._round()
            self._rounds.asked(asked, trio.current_time())
            self._news.ring()

    async def _round(self) -> None:
        now = trio.current_time()
        authorities = self._authorities()
        self._mute = {member: until for member, until in self._mute.items() if until > now}
        members = [member for member in self._caller.callable() if member not in self._mute]
        self.whereabouts.retain(set(self._caller.callable()).__contains__)
        async with trio.open_nursery() as nursery:
            for witness in self.whereabouts.ask(members, authorities, now, self._rng):
                nursery.start_soon(self._question, witness, witness in authorities)

    async def _question(self, witness: NodeId, authority: bool) -> None:
        asked, told = trio.current_time(), self._caller.name_of(witness)
        with left_out(self.dropped, "sighting-broken", "a sighting was left out", peer=told):
            answer: messages.Answer | None = None
            try:
                answer = (await self._caller.ask(witness, messages.Look(), ANSWER)).answer
            except StreamError as error:
                log.debug("a member does not say where it sees this node", peer=told, error=str(error))
            if isinstance(answer, messages.Sighting):
                self.whereabouts.told(witness, answer, asked, authority=authority)
            else:
                self._mute[witness] = asked + MUTE

    # Sleep.

    async def _watch_clocks(self) -> None:
        clock = _clock()
        while True:
            await trio.sleep(BEAT)
            before, clock = clock, _clock()
            slept = clock - before - BEAT
            if slept > SLEPT:
                now = trio.current_time()
                log.info("this machine has slept", seconds=round(slept, 1))
                self.whereabouts.moved(now)
                self._rounds.again(now)
                self._due.ring()
                self.moved()
                self._woken()
                if slept > LONG:
                    self._overslept()
                await self._rehomed()


def _clock() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
