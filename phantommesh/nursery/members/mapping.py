# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the host's gateways open this node's ports: `portmap` decides. Two gateways at most are asked.

Only a host with a private address asks, and only the gateways of its default routes. What a gateway says is a
candidate like others: peers try it, and a handshake shows whether it is so.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random
from typing import Final

import structlog
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.node.whereabouts import Mapped, Place
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import Due
from phantommesh.nursery.host import upnp
from phantommesh.nursery.host.hostroutes import read_gateways
from phantommesh.portmap.effects import AskUpnp, Changed, Effect, EndUpnp, Send
from phantommesh.portmap.machine import Mapper
from phantommesh.portmap.pcp import MAX_DATAGRAM
from phantommesh.portmap.values import (
    ALL_HOSTS,
    CLIENT_PORT,
    SERVER_PORT,
    Granted,
    Method,
    Protocol,
    Refusal,
    Wanted,
)
from phantommesh.reachable import of_a_site
from phantommesh.records.candidate import UNKNOWN_PORT

# Tuning.
MAX_GATEWAYS: Final = 2
LOOK: Final = 30.0  # s between looks at the gateways and at this node's ports
AGAIN: Final = 5.0  # s until a gateway is asked anew whose socket failed
ENDING: Final = 2.0  # s to give ports back

log = structlog.get_logger("phantommesh.mapping")


@dataclass(frozen=True, slots=True)
class GatewayState:
    """What one gateway does. ``method``: how it answers, of those in ``tried``; None: it does not, or not
    yet. ``control``: the external address and port of the control port. ``open`` of ``wanted`` ports are
    mapped, TCP's among them."""

    address: IPv4Address
    method: Method | None
    tried: tuple[Method, ...]
    control: Place | None
    open: int
    wanted: int
    refused: Refusal | None


