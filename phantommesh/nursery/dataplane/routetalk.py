# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks routers which of their routes work, and answers for this node's own: UDP between overlay addresses.

WireGuard says who has an overlay address, so an answer is the router's own word. Questions go out by the
interface that scatters, so they take the ways of the traffic.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv4Address
from typing import Final

import structlog
import trio

from phantommesh.errors import DecodeError
from phantommesh.faults import Fault, FaultKind
from phantommesh.nursery.bell import Bell
from phantommesh.rates import Rates
from phantommesh.routing.asking import MAX_BYTES, NONCE_BYTES, Answer, Question, decode_untrusted
from phantommesh.routing.failover import Failover
from phantommesh.wireguard.device import Network

# Tuning.
OPEN: Final = 8  # questions to one router that an answer may still come to
RATE: Final = (10.0, 20)  # questions of one member, a second and at once
RETRY: Final = 1.0  # s between attempts to open the socket

NOT_ASKED = FaultKind("routes-not-asked", "high")

_FREEBIND: Final = 15  # IP_FREEBIND, linux/in.h: the interface with the address may come later

log = structlog.get_logger("phantommesh.routes")


class RouteTalk:
    """Runs one `Failover`. ``address`` gives this node's overlay address; ``works`` says which of this node's
    own routes work; ``moved`` is called when `Failover.carried` has changed. Call `know` with the members."""

    def __init__(
        self,
        failover: Failover,
        port: int,
        *,
        address: Callable[[], IPv4Address],
        works: Callable[[], Collection[Network]],
        moved: Callable[[], None],
    ) -> None:
        self.failover = failover
        self.dropped: Counter[str] = Counter()
        self.problem: str = ""
        self._port, self._address = port, address
        self._members: Mapping[bytes, IPv4Address] = {}
        self._sources: dict[str, bytes] = {}
        self._works, self._moved = works, moved
        self._wanted, self._bell = False, Bell()
        self._nonces: dict[bytes, deque[bytes]] = {}
        self._rates = Rates[bytes](*RATE)

    def know(self, members: Mapping[bytes, IPv4Address]) -> None:
        """These are the other members, by node id, with their overlay addresses."""
        self._members = members
        self._sources = {str(address): member for member, address in members.items()}

    def leave(self) -> None:
        """Answer from now on that no route of this node works: the node stops."""
        self._works = frozenset

    def gone(self, member: bytes) -> None:
        """A member has said goodbye."""
        if self.failover.gone(member, trio.current_time()):
            self._moved()
            self._bell.ring()

    def want(self, wanted: bool) -> None:
        """Whether there is anything to ask or to answer. The socket is open only then; what is to be asked
        may have changed."""
        self._wanted = wanted
        self._bell.ring()

    def faults(self) -> Iterator[Fault]:
        """Why nobody can be asked, nor be answered."""
        if self._wanted and self.problem:
            yield NOT_ASKED.fault(
                f"the UDP port {self._port} of the overlay address cannot be had ({self.problem}): routers "
                "are not asked or answered for, and whoever has the port may answer in this node's name",
                f"see `ss -uanp sport = :{self._port}` and stop that program; or set routes.port on all "
                "nodes of the mesh",
            )

    async def run(self) -> None:
        """Ask and answer until cancelled."""
        while True:
            while not self._wanted:
                await self._bell.wait()
            try:
                with _opened(self._address(), self._port) as sock:
                    self.problem = ""
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._receive, sock)
                        await self._ask(sock, self._address())
                        nursery.cancel_scope.cancel()
            except OSError as error:
                if self.problem != str(error):
                    log.warning(
                        "routers cannot be asked",
                        error=str(error),
                        fix="set routes.port on all nodes of the mesh",
                    )
                self.problem = str(error)
                await trio.sleep(RETRY)

    async def _ask(self, sock: trio.socket.SocketType, at: IPv4Address) -> None:
        """Ask whoever is due, until nothing is wanted any more or this node has another address."""
        while self._wanted and self._address() == at:
            members = self._members
            asked, moved = self.failover.due(trio.current_time())
            if moved:
                self._moved()
            self._nonces = {router: kept for router, kept in self._nonces.items() if router in members}
            for router in asked:
                if router not in members:
                    continue
                nonce = os.urandom(NONCE_BYTES)
                self._nonces.setdefault(router, deque(maxlen=OPEN)).append(nonce)
                await self._send(sock, Question(nonce).encode(), members[router])
            with trio.move_on_at(self.failover.deadline):
                await self._bell.wait()
            await trio.lowlevel.checkpoint()

    async def _receive(self, sock: trio.socket.SocketType) -> None:
        while True:
            try:
                datagram, source = await sock.recvfrom(MAX_BYTES + 1)
            except OSError:
                continue  # an ICMP error for something that was sent
            if source[1] != self._port:
                self.dropped["routes-stranger"] += 1
                continue
            await self._take(sock, datagram, source[0])

    async def _take(self, sock: trio.socket.SocketType, datagram: bytes, source: str) -> None:
        member = self._sources.get(source)
        now = trio.current_time()
        if member is None:
            self.dropped["routes-stranger"] += 1
            return
        if not self._rates.allow(member, now):
            self.dropped["routes-rate"] += 1
            return
        try:
            said = decode_untrusted(datagram)
        except DecodeError:
            self.dropped["routes-malformed"] += 1
            return
        if isinstance(said, Question):
            await self._send(
                sock, Answer(said.nonce, frozenset(self._works())).encode(), self._members[member]
            )
        elif said.nonce in self._nonces.get(member, ()):
            self._nonces[member].remove(said.nonce)
            if self.failover.answered(member, said.works, now):
                self._moved()
                self._bell.ring()
        else:
            self.dropped["routes-unasked"] += 1

    async def _send(self, sock: trio.socket.SocketType, datagram: bytes, to: IPv4Address) -> None:
        try:
            await sock.sendto(datagram, (str(to), self._port))
        except OSError:
            self.dropped["routes-unsent"] += 1


def _opened(address: IPv4Address, port: int) -> trio.socket.SocketType:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # trio's own would be marked as the underlay's
    try:
        made.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
        made.bind((str(address), port))
    except BaseException:
        made.close()
        raise
    return trio.socket.from_stdlib_socket(made)
