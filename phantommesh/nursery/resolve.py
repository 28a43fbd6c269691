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
TIMEOUT = 10.0
MAX_NAMES = 8192

log = structlog.get_logger("phantommesh.resolve")


class Resolver:
    """The last known address of each name that was asked for. ``changed`` is called when one changes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._known: dict[str, str | None] = {}
        self._asked = trio.Event()

    def lookup(self, host: str) -> str | None:
        """Return an address for a host: itself if it is one, else what was last found, None until then."""
        try:
            return str(ip_address(host))
        except ValueError:
            if host not in self._known and len(self._known) < MAX_NAMES:
                self._known[host] = None
                self._asked.set()
            return self._known.get(host)

    async def run(self) -> None:
        """Look names up when they are first asked for, and again every minute."""
        while True:
            self._asked = trio.Event()
            changed = False
            for host in list(self._known):
                found = await self._find(host)
                if found is not None and found != self._known[host]:
                    self._known[host], changed = found, True
            if changed:
                self._changed()
            with trio.move_on_after(FRESH if self._known else float("inf")):
                await self._asked.wait()

    @staticmethod
    async def _find(host: str) -> str | None:
        try:
            with trio.fail_after(TIMEOUT):
                found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        except (OSError, trio.TooSlowError) as error:
            log.info("name not resolved", host=host, error=str(error))
            return None
        return str(found[0][4][0])
