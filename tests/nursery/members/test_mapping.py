# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver of port mapping, over sockets, and a gateway that is a model; `tests/lab/` has a real one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
import trio

from phantommesh.nursery.host import upnp
from phantommesh.nursery.members import mapping as module
from phantommesh.nursery.members.mapping import Mapping
from phantommesh.portmap.values import Granted, Method, Protocol, Wanted
from tests.support.loopback import until
from tests.unit.portmap.test_mapper import PUBLIC, Gateway

HERE = IPv4Address("127.0.0.1")
PORTS = (51800, tuple(range(51820, 51827)))


class Host:
    """A node's driver on a host whose gateway is on the loopback device."""

    def __init__(self, patch: pytest.MonkeyPatch, gateway: Gateway) -> None:
        patch.setattr(module, "of_a_site", lambda address: True)
        self.gateway, self.gateways, self.changes = gateway, [HERE], 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind((str(HERE), 0))
        self.mapping = Mapping(
            on=True, ports=lambda: PORTS, changed=self._changed, gateways=lambda: self.gateways,
            server_port=self.sock.getsockname()[1],
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    async def serve(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            data, source = self.sock.recvfrom(2000)
            answer = self.gateway.answer(data, trio.current_time())
            if answer is not None:
                self.sock.sendto(answer, source)

    @property
    def whole(self) -> bool:
        return any(all(one.ports) for one in self.mapping.mapped())


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(upnp, "available", lambda: False)
    made = Host(monkeypatch, Gateway(off=5))
    yield made
    made.sock.close()


async def test_ports_are_opened_and_given_back_at_the_end(host: Host) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve)
        async with trio.open_nursery() as node:
            node.start_soon(host.mapping.run)
            await until(lambda: host.whole)
            (found,) = host.mapping.mapped()
            assert (found.own, found.place.address, found.place.port) == (HERE, PUBLIC, 51805)
            assert found.ports == tuple(port + 5 for port in PORTS[1])
            (state,) = host.mapping.states()
            assert (state.address, state.method, state.control) == (HERE, Method.PCP, found.place)
            assert state.refused is None
            assert state.open == state.wanted or state.open == 8  # TCP is asked for last
            assert host.changes
            node.cancel_scope.cancel()
        await until(lambda: not host.gateway.table)
        assert host.mapping.mapped() == ()
        nursery.cancel_scope.cancel()


async def test_another_gateway_takes_the_place_of_one_that_is_gone(host: Host) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve)
        nursery.start_soon(host.mapping.run)
        await until(lambda: host.whole)
        host.gateways = []
        host.mapping.moved()
        await until(lambda: host.mapping.mapped() == ())
        host.gateways = [HERE]
        host.mapping.moved()
        await until(lambda: host.whole)
        nursery.cancel_scope.cancel()


async def test_a_node_that_is_told_not_to_asks_nobody(host: Host) -> None:
    read = list[int]()

    def gateways() -> list[IPv4Address]:
        read.append(1)
        return [HERE]

    host.mapping = Mapping(on=False, ports=lambda: PORTS, changed=lambda: None, gateways=gateways)
    with trio.move_on_after(0.1):
        await host.mapping.run()
    assert not read


async def test_upnp_is_asked_in_a_thread_where_nothing_else_answers(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = list[object]()
    monkeypatch.setattr(upnp, "available", lambda: True)
    monkeypatch.setattr("phantommesh.portmap.machine.FIRST", 0.001)
    monkeypatch.setattr(
        upnp,
        "open_ports",
        lambda own, wanted, life: upnp.Opened({one: Granted(PUBLIC, port, life) for one, port in wanted}),
    )
    monkeypatch.setattr(upnp, "close_ports", lambda own, granted: closed.extend(granted))
    host.gateway.kind = "none"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve)
        async with trio.open_nursery() as node:
            node.start_soon(host.mapping.run)
            await until(lambda: host.whole)
            assert [one.method for one in host.mapping.states()] == [Method.UPNP]
            node.cancel_scope.cancel()
        assert Wanted(Protocol.UDP, 51800) in closed
        nursery.cancel_scope.cancel()
