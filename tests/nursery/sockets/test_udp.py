# SPDX-License-Identifier: GPL-3.0-or-later
import errno
import socket
from typing import Any

import pytest
import trio

from phantommesh.endpoint import MAX_DATAGRAM, Address
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.sockets import udp
from phantommesh.nursery.sockets.udp import UdpPort
from tests.support.loopback import PATIENCE, free_port


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


LOCAL = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))]


class Received:
    """What a port hands out, as it comes."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[tuple[bytes, Address]](100)

    def __call__(self, datagram: bytes, source: Address) -> None:
        self.send.send_nowait((datagram, source))

    async def next(self) -> tuple[bytes, Address]:
        with trio.fail_after(PATIENCE):
            return await self.receive.receive()


@pytest.mark.parametrize("host", LOCAL)
async def test_datagrams_arrive_with_their_source(host: str) -> None:
    received = Received()
    with UdpPort(free_port()) as here, UdpPort(free_port()) as there:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.receive, received)
            for datagram in (b"one", b"", b"x" * MAX_DATAGRAM):
                here.send(datagram, Address(host, there.port))
                assert await received.next() == (datagram, Address(host, here.port, "udp"))
            nursery.cancel_scope.cancel()
        assert here.dropped["datagram-unsent"] == 0


@pytest.mark.parametrize("host", LOCAL)
async def test_nothing_goes_to_or_comes_from_where_it_may_not(host: str) -> None:
    """The last check, for when one before it was missed."""
    received = Received()
    with UdpPort(free_port()) as here, UdpPort(free_port()) as there:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.receive, received)
            here.forbids = lambda asked: asked == host
            here.send(b"one", Address(host, there.port))
            assert here.dropped == {"datagram-forbidden": 1}
            here.forbids, there.forbids = there.forbids, here.forbids
            here.send(b"two", Address(host, there.port))
            with trio.fail_after(PATIENCE):
                while there.dropped != {"datagram-source-forbidden": 1}:
                    await trio.sleep(0.01)
            there.forbids = lambda asked: False
            here.send(b"three", Address(host, there.port))
            assert (await received.next())[0] == b"three"
            nursery.cancel_scope.cancel()


async def test_what_is_too_long_arrives_as_too_long() -> None:
    received = Received()
    with UdpPort(free_port()) as here, UdpPort(free_port()) as there:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.receive, received)
            here.send(b"x" * 5000, Address("127.0.0.1", there.port))
            assert len((await received.next())[0]) == MAX_DATAGRAM + 1
            nursery.cancel_scope.cancel()


class Troubled(socket.socket):
    """Reports an ICMP error for something sent earlier before it gives out what has come."""

    errors = 3

    def recvfrom(self, *size: Any) -> Any:
        if self.errors:
            self.errors -= 1
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return super().recvfrom(*size)


async def test_an_icmp_error_does_not_end_the_receiving() -> None:
    received = Received()
    with UdpPort(free_port()) as here, UdpPort(free_port()) as there:
        here._sockets[socket.AF_INET] = troubled = Troubled(fileno=here._sockets[socket.AF_INET].detach())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.receive, received)
            there.send(b"x", Address("127.0.0.1", here.port))
            assert (await received.next())[0] == b"x"
            nursery.cancel_scope.cancel()
        assert troubled.errors == 0


async def test_a_flood_leaves_other_tasks_their_turn() -> None:
    with UdpPort(free_port()) as port:
        turns, read_by_then = 0, []

        def handle(datagram: bytes, source: Address) -> None:
            read_by_then.append(turns)
            port.send(datagram, Address("127.0.0.1", port.port))  # there is always one more

        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.receive, handle)
            port.send(b"x", Address("127.0.0.1", port.port))
            while turns < 20:
                await trio.lowlevel.checkpoint()
                turns += 1
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "destination", [Address("255.255.255.255", 9), Address("240.0.0.1", 9)], ids=["forbidden", "no-route"]
)
def test_what_the_kernel_does_not_take_is_counted(destination: Address) -> None:
    with UdpPort(free_port()) as port:
        port.send(b"x" * 70_000, destination)
        assert port.dropped["datagram-unsent"] == 1


def test_without_ipv6_ipv4_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = udp._bind

    def only4(family: int, host: str, port: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bind(family, host, port)

    monkeypatch.setattr(udp, "_bind", only4)
    with UdpPort(free_port()) as port:
        port.send(b"x", Address("::1", port.port))
        assert port.dropped["datagram-unsent"] == 1
        port.send(b"x", Address("127.0.0.1", port.port))
        assert port.dropped["datagram-unsent"] == 1


@pytest.mark.parametrize("host", LOCAL)
def test_a_taken_port_is_named(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as other:
        if family == socket.AF_INET6:
            other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind((host, free_port()))
        port = other.getsockname()[1]
        with pytest.raises(PhantomMeshError, match=f"UDP port {port}: Address already in use") as raised:
            UdpPort(port)
        assert "control.port" in raised.value.fix
    UdpPort(port).close()  # nothing of the failed attempt holds it


def test_datagrams_are_never_fragmented() -> None:
    with UdpPort(free_port()) as port:
        # linux/in.h: IP_MTU_DISCOVER 10, IP_PMTUDISC_DO 2; linux/in6.h: IPV6_MTU_DISCOVER 23
        assert port._sockets[socket.AF_INET].getsockopt(socket.IPPROTO_IP, 10) == 2
        if has_ipv6():
            assert port._sockets[socket.AF_INET6].getsockopt(socket.IPPROTO_IPV6, 23) == 2
