# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves the API: hypercorn's connections under a nursery of the node's own.

hypercorn's own ``serve`` shields its writes from cancellation, so that one client which stops reading would
hold up the node's shutdown for ever. Here each connection is known, and is cut when its time is over.
"""

import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    H11SendableEvent,
    Scope,
)
from hypercorn.utils import wrap_app
from quart_trio import QuartTrio
from wsproto.connection import ConnectionState as WebSocketState

from phantommesh.client.http import GROUP
from phantommesh.management.servercert import TlsFiles
from phantommesh.management.views import NodePort
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from phantommesh.nursery.api.sockets import ApiSocketError, UnixSocket, listen_tcp, listen_unix, peer_uid
from phantommesh.nursery.api.tls import Tls, Told
from phantommesh.rates import source_block

# Tuning.
MAX_LOCAL = 256  # connections of the Unix socket, which nobody over TCP can take away
MAX_REMOTE = 384  # over TCP
MAX_OF_BLOCK = 288  # of these, of one source block
HANDSHAKE_TIMEOUT_S = 10.0  # for TLS; hypercorn then gives each request 5 s for its head
MAX_MESSAGE_BYTES = 4096  # in a WebSocket, from a client, which has nothing to say
SEND_TIMEOUT_S = 30.0  # for a client to take what is in one write
LINGER_BYTES = 1 << 20  # of a body that nobody reads, taken so that its sender can hear the answer
LINGER_S = 2.0  # at most
SOCKET_LOOK_S = 2.0  # between looks whether the socket's file is still there
_CLOSE_TIMEOUT_S = 10.0

_log = structlog.get_logger("phantommesh.api")


async def serve_api(
    node: NodePort,
    *,
    socket_path: Path,
    listen: str | None = None,
    tls: TlsFiles | None = None,
    hosts: Collection[str] = (),
    group: str = GROUP,
    shutdown: trio.Event | None = None,
    grace: float = 2.0,
    certified: Told = lambda _problem: None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until ``shutdown`` is set: then accept nothing, give requests under way
    ``grace`` seconds, cut what is left, and return. ``started`` gets the addresses. The Unix socket's file
    is gone afterwards. ``tls``: for ``listen``, which else is in clear; ``hosts``: names by which clients may
    call the node there. ``certified`` is told why files that have changed cannot be used, and None once they
    can. Raises ApiSocketError where it cannot listen.
    """
    listen_anew = partial(listen_unix, socket_path, group=group)
    unix = _Kept(await trio.to_thread.run_sync(listen_anew), listen_anew)
    try:
        ending = trio.Event() if shutdown is None else shutdown
        if listen is None:
            await _serve(node, unix, None, ending, grace, task_status)
            return
        secured = None if tls is None else await Tls.of(tls, certified)
        with listen_tcp(listen, encrypted=secured is not None) as listener:
            tcp = _Tcp(listener, secured, frozenset(hosts))
            await _serve(node, unix, tcp, ending, grace, task_status)
    finally:
        unix.socket.remove()


@dataclass(frozen=True, slots=True)
class _Tcp:
    """The socket over TCP. ``tls`` None: it is in clear."""

    listener: socket.socket
    tls: Tls | None
    hosts: frozenset[str]

    @property
    def address(self) -> str:
        """Where it listens, as a URL."""
        host, port = self.listener.getsockname()[:2]
        return f"http{'' if self.tls is None else 's'}://{f'[{host}]' if ':' in host else host}:{port}"


class _Kept:
    """A Unix socket that is made again where its file was removed: nobody could connect any more."""

    def __init__(self, socket: UnixSocket, listen_anew: Callable[[], UnixSocket]) -> None:
        self.socket, self._listen_anew = socket, listen_anew

    async def serve(
        self, handle: Callable[[trio.SocketStream], Awaitable[None]], handlers: trio.Nursery
    ) -> None:
        """Accept until cancelled. Connections are served in ``handlers``."""
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.socket.listener))
                await trio.serve_listeners(handle, [listener], handler_nursery=handlers)

    async def _watch(self, accepting: trio.CancelScope) -> None:
        """Wait until the file is not ours any more and another socket listens; then end ``accepting``."""
        said = ""
        while True:
            await trio.sleep(SOCKET_LOOK_S)
            if await trio.to_thread.run_sync(self.socket.is_there):
                continue
            try:
                self.socket = await trio.to_thread.run_sync(self._listen_anew)
            except ApiSocketError as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("the API's socket was removed", error=said, fix=error.fix)
                continue
            _log.warning("the API's socket was removed: it is made again", socket=str(self.socket.path))
            accepting.cancel()
            return


async def _serve(
    node: NodePort,
    unix: _Kept,
    tcp: _Tcp | None,
    shutdown: trio.Event,
    grace: float,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    context = WorkerContext(None)
    local, remote = _Connections(MAX_LOCAL), _Connections(MAX_REMOTE)
    trusted = connection_handler(create_app(node, Door(trusted=True), shutdown=shutdown), context)
    addresses = [f"unix:{unix.socket.path}"]
    async with trio.open_nursery() as handlers:
        try:
            async with trio.open_nursery() as accepting:
                if tcp is not None:
                    app = create_app(node, Door(trusted=False, hosts=tcp.hosts), shutdown=shutdown)
                    serve = connection_handler(app, context, tcp.tls)
                    await accepting.start(
                        partial(
                            trio.serve_listeners,
                            partial(remote.handle, serve),
                            [trio.SocketListener(trio.socket.from_stdlib_socket(tcp.listener))],
                            handler_nursery=handlers,
                        )
                    )
                    addresses.append(tcp.address)
                    if tcp.tls is not None:
                        accepting.start_soon(tcp.tls.watch)
                accepting.start_soon(unix.serve, partial(local.handle, trusted), handlers)
                secured = None if tcp is None or tcp.tls is None else tcp.tls.loaded.fingerprint
                _log.info("API listens", addresses=addresses, sha256=secured)
                task_status.started(addresses)
                await shutdown.wait()
                accepting.cancel_scope.cancel()
            await context.terminated.set()
            with trio.move_on_after(grace):
                await local.wait_none()
                await remote.wait_none()
        finally:
            local.cut()
            remote.cut()
            handlers.cancel_scope.cancel()


def _closing(app: QuartTrio) -> ASGIFramework:
    """Let the end of a response close its connection.

    hypercorn ends the stream inside the last ``send``; that tells quart-trio of the disconnect, which cancels
    this very ``send`` before it closes a connection that must close (HTTP/1.0, ``Connection: close``).

    A request that is answered before its body has come is the connection's last, and its answer says so.
    """

    async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        coming = scope["type"] == "http" and scope["http_version"] == "1.1" and _has_body(scope["headers"])

        async def whole_receive() -> ASGIReceiveEvent:
            nonlocal coming
            message = await receive()
            if message["type"] == "http.request" and not message["more_body"]:
                coming = False
            return message

        async def deliver(message: ASGISendEvent) -> None:
            try:
                await send(message)
            except h11.LocalProtocolError:
                if scope["type"] != "websocket":
                    raise
                # hypercorn answers by itself a client that sends frames before the upgrade.

        async def whole_send(message: ASGISendEvent) -> None:
            if coming and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
                    await deliver(message)
            else:
                await deliver(message)

        await app(scope, whole_receive, whole_send)

    return asgi


def _has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in headers
    )


class _Connection(TCPServer):
    """One connection. hypercorn's, but one that its client has left, or takes nothing from, ends; and its
    requests know who made it, as ``uid`` in the scope's state."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        tls: Tls | None,
        stream: trio.SocketStream,
    ) -> None:
        state = ConnectionState({"uid": peer_uid(stream.socket)})
        self._raw = stream
        self._encrypted = tls is not None
        self._lingering = False
        self._holding, self._head = False, b""
        served: trio.abc.Stream = stream
        if tls is not None:
            served = trio.SSLStream(stream, tls.context(), server_side=True, https_compatible=True)
        # hypercorn takes a stream without TLS, too, whatever its annotation says
        super().__init__(app, config, context, state, cast("trio.SSLStream[trio.SocketStream]", served))

    async def _close(self) -> None:
        with trio.move_on_after(_CLOSE_TIMEOUT_S):  # TLS says goodbye, and the client may take nothing more
            await super()._close()

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            protocol._check_protocol = partial(_check_protocol, protocol._check_protocol)  # type: ignore[method-assign]
            protocol._send_h11_event = partial(self._send_event, protocol._send_h11_event)  # type: ignore[method-assign]
        data, left = b"something", LINGER_BYTES
        while data and left > 0 and not _is_over(self.protocol.protocol):
            try:
                data = bytes(await self.stream.receive_some(MAX_RECV))
                if self._lingering:
                    left -= len(data)
                else:
                    await self.protocol.handle(RawData(data))
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                break
            except h11.LocalProtocolError:
                break  # two answers to one handshake: see _closing
        await self.protocol.handle(Closed())
        # Else it lives on until the keep-alive timeout, or for ever where nobody told the application.
        assert self._task_group._nursery is not None
        self._task_group._nursery.cancel_scope.cancel()

    async def _send_event(
        self, send: Callable[[H11SendableEvent], Awaitable[None]], event: H11SendableEvent
    ) -> None:
        """Have the head of an answer go in one write with what comes behind it."""
        self._holding = isinstance(event, h11.Response)
        try:
            await send(event)
        finally:
            self._holding = False

    async def _linger(self) -> None:
        """Take for a while what a client still sends whose request is answered already. A socket that is
        closed with something unread is reset, and the answer may be lost with it."""
        self._lingering = True
        if not self._encrypted:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._raw.send_eof()
        await trio.sleep(LINGER_S)  # cancelled when the client has gone
        _cut(self._raw)

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Closed) and _is_sending(self.protocol.protocol):
            assert self._task_group._nursery is not None
            self._task_group._nursery.start_soon(self._linger)
            await self.protocol.handle(Closed())
            return
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        data, self._head = self._head + event.data, b""
        if self._holding:
            self._head = data
            return
        if not data:
            return  # the end of a body whose length was told
        async with self.send_lock:
            try:
                with trio.fail_after(SEND_TIMEOUT_S, shield=True):
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                _cut(self._raw)  # which ends the reading as well
                await self.protocol.handle(Closed())
            except trio.BusyResourceError:
                pass  # it is just being closed


async def _check_protocol(check: Callable[[h11.Request], Awaitable[None]], request: h11.Request) -> None:
    """Take no upgrade to HTTP/2 in clear (h2c), which proxies pass on without looking inside: RFC 9113 has it
    no more. The request is answered as one of HTTP/1.1."""
    if not any(name == b"upgrade" and b"h2c" in value.lower() for name, value in request.headers):
        await check(request)


def _is_over(protocol: H11Protocol | H2Protocol) -> bool:
    """Whether a WebSocket broke the rules. hypercorn would read and store on what its client sends."""
    streams = protocol.streams.values() if isinstance(protocol, H2Protocol) else [protocol.stream]
    return any(
        stream.closed or (stream.handshake.accepted and stream.connection.state is not WebSocketState.OPEN)
        for stream in streams
        if isinstance(stream, WSStream)
    )


def _is_sending(protocol: H11Protocol | H2Protocol) -> bool:
    """Whether the client is in the middle of a body."""
    return isinstance(protocol, H11Protocol) and protocol.connection.their_state is h11.SEND_BODY


def connection_handler(
    app: QuartTrio, context: WorkerContext, tls: Tls | None = None
) -> Callable[[trio.SocketStream], TCPServer]:
    """Return what serves one connection when awaited: HTTP/1.1 and HTTP/2, by ALPN or with prior
    knowledge."""
    config = Config()
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.websocket_max_message_size = MAX_MESSAGE_BYTES
    config.ssl_handshake_timeout = HANDSHAKE_TIMEOUT_S
    return partial(_Connection, wrap_app(_closing(app), 0, "asgi"), config, context, tls)


class _Connections:
    """The open connections of one listener, so that each can be waited for and cut: at most so many in all,
    and of one source block."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[trio.SocketStream, str] = {}
        self._blocks = Counter[str]()
        self._none = trio.Event()

    async def handle(
        self, serve: Callable[[trio.SocketStream], TCPServer], stream: trio.SocketStream
    ) -> None:
        block = _block_of(stream)
        if len(self._open) >= self._most or (block and self._blocks[block] >= MAX_OF_BLOCK):
            await stream.aclose()
            return
        self._open[stream] = block
        self._blocks[block] += 1
        try:
            await serve(stream)
        except Exception as error:  # one broken connection is not the service's end
            _log.error("API connection failed", exc_info=error)
        finally:
            del self._open[stream]
            self._blocks[block] -= 1
            if not self._blocks[block]:
                del self._blocks[block]
            if not self._open:
                self._none.set()

    async def wait_none(self) -> None:
        while self._open:
            self._none = trio.Event()
            await self._none.wait()

    def cut(self) -> None:
        """Shut every connection down, which also ends a write that is shielded from cancellation."""
        for stream in self._open:
            _cut(stream)


def _block_of(stream: trio.SocketStream) -> str:
    """The source block of a client over TCP; empty for one of the Unix socket, or that has gone."""
    if stream.socket.family == socket.AF_UNIX:
        return ""
    try:
        return source_block(stream.socket.getpeername()[0].partition("%")[0])
    except OSError:
        return ""


def _cut(stream: trio.SocketStream) -> None:
    with contextlib.suppress(OSError):
        stream.socket.shutdown(socket.SHUT_RDWR)
