# SPDX-License-Identifier: GPL-3.0-or-later
"""Further TCP ports of a node (`control.tcp_ports`), for networks that let nothing out but TCP to port 443.

A port that cannot be had is a fault and is tried again: it is not the end of the control port.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import structlog
import trio

from phantommesh.faults import Fault, FaultKind

TCP_PORT_REFUSED = FaultKind("tcp-port-refused", "medium")

# Tuning.
AGAIN: Final = 10.0  # s until a port that was refused is tried again

Handle = Callable[[trio.SocketStream], Awaitable[None]]

log = structlog.get_logger("phantommesh.streams")


class FurtherPorts:
    """Takes these ports. ``open`` has those that are held, as the record tells others; ``changed`` is called
    when that has changed in `run`."""

    def __init__(self, ports: Sequence[int] = (), changed: Callable[[], None] = lambda: None) -> None:
        self._ports, self._changed = ports, changed
        self._listeners: dict[int, list[trio.SocketListener]] = {}
        self._refused: dict[int, int] = {}  # by port, the errno

    @property
    def open(self) -> tuple[int, ...]:
        """The ports that are held, in the order of the configuration."""
        return tuple(port for port in self._ports if port in self._listeners)

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong."""
        for port, number in self._refused.items():
            yield TCP_PORT_REFUSED.fault(
                f"cannot listen on TCP port {port} of control.tcp_ports: {os.strerror(number)}; peers whose "
                "network lets out nothing else do not reach this node",
                _fix(port, number),
            )

    async def listen(self) -> None:
        """Try to take those that are not held."""
        for port in self._ports:
            if port in self._listeners:
                continue
            try:
                self._listeners[port] = await trio.open_tcp_listeners(port, host=None)
            except OSError as error:
                if self._refused.get(port) != error.errno:
                    log.warning(
                        "a further TCP port cannot be had",
                        port=port,
                        error=error.strerror,
                        fix=_fix(port, error.errno),
                    )
                self._refused[port] = error.errno or errno.EADDRINUSE
            else:
                self._refused.pop(port, None)

    async def run(self, handle: Handle) -> None:
        """Accept until cancelled."""
        served = set[int]()
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    for port in self._listeners.keys() - served:
                        served.add(port)
                        nursery.start_soon(trio.serve_listeners, handle, self._listeners[port])
                    if not self._refused:
                        await trio.sleep_forever()
                    await trio.sleep(AGAIN)
                    before = self.open
                    await self.listen()
                    if self.open != before:
                        self._changed()
        finally:
            self._listeners = {}


def _fix(port: int, number: int | None) -> str:
    if number in (errno.EACCES, errno.EPERM):
        return f"give the node the capability CAP_NET_BIND_SERVICE, or take {port} out of control.tcp_ports"
    return f"stop what uses the port, or take {port} out of control.tcp_ports; it is tried again by itself"
