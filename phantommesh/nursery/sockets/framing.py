# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames over TCP, a 4-byte length before each; and how a connection is made."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import trio

from phantommesh.endpoint import Address
from phantommesh.nursery.sockets import proxy as proxies

# Tuning.
IDLE = 60.0  # s a connection may stay silent, or not take what is sent
CONNECT = 3.0  # s
STAGGER = 0.25  # s between attempts at two addresses of one host (RFC 8305, section 5)
# s that the control port is waited for before further ports and the environment's proxy are tried.
HEAD_START = 0.7
# Bytes that a connection of datagrams takes in ahead: what waits there only gets old. By themselves kernels
# let that grow to 6 MB. The other direction is bounded by trio, which sets TCP_NOTSENT_LOWAT to 16 KiB.
RECEIVE = 128 * 1024
# s until the kernel asks, s between two questions, and how many in vain end the connection.
# A NAT that started anew has forgotten a lent connection, and its member is out of reach until then.
ALIVE = {socket.TCP_KEEPIDLE: 20, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}


class StreamError(Exception):
    """The connection ended, was refused, or broke its framing."""


class OversizeError(StreamError):
    """A frame is longer than anything that its sender may say: another protocol, mostly."""


class FramedStream:
    """Length-prefixed frames over a TCP stream. A cancelled ``receive`` loses nothing; after a cancelled
    ``send`` the stream is of no use."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Raises OSError for a stream whose other end is gone already."""
        self._stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()
        peer, own = stream.socket.getpeername(), stream.socket.getsockname()
        self.address = Address(peer[0].partition("%")[0].removeprefix("::ffff:"), peer[1], "tcp")
        self.own_host: str = own[0].partition("%")[0].removeprefix("::ffff:")

    def keep_alive(self) -> None:
        """Have the kernel ask the other end now and then whether it is there: a router on the way forgets a
        connection on which nothing moves, and a machine that lost its power never closes one."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ALIVE.items():
            self._stream.setsockopt(socket.IPPROTO_TCP, option, value)

    def hold_little(self) -> None:
        """Have the kernel take in no more than `RECEIVE` bytes ahead of `receive`."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE)

    async def send(self, frame: bytes) -> None:
        """Send one frame. Raises `StreamError`, also where the other end takes nothing for too long."""
        try:
            with trio.fail_after(IDLE):
                async with self._sending:
                    await self._stream.send_all(len(frame).to_bytes(4) + frame)
        except trio.TooSlowError as error:
            raise StreamError("the other end takes nothing") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StreamError("the connection broke") from error

    async def receive(self, limit: int) -> bytes:
        """Return the next frame, of at most ``limit`` bytes. Raises `StreamError`."""
        await self._fill(4)
        await self._fill(4 + self._size(limit))
        return self._take()

    def arrived(self, limit: int) -> bytes | None:
        """Return the next frame if it is here already, whole; else None. Raises `StreamError`."""
        there = len(self._buffer)
        return self._take() if there >= 4 and there >= 4 + self._size(limit) else None

    def _size(self, limit: int) -> int:
        size = int.from_bytes(self._buffer[:4])
        if size > limit:
            raise OversizeError(f"a frame is too long: {size} bytes, where {limit} are the most")
        return size

    def _take(self) -> bytes:
        end = 4 + int.from_bytes(self._buffer[:4])
        with memoryview(self._buffer) as held:
            frame = bytes(held[4:end])
        del self._buffer[:end]
        return frame

    async def _fill(self, size: int) -> None:
        """Read until the buffer holds so many bytes."""
        if len(self._buffer) >= size:
            await trio.lowlevel.checkpoint()  # frames that came together must not starve other tasks
        while len(self._buffer) < size:
            try:
                chunk = await self._stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise StreamError("the connection broke") from error
            if not chunk:
                raise StreamError("the connection ended")
            self._buffer += chunk


@asynccontextmanager
async def connect(host: str, port: int, further: Sequence[int] = ()) -> AsyncIterator[FramedStream]:
    """Connect to a control port over TCP: directly, and where that does not answer soon at the ``further``
    ports of its node and by the environment's proxy. Raises `StreamError`, also for a name: what it resolves
    to has to be judged before it is used (`places`)."""
    async with connect_first((Address(host, port),), further) as framed:
        yield framed


