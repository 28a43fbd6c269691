# SPDX-License-Identifier: GPL-3.0-or-later
"""Events over the API: pages, and the WebSocket with the project's own client or one that misbehaves."""

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from quart import Response
from structlog.testing import capture_logs
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.events import (
    Event as Received,
)
from wsproto.frame_protocol import CloseReason

from phantommesh.client.events import follow
from phantommesh.client.http import ApiError, NodeClient, NodeNotRunningError
from phantommesh.management.events import GAP, EventLog, Filter
from phantommesh.management.views import Event, Page, Problem
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from phantommesh.nursery.api.server import MAX_MESSAGE_BYTES
from tests.nursery.api.test_api import serving
from tests.support.fakenode import FakeNode
from tests.support.loopback import until

PATIENCE = 20.0  # s; a guard only


def node_with(count: int, kept: int = 4096) -> FakeNode:
    node = FakeNode()
    node.events = EventLog(run="run1", clock=lambda: 0.0, kept=kept)
    publish(node, count)
    return node


def publish(node: FakeNode, count: int) -> None:
    for _ in range(count):
        number = node.events.last + 1
        node.events.publish("peer.up" if number % 2 else "link.opened", f"pm-{number}", {"n": number})


# --- pages


async def ask(node: FakeNode, query: str, *, trusted: bool = True) -> Response:
    client = create_app(node, Door(trusted=trusted)).test_client()
    return await client.get(f"/v1/events{query}", headers={"Host": "localhost"})


async def page(node: FakeNode, query: str) -> Page[Event]:
    response = await ask(node, query)
    assert response.status_code == 200
    return msgspec.json.decode(await response.get_data(), type=Page[Event])


async def test_pages_of_what_is_kept() -> None:
    node = node_with(10, kept=8)
    assert [event.seq for event in (await page(node, "")).items] == [3, 4, 5, 6, 7, 8, 9, 10]
    seen, cursor = [], ""
    while True:
        found = await page(node, f"?limit=3&cursor={cursor}")
        seen += [event.seq for event in found.items]
        if found.next_cursor is None:
            break
        cursor = found.next_cursor
    assert seen == [3, 4, 5, 6, 7, 8, 9, 10]
    assert [event.seq for event in (await page(node, "?since=8")).items] == [9, 10]
    assert (await page(node, "?since=10")).items == []
    assert [event.seq for event in (await page(node, "?since=oldest&types=peer.*")).items] == [3, 5, 7, 9]
    both = await page(node, "?types=peer.up&types=link.*")
    assert len(both.items) == 8


async def test_a_page_says_what_is_missing() -> None:
    node = node_with(10, kept=8)
    gap, first, *_ = (await page(node, "?since=0")).items
    assert (gap.type, gap.seq, gap.data, first.seq) == (GAP, 2, {"missed": 2}, 3)
    # numbers of another run say nothing of this one
    assert (await page(node, "?since=9&run=run0")).items[1].seq == 3
    assert (await page(node, "?since=900")).items[1].seq == 3
    assert [event.seq for event in (await page(node, "?since=9&run=run1")).items] == [10]
    cursor = (await page(node, "?limit=6")).next_cursor
    node.events = EventLog(run="run2", clock=lambda: 0.0)  # the node restarts
    publish(node, 2)
    assert [(event.run, event.seq) for event in (await page(node, f"?cursor={cursor}")).items] == [
        ("run2", 1),
        ("run2", 2),
    ]


UNUSABLE = [
    "?since=-1", "?since=x", "?since=", "?since=%C2%B2", "?since=1" + "0" * 18, "?types=pear.*",
    "?types=peer.*,", "?cursor=%ff!", "?cursor=AAAA",
]  # fmt: skip


@pytest.mark.parametrize("query", [*UNUSABLE, "?limit=0", "?limit=x"])
async def test_unusable_queries_are_problems(query: str) -> None:
    response = await ask(node_with(3), query)
    assert response.status_code == 400
    assert msgspec.json.decode(await response.get_data(), type=Problem).fix


async def test_pages_need_a_scope() -> None:
    assert (await ask(node_with(3), "", trusted=False)).status_code == 401


# --- the WebSocket and the project's client


