# SPDX-License-Identifier: GPL-3.0-or-later
"""The UDP sockets of the control port, and of a relay's: one for each address family, never fragmenting,
never blocking a sender."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

from phantommesh.endpoint import MAX_DATAGRAM, Address
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.unexpected import left_out
from phantommesh.wireguard.device import OUTER_MARK

# linux/in.h and linux/in6.h; Python 3.11 has no names for them.
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_DO = 23, 2

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_SO_MARK = 36  # asm-generic/socket.h

# Tuning.
RECEIVE_BUFFER = 2 * 1024 * 1024  # bytes; a datagram takes up to 2.3 kB: 0.4 s of a flood of 2,000 a second
_BURST = 64  # datagrams read before other tasks get a turn

BROKEN = "a datagram was left out after an unexpected error"


class UdpPort:
    """Both families' sockets on one port. ``unsent`` counts datagrams that the kernel would not take.

    ``forbids`` says of which addresses nothing is taken and to which nothing is sent, whatever the checks
    before this one let through: ``forbidden`` counts those datagrams by direction, ``in`` and ``out``.
    ``dropped`` counts those whose handling failed in a way that nobody expected.
    """

    def __init__(
        self,
        port: int,
        hosts: Sequence[str] = ("0.0.0.0", "::"),
        setting: str = "control.port",
    ) -> None:
        """Bind to these addresses, at most one a family. Raises `PhantomMeshError` naming the port where it
        is taken, and the setting that says so."""
        self.port = port
        self.forbids: Callable[[str], bool] = lambda host: False
        self.dropped: Counter[str] = Counter()
        self._sockets: dict[int, socket.socket] = {}
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                try:
                    self._sockets[family] = _bind(family, host, port)
                except OSError as error:
                    if host != "::" or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise  # many containers have no IPv6; a port that is taken is something else
        except OSError as error:
            self.close()
            raise PhantomMeshError(
                f"cannot listen on UDP port {port}: {error.strerror}",
                fix=f"stop what uses the port, or set {setting} in the config",
            ) from None

    def send(self, datagram: bytes, destination: Address) -> None:
        """Send now, or count it as unsent: the protocol repeats what matters."""
        if self.forbids(destination.host):
            self.dropped["datagram-forbidden"] += 1
            return
        family = socket.AF_INET6 if ":" in destination.host else socket.AF_INET
        sock = self._sockets.get(family)
        try:
            if sock is None:
                raise OSError
            sock.sendto(datagram, (destination.host, destination.port))
        except OSError:
            self.dropped["datagram-unsent"] += 1

    async def receive(self, handle: Callable[[bytes, Address], None]) -> None:
        """Hand every datagram to ``handle``, until cancelled."""
        async with trio.open_nursery() as nursery:
            for sock in self._sockets.values():
                nursery.start_soon(self._receive, sock, handle)

    async def _receive(self, sock: socket.socket, handle: Callable[[bytes, Address], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(_BURST):
                try:
                    datagram, source = sock.recvfrom(MAX_DATAGRAM + 1)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an ICMP error for something sent earlier
                address = Address(source[0].partition("%")[0], source[1])
                if self.forbids(address.host):
                    self.dropped["datagram-source-forbidden"] += 1  # an answer would go there
                else:
                    with left_out(self.dropped, "datagram-broken", BROKEN, source=str(address)):
                        handle(datagram, address)

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class OuterSockets(trio.abc.SocketFactory):
    """Makes the sockets of what the node itself says over TCP, which must not enter the mesh it carries."""

    def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> trio.socket.SocketType:  # noqa: A002
        """Make one, marked as the underlay's where it is IP's."""
        made = socket.socket(family, type, proto)
        if made.family in (socket.AF_INET, socket.AF_INET6):
            mark_outer(made)
        return trio.socket.from_stdlib_socket(made)


def mark_outer(sock: socket.socket) -> None:
    """Mark what is sent as the underlay's: the guard keeps it out of the mesh's interfaces. A process that
    may not do so (no CAP_NET_ADMIN) cannot make these interfaces either."""
    with suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, OUTER_MARK)


def _bind(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        mark_outer(sock)
        try:  # past net.core.rmem_max, which holds 90 datagrams; needs CAP_NET_ADMIN
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_DO)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
