# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames over TCP between two whole nodes on loopback. The test's own sockets stand in for their WireGuards,
which carry nothing: so no path ever answers, and the nodes call each other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from phantommesh.control import messages
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.nursery.dataplane import framed as module
from phantommesh.nursery.dataplane.framecalls import CALLS_BY_WORD
from phantommesh.nursery.dataplane.framed import HOST, UDP_BLOCKED, Framed
from phantommesh.nursery.node import Node
from phantommesh.nursery.reporting import netchecking
from phantommesh.nursery.reporting.rows import Rows
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import RECEIVE, FramedStream, StreamError, connect
from phantommesh.routing.constraints import Constraints
from phantommesh.routing.frames import GOSSIP, MAX_BATCH, frame
from phantommesh.routing.ways import Kind, Ways
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import Endpoint
from tests.support.loopback import PATIENCE, join, make_authority, make_invite, serving, until


@contextmanager
def wireguards(node: Node) -> Iterator[list[socket.socket]]:
    """Sockets in place of a node's seven WireGuards."""
    found = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(DIMENSIONS)]
    try:
        for one in found:
            one.bind((HOST, 0))
            one.setblocking(False)
        ports = [one.getsockname()[1] for one in found]
        node.parts.framed._ports = lambda: ports
        yield found
    finally:
        for one in found:
            one.close()


def id_of(node: Node) -> NodeId:
    return NodeId(node.parts.state.identity.node_id)


def edge(node: Node, other: Node) -> Endpoint:
    way = node.parts.ways.chosen(id_of(other), 0)
    assert way is not None and way.kind is Kind.FRAMED
    return way.endpoint


def connected(node: Node, other: Node) -> bool:
    framed = node.parts.framed
    return framed.last.framed(id_of(other)) == ALL and id_of(other) in framed._lines


async def got(sock: socket.socket) -> tuple[bytes, tuple[str, int]]:
    with trio.fail_after(PATIENCE):
        await trio.lowlevel.wait_readable(sock)
    return sock.recvfrom(65536)


async def through(
    sender: socket.socket, edge: Endpoint, datagram: bytes, to: socket.socket, back: Endpoint
) -> None:
    """Send until it comes: a datagram that waits for long is dropped, and this machine may be busy."""
    with trio.fail_after(PATIENCE):
        while True:
            sender.sendto(datagram, (edge.host, edge.port))
            with trio.move_on_after(1.0):
                while await got(to) != (datagram, (back.host, back.port)):
                    pass
                return


