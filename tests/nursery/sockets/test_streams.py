# SPDX-License-Identifier: GPL-3.0-or-later
"""The control port over TCP, on real loopback sockets."""

import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from phantommesh.control import channel, messages
from phantommesh.control.seats import Seats
from phantommesh.control.sessions import Session, Sessions
from phantommesh.endpoint import MAX_DATAGRAM, Address
from phantommesh.errors import PhantomMeshError
from phantommesh.link import wire
from phantommesh.nursery.sockets import channels, framing, tcp
from phantommesh.nursery.sockets.channels import Client, Frames
from phantommesh.nursery.sockets.framing import FramedStream, StreamError, connect
from phantommesh.nursery.sockets.tcp import TcpPort
from phantommesh.secret import Secret
from tests.support.loopback import PATIENCE, free_port, until

HERE = "127.0.0.1"
CLIENTS = Session(b"authority", b"session1", Secret(b"o" * 32), Secret(b"i" * 32))
SERVERS = Session(b"member", b"session1", CLIENTS.key_in, CLIENTS.key_out)
DATAGRAM = bytes([wire.VERSION]) + b"a handshake datagram"


async def refuse_all(session: Session, request: messages.Request, source: Address) -> messages.Answer:
    await trio.lowlevel.checkpoint()
    return messages.Refused(f"{session.peer.decode()} asked for {type(request).__name__}")


@dataclass
class Served:
    port: TcpPort
    number: int
    datagrams: list[tuple[bytes, Address]] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address(HERE, self.number, "tcp")

    async def ended(self, how: str, times: int = 1) -> None:
        await until(lambda: self.port.dropped[how] >= times)


@asynccontextmanager
async def serving(
    serve: tcp.Serve = refuse_all, *, seats: Seats | None = None, members: Iterable[Session] = ()
) -> AsyncIterator[Served]:
    sessions, number = Sessions(), free_port()
    for session in (SERVERS, *members):
        sessions.add(session)
    port = TcpPort(number, sessions=sessions, dispatch=lambda *_: None, serve=serve, seats=seats)
    served = Served(port, number)
    port._dispatch = lambda datagram, source: served.datagrams.append((datagram, source))
    await port.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.run)
        yield served
        nursery.cancel_scope.cancel()


async def is_closed(framed: Frames) -> bool:
    with trio.fail_after(PATIENCE):
        try:
            await framed.receive(1 << 20)
        except StreamError:
            return True
    return False


async def still_serves(served: Served) -> None:
    async with connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        assert await client.ask(messages.Renew(b"")) == messages.Refused("member asked for Renew")


# --- frames


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[trio.SocketStream, FramedStream]]:
    listener = (await trio.open_tcp_listeners(0, host=HERE))[0]
    async with listener:
        one = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        two = await listener.accept()
        async with one, two:
            yield one, FramedStream(two)


@asynccontextmanager
async def silent_host() -> AsyncIterator[Address]:
    """An address at which nobody answers and nobody refuses: its listener has no room, and is not asked."""
    with socket.socket() as listener:
        listener.bind((HERE, 0))
        listener.listen(0)
        address = Address(HERE, listener.getsockname()[1], "tcp")
        async with AsyncExitStack() as callers:
            for _ in range(2):
                with trio.move_on_after(0.5):
                    await callers.enter_async_context(await trio.open_tcp_stream(HERE, address.port))
            yield address


async def test_an_address_that_says_nothing_does_not_keep_the_next_one_waiting() -> None:
    asked: list[Address] = []
    async with silent_host() as silent, serving() as served:
        with pytest.raises(StreamError, match="no answer"):
            async with connect(silent.host, silent.port):
                raise AssertionError("somebody answered")
        with trio.fail_after(framing.CONNECT):  # less than the silent one alone takes
            async with framing.connect_first((silent, served.address)) as framed:
                asked.append(framed.address)
    assert asked == [served.address]


async def test_a_failure_names_all_addresses() -> None:
    both = Address(HERE, free_port()), Address(HERE, free_port())
    with pytest.raises(StreamError) as caught:
        async with framing.connect_first(both):
            raise AssertionError("somebody answered")
    assert all(str(address.port) in str(caught.value) for address in both)


