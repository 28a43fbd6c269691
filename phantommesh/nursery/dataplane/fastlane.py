# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a relay's short way (`routing.fastlane`) as it should be: lanes for what is forwarded, by the routes
of now.

The other rules can forward everything, so nothing here has to work. Where the kernel lacks a part, or
refuses, the short way is closed, and tried again after a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from math import inf
from typing import Final, Protocol

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.nftables.messages import Change
from phantommesh.nursery.host.nexthops import read_hops
from phantommesh.nursery.host.nft import NftError, Table
from phantommesh.routing import fastlane
from phantommesh.routing.fastlane import Hop, Lane
from phantommesh.routing.forwarding import RELAY_MARK, Frame
from phantommesh.routing.leases import Forward

# Tuning.
LOOK: Final = 5.0  # s until routes are read again: nobody tells of those by a gateway
AGAIN: Final = 300.0  # s until the short way is tried again after the kernel refused it

log = structlog.get_logger("phantommesh.fastlane")

Found = tuple[Mapping[str, Hop], Collection[str]]
Hops = Callable[[Collection[str], int], Awaitable[Found]]


class Rules(Protocol):
    """The part of `Table` that is needed here."""

    async def commit(self, changes: Sequence[Change]) -> None: ...

    async def remove(self) -> None: ...

    async def counters_by_key(self, name: str) -> Mapping[bytes, tuple[int, int]]: ...


async def _read(targets: Collection[str], mark: int) -> Found:
    return await trio.to_thread.run_sync(partial(read_hops, targets, mark))