async def take(stream: Iterator[Event], count: int = 1) -> list[Event]:
    def some() -> list[Event]:
        return [next(stream) for _ in range(count)]

    return await trio.to_thread.run_sync(some)


async def test_the_client_follows_the_server(tmp_path: Path) -> None:
    node, path = node_with(3), tmp_path / "api.sock"
    async with serving(node, path):
        stream = follow(path, {"since": "1"})
        assert [event.seq for event in await take(stream, 2)] == [2, 3]
        async with trio.open_nursery() as nursery:
            seen: list[Event] = []

            async def read() -> None:
                seen.extend(await take(stream, 100))

            nursery.start_soon(read)
            for _ in range(10):
                await trio.sleep(0.005)
                publish(node, 10)
        assert [event.seq for event in seen] == list(range(4, 104))
        assert seen[0] == node.events.read(3, Filter(), 1).events[0]
        only = follow(path, {"types": "link.*,config.*", "since": "oldest"})
        assert [event.seq for event in await take(only, 3)] == [2, 4, 6]
        await until(lambda: len(node.events.wakes) == 2)


async def test_without_since_only_what_is_new(tmp_path: Path) -> None:
    node, path = node_with(3), tmp_path / "api.sock"
    async with serving(node, path), trio.open_nursery() as nursery:
        seen: list[Event] = []

        async def read() -> None:
            seen.extend(await take(follow(path, {})))

        nursery.start_soon(read)
        await until(lambda: bool(node.events.wakes))
        publish(node, 1)
    assert [event.seq for event in seen] == [4]


@pytest.mark.parametrize("query", UNUSABLE)
async def test_an_unusable_query_is_refused_before_the_upgrade(tmp_path: Path, query: str) -> None:
    path = tmp_path / "api.sock"
    async with serving(node_with(3), path), Reader.at(path, query) as reader:
        status, problem = await reader.refusal()
    assert (status, problem.status) == (400, 400)
    assert problem.fix


async def test_a_refusal_reaches_the_operator(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(node_with(3), path):
        with pytest.raises(ApiError, match=r"'pear.\*' is no type of event") as error:
            await take(follow(path, {"types": "pear.*"}))
    assert "peer, link" in error.value.fix
    with pytest.raises(NodeNotRunningError):
        next(follow(path, {}))


async def test_readers_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.nursery.api.events.MAX_READERS", 2)
    node, path = node_with(1), tmp_path / "api.sock"
    async with serving(node, path):
        first, second = (follow(path, {"since": "0"}) for _ in range(2))
        await take(first)
        await take(second)
        with pytest.raises(ApiError, match="too many"):
            await take(follow(path, {"since": "0"}))
        await trio.to_thread.run_sync(NodeClient(path).status)  # all else goes on
        first.close()  # type: ignore[attr-defined]
        await free(path)


async def test_the_client_knows_when_the_node_stops(tmp_path: Path) -> None:
    path, shutdown = tmp_path / "api.sock", trio.Event()
    node = node_with(1)
    async with serving(node, path, shutdown=shutdown):
        stream = follow(path, {"since": "0"})
        await take(stream)
        shutdown.set()
        with pytest.raises(NodeNotRunningError, match="stopped"):
            await take(stream)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (b"", ApiError, "no usable answer"),
        (b"SSH-2.0-x\r\n\r\n", ApiError, "not understood"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", ApiError, "answered 200"),
        (b"HTTP/1.1 500 X\r\ncontent-length: 99\r\n\r\nhi", ApiError, "no usable answer"),
    ],
)
def test_junk_answers_are_told(tmp_path: Path, answer: bytes, error: type[Exception], says: str) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        stream = follow(path, {})

        async def go() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, respond)
                with pytest.raises(error, match=says):
                    await take(stream)

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        trio.run(go)


def test_a_node_that_does_not_answer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ApiError, match="did not answer"):
            next(follow(path, {}, timeout=0.05))


# --- readers that do not behave


