# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of endpoints to addresses, looked up beside everything else so that nothing waits for DNS."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

import structlog
import trio

# Tuning.
FRESH = 60.0  # s a looked-up name is believed
FORGET = 600.0  # s after which a name that nobody asked for is dropped
TIMEOUT = 10.0
MAX_NAMES = 8192
AT_ONCE = 8  # look-ups; a name server that is silent about one name must not hold up all others

log = structlog.get_logger("phantommesh.resolve")


class Resolver:
    """The last known address of each name that was asked for. ``changed`` is called when one changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._known: dict[str, str | None] = {}
        self._asked_at: dict[str, float] = {}
        self._asked = trio.Event()

    def lookup(self, host: str) -> str | None:
        """Return an address for a host: itself if it is one, else what was last found, None until then."""
        try:
            return str(ip_address(host))
        except ValueError:
            if host not in self._known:
                if len(self._known) >= MAX_NAMES:
                    return None
                self._known[host] = None
                self._asked.set()
            self._asked_at[host] = trio.current_time()
            return self._known[host]

    async def run(self) -> None:
        """Look names up when they are first asked for, and again every minute."""
        looked_up: dict[str, float] = {}
        while True:
            self._asked = trio.Event()
            now = trio.current_time()
            for host in [host for host, asked in self._asked_at.items() if now - asked >= FORGET]:
                del self._known[host], self._asked_at[host]
            looked_up = {host: then for host, then in looked_up.items() if host in self._known}
            due = [host for host in self._known if now - looked_up.get(host, float("-inf")) >= FRESH]
            looked_up.update(dict.fromkeys(due, now))
            await self._look_up(due)
            with trio.move_on_after(FRESH if self._known else float("inf")):
                await self._asked.wait()

    async def _look_up(self, hosts: list[str]) -> None:
        turns = trio.CapacityLimiter(AT_ONCE)

        async def find(host: str) -> None:
            async with turns:
                found = await self._find(host)
            if found is not None and found != self._known[host]:
                self._known[host] = found
                self._changed()

        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(find, host)

    @staticmethod
    async def _find(host: str) -> str | None:
        try:
            with trio.fail_after(TIMEOUT):
                found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            log.info("name not resolved", host=host, error=str(error) or "no answer")
            return None
        addresses = (str(entry[4][0]) for entry in found)
        # A link-local address has a scope, which means nothing to the kernel's WireGuard.
        return next((address for address in addresses if "%" not in address), None)