class FastLane:
    """The short way of one relay. ``hops`` gives the ways to targets and the interfaces that packets can be
    taken from."""

    def __init__(
        self,
        frame: Frame,
        interfaces: Sequence[str],
        *,
        rules: Rules | None = None,
        hops: Hops | None = None,
    ) -> None:
        self._frame, self._interfaces, self._hops = frame, tuple(interfaces), hops or _read
        self._rules = Table(fastlane.FAMILY, frame.table) if rules is None else rules
        self._made: tuple[int, tuple[str, ...]] | None = None  # longest packet and interfaces of the table
        self._lanes: frozenset[Lane] = frozenset()
        self._unsure = False  # a change has failed: the kernel may have other lanes than these
        self._lock = trio.Lock()  # nobody changes what another one reads
        self._read_at, self._shut, self._again = -inf, -inf, inf
        self._ways: dict[str, Hop] = {}
        self._there: Collection[str] = ()
        self._asked = set[str]()
        self._bytes = Counter[int]()
        # As the kernel's counters stood: bytes by number, dropped packets by key.
        self._last: dict[int, int] = {}
        self._over: dict[bytes, int] = {}
        self.over_rate = 0  # packets dropped for being beyond a lane's rate

    @property
    def lanes(self) -> frozenset[Lane]:
        """The lanes that the kernel has."""
        return self._lanes

    def moved(self) -> None:
        """Links, addresses or routes may be others than before."""
        self._read_at = -inf

    def due(self) -> float:
        """When `follow` has something to do by itself; inf where it has nothing."""
        return min(self._read_at + LOOK if self._lanes else inf, self._again)

    async def close(self) -> None:
        """Take it all away. Raises NftError."""
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        self._unsure = True
        await self._rules.remove()
        self._lanes, self._made, self._unsure = frozenset(), None, False
        self._last.clear()
        self._over.clear()

    async def _commit(self, changes: Sequence[Change]) -> None:
        self._unsure = True
        await self._rules.commit(changes)
        self._unsure = False

    async def withdraw(self, kept: frozenset[Forward]) -> None:
        """Leave no lane but those of ``kept``: before the other rules change, so that there is no moment at
        which a packet of a lease that has ended is forwarded here. Raises NftError where even that fails."""
        left = frozenset(lane for lane in self._lanes if lane.forward in kept)
        if left == self._lanes and not self._unsure:
            return
        async with self._lock:
            try:
                if self._unsure:
                    await self._close()
                else:
                    await self._alter(left & self._lanes)
            except NftError:
                await self._close()

    async def follow(self, forwards: frozenset[Forward], now: float) -> None:
        """Have lanes for all of these that can have one. Raises NftError where the short way can be neither
        set nor closed."""
        async with self._lock:
            await self._follow(forwards, now)

    async def _follow(self, forwards: frozenset[Forward], now: float) -> None:
        self._again = self._shut if forwards and now < self._shut else inf
        if self._unsure:
            await self._close()
        if not forwards or now < self._shut:
            if self._made is not None:
                await self._close()
            return
        targets = {place.host for each in forwards for place in (each.source, each.target)}
        try:
            if now >= self._read_at + LOOK:
                self._ways, self._asked, self._read_at = {}, set(), now
            if more := targets - self._asked:  # a leg that moves all the time costs a look-up each time
                found, self._there = await self._hops(more, RELAY_MARK)
                self._ways |= found
                self._asked |= more
            mtu, lanes = fastlane.choose(forwards, self._ways)
            interfaces = tuple(name for name in self._interfaces if name in self._there)
            if not lanes or not interfaces:
                if self._made is not None:
                    await self._close()
            elif self._made == (mtu, interfaces):
                await self._alter(lanes)
            else:
                await self._make(mtu, interfaces, lanes)
        except PhantomMeshError as error:
            log.info("what is relayed takes the long way through the kernel", error=str(error))
            self._shut = self._again = now + AGAIN
            await self._close()

    async def read(self) -> dict[int, int]:
        """Bytes that went the short way so far, by number of `Forward`. Closes it where the table is not as
        it was left. Raises NftError."""
        async with self._lock:
            return await self._count()

    async def _count(self) -> dict[int, int]:
        if self._made is None:
            return dict(self._bytes)
        held, over = dict[bytes, tuple[int, int]](), dict[bytes, tuple[int, int]]()
        try:
            for _, _, version in self._frame.here:
                over |= await self._rules.counters_by_key(fastlane.leased(version))
                held |= await self._rules.counters_by_key(fastlane.lanes_of(version))
        except NftError:
            held, over = {}, {}
        self.over_rate += sum(max(0, n - self._over.get(key, 0)) for key, (n, _) in over.items())
        self._over = {key: n for key, (n, _) in over.items()}
        for lane in self._lanes:
            number = lane.forward.number
            if (found := held.get(fastlane.key_of(lane))) is not None:
                before = self._last.get(number, 0)
                self._bytes[number] += found[1] - before if found[1] >= before else found[1]
                self._last[number] = found[1]
        if not {fastlane.key_of(lane) for lane in self._lanes} <= held.keys():
            await self._close()  # somebody has edited it: it is made anew
        return dict(self._bytes)

    def begun(self, numbers: Collection[int]) -> None:
        """The bytes of these count from 0."""
        for number in numbers:
            self._bytes.pop(number, None)

    def retain(self, numbers: Collection[int]) -> None:
        """Forget the bytes of all others."""
        for number in self._bytes.keys() - set(numbers):
            del self._bytes[number]

    async def _make(self, mtu: int, interfaces: tuple[str, ...], lanes: frozenset[Lane]) -> None:
        await self._count()
        await self._commit(fastlane.whole(self._frame, interfaces, mtu, lanes))
        self._made, self._lanes = (mtu, interfaces), lanes
        self._last.clear()
        self._over.clear()

    async def _alter(self, lanes: frozenset[Lane]) -> None:
        if lanes == self._lanes:
            return
        gone = self._lanes - lanes
        if gone:
            await self._count()
            if self._made is None:
                raise NftError(
                    "the relay's short way was edited by somebody else", fix="see by whom: `nft monitor`"
                )
        await self._commit(fastlane.alter(self._frame, self._lanes, lanes))
        for lane in gone:
            self._last.pop(lane.forward.number, None)
            self._over.pop(fastlane.key_of(lane), None)
        self._lanes = lanes