@asynccontextmanager
async def two(at: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes, with frames between them."""
    make_authority(at / "alpha")
    async with serving(at / "alpha", frames=True) as alpha:
        await join(at / "beta", make_invite(alpha.parts.state), "beta")
        async with serving(at / "beta", frames=True) as beta:
            await until(lambda: connected(alpha, beta) and connected(beta, alpha))
            yield alpha, beta


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call is enough: the two ends of one machine are not to stall."""
    monkeypatch.setattr("phantommesh.routing.lastway.STALLED", 1e6)


@pytest.mark.usefixtures("quick")
async def test_datagrams_of_every_dimension_go_through_and_come_from_the_local_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(tmp_path) as (alpha, beta):
        with wireguards(alpha) as here, wireguards(beta) as there:
            to, back = edge(alpha, beta), edge(beta, alpha)
            for i in range(DIMENSIONS):
                await through(here[i], to, b"to dimension %d" % i, there[i], back)
                await through(there[i], back, bytes(1452), here[i], to)
            # The reconciler takes the endpoint, which is loopback's, and no other one of loopback.
            name = alpha.parts.names[0]
            await until(
                lambda: [p.endpoint for p in alpha.parts.reconciler.desired[name].peers.values()] == [to]
            )
            assert alpha.parts.reconciler._forbids(Endpoint("169.254.1.1", 1))
            # An operator is shown the other end of the connection.
            end = str(alpha.parts.framed.way_of(id_of(beta)))
            assert end.endswith("/tcp")
            await until(lambda: {path.endpoint for path in Rows(alpha.parts).paths()} == {end})
            assert [peer.endpoint for peer in Rows(alpha.parts).peers()] == [end]

            # A stranger of this host is not listened to.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b"x", (to.host, to.port))
                await until(lambda: alpha.parts.framed.dropped["frame-source"] == 1)
        # Nothing waits for long in the kernel, which doubles what is asked for (socket(7)).
        for node, other in ((alpha, beta), (beta, alpha)):
            framed = node.parts.framed
            kept = framed._lines[id_of(other)].framed._stream.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert kept <= 2 * RECEIVE
            held = framed._edges[id_of(other)].socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert held <= 2 * module.EDGE_BUFFER
        # What no probe comes back from is not reached, over TCP or otherwise.
        framed = alpha.parts.framed
        assert list(framed.faults()) == []
        facts = framed._facts(id_of(beta))
        monkeypatch.setattr(framed, "_facts", lambda _: replace(facts, answers=ALL))
        [fault] = [fault for fault in framed.faults() if fault.code == UDP_BLOCKED.code]
        assert fault.subject == "beta"


@pytest.mark.usefixtures("quick")
async def test_gossip_goes_by_frames_while_udp_is_mute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netchecking, "LATELY", 2.0)
    async with two(tmp_path) as (alpha, beta):
        udp = alpha.reporter._checks._udp
        await until(lambda: udp().reached is True and udp().by == ["beta"])
        for node in (alpha, beta):
            node.parts.udp.forbids = lambda host: True
        began = trio.current_time()

        def heard(node: Node, other: Node) -> bool:
            silence = node.parts.gossip.membership.silence(id_of(other), trio.current_time())
            return silence is not None and trio.current_time() - silence > began + 3.0

        await until(lambda: heard(alpha, beta) and heard(beta, alpha))
        await until(lambda: udp().reached is False)  # at once, and not when a witness's word has run out
        assert "by TCP members are heard" in udp().why and udp().by == ["beta"]
        # On a connection a member speaks for itself alone.
        taken, impostors = alpha.parts.gossip.receive_framed, list[bytes]()

        def catch(datagram: bytes, source: Address, member: NodeId) -> None:
            taken(datagram, source, member if impostors else NodeId(bytes(16)))
            impostors.append(datagram)

        alpha.parts.gossip.receive_framed = catch  # type: ignore[method-assign]
        await until(lambda: len(impostors) > 1)
        assert alpha.parts.gossip.dropped["gossip-impostor"] == 1

        for node in (alpha, beta):
            node.parts.udp.forbids = node.parts.places.forbids
        await until(lambda: udp().reached is True)


@asynccontextmanager
async def asked(alpha: Node, beta: Node) -> AsyncIterator[tuple[Client, FramedStream]]:
    """A connection of beta's to alpha on which frames were asked for, beside beta's own."""
    session = beta.parts.sessions.newest(id_of(alpha))
    assert session is not None
    async with connect(HOST, alpha.parts.config.control.port) as framed:
        yield await Client.open(framed, session), framed