async def test_frames_come_out_however_they_were_cut() -> None:
    async with pair() as (raw, framed):
        for frame in (b"", b"x", b"y" * 100_000):
            data = len(frame).to_bytes(4) + frame
            for cut in (1, 3, 4, 5, len(data)):
                async with trio.open_nursery() as nursery:

                    async def write(data: bytes, cut: int) -> None:
                        await raw.send_all(data[:cut])
                        await raw.send_all(data[cut:])

                    nursery.start_soon(write, data, cut)
                    assert await framed.receive(100_000) == frame


async def test_a_frame_survives_a_reader_that_gave_up() -> None:
    async with pair() as (raw, framed):
        for part in (b"\0\0", b"\0\3a", b"b"):
            await raw.send_all(part)
            with trio.move_on_after(0) as scope:
                await framed.receive(10)
            assert scope.cancelled_caught
            with trio.move_on_after(0.01):
                await framed.receive(10)
        await raw.send_all(b"c\0\0\0\1d")
        assert await framed.receive(10) == b"abc"
        assert await framed.receive(10) == b"d"


async def test_a_frame_that_is_too_long_is_not_read() -> None:
    async with pair() as (raw, framed):
        await raw.send_all((11).to_bytes(4))
        with pytest.raises(StreamError, match="too long"):
            await framed.receive(10)


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\5", b"\0\0\0\5abc"])
async def test_a_truncated_stream_is_an_error(sent: bytes) -> None:
    async with pair() as (raw, framed):
        await raw.send_all(sent)
        await raw.send_eof()
        with pytest.raises(StreamError, match="ended"):
            await framed.receive(10)


async def test_a_reset_stream_is_an_error_for_reader_and_writer() -> None:
    async with pair() as (raw, framed):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await raw.aclose()
        with pytest.raises(StreamError):
            await framed.receive(10)
        with pytest.raises(StreamError):
            await framed.send(b"x")


async def test_two_senders_do_not_mix_their_frames() -> None:
    async with pair() as (raw, framed):
        other = FramedStream(raw)
        frames = [bytes([i]) * 300_000 for i in range(4)]
        received = []
        async with trio.open_nursery() as nursery:
            for frame in frames:
                nursery.start_soon(framed.send, frame)
            for _ in frames:
                received.append(await other.receive(300_000))
        assert sorted(received) == frames


# --- requests


async def test_requests_are_answered_in_order() -> None:
    async with serving() as served, connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        for request in (messages.Renew(b"1"), messages.Announce(b"2"), messages.Renew(b"3")):
            answer = await client.ask(request)
            assert answer == messages.Refused(f"member asked for {type(request).__name__}")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(CLIENTS, name=b"unknown1"),
        replace(CLIENTS, key_out=Secret(b"x" * 32)),
        replace(CLIENTS, key_in=Secret(b"x" * 32)),
    ],
    ids=["session", "key-out", "key-in"],
)
async def test_without_the_sessions_keys_there_is_no_answer(wrong: Session) -> None:
    asked = 0

    async def serve(*_: object) -> messages.Answer:
        nonlocal asked
        asked += 1
        await trio.lowlevel.checkpoint()
        return messages.Done()

    async with serving(serve) as served:
        async with connect(HERE, served.number) as framed:
            with pytest.raises(StreamError):
                await (await Client.open(framed, wrong)).ask(messages.Renew(b""))
        assert asked == (wrong.key_out == CLIENTS.key_out and wrong.name == CLIENTS.name)


async def test_what_the_handshake_repeated_late_does_not_disturb_a_channel() -> None:
    async with serving() as served, connect(HERE, served.number) as framed:
        own = framed._stream.socket.getsockname()
        await framed.send(DATAGRAM)
        await until(lambda: bool(served.datagrams))
        late = bytes([wire.VERSION]) * MAX_DATAGRAM
        served.port.send(late, Address(own[0], own[1], "tcp"))
        client = await Client.open(framed, CLIENTS)
        served.port.send(late, Address(own[0], own[1], "tcp"))
        assert await client.ask(messages.Renew(b"")) == messages.Refused("member asked for Renew")


