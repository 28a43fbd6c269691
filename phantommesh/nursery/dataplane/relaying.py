# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives a relay's leases their socket, their clock and the kernel.

What the kernel forwards is made equal to `Leases.forwards` whenever that may have changed. A change is one
transaction of an nft child. Where the table is not what it was left as, it is installed anew as a whole.
Data takes a shorter way (`fastlane.py`) once packets have been seen to leave by these rules.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from math import inf
from typing import Protocol

import structlog
import trio

from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.dataplane.fastlane import FastLane
from phantommesh.nursery.host import forwarding as switches
from phantommesh.nursery.host.leftovers import close_left, opened_beside
from phantommesh.nursery.host.nft import NftError, Table
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.rates import Bucket
from phantommesh.routing import fastlane, forwarding
from phantommesh.routing.binding import Challenger
from phantommesh.routing.forwarding import COUNTED, DROPS, FAMILY, OPENED, PASSED, Drop, Frame
from phantommesh.routing.leases import Forward, Leases

# Tuning.
COUNT: float = 5.0  # s between two readings of the counters
IDLE: float = 60.0  # s without a lease in force until the rules are taken away
SURELY: int = 10  # packets that came one after the other, of which none has left
CHANGES: tuple[float, float] = 5.0, 20.0  # changes a second, and at once: each takes processes
RETRY: float = 1.0  # s between attempts at what failed
BLOCKED: tuple[float, float] = 300.0, 3600.0  # s until a host that drops what is relayed is tried again

log = structlog.get_logger("phantommesh.relay")


class Rules(Protocol):
    """The part of `Table` that is needed here."""

    async def install(self, text: str) -> None: ...

    async def remove(self) -> None: ...

    async def counters(self, name: str) -> Mapping[int, tuple[int, int]]: ...

    async def names(self, name: str) -> list[str]: ...