class Mapping:
    """The ports that gateways have opened for this node.

    ``ports`` gives the control port and the seven WireGuard ports as they are now; ``changed`` hears when
    `mapped` is another. ``gateways`` and ``server_port`` are those of this host, and the protocols'.
    """

    def __init__(
        self,
        *,
        on: bool,
        ports: Callable[[], tuple[int, Sequence[int]]],
        changed: Callable[[], None],
        gateways: Callable[[], list[IPv4Address]] = read_gateways,
        server_port: int = SERVER_PORT,
    ) -> None:
        self._on, self._ports, self._changed, self._find = on, ports, changed, gateways
        self._server_port = server_port
        self._there: dict[IPv4Address, _Gateway] = {}
        self._moved, self._again = Bell(), False
        self._gone = Counter[str]()

    @property
    def dropped(self) -> Counter[str]:
        """Datagrams of gateways that could not be used, by reason."""
        return sum((one.mapper.dropped for one in self._there.values()), self._gone)

    def moved(self) -> None:
        """This host may be behind another gateway, or its gateway was started anew."""
        self._again = True
        self._moved.ring()

    @property
    def on(self) -> bool:
        """Whether gateways are asked at all."""
        return self._on

    def states(self) -> list[GatewayState]:
        """What each gateway that is asked does."""
        wanted, now, found = list(self._wanted()), trio.current_time(), list[GatewayState]()
        for address, gateway in self._there.items():
            mapper, granted = gateway.mapper, gateway.mapper.granted(now)
            control = granted.get(wanted[0])
            at = None if control is None else Place(control.address, control.port)
            found.append(
                GatewayState(
                    address, mapper.method, mapper.tried, at, len(granted), len(wanted), mapper.refused
                )
            )
        return found

    def mapped(self) -> tuple[Mapped, ...]:
        """What gateways forward to this node: places of the control port, with those of the dimensions."""
        control, wireguard = self._ports()
        found, now = list[Mapped](), trio.current_time()
        for gateway in self._there.values():
            granted = gateway.mapper.granted(now)
            at = granted.get(Wanted(Protocol.UDP, control))
            if at is None:
                continue
            ends = [granted.get(Wanted(Protocol.UDP, port)) for port in wireguard]
            ports = [e.port if e is not None and e.address == at.address else UNKNOWN_PORT for e in ends]
            if len(ports) == DIMENSIONS:
                found.append(Mapped(gateway.own, Place(at.address, at.port), tuple(ports)))
        return tuple(found)

    async def run(self) -> None:
        """Ask and renew until cancelled, then give the ports back."""
        if not self._on:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear)
            while True:
                await self._look(nursery)
                if not self._again:
                    with trio.move_on_after(LOOK):
                        await self._moved.wait()

    async def _hear(self) -> None:
        """Hear gateways announce that they were started anew. Other programs may hear them too."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((str(ALL_HOSTS), CLIENT_PORT))  # each host is in this group on each interface
            except OSError as error:
                log.debug("announcements of gateways are not heard", error=str(error))
                return
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    datagram, (host, _) = sock.recvfrom(MAX_DATAGRAM + 1)
                except OSError:
                    continue
                gateway = self._there.get(IPv4Address(host))
                if gateway is None:
                    self._gone["portmap-unasked"] += 1
                else:
                    gateway.announced(datagram)

    async def _look(self, nursery: trio.Nursery) -> None:
        again, self._again = self._again, False
        try:
            found = (await trio.to_thread.run_sync(self._find))[:MAX_GATEWAYS]
        except PhantomMeshError as error:
            log.debug("the gateways are not known", error=str(error))
            return
        here = {address: own for address in found if (own := own_address(address)) is not None}
        for address, gateway in list(self._there.items()):
            if here.get(address) != gateway.own:
                gateway.scope.cancel()
        for address, own in here.items():
            there = self._there.get(address)
            if there is not None and there.own == own:
                there.follow(again=again)
            elif there is None and of_a_site(own):
                nursery.start_soon(self._serve, address, own)

    async def _serve(self, address: IPv4Address, own: IPv4Address) -> None:
        gateway = self._there[address] = _Gateway(
            address, own, wanted=self._wanted, changed=self._changed, port=self._server_port
        )
        try:
            with gateway.scope:
                await gateway.run()
        finally:
            self._gone += gateway.mapper.dropped
            del self._there[address]
            self._changed()
            self.moved()  # there may be another address, or another gateway, in its place

    def _wanted(self) -> Iterator[Wanted]:
        control, wireguard = self._ports()
        yield Wanted(Protocol.UDP, control)
        yield from (Wanted(Protocol.UDP, port) for port in wireguard)
        yield Wanted(Protocol.TCP, control)


class _Gateway:
    """One gateway at ``address``, asked from the host's address ``own``. `run` ends with ``scope``."""

    def __init__(
        self, address: IPv4Address, own: IPv4Address, *, wanted: Callable[[], Iterator[Wanted]],
        changed: Callable[[], None], port: int,
    ) -> None:  # fmt: skip
        self.address, self.own, self.scope = address, own, trio.CancelScope()
        chance = Random()  # noqa: S311  # spreads renewals; answers of others do not reach the socket
        self.mapper = Mapper(own, random=chance, now=trio.current_time(), upnp=upnp.available())
        self._wanted, self._changed, self._port = wanted, changed, port
        self._due = Due(lambda: self.mapper.deadline)
        self._socket: socket.socket | None = None
        self._upnp: AskUpnp | None = None
        self._over: dict[Wanted, Granted] = {}  # by UPnP, and of no more use
        self._asked = Bell()

    def follow(self, *, again: bool) -> None:
        """Ask for the ports that this node has now; ``again``: for all of them, whatever was granted."""
        now = trio.current_time()
        self._carry_out(self.mapper.want(self._wanted(), now))
        if again:
            self._carry_out(self.mapper.again(now))

    def announced(self, datagram: bytes) -> None:
        """The gateway has said this to all hosts."""
        self._carry_out(self.mapper.announced(datagram, trio.current_time()))

    async def run(self) -> None:
        """Ask until cancelled; then give the ports back."""
        while True:
            try:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as self._socket:
                    self._socket.bind((str(self.own), 0))
                    self._socket.connect((str(self.address), self._port))  # others' answers do not come in
                    try:
                        await self._ask(self._socket)
                    finally:
                        await self._end()
            except OSError as error:
                log.debug("the gateway cannot be asked", gateway=str(self.address), error=str(error))
            finally:
                self._socket = None
            await trio.sleep(AGAIN)

    async def _ask(self, sock: socket.socket) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, sock)
            nursery.start_soon(self._ask_upnp)
            self.follow(again=False)
            while True:
                await self._due.sleep()
                self._carry_out(self.mapper.tick(trio.current_time()))

    async def _read(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                datagram = sock.recv(MAX_DATAGRAM + 1)
            except OSError:  # also the gateway's word that nobody listens there
                continue
            self._carry_out(self.mapper.receive(datagram, trio.current_time()))

    async def _ask_upnp(self) -> None:
        while True:
            await self._end_upnp()
            asked, self._upnp = self._upnp, None
            if asked is None:
                await self._asked.wait()
                continue
            opened = await trio.to_thread.run_sync(
                upnp.open_ports, self.own, asked.wanted, asked.lifetime, abandon_on_cancel=True
            )
            now = trio.current_time()
            self._carry_out(self.mapper.upnp(opened.granted, now, refused=opened.refused))

    async def _end_upnp(self) -> None:
        over, self._over = self._over, {}
        if over:
            await trio.to_thread.run_sync(upnp.close_ports, self.own, over, abandon_on_cancel=True)

    async def _end(self) -> None:
        self._carry_out(self.mapper.close())
        with trio.CancelScope(deadline=trio.current_time() + ENDING, shield=True):
            await self._end_upnp()

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(datagram):
                    self._send(datagram)
                case AskUpnp():
                    self._upnp = effect
                    self._asked.ring()
                case EndUpnp(wanted, granted):
                    self._over[wanted] = granted
                    self._asked.ring()
                case Changed():
                    method = self.mapper.method
                    log.info(
                        "the gateway maps other ports", gateway=str(self.address),
                        by="" if method is None else method.value,
                        ports=len(self.mapper.granted(trio.current_time())),
                    )  # fmt: skip
                    self._changed()
        self._due.look()

    def _send(self, datagram: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(datagram)
        except OSError as error:  # asked again, as if it was lost
            log.debug("the gateway is not asked", gateway=str(self.address), error=str(error))


def own_address(gateway: IPv4Address) -> IPv4Address | None:
    """The host's address from which a gateway is reached; None where there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(gateway), SERVER_PORT))
            return IPv4Address(sock.getsockname()[0])
        except OSError:
            return None