async def test_a_replayed_connection_is_refused() -> None:
    async with serving() as served:
        sent = []
        async with connect(HERE, served.number) as framed:
            send = framed.send

            async def record(frame: bytes) -> None:
                sent.append(frame)
                await send(frame)

            framed.send = record  # type: ignore[method-assign]
            await (await Client.open(framed, CLIENTS)).ask(messages.Renew(b""))
        assert len(sent) == 2
        async with connect(HERE, served.number) as framed:
            await framed.send(sent[0])
            await framed.receive(channel.ANSWER_SIZE)
            await framed.send(sent[1])
            assert await is_closed(framed)
        await served.ended("stream-refused")


async def test_the_size_of_an_answer_that_is_too_long_is_said() -> None:
    async def serve(*_: object) -> messages.Answer:
        await trio.lowlevel.checkpoint()
        return messages.Refused("x" * 2000)

    async with serving(serve) as served, connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        assert isinstance(await client.ask(messages.Renew(b""), limit=3000), messages.Refused)
        with pytest.raises(StreamError, match=r"too long: 20\d\d bytes, where 1000 are the most"):
            await client.ask(messages.Renew(b""), limit=1000)


async def test_a_request_that_is_none_ends_the_connection() -> None:
    async with serving() as served:
        async with connect(HERE, served.number) as framed:
            client = await Client.open(framed, CLIENTS)
            await framed.send(client.sealed.seal(b"junk"))
            assert await is_closed(framed)
        await served.ended("stream-refused")
        await still_serves(served)


async def test_a_failing_service_ends_one_connection_only() -> None:
    async def serve(session: Session, request: messages.Request, source: Address) -> messages.Answer:
        if isinstance(request, messages.Announce):
            raise RuntimeError("a bug")
        return await refuse_all(session, request, source)

    with capture_logs() as logs:
        async with serving(serve) as served:
            async with connect(HERE, served.number) as framed:
                client = await Client.open(framed, CLIENTS)
                with pytest.raises(StreamError):
                    await client.ask(messages.Announce(b""))
            await served.ended("stream-failed")
            await still_serves(served)
    assert [entry["event"] for entry in logs] == ["connection failed"]


