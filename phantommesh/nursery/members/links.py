# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives the link protocol its sockets, its clock, its signing threads and its kernel."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import structlog
import trio
from structlog.typing import FilteringBoundLogger

from phantommesh.endpoint import Address
from phantommesh.link.effects import Alarm, Effect, Install, Opened, Send, Sign
from phantommesh.link.handshake import SigningRequest
from phantommesh.link.machine import Links
from phantommesh.nursery.due import Due
from phantommesh.nursery.sockets.tcp import TcpPort
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.trust.identity import Identity


class LinkDriver:
    """Runs one `Links`. ``install`` is called with the peers whose desired PSKs changed, ``opened`` when a
    handshake finished, ``alarmed`` for anything that an operator should know."""

    def __init__(
        self,
        links: Links,
        identity: Identity,
        udp: UdpPort,
        *,
        install: Callable[[Sequence[bytes]], None],
        opened: Callable[[Opened], None],
        alarmed: Callable[[Alarm], None],
    ) -> None:
        self.links = links
        self.tcp: TcpPort | None = None
        self.by_way: Callable[[bytes, Address], None] = lambda datagram, to: None
        self._identity, self._udp = identity, udp
        self._install, self._opened, self._alarmed = install, opened, alarmed
        self._due = Due(lambda: links.deadline, turns=True)
        self._to_sign, self._signing = trio.open_memory_channel[Sign](1024)
        self._log: FilteringBoundLogger = structlog.get_logger("phantommesh.link")

    @property
    def dropped(self) -> Counter[str]:
        """Counts of all that the links dropped, by reason."""
        return self.links.drops

    def receive(self, datagram: bytes, source: Address) -> None:
        """Take one datagram from any transport."""
        self.carry_out(self.links.receive(datagram, source, trio.current_time()))

    def wake(self) -> None:
        """Look at the deadlines again: something may be due earlier than was known."""
        self._due.look()

    def anew(self) -> None:
        """Begin a new epoch with all peers: their keys with this node may not be what it thinks."""
        self.links.rotate(None, trio.current_time())
        self.wake()

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the protocol asked for."""
        install = dict[bytes, None]()
        for effect in effects:
            match effect:
                case Send(datagram, destination):
                    if destination.transport == "udp":
                        self._udp.send(datagram, destination)
                    elif destination.transport == "via":
                        self.by_way(datagram, destination)
                    elif self.tcp is not None:
                        self.tcp.send(datagram, destination)
                case Sign():
                    with contextlib.suppress(trio.WouldBlock):  # then the initiator repeats itself
                        self._to_sign.send_nowait(effect)
                case Install(peer):
                    install[peer] = None
                case Opened():
                    self._opened(effect)
                case Alarm():
                    self._alarmed(effect)
        if install:
            self._install(tuple(install))
        self.wake()

    async def run(self) -> None:
        """Tick and sign until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(self._sign)
            while True:
                await self._due.sleep()
                self.carry_out(self.links.tick(trio.current_time()))

    async def _sign(self) -> None:
        async for job in self._signing.clone():
            signature = await sign_in_thread(self._identity, job.request)
            self.carry_out(self.links.signed(job.token, signature, trio.current_time()))


async def sign_in_thread(identity: Identity, request: SigningRequest) -> bytes:
    """Sign off the event loop: ML-DSA's rejection sampling has a tail of several milliseconds, and the GIL is
    released meanwhile."""
    return await trio.to_thread.run_sync(partial(identity.sign, request.data, request.context))