class Reader:
    """A WebSocket client that reads only when told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.CLIENT)
        self._received: list[Received] = []

    @classmethod
    @asynccontextmanager
    async def at(cls, path: Path, query: str = "", host: str = "localhost") -> AsyncIterator["Reader"]:
        async with await trio.open_unix_socket(path) as stream:
            reader = cls(stream)
            await reader.ask(query, host)
            yield reader

    async def ask(self, query: str, host: str = "localhost", path: str = "/v1/events") -> None:
        await self.stream.send_all(self.ws.send(Request(host=host, target=path + query)))

    async def next(self) -> Received:
        """The next thing received; a close of 1006 when the connection ends."""
        with trio.fail_after(PATIENCE):
            while not self._received:
                try:
                    data = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    return CloseConnection(code=CloseReason.ABNORMAL_CLOSURE)
                self.ws.receive_data(bytes(data))
                self._received += self.ws.events()
        return self._received.pop(0)

    async def accepted(self) -> None:
        assert isinstance(await self.next(), AcceptConnection)

    async def refusal(self) -> tuple[int, Problem]:
        answer, content = await self.next(), b""
        assert isinstance(answer, RejectConnection)
        while not (isinstance(part := await self.next(), RejectData) and part.body_finished):
            assert isinstance(part, RejectData)
            content += part.data
        assert dict(answer.headers)[b"content-type"] == b"application/problem+json"
        return answer.status_code, msgspec.json.decode(content, type=Problem)

    async def event(self) -> Event:
        text = ""
        while True:
            part = await self.next()
            assert isinstance(part, TextMessage), part
            text += part.data
            if part.message_finished:
                return msgspec.json.decode(text, type=Event)

    async def ended(self) -> int:
        """Read to the end and return the code it was closed with."""
        while True:
            part = await self.next()
            if isinstance(part, CloseConnection):
                return part.code


@pytest.fixture
def one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can read who comes before the one at a time has gone."""
    monkeypatch.setattr("phantommesh.nursery.api.events.MAX_READERS", 1)


async def free(path: Path) -> None:
    """Wait until one more may read."""
    with trio.fail_after(PATIENCE):
        while True:
            async with Reader.at(path) as reader:
                if isinstance(await reader.next(), AcceptConnection):
                    return
            await trio.sleep(0.005)


async def test_a_slow_reader_is_told_what_it_missed_and_holds_nobody_up(tmp_path: Path) -> None:
    node, path = node_with(0, kept=32), tmp_path / "api.sock"
    async with serving(node, path), Reader.at(path) as slow, Reader.at(path) as quick:
        await slow.accepted()
        await quick.accepted()
        last = 0
        for _ in range(200):  # until far more than sockets hold is published
            publish(node, 32)
            while last < node.events.last:
                last = (await quick.event()).seq  # misses none, while the other one reads nothing
        place, missed = 0, 0
        while place < node.events.last:
            event = await slow.event()
            if event.type == GAP:
                assert isinstance(event.data["missed"], int)
                missed += event.data["missed"]
                assert event.seq == place + event.data["missed"]
            else:
                assert event.seq == place + 1 == event.data["n"]
            place = event.seq
        assert missed > 0


async def test_a_reader_that_takes_nothing_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_reader: None
) -> None:
    monkeypatch.setattr("phantommesh.nursery.api.server.SEND_TIMEOUT_S", 0.1)
    node, path = node_with(4096), tmp_path / "api.sock"  # more than sockets hold
    async with serving(node, path), Reader.at(path, "?since=0") as dead:
        await dead.accepted()
        await free(path)
        assert await dead.ended() == CloseReason.ABNORMAL_CLOSURE
        await trio.to_thread.run_sync(NodeClient(path).status)


async def test_shutdown_ends_readers_that_read_and_those_that_do_not(tmp_path: Path) -> None:
    node, path, shutdown = node_with(0), tmp_path / "api.sock", trio.Event()
    with trio.fail_after(PATIENCE):
        async with (
            serving(node, path, shutdown=shutdown, grace=0.2),
            Reader.at(path) as good,
            Reader.at(path) as stuck,
        ):
            await good.accepted()
            await stuck.accepted()
            for _ in range(100):
                publish(node, 100)
                while (await good.event()).seq < node.events.last:
                    pass
            shutdown.set()
            assert await good.ended() == CloseReason.GOING_AWAY
            while path.exists():
                await trio.sleep(0.005)
    assert not node.events.wakes