@pytest.mark.usefixtures("quick")
async def test_a_member_that_floods_has_one_connection_and_its_garbage_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phantommesh.routing.lastway.REDIAL", 1e6)
    async with two(tmp_path) as (alpha, beta):
        taker, peer = alpha.parts.framed, id_of(beta)
        refused = 0
        for _ in range(20):
            async with asked(alpha, beta) as (client, _framed):
                refused += isinstance(await client.ask(messages.Frames()), messages.Refused)
                assert len(taker._lines) <= 1 and len(taker._edges) <= 1
        assert refused >= 20 - module.TAKEN_BURST - 2
        assert taker.dropped["frame-refused"] == refused

        taker._taken = type(taker._taken)(100.0, 100.0)
        for garbage in (b"\xff", frame(3, b"whole") + b"\0\0\x09cut", bytes((7, 0, 0))):
            before = taker.dropped["frame-malformed"]
            async with asked(alpha, beta) as (client, framed):
                assert await client.ask(messages.Frames()) == messages.Done()
                await framed.send(client.sealed.seal(garbage))
                await until(lambda before=before: taker.dropped["frame-malformed"] > before)  # type: ignore[misc]
        async with asked(alpha, beta) as (client, framed):  # not sealed
            assert await client.ask(messages.Frames()) == messages.Done()
            before = taker.dropped["frame-malformed"]
            await framed.send(b"no seal")
            await until(lambda: taker.dropped["frame-malformed"] > before)

        # A flood waits: what is read of it stays within its rate.
        read = 0
        deliver = taker._deliver

        def count(*args: object) -> int:
            nonlocal read
            number = deliver(*args)  # type: ignore[arg-type]
            read += number
            return number

        taker._deliver = count  # type: ignore[assignment]
        batch = frame(0, b"") * (MAX_BATCH // 3)
        async with asked(alpha, beta) as (client, framed):
            assert await client.ask(messages.Frames()) == messages.Done()
            line = taker._lines[peer]
            began = trio.current_time()
            with trio.move_on_after(1.0), suppress(StreamError):  # the other node may call, and displace it
                while True:
                    await framed.send(client.sealed.seal(batch))
            took = trio.current_time() - began
        assert read <= module.FRAMES_BURST + module.FRAMES * took + MAX_BATCH
        assert line.queue.size == 0
        await until(lambda: peer not in taker._lines or taker._lines[peer] is not line)


@pytest.mark.usefixtures("quick")
async def test_nothing_is_left_of_frames_when_the_node_ends_or_the_peer_goes(tmp_path: Path) -> None:
    async with two(tmp_path) as (alpha, beta):
        owned = edge(alpha, beta)
        held = alpha.parts.framed._edges[id_of(beta)].socket
        assert alpha.parts.framed.owns(owned)
        alpha.parts.framed.retain(())
        await until(lambda: id_of(beta) not in alpha.parts.framed._lines)
        await until(lambda: held.fileno() == -1)
        assert not alpha.parts.framed.owns(owned)
    for node in (alpha, beta):
        framed: Framed = node.parts.framed
        assert not framed._lines and not framed._edges and not framed._owned
        assert not node.parts.ways.on_offer(id_of(beta), Kind.FRAMED)


async def test_a_newcomer_and_a_passed_on_channel_get_no_frames(tmp_path: Path) -> None:
    make_authority(tmp_path / "alpha")
    async with serving(tmp_path / "alpha") as alpha:
        client = Client.__new__(Client)
        client.framed = object()  # type: ignore[assignment]
        with pytest.raises(StreamError, match="passes"):
            await alpha.parts.framed._carry(id_of(alpha), client, ours=False)


def alone(ports: Sequence[int], taken: list[bytes]) -> Framed:
    """The driver without a node."""
    paths = SimpleNamespace(set_aside=lambda *told: [])
    return Framed(
        NodeId(bytes(16)), ways=Ways(),
        peers=cast("Any", SimpleNamespace(get=lambda peer: None)),
        links=cast("Any", None), caller=cast("Any", None),
        paths=cast("Any", SimpleNamespace(paths=paths, carry_out=lambda effects: None)),
        gossip=cast("Any", SimpleNamespace(receive_framed=lambda data, *by: taken.append(data))),
        ports=lambda: ports, tell=lambda news: None,
    )  # fmt: skip


async def test_one_member_s_word_takes_few_of_the_calls() -> None:
    """A member could name all others, and take all calls of this node for as long as it answered nothing."""
    one, two, *others = (NodeId(bytes((number,)) * 16) for number in range(1, 30))

    @asynccontextmanager
    async def silent(carrier: NodeId) -> AsyncIterator[Client]:
        await trio.Event().wait()
        yield cast("Client", None)

    framed = alone([1] * DIMENSIONS, [])
    calls = framed._calls
    framed._peers = calls._peers = cast(
        "Any", SimpleNamespace(get=lambda peer: SimpleNamespace(member=SimpleNamespace(name="a")))
    )
    calls._caller = cast("Any", SimpleNamespace(dial_direct=silent))
    async with trio.open_nursery() as nursery:
        framed._nursery = nursery
        for peer in others:
            framed.prompted(one, messages.Bridged(peer))
        assert calls._prompted.total() == calls._calls == CALLS_BY_WORD
        framed.prompted(two, messages.Bridged(others[-1]))
        assert calls._calls == CALLS_BY_WORD + 1
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert calls._calls == 0 and not calls._prompted


async def test_a_member_that_may_not_pass_on_packets_joins_no_connections() -> None:
    peer, good, bad = (NodeId(bytes((number,)) * 16) for number in (1, 2, 3))
    record = SimpleNamespace(region="", relay=object(), condition=SimpleNamespace(draining=False))
    entries = {
        one: SimpleNamespace(member=SimpleNamespace(name=name, node_id=one, role=Role.NODE), record=record)
        for one, name in ((good, "good"), (bad, "bad"))
    }
    framed = alone([1] * DIMENSIONS, [])
    calls = framed._calls
    calls._peers = cast(
        "Any", SimpleNamespace(get=lambda one: entries.get(one, entries[good]), entries=[*entries.values()])
    )
    calls._caller = cast("Any", SimpleNamespace(sessions=SimpleNamespace(newest=lambda one: one)))
    assert calls._carriers(peer) == [good, bad]
    calls._constraints = Constraints(never=frozenset({"bad"}))
    assert calls._carriers(peer) == [good]
    async with trio.open_nursery() as nursery:
        calls.prompted(nursery, peer, bad)
    assert framed.dropped["frame-prompt"] == 1 and calls._calls == 0


async def test_frames_do_not_go_on_by_way_of_a_member_that_was_revoked() -> None:
    framed = alone([1] * DIMENSIONS, [])
    lines = {
        bytes((n,)) * 16: SimpleNamespace(carrier=c, scope=trio.CancelScope())
        for n, c in ((1, b"c"), (2, b"d"), (3, b""))
    }
    framed._lines = cast("Any", lines)
    framed.retain({*lines, b"d"})
    assert [line.scope.cancel_called for line in lines.values()] == [True, False, False]


async def test_a_local_socket_that_is_given_up_while_a_datagram_waits_ends_no_service() -> None:
    peer = NodeId(bytes((1,)) * 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wireguard:
        wireguard.bind((HOST, 0))
        framed = alone([wireguard.getsockname()[1]] * DIMENSIONS, [])
        async with trio.open_nursery() as framed._nursery:
            for _ in range(20):  # either task may run first
                framed.last.connected(peer, trio.current_time(), ours=False)
                framed._sync(peer)
                held = framed._edges[peer]
                with held.socket.dup() as beside:
                    await trio.testing.wait_all_tasks_blocked()
                    wireguard.sendto(b"x", (HOST, held.endpoint.port))
                    await trio.lowlevel.wait_readable(beside)
                    framed.last.retain(())
                    framed._sync(peer)
                    await trio.testing.wait_all_tasks_blocked()
                assert held.socket.fileno() == -1 and not framed._edges and not framed._owned


async def test_empty_batches_are_held_to_a_rate(autojump_clock: trio.testing.MockClock) -> None:
    read = 0

    class Empty:
        async def receive(self, limit: int) -> bytes:
            nonlocal read
            read += 1
            await trio.lowlevel.checkpoint()
            if trio.current_time() > began or read > 2 * module.FRAMES_BURST:
                raise StreamError
            return b""

        def arrived(self, limit: int) -> bytes | None:
            return None

    line = SimpleNamespace(framed=Empty(), sealed=SimpleNamespace(open=lambda frame: b""), address=None)
    began = trio.current_time()
    await alone(range(DIMENSIONS), [])._receive(NodeId(bytes(16)), cast("Any", line))
    assert read <= module.FRAMES_BURST + 2


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[FramedStream, FramedStream]]:
    """The two ends of a connection on loopback."""
    [listener] = await trio.open_tcp_listeners(0, host=HOST)
    async with listener:
        one = await trio.open_tcp_stream(HOST, listener.socket.getsockname()[1])
        other = await listener.accept()
        async with one, other:
            yield FramedStream(one), FramedStream(other)


async def test_batches_that_came_together_take_few_turns_of_the_event_loop() -> None:
    """On a busy machine a turn takes long: one batch a turn let small ones wait for half a minute."""
    peer, count, taken, rounds = NodeId(bytes((1,)) * 16), 640, list[bytes](), 0
    async with connection() as (here, there):
        for i in range(count):
            await there.send(frame(GOSSIP, b"%d" % i))
        line = SimpleNamespace(framed=here, sealed=SimpleNamespace(open=lambda batch: batch), address=None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alone(range(DIMENSIONS), taken)._receive, peer, cast("Any", line))
            while len(taken) < count:
                await trio.lowlevel.checkpoint()
                rounds += 1
            nursery.cancel_scope.cancel()
    assert taken == [b"%d" % i for i in range(count)]
    assert rounds < 4 * count / module.BATCH + 20
