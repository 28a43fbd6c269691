# SPDX-License-Identifier: GPL-3.0-or-later
"""A node measures what stands before it with a member's help: sockets of loopback, and a clock that jumps."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from msgspec import structs
from trio.testing import MockClock

from phantommesh.control import messages
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.node.lifetimes import LASTS, MOST, NEVER, Known, Scope
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.members.lifetimes import NO_SOCKET, LifetimeDriver
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.records.roster import Entry
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.trust.identity import NodeId
from tests.support.makemesh import identity, plain_record

HERE = "127.0.0.1"
FAR = Scope(4, False)
ASKER, WITNESS = identity("asker"), identity("witness")


class Ports:
    """WireGuard's ports, as plain sockets of loopback."""

    able = True

    def __init__(self) -> None:
        self._socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(DIMENSIONS)]
        for sock in self._socks:
            sock.setblocking(False)
            sock.bind((HERE, 0))
        self.numbers = tuple(sock.getsockname()[1] for sock in self._socks)
        self._handle: Callable[[int, Address, bytes], None] = lambda *_: None
        self.needed: list[bool] = []
        self.deaf = False

    def listen(self, _: int, handle: Callable[[int, Address, bytes], None]) -> None:
        self._handle = handle

    def keep(self, _: str, needed: bool) -> None:
        self.needed.append(needed)

    def send(self, dimension: int, to: Address, payload: bytes) -> None:
        self._socks[dimension].sendto(payload, (to.host, to.port))

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for dimension, sock in enumerate(self._socks):
                    nursery.start_soon(self._receive, dimension, trio.socket.from_stdlib_socket(sock))
        finally:
            self.close()

    def close(self) -> None:
        for sock in self._socks:
            sock.close()

    async def _receive(self, dimension: int, sock: trio.socket.SocketType) -> None:
        while True:
            data, (host, port) = await sock.recvfrom(2048)
            if not self.deaf:
                self._handle(dimension, Address(host, port), data)


class Node:
    """One end with its part. ``behind``: others see it at an address that is not its own."""

    def __init__(self, path: Path, *, behind: bool) -> None:
        path.mkdir(exist_ok=True)
        self.trusts = True
        self.ports, self.changes, self.others = Ports(), 0, list[tuple[NodeId, "Node"]]()
        here = frozenset({ip_address(HERE)})
        self.part = LifetimeDriver(
            StateDir(path), cast("WireguardPorts", self.ports), cast("Caller", self),
            on=True, configured=25,
            seen=lambda peer: [Address(HERE, 51800)],
            may=lambda peer, host: True,
            public=lambda: here,
            own=lambda: frozenset() if behind else here,
            beside=lambda address: False,
            witnesses=lambda: [(peer, Address(HERE, node.ports.numbers[0])) for peer, node in self.others],
            authority=lambda peer: self.trusts,
            changed=self.changed,
        )  # fmt: skip
        self.part.scope = lambda host: FAR  # type: ignore[method-assign]  # loopback stands for elsewhere

    def changed(self) -> None:
        self.changes += 1

    @asynccontextmanager
    async def call(self, peer: NodeId) -> AsyncIterator[Any]:
        yield SimpleNamespace(ask=lambda request: self.ask(dict(self.others)[peer], request))

    async def ask(self, node: Node, request: messages.Echo) -> messages.Answer:
        record = structs.replace(plain_record(ASKER), control=(f"{HERE}:51800",), wg_ports=self.ports.numbers)
        entry = SimpleNamespace(member=SimpleNamespace(node_id=ASKER.node_id), record=record)
        return node.part.answer(cast("Entry", entry), request)


@asynccontextmanager
async def mesh(tmp_path: Path, *, behind: bool) -> AsyncIterator[tuple[Node, Node]]:
    one, two = Node(tmp_path / "one", behind=behind), Node(tmp_path / "two", behind=False)
    one.others = [(WITNESS.node_id, two)]
    async with trio.open_nursery() as nursery:
        for run in (one.ports.run, two.ports.run, one.part.run, two.part.run):
            nursery.start_soon(run)
        yield one, two
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0.02)


