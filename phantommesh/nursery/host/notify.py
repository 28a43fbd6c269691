# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd, or any supervisor with its protocol, is told of this process: sd_notify(3), by datagrams to
``$NOTIFY_SOCKET``. A process that nobody supervises has no such socket, and says nothing.

`WATCHDOG=1` is said by the event loop itself: a loop that hangs says nothing more, and is started anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Self

import structlog
import trio

# Tuning.
_SHARE = 3  # words within the time that the supervisor allows: one that comes late does no harm yet

log = structlog.get_logger("phantommesh.notify")


class Supervisor:
    """A supervisor at ``address``, None for none; ``allowed``: s between two signs of life, None: it waits
    for none."""

    def __init__(self, address: str | None, allowed: float | None) -> None:
        self._address = address
        self.allowed = allowed
        self._failed = False

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> Self:
        """Read the variables, and take them out: children have nothing to say."""
        address = environment.pop("NOTIFY_SOCKET", "")
        allowed, of = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        usable = address.startswith(("/", "@")) and len(address) > 1
        ours = not of or of == str(os.getpid())
        seconds = int(allowed) / 1e6 if allowed.isascii() and allowed.isdigit() and ours else 0.0
        return cls(address if usable else None, seconds or None)

    def say(self, *words: str) -> None:
        """Send these assignments. A supervisor that does not listen is none of the node's troubles."""
        if self._address is None:
            return
        where = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(words).encode(), where)
        except OSError as error:
            if not self._failed:
                log.warning("the supervisor is not told how the node is", error=str(error))
            self._failed = True

    async def watch(self) -> None:
        """Give signs of life until cancelled."""
        if self._address is None or self.allowed is None:
            return
        while True:
            self.say("WATCHDOG=1")
            await trio.sleep(self.allowed / _SHARE)