async def test_a_client_sees_a_server_that_answers_nonsense() -> None:
    async def nonsense(stream: trio.SocketStream) -> None:
        framed = FramedStream(stream)
        try:
            await framed.receive(100)
            await framed.send(channel.answer(b"r" * 16))
            await framed.receive(10_000)
            await framed.send(b"D" + b"junk" * 10)
            await framed.receive(1)
        except StreamError:
            pass

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(partial(trio.serve_tcp, nonsense, 0, host=HERE))
        async with connect(*listener.socket.getsockname()[:2]) as framed:
            client = await Client.open(framed, CLIENTS)
            with pytest.raises(StreamError, match="not genuine"):
                await client.ask(messages.Renew(b""))
        nursery.cancel_scope.cancel()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence ends a connection soon."""
    for module in (channels, framing, tcp):
        monkeypatch.setattr(module, "IDLE", 0.2)


@pytest.mark.parametrize("answers", [0, 1], ids=["hello", "request"])
async def test_a_client_gives_up_a_server_that_fell_silent(brief: None, answers: int) -> None:
    """A machine that lost its power closes nothing."""

    async def silent(stream: trio.SocketStream) -> None:
        for _ in range(answers):
            await stream.receive_some(100)
            await stream.send_all((17).to_bytes(4) + channel.answer(b"r" * 16))
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener, *_) = await nursery.start(partial(trio.serve_tcp, silent, 0, host=HERE))
        async with connect(*listener.socket.getsockname()[:2]) as framed:
            with trio.fail_after(PATIENCE), pytest.raises(StreamError, match="does not answer"):
                await (await Client.open(framed, CLIENTS)).ask(messages.Renew(b""))
        nursery.cancel_scope.cancel()


# --- what strangers may do


@pytest.mark.parametrize(
    "junk",
    [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(4), b"\xff" * 50, b"\0\0\0\x19" + b"S" * 25, b"\0\0\0\1D"],
    ids=["nothing", "http", "empty-frame", "long", "hello", "data"],
)
async def test_junk_ends_its_connection_only(junk: bytes) -> None:
    async with serving() as served:
        stream = await trio.open_tcp_stream(HERE, served.number)
        async with stream:
            await stream.send_all(junk)
            await stream.send_eof()
            await until(lambda: served.port.dropped.total() == 1)
        assert served.datagrams == []
        await still_serves(served)


@given(st.binary(max_size=60))
def test_any_bytes_end_quietly(junk: bytes) -> None:
    async def main() -> None:
        async with serving() as served:
            stream = await trio.open_tcp_stream(HERE, served.number)
            async with stream:
                await stream.send_all(junk)
                await stream.send_eof()
                await until(lambda: served.port.dropped.total() == 1)

    trio.run(main)


async def test_a_slow_or_silent_client_is_cut_off(brief: None) -> None:
    async with serving() as served:
        for sent in (b"", b"\0\0\0", b"\0\0\0\5ab"):
            async with connect(HERE, served.number) as framed:
                await framed._stream.send_all(sent)
                assert await is_closed(framed)
        await served.ended("stream-ended", times=3)
        async with connect(HERE, served.number) as framed:
            await Client.open(framed, CLIENTS)
            assert await is_closed(framed)


async def test_a_client_that_takes_no_answer_is_cut_off(brief: None) -> None:
    async def serve(*_: object) -> messages.Answer:
        await trio.lowlevel.checkpoint()
        return messages.Refused("x" * 8_000_000)  # more than the sockets buffer

    async with serving(serve) as served, connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        await framed.send(client.sealed.seal(messages.encode(messages.Renew(b""))))
        await served.ended("stream-ended")


async def test_one_host_gets_only_so_many_connections() -> None:
    async with serving(seats=Seats(per_host=3)) as served:
        held = [await trio.open_tcp_stream(HERE, served.number) for _ in range(3)]
        await until(lambda: len(served.port._seats) == 3)
        async with connect(HERE, served.number) as framed:
            assert await is_closed(framed)
        assert served.port.dropped["stream-limit"] == 1
        other = await trio.open_tcp_stream(HERE, served.number, local_address="127.0.0.2")
        async with other:
            await until(lambda: len(served.port._seats) == 4)
        for stream in held:
            await stream.aclose()
        await until(lambda: not served.port._lives)
        await still_serves(served)


async def stranger(served: Served, host: str) -> trio.SocketStream:
    """A connection from that address that has proved nothing; it is there when this returns."""
    before = list(served.port._lives)
    stream = await trio.open_tcp_stream(HERE, served.number, local_address=host)
    await until(lambda: any(seat not in before for seat in served.port._lives))
    return stream


async def is_cut(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.2):
        return await stream.receive_some(1) == b""
    return False


async def test_the_oldest_stranger_makes_room() -> None:
    async with serving(seats=Seats(total=2, members=2, newcomers=0)) as served:
        held = [await stranger(served, f"127.0.0.{i}") for i in (2, 3)]
        await still_serves(served)
        assert [await is_cut(stream) for stream in held] == [True, False]
        assert served.port.dropped["stream-displaced"] == 1
        assert not served.port.dropped["stream-limit"]
        for stream in held:
            await stream.aclose()
        await until(lambda: not served.port._lives)


async def test_the_host_with_most_strangers_makes_room() -> None:
    """A flood from a few addresses must not push out a handshake from another."""
    async with serving(seats=Seats(total=3, members=3, newcomers=0)) as served:
        hosts = ("127.0.0.2", "127.0.0.3", "127.0.0.3")
        held = [await stranger(served, host) for host in hosts]
        held += [await stranger(served, "127.0.0.3") for _ in range(2)]
        assert [await is_cut(stream) for stream in held] == [False, True, True, False, False]
        for stream in held:
            await stream.aclose()


async def test_a_channel_never_makes_room() -> None:
    async with (
        serving(seats=Seats(total=1, members=1, newcomers=0)) as served,
        connect(HERE, served.number) as framed,
    ):
        client = await Client.open(framed, CLIENTS)
        await client.ask(messages.Renew(b""))
        async with connect(HERE, served.number) as other:
            assert await is_closed(other)
        assert served.port.dropped["stream-limit"] == 1
        assert await client.ask(messages.Renew(b"")) == messages.Refused("member asked for Renew")


async def test_the_name_of_a_session_alone_proves_nothing() -> None:
    """Whoever can read a handshake on its way knows it."""
    async with (
        serving(seats=Seats(total=1, members=1, newcomers=0)) as served,
        connect(HERE, served.number) as framed,
    ):
        await framed.send(channel.hello(CLIENTS.name, bytes(16)))
        channel.parse_answer_untrusted(await framed.receive(channel.ANSWER_SIZE))
        await still_serves(served)
        assert await is_closed(framed)
        assert served.port.dropped["stream-displaced"] == 1


async def test_a_peer_has_so_many_channels_on_all_its_connections() -> None:
    async with serving(seats=Seats(per_holder=2)) as served, AsyncExitStack() as stack:
        held = []
        for _ in range(3):
            framed = await stack.enter_async_context(connect(HERE, served.number))
            client = await Client.open(framed, CLIENTS)
            assert await client.ask(messages.Renew(b"")) == messages.Refused("member asked for Renew")
            held.append((framed, client))
        assert await is_closed(held[0][0])
        assert served.port.dropped["stream-displaced"] == 1
        for _, client in held[1:]:
            assert await client.ask(messages.Renew(b"")) == messages.Refused("member asked for Renew")


async def test_a_peer_whose_channels_are_all_busy_is_refused_one_more() -> None:
    asked = trio.Event()

    async def serve(*_: object) -> messages.Answer:
        asked.set()
        await trio.sleep_forever()
        raise AssertionError

    async with serving(serve, seats=Seats(per_holder=1)) as served, connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        await framed.send(client.sealed.seal(messages.encode(messages.Renew(b""))))
        await asked.wait()
        async with connect(HERE, served.number) as other:
            with pytest.raises(StreamError):
                await (await Client.open(other, CLIENTS)).ask(messages.Renew(b""))
        await served.ended("stream-limit")
        assert len(served.port._seats) == 1


async def test_the_channels_of_an_invite_count_together_whatever_the_node_ids() -> None:
    def ends(who: bytes) -> tuple[Session, Session]:
        out, back = Secret(who * 32), Secret(bytes(32))
        return Session(b"server", who * 8, out, back), Session(who, who * 8, back, out, invite=b"invite")

    pairs = [ends(who) for who in (b"1", b"2", b"3")]
    members = [server for _, server in pairs]
    async with (
        serving(seats=Seats(newcomers=2), members=members) as served,
        AsyncExitStack() as stack,
    ):
        held = []
        for mine, _ in pairs:
            framed = await stack.enter_async_context(connect(HERE, served.number))
            await (await Client.open(framed, mine)).ask(messages.Renew(b""))
            held.append(framed)
        assert await is_closed(held[0])
        assert len(served.port._seats) == 2


async def test_no_channel_is_opened_on_a_connection_of_our_own() -> None:
    """Nothing would count it, and it would stay for ever."""
    async with serving() as served:
        listener = (await trio.open_tcp_listeners(0, host=HERE))[0]
        async with listener:
            there = Address(HERE, listener.socket.getsockname()[1], "tcp")
            served.port.callable = {there: ()}
            served.port.send(DATAGRAM, there)
            async with await listener.accept() as stream:
                framed = FramedStream(stream)
                assert await framed.receive(100) == DATAGRAM
                await framed.send(channel.hello(CLIENTS.name, bytes(16)))
                assert await is_closed(framed)
        await served.ended("stream-refused")


@pytest.mark.parametrize("frame", [bytes([channels.ASK_REVOKED]) + bytes(16), DATAGRAM])
async def test_a_stranger_does_not_stay_by_speaking(monkeypatch: pytest.MonkeyPatch, frame: bytes) -> None:
    monkeypatch.setattr(tcp, "STRANGER", 0.3)
    async with serving() as served:
        async with connect(HERE, served.number) as framed:
            with trio.fail_after(PATIENCE), suppress(StreamError):
                while True:
                    await framed.send(frame)
                    await trio.sleep(0.02)
        await served.ended("stream-overdue")
        assert not served.port.dropped["stream-ended"]
        await still_serves(served)


async def test_a_channel_outlives_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "STRANGER", 0.3)
    async with serving() as served, connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        for _ in range(4):
            assert await client.ask(messages.Renew(b"")) == messages.Refused("member asked for Renew")
            await trio.sleep(0.15)


async def test_one_port_may_connect_to_two_addresses_of_ours() -> None:
    """Both connections have the same address to us."""
    async with serving() as served:
        with socket.socket() as first, socket.socket() as second:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            first.bind((HERE, 0))
            first.connect((HERE, served.number))
            second.bind(first.getsockname())
            second.connect(("127.0.0.2", served.number))
            await until(lambda: len(served.port._seats) == 2)
            first.close()
            await served.ended("stream-ended")
            second.sendall(len(DATAGRAM).to_bytes(4) + DATAGRAM)
            await until(lambda: len(served.datagrams) == 1)
            served.port.send(b"\1answer", served.datagrams[0][1])
            reading = trio.socket.from_stdlib_socket(second.dup())
            with reading, trio.fail_after(PATIENCE):
                assert await reading.recv(100) == b"\0\0\0\7\1answer"
        await still_serves(served)


# --- handshakes where UDP does not get through


async def test_datagrams_go_both_ways_over_one_connection() -> None:
    async with serving() as caller, serving() as called:
        caller.port.callable = {called.address: ()}
        caller.port.send(DATAGRAM + b"1", called.address)
        caller.port.send(DATAGRAM + b"2", called.address)
        await until(lambda: len(called.datagrams) == 2)
        assert [datagram[-1:] for datagram, _ in called.datagrams] == [b"1", b"2"]
        (source,) = {source for _, source in called.datagrams}
        assert source.host == HERE and source.transport == "tcp"
        called.port.send(DATAGRAM + b"3", source)
        await until(lambda: len(caller.datagrams) == 1)
        assert caller.datagrams == [(DATAGRAM + b"3", called.address)]


async def test_a_stranger_that_hung_up_is_not_called() -> None:
    async with serving() as served, serving() as other:
        served.port.send(DATAGRAM, other.address)
        assert served.port.dropped == {"stream-unsent": 1}
        assert not other.port._lives


async def test_an_unreachable_peer_is_counted_and_called_again_later() -> None:
    async with serving() as served:
        number = free_port()
        closed = Address(HERE, number, "tcp")
        served.port.callable = {closed: ()}
        served.port.send(DATAGRAM, closed)
        await served.ended("stream-unreachable")
        arrived = trio.Event()

        async def note(stream: trio.SocketStream) -> None:
            assert await FramedStream(stream).receive(100) == DATAGRAM
            arrived.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_tcp, note, number, host=HERE))
            served.port.send(DATAGRAM, closed)
            with trio.fail_after(PATIENCE):
                await arrived.wait()
            nursery.cancel_scope.cancel()


async def test_a_full_queue_drops_and_counts() -> None:
    async with serving() as served, serving() as other:
        served.port.callable = {other.address: ()}
        for _ in range(tcp.QUEUE + 5):
            served.port.send(DATAGRAM, other.address)
        assert served.port.dropped["stream-unsent"] == 5
        await until(lambda: len(other.datagrams) == tcp.QUEUE)


# --- the port


async def test_a_taken_port_is_named() -> None:
    number = free_port()
    with socket.create_server(("0.0.0.0", number)):
        port = TcpPort(number, sessions=Sessions(), dispatch=lambda *_: None, serve=refuse_all)
        for take in (port.listen, port.run):
            with pytest.raises(
                PhantomMeshError, match=f"TCP port {number}: Address already in use"
            ) as raised:
                await take()
            assert "control.port" in raised.value.fix


async def test_the_port_can_be_served_again() -> None:
    async with serving() as served:
        await still_serves(served)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.port.run)
        with trio.fail_after(PATIENCE):
            while True:
                try:
                    await still_serves(served)
                    break
                except StreamError:
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("host", "why"),
    [(HERE, "Connection refused"), ("localhost", "a name, not an address")],
)
async def test_why_a_connection_is_not_made_is_said(host: str, why: str) -> None:
    with pytest.raises(StreamError, match=why):
        async with connect(host, free_port()):
            pass


async def test_no_answer_to_a_call_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    for module in (channels, framing):
        monkeypatch.setattr(module, "CONNECT", 0.01)
    monkeypatch.setattr(trio, "open_tcp_stream", forever)
    with pytest.raises(StreamError, match="no answer"):
        async with connect(HERE, 9):
            pass
