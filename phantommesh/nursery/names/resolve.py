# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of endpoints to addresses, looked up beside everything else so that nothing waits for DNS.

The names are any member's to choose, and so is a name server that never answers: such names must hold up
neither others nor the threads that sign and write.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
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
AT_ONCE = 16  # look-ups
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
    address: str | None = None
    failures: int = 0  # while it never had an address


class Resolver:
    """The last known address of each name that was asked for. ``changed`` is called when one changes. If a
    name has several addresses, the first counts that ``forbids``, which may be set, says nothing against."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.forbids: Callable[[str], bool] = lambda address: False
        self._names: OrderedDict[str, _Name] = OrderedDict()  # the longest not asked for first
        self._silent: OrderedDict[str, None] = OrderedDict()  # those without an address, in the same order
        # Names that wait for a look-up, by urgency: first the new ones, then those that had an address.
        self._new: OrderedDict[str, None] = OrderedDict()
        self._stale: OrderedDict[str, None] = OrderedDict()
        self._hopeless: OrderedDict[str, None] = OrderedDict()
        self._again: Timers[str] = Timers()
        self._moved = trio.Event()  # a look-up is due, or will be earlier

    def lookup(self, host: str) -> str | None:
        """Return an address for a host: itself if it is one, else what was last found, None until then."""
        try:
            return str(ip_address(host))
        except ValueError:
            pass
        now = trio.current_time()
        name = self._names.get(host)
        if name is None:
            if len(self._names) >= MAX_NAMES:
                if not self._silent:
                    return None
                self._drop(next(iter(self._silent)))
            name = self._names[host] = _Name(now)
            self._silent[host] = self._new[host] = None
            self._moved.set()
        name.asked_at = now
        for order in (self._names, self._silent, self._new):
            if host in order:
                order.move_to_end(host)
        return name.address

    async def run(self) -> None:
        """Look names up when they are first asked for, and again every minute."""
        turns = trio.Semaphore(AT_ONCE)
        async with trio.open_nursery() as nursery:
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
        found = None
        try:
            found = await self._find(host)
        finally:  # also where it was cancelled, for the next `run`
            turns.release()
            name = self._names.get(host)
            if name is not None:
                if found is None and name.address is None:
                    name.failures += 1
                pause = FRESH * 2.0 ** min(max(0, name.failures - 1), 10)
                self._again.set(host, trio.current_time() + min(pause, SELDOM))
                self._moved.set()
        if name is not None and found is not None and found != name.address:
            name.address, name.failures = found, 0
            self._silent.pop(host, None)
            self._changed()

    async def _find(self, host: str) -> str | None:
        addresses = await find_all(host)
        usable = (address for address in addresses if not self.forbids(address))
        # If none may be used, whoever asked is to see why.
        return next(usable, addresses[0] if addresses else None)


async def find_all(host: str) -> list[str]:
    """Look a name up now: all its addresses in their order, none where it has none; an address is its own."""
    try:
        with trio.fail_after(TIMEOUT):
            found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        log.info("name not resolved", host=host, error=str(error) or "no answer")
        return []
    addresses = (str(entry[4][0]) for entry in found)
    # A link-local address has a scope, which means nothing to the kernel's WireGuard.
    return list(dict.fromkeys(str(ip_address(address)) for address in addresses if "%" not in address))