class Relaying:
    """Runs the relay. ``forbids`` says to which addresses nothing is sent, whatever the leases let
    through. ``told`` is called when ``useful`` has changed. ``beside`` says which uplinks relays of other
    meshes' nodes on this host have opened, given this one's table."""

    def __init__(
        self,
        leases: Leases,
        frame: Frame,
        *,
        forbids: Callable[[str], bool] = lambda host: False,
        random: Callable[[int], bytes] = os.urandom,
        rules: Rules | None = None,
        fast: FastLane | None = None,
        beside: Callable[[str], Awaitable[frozenset[str]]] = opened_beside,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self.leases, self.frame, self._uplinks = leases, replace(frame, opened=()), frame.opened
        self.problem: PhantomMeshError | None = None
        self.forwarded: frozenset[Forward] = frozenset()  # what the kernel has been given
        self.dropped: Counter[str] = Counter()
        self._challenger = Challenger(leases, random)
        self._rules = Table(FAMILY, frame.table) if rules is None else rules
        self._beside = beside
        self._forbids, self._bell, self._whole = forbids, Bell(), False
        self._settled, self._stirred = Bell(), False
        self._there = False  # the rules forward something
        self._drops = Counter[str]()
        self.blocked = False  # what is to be forwarded does not leave this host
        self._counted: dict[int, int] = {}  # packets, as of the last reading
        self._passed = 0
        self._told, self._trying = told, False
        self._try_at, self._pause = inf, BLOCKED[0]
        self._unseen = 0  # packets that came since one was seen to leave
        self._fast = FastLane(self.frame, self._uplinks) if fast is None else fast
        self._over_rate = 0
        self._leaves = False  # packets are seen to leave by the rules: no firewall drops them

    def changed(self) -> None:
        """What is to be forwarded may have changed: a lease has come or gone, a member is revoked, banned or
        drained."""
        now = trio.current_time()
        self.leases.recheck(now)
        self.leases.tick(now)
        self._stir()

    def _stir(self) -> None:
        """Have `_apply` look again. It may be busy with something else now."""
        self._stirred = True
        self._bell.ring()

    def moved(self) -> None:
        """This host's links, addresses or routes may be others than before."""
        self._fast.moved()
        self._stir()

    @property
    def useful(self) -> bool:
        """Whether others should ask this relay: nothing drops what it is to forward, or that has been so
        for long enough to be tried again."""
        return self._trying or not self.blocked

    async def settled(self, wanted: Callable[[frozenset[Forward]], bool]) -> None:
        """Return once what the kernel forwards is so."""
        while not wanted(self.forwarded):
            await self._settled.wait()

    @property
    def short(self) -> frozenset[Forward]:
        """The part of `forwarded` that takes the short way."""
        return frozenset(lane.forward for lane in self._fast.lanes)

    async def run(self) -> None:
        """Relay until cancelled; then nothing is forwarded any more. The rules are there, and the uplinks
        forward, only while there is a lease in force and some time more. Raises `PhantomMeshError` where the
        port is taken."""
        hosts = [str(address) for _, address, _ in self.frame.here]
        with UdpPort(self.frame.port, hosts, "relay.port") as port:
            port.forbids, port.dropped = self._forbids, self.dropped
            await close_left(self._rules, self.frame.table, OPENED, self._beside)
            await self._fast.close()
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(port.receive, partial(self._receive, port))
                    nursery.start_soon(self._count)
                    await self._apply()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
                    await self._end()

    async def _closed(self) -> list[str]:
        """The uplinks that do not forward IPv4 for the host itself. Those that another relay here has opened
        are among them: the relay that ends last closes them."""
        if self.frame.here4 is None or switches.forwards(4):
            return []
        beside = await self._beside(self.frame.table)
        return [*switches.closed(self._uplinks), *(name for name in self._uplinks if name in beside)]

    def _open(self, interfaces: list[str]) -> None:
        """Have the kernel forward what comes in by these. Raises PhantomMeshError."""
        try:
            switches.open_for(interfaces)
        except OSError as error:
            raise PhantomMeshError(
                f"cannot turn on forwarding on {', '.join(interfaces)}: {error.strerror}",
                fix="mount /proc/sys writable, or set net.ipv4.ip_forward=1 on the host",
            ) from None

    def _receive(self, port: UdpPort, datagram: bytes, source: Address) -> None:
        heard = self._challenger.receive(datagram, source, trio.current_time())
        if heard.dropped:
            self.dropped[heard.dropped] += 1
        if heard.bound:
            self._stir()
        if heard.answer is not None:
            port.send(heard.answer, source)

    async def _apply(self) -> None:
        """Make the kernel's maps as they should be, again and again."""
        installed, idle = False, 0.0
        changes = Bucket(*CHANGES, trio.current_time())
        while True:
            self._stirred = False
            now = trio.current_time()
            self.leases.tick(now)
            wanted = self.leases.forwards(now)
            installed = installed and not self._whole
            if wanted:
                idle = now + IDLE
            elif installed and now >= idle:
                await self._end()
                installed = False
            if wanted == self.forwarded and (installed or not wanted):
                if not await self._shorten(now) or self._stirred:
                    continue
                until = min(self.leases.deadline, max(idle, now) if installed else inf, self._fast.due())
                with trio.move_on_at(until):
                    await self._bell.wait()
                continue
            if (pause := changes.owe(now)) > 0.0:  # a member may bind its legs to ever other ports
                await trio.sleep(pause)
                now = trio.current_time()
                self.leases.tick(now)
                wanted = self.leases.forwards(now)
            try:
                await self._fast.withdraw(wanted)
                if installed:
                    if self.forwarded - wanted:  # their counters are about to go
                        await self._read()
                        wanted &= self.leases.forwards(trio.current_time())
                    await self._rules.install(forwarding.change(self.frame, self.forwarded, wanted))
                    fresh = wanted - self.forwarded
                else:
                    # The rules come first: what has no mark is dropped from the beginning.
                    closed = await self._closed()
                    held = dict.fromkeys((*self.frame.opened, *closed))
                    self.frame = replace(self.frame, opened=tuple(held))
                    await self._rules.install(forwarding.render(self.frame, wanted))
                    self._open(closed)
                    fresh = wanted
            except PhantomMeshError as error:
                if not installed:
                    self._tell(error)
                    await trio.sleep(RETRY)
                installed = False
                continue
            installed, self._whole, self.problem, self.forwarded = True, False, None, wanted
            self._there = bool(wanted)
            self.leases.begun(each.number for each in fresh)
            self._fast.begun([each.number for each in fresh])
            self._fast.retain([each.number for each in wanted])
            self._settled.ring()

    async def _shorten(self, now: float) -> bool:
        """Have data take the short way, where it may. False: that is to be tried again."""
        may = self._leaves and not self.blocked
        try:
            await self._fast.follow(self.forwarded if may else frozenset(), now)
        except NftError as error:
            self._tell(error)
            await trio.sleep(RETRY)
            return False
        return True

    async def _count(self) -> None:
        """Read the counters now and then: for the quotas, and to see whether the table is still there."""
        while True:
            await trio.sleep(COUNT)
            if self.blocked and not self._trying and trio.current_time() >= self._try_at:
                self._trying, self._unseen = True, 0  # nobody asks a relay that does not offer
                self._told()
            if not self._there:
                continue
            try:
                there = await self._read()
            except NftError:
                there = frozenset()
            if not {each.number for each in self.forwarded} <= there:
                self._whole = True  # somebody has deleted the table, or flushed the ruleset
                self._stir()
            if self.frame.opened and switches.forwards(4):
                # Another program wants this host to forward: what it forwards is not ours to drop.
                self.frame, self._whole = replace(self.frame, opened=()), True
                self._stir()

    async def _read(self) -> frozenset[int]:
        """Take in the counters; return the numbers that have one. Raises NftError."""
        drops = Counter(forwarding.read_drops(await self._rules.counters(DROPS)))
        self.dropped += drops - self._drops  # a table that was installed anew begins at 0
        self._drops = drops
        passed = sum(packets for packets, _ in (await self._rules.counters(PASSED)).values())
        counted = await self._rules.counters(COUNTED)
        self._compare({number: packets for number, (packets, _) in counted.items()}, passed)
        size = Counter(forwarding.read_counted(counted)) + Counter(await self._fast.read())
        self.dropped += Counter({forwarding.reason(Drop.RATE): self._fast.over_rate - self._over_rate})
        self._over_rate = self._fast.over_rate
        if self.leases.account(size, trio.current_time()):
            self._stir()
        return frozenset(counted)

    def _compare(self, counted: dict[int, int], passed: int) -> None:
        """See whether what was taken to be forwarded has left this host."""
        came = sum(
            now - before for number, now in counted.items() if (before := self._counted.get(number, 0)) < now
        )
        left = passed - self._passed if passed >= self._passed else passed
        self._counted, self._passed = counted, passed
        was, useful = (self.blocked, self._leaves), self.useful
        self._unseen = 0 if left else self._unseen + came
        self._leaves = bool(left) or (self._leaves and self._unseen < SURELY)
        if left:
            self.blocked, self._trying, self._pause = False, False, BLOCKED[0]
        elif self._unseen >= SURELY and self.useful:
            self.blocked, self._trying = True, False
            self._try_at = trio.current_time() + self._pause
            self._pause = min(2 * self._pause, BLOCKED[1])
        if useful != self.useful:
            self._told()
        if was != (self.blocked, self._leaves):
            self._stir()

    async def _end(self) -> None:
        """Take the rules away, and give the uplinks back what they were."""
        self.forwarded, self._there = frozenset(), False
        self._settled.ring()
        if self.frame.opened:
            switches.close_for(set(self.frame.opened) - await self._beside(self.frame.table))
        self.frame = replace(self.frame, opened=())
        for remove in (self._fast.close, self._rules.remove):
            try:
                await remove()
            except NftError as error:
                self._tell(error)

    def _tell(self, error: PhantomMeshError) -> None:
        if self.problem is None or str(self.problem) != str(error):
            log.warning("the relay's rules cannot be set", error=str(error), fix=error.fix)
        self.problem = error


async def close_killed(table: str) -> None:
    """Forward nothing more for pairs of a run that was killed. Raises NftError."""
    await close_left(Table(FAMILY, table), table, OPENED)
    await Table(fastlane.FAMILY, table).remove()
