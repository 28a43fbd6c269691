# SPDX-License-Identifier: GPL-3.0-or-later
"""The name server: UDP and TCP on the node's own overlay addresses, for askers inside the overlay.

The sockets are bound with IP_FREEBIND: they need no interface to be there yet, and they outlive one that is
made anew. A new address of our own (after a collision) gets new sockets.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import structlog
import trio

from phantommesh.names.askers import Askers, kind_of
from phantommesh.names.zone import MAX_QUERY, Zone, respond
from phantommesh.nursery import unexpected
from phantommesh.rates import Bucket, Rates, source_block

# linux/in.h and linux/in6.h; Python 3.11 has no names for them.
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78

# Tuning.
RATE, BURST = 100.0, 200.0  # queries a second of one asker; our own resolver caches what it asks
TOTAL_RATE, TOTAL_BURST = 500.0, 1000.0  # of all: at 0.35 ms an answer, a sixth of a core
MAX_SOURCES = 4096  # askers whose rates are kept
MAX_CONNECTIONS, MAX_PER_HOST = 64, 8
IDLE = 10.0  # s for one whole query to come, or one answer to leave (RFC 7766 section 6.2.3)
WATCH = 5.0  # s between looks at what our addresses are
RETRY = 5.0  # s until a port that was taken is tried again
_TURN = 16  # datagrams answered before other tasks get a turn

Ip = IPv4Address | IPv6Address

log = structlog.get_logger("phantommesh.dns")


class NameServer:
    """Answers from ``zone()``, as it is at each query, on ``addresses()``, as they are at each look.

    Askers outside ``networks`` and beyond the rates are dropped and counted in ``dropped``; ``answered`` is
    called with what became of every other query (see `names.respond`). ``askers`` counts what each asks, and
    may keep one to less; ``blame`` is called with the reason and the asker of each query beyond a rate.
    """

    def __init__(
        self,
        *,
        port: int,
        addresses: Callable[[], Collection[Ip]],
        networks: Collection[IPv4Network | IPv6Network],
        zone: Callable[[], Zone],
        answered: Callable[[str], None],
        askers: Askers | None = None,
        blame: Callable[[str, str], None] = lambda reason, host: None,
    ) -> None:
        self._port, self._addresses, self._networks = port, addresses, networks
        self._zone, self._answered, self._blame = zone, answered, blame
        self.askers = Askers() if askers is None else askers
        self._rates = Rates[str](RATE, BURST, MAX_SOURCES)
        self._total = Bucket(TOTAL_RATE, TOTAL_BURST, trio.current_time())
        self._connections: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    async def run(self) -> None:
        """Serve until cancelled. An address that cannot be served is logged, once, and tried again."""
        serving: dict[Ip, trio.CancelScope] = {}
        async with trio.open_nursery() as nursery:
            while True:
                wanted = set(self._addresses())
                for gone in serving.keys() - wanted:
                    serving.pop(gone).cancel()
                for address in wanted - serving.keys():
                    serving[address] = scope = trio.CancelScope()
                    nursery.start_soon(self._keep, address, scope)
                await trio.sleep(WATCH)

    async def _keep(self, address: Ip, scope: trio.CancelScope) -> None:
        said = ""
        with scope:
            while True:
                try:
                    await self._serve(address)
                except OSError as error:
                    why = error.strerror or str(error)
                    if why != said:
                        log.warning(
                            "the name server cannot listen",
                            address=str(address),
                            port=self._port,
                            error=why,
                            fix="stop what uses the port on this address, or set dns.port in the config",
                        )
                        said = why
                await trio.sleep(RETRY)

    async def _serve(self, address: Ip) -> None:
        """Serve one address. Raises OSError where a socket cannot be had."""
        with (
            _bind(address, self._port, socket.SOCK_DGRAM) as udp,
            _bind(address, self._port, socket.SOCK_STREAM) as tcp,
        ):
            tcp.listen(MAX_CONNECTIONS)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(tcp))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer_datagrams, udp)
                nursery.start_soon(partial(trio.serve_listeners, self._answer_stream, [listener]))

    def _admit(self, host: str) -> bool:
        """Whether a query from this host is to be read at all; where not, it is counted."""
        ip, now = ip_address(host.partition("%")[0]), trio.current_time()
        if not any(ip in network for network in self._networks):
            self.dropped["dns-source"] += 1
            return False
        asker = str(ip)
        self.askers.note(asker, "asked", now)
        kept = self.askers.allow(asker, now)  # before the rate of all: an asker that floods takes none of it
        if kept and self._rates.allow(source_block(asker), now) and self._total.take(now):
            return True
        reason = "dns-rate" if kept else "dns-shed"
        self.dropped[reason] += 1
        self._blame(reason, asker)
        return False

    def _respond(self, query: bytes, host: str, *, tcp: bool) -> bytes | None:
        result, response = "dns-broken", None
        try:
            result, response = respond(self._zone(), query, tcp=tcp)
        except Exception as error:  # one query is not the service's end
            unexpected.note("a DNS query was left out after an unexpected error", error, source=host)
        if response is None:
            self.dropped[result] += 1
        else:
            self._answered(result)
            if (kind := kind_of(result, query)) is not None:
                self.askers.note(host.partition("%")[0], kind, trio.current_time())
        return response

    async def _answer_datagrams(self, sock: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(_TURN):
                try:
                    query, source = sock.recvfrom(MAX_QUERY + 1)
                except OSError:
                    break  # none left, or an ICMP error for an earlier answer
                if not self._admit(source[0]):
                    continue
                response = self._respond(query, source[0], tcp=False)
                if response is None:
                    continue
                try:
                    sock.sendto(response, source)
                except OSError:
                    self.dropped["dns-unsent"] += 1

    async def _answer_stream(self, stream: trio.SocketStream) -> None:
        """Answer the queries of one connection in turn, each with a 2-byte length before it (RFC 7766)."""
        async with stream:
            try:
                host = stream.socket.getpeername()[0]
            except OSError:
                return  # gone before it was looked at
            if self._connections.total() >= MAX_CONNECTIONS or self._connections[host] >= MAX_PER_HOST:
                self.dropped["dns-connections"] += 1
                return
            self._connections[host] += 1
            try:
                while self._admit(host):
                    with trio.fail_after(IDLE):
                        size = int.from_bytes(await _exactly(stream, 2))
                        if size > MAX_QUERY:
                            self.dropped["dns-long"] += 1
                            return
                        query = await _exactly(stream, size)
                    response = self._respond(query, host, tcp=True)
                    if response is None:
                        return
                    with trio.fail_after(IDLE):
                        await stream.send_all(len(response).to_bytes(2) + response)
            except (trio.BrokenResourceError, trio.TooSlowError, EOFError):
                pass  # it has hung up, or has had its time
            finally:
                self._connections[host] -= 1
                if not self._connections[host]:
                    del self._connections[host]


async def _exactly(stream: trio.SocketStream, size: int) -> bytes:
    """Read so many bytes. Raises EOFError at the stream's end."""
    data = b""
    while len(data) < size:
        chunk = await stream.receive_some(size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _bind(address: Ip, port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket on an address that need not be there yet. Raises OSError."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        except OSError:
            pass  # then binding fails until the address is there, and is tried again
        sock.bind((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock
