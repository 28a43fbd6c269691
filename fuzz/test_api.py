# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a client sends, the API answers with JSON or problem details, never with a 500 or a traceback."""

import logging
import string
from functools import partial

import h11
import msgspec
import trio
from hypercorn.trio.worker_context import WorkerContext
from hypothesis import given, settings
from hypothesis import strategies as st
from quart_trio import QuartTrio
from structlog.testing import capture_logs

from phantommesh.management.views import Problem
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from phantommesh.nursery.api.server import connection_handler
from tests.support.fakenode import FakeNode

ROUTES = [
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/status",
    "/v1/peers",
    "/v1/peers/pm-1",
    "/v1/links",
    "/v1/events",
    "/v1/rotations",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]

quoted = st.binary(max_size=20).map(lambda raw: "".join(f"%{byte:02x}" for byte in raw).encode())
plain = st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@/%", max_size=30).map(str.encode)
targets = st.one_of(
    st.sampled_from(ROUTES).map(str.encode),
    st.tuples(st.sampled_from(["/", "/v1/", "/v1/peers/", "//", "*", ""]), plain | quoted).map(
        lambda parts: parts[0].encode() + parts[1]
    ),
)
queries = st.one_of(
    st.just(b""),
    st.tuples(
        st.sampled_from([b"limit", b"cursor", b"dry_run", b"since", b"types", b"run", b"x"]),
        st.integers().map(lambda n: b"%d" % n) | plain | quoted,
    ).map(lambda pair: b"?" + pair[0] + b"=" + pair[1]),
    (plain | quoted).map(lambda query: b"?" + query),
)
header_names = st.sampled_from(
    [
        "Host",
        "Accept",
        "Content-Type",
        "Idempotency-Key",
        "Cookie",
        "Authorization",
        "Remote-Addr",
        "Range",
        "X-Forwarded-For",
    ]
) | st.text(string.ascii_letters + "-", min_size=1, max_size=12)
# What h11 lets through as a value: visible bytes, spaces inside.
header_values = st.one_of(
    st.sampled_from(
        [
            b"application/json",
            b"application/json; charset=utf-99",
            b"text/html",
            b"*/*;q=x",
            b"[::1",
            b"a:b:c",
        ]
    ),
    st.binary(max_size=30).map(lambda raw: bytes(b for b in raw if 33 <= b != 127)),
)
framing = {"content-length", "transfer-encoding", "connection", "upgrade", "expect", "http2-settings"}
headers = st.lists(
    st.tuples(header_names.filter(lambda name: name.lower() not in framing), header_values), max_size=5
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["peer", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)
bodies = st.one_of(
    st.binary(max_size=60), json_values.map(msgspec.json.encode), st.integers(1, 2000).map(lambda n: b"[" * n)
)


class Complaints(logging.Handler):
    """Everything that is logged as an error while a request runs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def exchange(
    app: QuartTrio, data: bytes, *, head: bool, ends: bool
) -> tuple[h11.Response, bytes] | None:
    """Send ``data`` over a real socket to the real server; return its first response, if it gave one.

    No WebSocket lasts: the node is stopping.
    """
    ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="HEAD" if head else "GET", target="/", headers=[("Host", "x")]))
    parser.send(h11.EndOfMessage())
    serve = connection_handler(app, WorkerContext(None))

    async def serving() -> None:
        await serve(theirs)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, ours:
            nursery.start_soon(serving)
            await ours.send_all(data)
            if ends:
                await ours.send_eof()
            answer = b""
            try:
                async for part in ours:
                    answer += part
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()  # hypercorn's idle timer outlives a connection that it refused
    if not answer or answer.startswith(b"HTTP/1.1 101 "):
        return None
    parser.receive_data(answer)
    parser.receive_data(b"")
    response = parser.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := parser.next_event(), h11.Data):
        body += event.data
    return response, body


def ask(
    trusted: bool, data: bytes, *, head: bool = False, ends: bool = False
) -> tuple[h11.Response, bytes] | None:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    stopping = trio.Event()
    stopping.set()
    app = create_app(FakeNode(), Door(trusted=trusted), shutdown=stopping)
    try:
        answer = trio.run(partial(exchange, app, data, head=head, ends=ends))
    finally:
        logging.getLogger().removeHandler(complaints)
    assert complaints.records == []
    return answer


def check(response: h11.Response, body: bytes, *, head: bool) -> None:
    kind = dict(response.headers).get(b"content-type", b"").decode()
    assert response.status_code < 500
    assert "html" not in kind
    if response.status_code >= 400 and not head and body:
        assert kind == "application/problem+json"
        assert msgspec.json.decode(body, type=Problem).status == response.status_code
    if response.status_code >= 400 and not body and not head:
        assert response.status_code in {400, 431}  # the server's own, for what is not HTTP


@settings(deadline=None)
@given(
    method=st.sampled_from(METHODS),
    target=targets,
    query=queries,
    sent=headers,
    body=bodies,
    trusted=st.booleans(),
    is_json=st.booleans(),
)
def test_any_request_gets_a_proper_answer(
    method: str,
    target: bytes,
    query: bytes,
    sent: list[tuple[str, bytes]],
    body: bytes,
    trusted: bool,
    is_json: bool,
) -> None:
    fields = [(name.encode(), value) for name, value in sent]
    if not any(name.lower() == b"host" for name, _ in fields):
        fields.append((b"Host", b"localhost"))
    if is_json:
        fields.append((b"Content-Type", b"application/json"))
    fields += [(b"Connection", b"close"), (b"Content-Length", str(len(body)).encode())]
    lines = [method.encode() + b" " + target + query + b" HTTP/1.1", *(n + b": " + v for n, v in fields)]
    answer = ask(trusted, b"\r\n".join([*lines, b"", body]), head=method == "HEAD")
    assert answer is not None
    check(*answer, head=method == "HEAD")


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.binary(max_size=100).map(lambda raw: b"GET / HTTP/1.1\r\n" + raw + b"\r\n\r\n")
)
def test_any_bytes_are_survived(data: bytes) -> None:
    answer = ask(False, data, ends=True)
    if answer is not None:
        check(*answer, head=True)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_http2_is_survived(data: bytes) -> None:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)

    async def go() -> None:
        ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
        serve = connection_handler(create_app(FakeNode(), Door(trusted=True)), WorkerContext(None))

        async def serving() -> None:
            await serve(theirs)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery, ours:
                nursery.start_soon(serving)
                try:
                    await ours.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data)
                    await ours.send_eof()
                    async for _ in ours:
                        pass
                except trio.BrokenResourceError:
                    pass
                nursery.cancel_scope.cancel()

    try:
        trio.run(go)
    finally:
        logging.getLogger().removeHandler(complaints)
    assert complaints.records == []


UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


@settings(deadline=None)
@given(target=targets, query=queries, host=header_values, trusted=st.booleans())
def test_any_upgrade_gets_a_proper_answer(target: bytes, query: bytes, host: bytes, trusted: bool) -> None:
    head = b"GET " + target + query + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + UPGRADE + b"\r\n"
    answer = ask(trusted, head)
    if answer is not None:
        check(*answer, head=False)


@settings(deadline=None)
@given(
    early=st.booleans(),
    frames=st.lists(
        st.binary(max_size=100)
        | st.tuples(
            st.sampled_from([0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0x01, 0x00, 0xC1, 0x83]),
            st.binary(max_size=125),
        ).map(lambda frame: bytes([frame[0], 0x80 | len(frame[1])]) + b"\0\0\0\0" + frame[1]),
        max_size=12,
    ),
    deflate=st.booleans(),
)
def test_any_frames_are_survived(early: bool, frames: list[bytes], deflate: bool) -> None:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n" if deflate else b""
    head = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + offer + b"\r\n"
    node = FakeNode()

    async def go() -> None:
        ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
        serve = connection_handler(create_app(node, Door(trusted=True)), WorkerContext(None))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def talk() -> None:
                    async with ours:
                        try:
                            await ours.send_all(head + b"".join(frames) * early)
                            await ours.receive_some()
                            for frame in frames:
                                await ours.send_all(frame)
                                node.events.publish("peer.up", None, {})
                            await ours.send_eof()
                            async for _ in ours:
                                pass
                        except trio.BrokenResourceError:
                            pass

                nursery.start_soon(talk)
                await serve(theirs)  # which ends by itself

    try:
        with capture_logs() as logs:
            trio.run(go)
    finally:
        logging.getLogger().removeHandler(complaints)
    assert complaints.records == []
    assert logs == []
    assert not node.events.wakes