async def test_a_cancel_ends_readers_too(tmp_path: Path) -> None:
    node, path = node_with(4096), tmp_path / "api.sock"
    with trio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack, serving(node, path):
            for query in ("", "?since=0"):  # one that waits, one that is stuck
                await (await stack.enter_async_context(Reader.at(path, query))).accepted()
            await until(lambda: len(node.events.wakes) == 1)
    assert not node.events.wakes


async def test_what_a_reader_says_is_ignored_and_its_pings_are_answered(
    tmp_path: Path, one_reader: None
) -> None:
    node, path = node_with(0), tmp_path / "api.sock"
    async with serving(node, path), Reader.at(path) as reader:
        await reader.accepted()
        for number in range(200):  # more than any queue on the way holds
            await reader.stream.send_all(reader.ws.send(TextMessage(data=f"hello {number}")))
        await reader.stream.send_all(reader.ws.send(Ping(payload=b"x")))
        assert await reader.next() == Pong(payload=b"x")
        publish(node, 1)
        assert (await reader.event()).seq == 1
        await reader.stream.send_all(reader.ws.send(CloseConnection(code=1000)))
        assert await reader.ended() == 1000
        await free(path)


async def test_a_message_too_long_ends_the_connection(tmp_path: Path, one_reader: None) -> None:
    node, path = node_with(0), tmp_path / "api.sock"
    async with serving(node, path), Reader.at(path) as reader:
        await reader.accepted()
        part = TextMessage(data="x" * MAX_MESSAGE_BYTES, message_finished=False)
        sent = 0
        with trio.fail_after(PATIENCE), contextlib.suppress(trio.BrokenResourceError):
            while True:  # a message without an end
                await reader.stream.send_all(reader.ws.send(part))
                sent += MAX_MESSAGE_BYTES
        assert sent < 2**21  # what sockets hold, and one read
        await free(path)


@pytest.mark.parametrize(
    ("old", "new"), [(b"\r\n\r\n", b"\r\n\r\n\x81\x80\x00\x00\x00\x00"), (b"Version: 13", b"Version: 12")]
)
async def test_a_broken_handshake_ends_the_connection(
    tmp_path: Path, one_reader: None, old: bytes, new: bytes
) -> None:
    path = tmp_path / "api.sock"
    async with serving(node_with(0), path), await trio.open_unix_socket(path) as stream:
        ask = WSConnection(ConnectionType.CLIENT).send(Request(host="localhost", target="/v1/events"))
        with capture_logs() as logs, trio.fail_after(PATIENCE):
            await stream.send_all(ask.replace(old, new))  # frames before the upgrade; a wrong version
            answer = b"".join([part async for part in stream])  # it ends, though its client stays
        await free(path)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert logs == []


async def test_a_reader_that_left_is_gone(tmp_path: Path, one_reader: None) -> None:
    node, path = node_with(4096), tmp_path / "api.sock"
    async with serving(node, path):
        for query in ("", "?since=0"):
            async with Reader.at(path, query) as reader:
                await reader.accepted()
            await free(path)


async def test_http_without_an_upgrade_is_the_page(tmp_path: Path) -> None:
    node, path = node_with(3), tmp_path / "api.sock"
    async with serving(node, path):
        found = await trio.to_thread.run_sync(
            lambda: NodeClient(path).get_all("/v1/events", Event, {"since": "1", "types": "link.*"})
        )
    assert [event.seq for event in found] == [2]


@pytest.mark.parametrize(
    ("host", "path", "status"),
    [
        ("127.0.0.1", "/v1/events", 401),
        ("localhost", "/v1/events?types=pear", 401),
        ("evil.example", "/v1/events", 421),
        ("evil.example", "/nothing", 421),
        ("localhost", "/nothing", 404),
    ],
)
async def test_tcp_without_tokens_opens_no_websocket(
    tmp_path: Path, host: str, path: str, status: int
) -> None:
    node = node_with(3)
    async with serving(node, tmp_path / "api.sock", listen="127.0.0.1:0") as (addresses, _):
        port = int(addresses[1].rsplit(":", 1)[1])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            reader = Reader(stream)
            await reader.ask("", host, path)
            got, problem = await reader.refusal()
    assert (got, problem.status) == (status, status)
    assert not node.events.wakes