async def known(node: Node) -> Known:
    with trio.fail_after(1000):
        while (found := node.part.lifetimes.known(FAR)) is None:
            await trio.sleep(1.0)
    await trio.sleep(1.0)
    return found


async def test_a_mapping_that_lives_long_is_found_to_and_remembered(tmp_path: Path, clock: MockClock) -> None:
    async with mesh(tmp_path, behind=True) as (one, two):
        assert one.part.keepalive("203.0.113.1") == 25
        found = await known(one)
        assert (found.open, found.good, found.hairpin) == (False, 140.0, True)
        assert one.part.keepalive("203.0.113.1") == MOST and one.changes >= 1
        await trio.sleep(60)
        assert not two.ports.needed[-1]  # the raw sockets are not held open for good
    again = Node(tmp_path / "one", behind=True)
    again.part.lifetimes.at(FAR, {ip_address(HERE)})
    assert again.part.keepalive("203.0.113.1") == MOST
    again.ports.close()


async def test_where_strangers_come_in_no_keepalives_are_sent(tmp_path: Path, clock: MockClock) -> None:
    async with mesh(tmp_path, behind=False) as (one, _):
        assert (await known(one)).open and one.part.keepalive("203.0.113.1") == NEVER


async def test_one_member_alone_has_no_keepalives_sent_more_seldom(tmp_path: Path, clock: MockClock) -> None:
    """It could send what is to be a stranger's through a hole that this node keeps open for it."""
    async with mesh(tmp_path, behind=False) as (one, _):
        one.trusts = False
        await trio.sleep(60)
        assert one.part.lifetimes.known(FAR) is None and one.part.keepalive("203.0.113.1") == 25
    async with mesh(tmp_path, behind=True) as (one, _):
        one.trusts = False
        assert (await known(one)).good < 140.0 and one.part.keepalive("203.0.113.1") <= 25


async def test_a_member_behind_a_nat_shows_it_too(tmp_path: Path, clock: MockClock) -> None:
    """What the node asks does not come to it, but what it sends unasked comes in."""
    async with mesh(tmp_path, behind=False) as (one, two):
        two.ports.deaf = True
        assert (await known(one)).open


async def test_a_firewall_that_drops_strangers_is_measured(tmp_path: Path, clock: MockClock) -> None:
    async with mesh(tmp_path, behind=False) as (one, _):
        one.ports.deaf = True
        found = await known(one)
        assert not found.open and found.good == 140.0


async def test_a_member_that_does_not_measure_is_not_asked_all_the_time(
    tmp_path: Path, clock: MockClock
) -> None:
    asked = 0

    async with mesh(tmp_path, behind=True) as (one, two):

        async def refuse(node: Node, request: messages.Echo) -> messages.Answer:
            nonlocal asked
            asked += 1
            if asked % 2:
                raise StreamError("the connection ended")
            return messages.Refused("not a request")

        one.ask = refuse  # type: ignore[method-assign]
        await trio.sleep(1000)
        assert 2 <= asked <= 6 and one.part.lifetimes.known(FAR) is None
        two.ports.able = False
        assert await Node.ask(one, two, messages.Echo(bytes(16), (1000,))) == messages.Refused(NO_SOCKET)


async def test_a_damaged_file_costs_no_more_than_to_measure_again(tmp_path: Path, clock: MockClock) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / directory.NETWORKS).write_bytes(b"{")
    async with mesh(tmp_path, behind=True) as (one, _):
        assert (await known(one)).good == 140.0
        assert not one.part.lifetimes.wanted(FAR, one.part.lifetimes.known(FAR).at + LASTS - 1)  # type: ignore[union-attr]
