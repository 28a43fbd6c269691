# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of endpoints to addresses, looked up beside everything else so that nothing waits for DNS.

A name may have several addresses of which some lead nowhere: all are candidates, the families in turn (RFC
8305, section 4), and whoever uses them finds out which one answers.

The names are any member's to choose, and so is a name server that never answers: such names must hold up
neither others nor the threads that sign and write.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import zip_longest
from typing import Any

import structlog
import trio

from phantommesh.timers import Timers

# Tuning.
FRESH = 60.0  # s a looked-up name is believed
SELDOM = 3600.0  # s at most until a name that never had an address is looked up again
FORGET = 600.0  # s after which a name that nobody asked for is dropped
TIMEOUT = 8.0  # s; a first name server that is down costs the system's resolver 5
MAX_NAMES = 8192
MAX_ADDRESSES = 8  # of one name
AT_ONCE = 16  # look-ups
TELL = 1.0  # s between two words that addresses have changed: each has the node look at every member anew
THREADS = 96  # the system's resolver stays in one for up to 30 s, also where it was given up after `TIMEOUT`

log = structlog.get_logger("phantommesh.resolve")


class SystemNames(trio.abc.HostnameResolver):
    """The system's resolver in threads of its own, each left to itself when its look-up is given up. For
    `trio.socket.set_custom_hostname_resolver`: connections by name use it, too."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)

    async def getaddrinfo(
        self, host: bytes | None, port: bytes | str | int | None, *how: int, **named: int
    ) -> Any:
        """As `socket.getaddrinfo`."""
        return await trio.to_thread.run_sync(
            lambda: socket.getaddrinfo(host, port, *how, **named),
            abandon_on_cancel=True,
            limiter=self._threads,
        )

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """As `socket.getnameinfo`."""
        return await trio.to_thread.run_sync(
            socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True, limiter=self._threads
        )


@dataclass(slots=True)
class _Name:
    asked_at: float
    addresses: tuple[str, ...] = ()
    failures: int = 0  # while it never had an address


class Resolver:
    """The last known addresses of each name that was asked for. ``changed`` is called when some change, once
    for all that do within `TELL`: a member can name hosts whose addresses change each time."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._names: OrderedDict[str, _Name] = OrderedDict()  # the longest not asked for first
        self._silent: OrderedDict[str, None] = OrderedDict()  # those without an address, in the same order
        # Names that wait for a look-up, by urgency: first the new ones, then those that had an address.
        self._new: OrderedDict[str, None] = OrderedDict()
        self._stale: OrderedDict[str, None] = OrderedDict()
        self._hopeless: OrderedDict[str, None] = OrderedDict()
        self._again: Timers[str] = Timers()
        self._moved = trio.Event()  # a look-up is due, or will be earlier
        self._found = trio.Event()  # some address is another, and nobody was told yet

    def lookup(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host: itself if it is one, else what was last found, none until then."""
        try:
            return (str(ip_address(host)),)
        except ValueError:
            pass
        now = trio.current_time()
        name = self._names.get(host)
        if name is None:
            if len(self._names) >= MAX_NAMES:
                if not self._silent:
                    return ()
                self._drop(next(iter(self._silent)))
            name = self._names[host] = _Name(now)
            self._silent[host] = self._new[host] = None
            self._moved.set()
        name.asked_at = now
        for order in (self._names, self._silent, self._new):
            if host in order:
                order.move_to_end(host)
        return name.addresses

    async def run(self) -> None:
        """Look names up when they are first asked for, and again every minute."""
        turns = trio.Semaphore(AT_ONCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            while True:
                await turns.acquire()
                nursery.start_soon(self._look_up, await self._next(), turns)

    async def _next(self) -> str:
        """Return the name to look up next, once there is one."""
        while True:
            self._moved = trio.Event()
            now = trio.current_time()
            while self._names and now - next(iter(self._names.values())).asked_at >= FORGET:
                self._drop(next(iter(self._names)))
            for host in self._again.due(now):
                (self._hopeless if host in self._silent else self._stale)[host] = None
            if self._new:
                # The newest question first: a heap of names that nobody answers for would else be waited for.
                return self._new.popitem()[0]
            for waiting in (self._stale, self._hopeless):
                if waiting:
                    return waiting.popitem(last=False)[0]
            with trio.move_on_at(self._again.first):
                await self._moved.wait()

    def _drop(self, host: str) -> None:
        for kept in (self._names, self._silent, self._new, self._stale, self._hopeless):
            kept.pop(host, None)
        self._again.cancel(host)

    async def _look_up(self, host: str, turns: trio.Semaphore) -> None:
        found = tuple[str, ...]()
        try:
            found = tuple(await find_all(host))
        finally:  # also where it was cancelled, for the next `run`
            turns.release()
            name = self._names.get(host)
            if name is not None:
                if not found and not name.addresses:
                    name.failures += 1
                pause = FRESH * 2.0 ** min(max(0, name.failures - 1), 10)
                self._again.set(host, trio.current_time() + min(pause, SELDOM))
                self._moved.set()
        if name is None or not found:
            return
        # Name servers turn the order round: what stays keeps its place, and nobody hears of a change.
        stay = [address for address in name.addresses if address in found]
        addresses = (*stay, *(address for address in found if address not in stay))[:MAX_ADDRESSES]
        if addresses != name.addresses:
            name.addresses, name.failures = addresses, 0
            self._silent.pop(host, None)
            self._found.set()

    async def _tell(self) -> None:
        while True:
            await self._found.wait()
            self._found = trio.Event()
            self._changed()
            await trio.sleep(TELL)


async def find_all(host: str) -> list[str]:
    """Look a name up now: all its addresses, IPv6 and IPv4 in turn and else in their order; none where it has
    none. An address is its own."""
    try:
        with trio.fail_after(TIMEOUT):
            found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        log.info("name not resolved", host=host, error=str(error) or "no answer")
        return []
    addresses = (str(entry[4][0]) for entry in found)
    # A link-local address has a scope, which means nothing to the kernel's WireGuard.
    plain = dict.fromkeys(str(ip_address(address)) for address in addresses if "%" not in address)
    return in_turn(plain)


def in_turn(addresses: Iterable[str]) -> list[str]:
    """Put the families of addresses in turn, beginning with the first one's (RFC 8305, section 4)."""
    found = list(addresses)
    first = [address for address in found if (":" in address) == (":" in found[0])]
    other = [address for address in found if address not in first]
    pairs = zip_longest(first, other)
    return [address for pair in pairs for address in pair if address is not None]
