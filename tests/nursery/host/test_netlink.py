# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading the kernel's dumps, from a socket that answers what the test says."""

import socket
import struct
from pathlib import Path

import pytest

from phantommesh.nlattr import DONE, DUMP_INTERRUPTED, attribute, pack_message
from phantommesh.nursery.host import netlink
from phantommesh.nursery.host.backend import Backend
from phantommesh.nursery.host.hostroutes import read_routes
from phantommesh.nursery.host.kernel import KernelBackend
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL, NetlinkSocket, read_tables
from phantommesh.nursery.host.userspace import UserspaceBackend

ITEM, MULTI = 20, 2


class Told:
    """A socket whose answers are given; ``sent`` are the requests."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers, self.sent = answers, list[bytes]()

    def __call__(self, *_: object) -> "Told":
        return self

    def __getattr__(self, _: str) -> "Told":  # settimeout, setsockopt, bind, close
        return self

    def send(self, request: bytes) -> None:
        self.sent.append(request)

    def recv(self, _: int) -> bytes:
        return self.answers.pop(0)


def dump(*payloads: bytes, items: int = 0, end: int = 0) -> list[bytes]:
    """A dump in two reads; ``items`` and ``end`` are more flags, of its items and of its end."""
    sent = b"".join(pack_message(ITEM, MULTI | items, 1, payload) for payload in payloads)
    return [sent, pack_message(DONE, MULTI | end, 1, bytes(4))]


@pytest.mark.parametrize("flags", [{"items": DUMP_INTERRUPTED}, {"end": DUMP_INTERRUPTED}])
def test_a_dump_that_was_interrupted_is_asked_for_again(
    flags: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told([*dump(b"one ", **flags), *dump(b"one ", b"two ")])
    monkeypatch.setattr(socket, "socket", told)
    with NetlinkSocket(0) as rtnl:
        assert [payload for _, _, payload in rtnl.exchange(b"ask")] == [b"one ", b"two "]
    assert told.sent == [b"ask", b"ask"]


def test_where_something_always_changes_the_last_dump_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(dump(b"one ", items=DUMP_INTERRUPTED) * 9)
    monkeypatch.setattr(socket, "socket", told)
    with NetlinkSocket(0) as rtnl:
        assert [payload for _, _, payload in rtnl.exchange(b"ask")] == [b"one "]
    assert len(told.sent) == 5


def test_ipv6_may_be_turned_off_and_on_while_the_node_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each pass puts addresses on interfaces that take none, and a new one never comes up."""
    backends: list[Backend] = [KernelBackend(), UserspaceBackend(Path("wireguard-go"))]
    for there in (True, False, True):
        monkeypatch.setattr(netlink, "ipv6_available", lambda there=there: there)
        assert [backend.ipv6 for backend in backends] == [there, there]


BOOT = 3  # RTPROT_BOOT, of routes that `ip` sets


def default_route(protocol: int) -> bytes:
    """A default route of IPv4 in the main table, as the kernel tells it."""
    header = struct.pack("=8BI", socket.AF_INET, 0, 0, 0, 254, protocol, 0, 1, 0)
    return header + attribute(4, struct.pack("=I", 7))  # RTA_OIF


@pytest.mark.parametrize(("protocol", "default"), [(BOOT, True), (ROUTE_PROTOCOL, False)])
def test_the_route_to_an_exit_is_no_default_route_of_the_hosts(
    monkeypatch: pytest.MonkeyPatch, protocol: int, default: bool
) -> None:
    monkeypatch.setattr(socket, "socket", Told(dump(default_route(protocol))))
    with NetlinkSocket(0) as rtnl:
        assert [route.default for route in read_routes(rtnl, socket.AF_INET)] == [default]


def test_a_kernel_without_ipv6_has_no_ipv6_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ipv6.disable=1``: who asks such a kernel for IPv6's routes is told those of all families that it
    has."""
    monkeypatch.setattr(socket, "socket", Told(dump(default_route(ROUTE_PROTOCOL)) * 4))
    with NetlinkSocket(0) as rtnl:
        assert [route.family for route in read_routes(rtnl, socket.AF_INET)] == [socket.AF_INET]
        assert not list(read_routes(rtnl, socket.AF_INET6))
    assert [one.family for one in read_tables()] == [socket.AF_INET]


def test_no_route_is_of_a_family_that_this_kernel_does_not_have() -> None:
    with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
        assert not list(read_routes(rtnl, socket.AF_X25))
