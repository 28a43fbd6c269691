# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends cover traffic to peers, paced by `scatter.cover`, and keeps the table that drops what peers send.

Dummies leave by plain UDP sockets on this node's overlay address, so the kernel deals and encrypts them like
any other packet. There are several sockets, since some schedulers choose a dimension for each flow.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from random import Random
from typing import Final, Protocol

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Contest
from phantommesh.nursery.due import Due
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.scatter import coverrules
from phantommesh.scatter.cover import DISCARD, HEADERS, Covering, Dummy, on_wire
from phantommesh.scatter.coverrules import COVER

# Tuning.
SOURCES: Final = 16  # ports that dummies come from: enough that a hash by flow meets all seven dimensions
LOOK: Final = 10.0  # s between looks at the table and its counter
RETRY: Final = 30.0  # s between attempts at what the kernel refused

_FREEBIND: Final = 15  # IP_FREEBIND (linux/in.h): the address may not be there yet
_MTU_DISCOVER, _NO_FRAGMENTS = 10, 2  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: no dummy is cut in pieces

log = structlog.get_logger("phantommesh.cover")

Place = tuple[IPv4Address, int]
"""A peer's overlay address, and the longest packet in bytes that it may be sent."""


class Rules(Protocol):
    """The table, as `nft.Table` has it. Each method raises NftError only."""

    async def install(self, text: str) -> None: ...

    async def fingerprint(self) -> Fingerprint | None: ...

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]: ...


class CoverTraffic:
    """The cover traffic of one node. ``own`` returns its overlay addresses, ``place`` a peer's, ``budget``
    the bytes a second that all of it may take; ``spent`` is told the bytes that WireGuard counts."""

    def __init__(
        self, device: str, names: Sequence[str], *,
        own: Callable[[], tuple[IPv4Address, IPv6Address]], place: Callable[[bytes], Place | None],
        budget: Callable[[], float], spent: Callable[[bytes, int], None], random: Random,
        rules: Rules | None = None,
    ) -> None:  # fmt: skip
        self.dropped: Counter[str] = Counter()
        self.packets, self.bytes = 0, 0
        """Sent so far, as on an uplink of IPv4."""
        self.problem: PhantomMeshError | None = None
        self.contest = Contest()
        self.schedule = Covering[bytes](random, budget(), trio.current_time())
        self._sent = Counter[bytes]()
        self._device, self._names, self._own, self._place = device, tuple(names), own, place
        self._budget, self._spent, self._random = budget, spent, random
        self._table: Rules = rules or Table(coverrules.FAMILY, coverrules.table_name(device))
        self._seen: Fingerprint | None = None
        self._installed: tuple[IPv4Address, IPv6Address] | None = None
        self._counted = 0
        self._due = Due(lambda: self.schedule.deadline)

    # What the hand does.

    def cover(self, peer: bytes, rate: float) -> bool:
        """Send a peer cover at this rate from now on. False where nothing can be sent there."""
        place, now = self._place(peer), trio.current_time()
        if place is None or not self.schedule.cover(peer, rate, place[1] - HEADERS, now):
            return False
        self._due.look()
        return True

    def uncover(self, peer: bytes) -> None:
        """Send a peer no more cover."""
        self.schedule.uncover(peer)
        self._sent.pop(peer, None)

    def sent(self, peer: bytes) -> int:
        """The bytes of cover that a peer was sent since its cover began."""
        return self._sent[peer]

    # Sending.

    async def run(self) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            while True:
                await self._due.sleep()
                with ExitStack() as stack:
                    if self.schedule.covered():
                        await self._send_while_covering(self._open(stack))

    def _open(self, stack: ExitStack) -> list[socket.socket]:
        sockets = list[socket.socket]()
        for _ in range(SOURCES):
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            stack.callback(one.close)
            one.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
            one.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _NO_FRAGMENTS)
            one.bind((str(self._own()[0]), 0))
            sockets.append(one)
        return sockets

    async def _send_while_covering(self, sockets: Sequence[socket.socket]) -> None:
        address = self._own()[0]
        while self.schedule.covered() and self._own()[0] == address:
            now = trio.current_time()
            self.schedule.limit(self._budget(), now)
            for dummy in self.schedule.tick(now):
                self._send(self._random.choice(sockets), dummy)
            await self._due.sleep()

    def _send(self, by: socket.socket, dummy: Dummy[bytes]) -> None:
        place = self._place(dummy.peer)
        if place is None:
            self.dropped["cover-no-peer"] += 1
            return
        try:
            by.sendto(bytes(dummy.payload), (str(place[0]), DISCARD))
        except OSError as error:
            self.dropped["cover-too-long" if error.errno == errno.EMSGSIZE else "cover-not-sent"] += 1
            return
        cost = on_wire(dummy.payload)
        self.packets, self.bytes = self.packets + 1, self.bytes + cost
        self._sent[dummy.peer] += cost
        self._spent(dummy.peer, cost - HEADERS)

    # Dropping.

    async def _keep(self) -> None:
        """Have the table as it should be, and read it. A failure is logged once and tried again."""
        while True:
            pause = LOOK
            try:
                await self.look()
            except NftError as error:
                if str(self.problem) != str(error):
                    log.warning("peers' cover traffic is not dropped", error=str(error), fix=error.fix)
                self.problem, self._installed, pause = error, None, RETRY
            await trio.sleep(pause)

    async def look(self) -> None:
        """Put the table in place where it is not as it was left, and count. Raises NftError."""
        self._take_over_drops()
        own = self._own()
        if self._installed != own or await self._table.fingerprint() != self._seen:
            if self._installed == own:
                self.contest.mended("the table of cover traffic", trio.current_time())
                log.warning("somebody else changed the table that drops cover traffic; it is put back")
            await self._table.install(coverrules.render(self._device, self._names, own))
            self._seen, self._installed, self._counted = await self._table.fingerprint(), own, 0
            self.problem = None
            return
        count = sum(packets for packets, _ in (await self._table.counters_of(COVER))[COVER].values())
        self.dropped["cover"] += count - self._counted if count >= self._counted else count
        self._counted = count

    def _take_over_drops(self) -> None:
        self.dropped += self.schedule.dropped
        self.schedule.dropped.clear()