@asynccontextmanager
async def connect_first(
    addresses: Sequence[Address], further: Sequence[int] = ()
) -> AsyncIterator[FramedStream]:
    """Do as `connect` does, at the first of these addresses that answers; at least one is given. The next one
    is tried beside the one before after `STAGGER`: a host that has moved does not refuse, it says nothing.
    Raises `StreamError`."""
    (host, port, _), stream = await _race(addresses, further)
    async with stream:
        try:
            framed = FramedStream(stream)
        except OSError as error:
            raise StreamError("the connection broke") from error
        framed.address = Address(host, port, "tcp")  # neither the proxy's nor a further port's
        yield framed


async def _race(addresses: Sequence[Address], further: Sequence[int]) -> tuple[Address, trio.SocketStream]:
    found, failures = list[tuple[Address, trio.SocketStream]](), list[StreamError]()

    async def attempt(address: Address, over: trio.Event) -> None:
        try:
            found.append((address, await _connected(address, further)))
        except StreamError as error:
            failures.append(error)
            over.set()
        else:
            nursery.cancel_scope.cancel()

    kept = 0
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                over = trio.Event()
                nursery.start_soon(attempt, address, over)
                with trio.move_on_after(STAGGER):
                    await over.wait()
        kept = 1
    finally:
        for _, late in found[kept:]:
            await trio.aclose_forcefully(late)
    if not found:
        raise failures[0] if len(failures) == 1 else StreamError("; ".join(map(str, failures)))
    return found[0]


async def _connected(address: Address, further: Sequence[int]) -> trio.SocketStream:
    host, port, _ = address
    try:
        ip_address(host)
    except ValueError as error:
        raise StreamError(f"{host} is a name, not an address") from error
    refused = list[str]()
    try:
        with trio.fail_after(CONNECT):
            return await _open(host, (port, *further), refused)
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        reasons = [f"cannot connect to {host} port {port}: {_reason(error)}"]
        reasons += [f"the environment's proxy: {why}" for why in refused[:1]]
        raise StreamError("; ".join(reasons)) from error


async def _open(host: str, ports: Sequence[int], refused: list[str]) -> trio.SocketStream:
    """Connect directly to the first port, and a little later to the others and by the environment's proxy;
    the first that works is taken. Raises OSError as the first attempt did. ``refused`` gets what the proxy
    had against it."""
    first, *further = ports
    by_proxy = [(p, named) for p in ports if (named := proxies.environment_proxy(host, p)) is not None]
    if not further and not by_proxy:
        return await trio.open_tcp_stream(host, first)
    found, failures, failed = list[trio.SocketStream](), list[OSError](), trio.Event()

    def take(stream: trio.SocketStream) -> None:
        found.append(stream)
        nursery.cancel_scope.cancel()

    async def directly() -> None:
        try:
            take(await trio.open_tcp_stream(host, first))
        except OSError as error:
            failures.append(error)
            failed.set()

    async def later() -> None:
        with trio.move_on_after(HEAD_START):
            await failed.wait()
        for port in further:
            nursery.start_soon(elsewhere, port)
        for port, proxy in by_proxy:  # many proxies connect to port 443 alone
            nursery.start_soon(proxied, proxy, port)

    async def elsewhere(port: int) -> None:
        with suppress(OSError):
            take(await trio.open_tcp_stream(host, port))

    async def proxied(proxy: proxies.Proxy, port: int) -> None:
        try:
            take(await proxies.connect_by(proxy, host, port))
        except proxies.ProxyError as error:
            refused.append(str(error))

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directly)
            nursery.start_soon(later)
    finally:
        for late in found[1:]:
            await trio.aclose_forcefully(late)
    if not found:
        raise failures[0] if failures else OSError("nothing answers")
    return found[0]


def _reason(error: BaseException) -> str:
    """Why a connection was not made. trio tells of several attempts in a group behind the error."""
    match error:
        case OSError(strerror=str(reason)):
            return reason
        case OSError(__cause__=ExceptionGroup(exceptions=[OSError(errno=int(number)), *_])):
            return os.strerror(number)
        case trio.TooSlowError():
            return "no answer"
        case _:
            return str(error)
