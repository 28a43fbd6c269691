# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the kernel's notifications are about a node's own interfaces, routes and rules; what they sent."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nlattr import attribute, pack_message
from phantommesh.nursery.host.changes import Ours
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL
from phantommesh.nursery.host.traffic import parse_sent


def link(kind: int, index: int, name: str) -> bytes:
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + attribute(3, name.encode() + b"\0")
    return pack_message(kind, 0, 0, body)


def address(kind: int, index: int) -> bytes:
    return pack_message(kind, 0, 0, struct.pack("=BBBBI", 2, 32, 0, 0, index))


def route(kind: int, protocol: int) -> bytes:
    return pack_message(kind, 0, 0, struct.pack("=8BI", 2, 32, 0, 0, 254, protocol, 0, 1, 0))


def rule(kind: int, protocol: int) -> bytes:
    body = struct.pack("=12B", 2, *bytes(11)) + attribute(21, bytes([protocol]))
    return pack_message(kind, 0, 0, body)


def setting(index: int) -> bytes:
    return pack_message(80, 0, 0, struct.pack("=B3x", 2) + attribute(1, struct.pack("=i", index)))


def ours() -> Ours:
    made = Ours(["pm0", "pm"])
    made.know(7)
    return made


@pytest.mark.parametrize(
    ("message", "touched"),
    [
        (link(16, 9, "pm0"), True),
        (link(17, 7, "renamed"), True),
        (link(16, 9, "eth0"), False),
        (address(21, 7), True),
        (address(20, 1), True),  # of the loopback: IPv6 was turned off or on
        (address(20, 9), False),
        (route(25, ROUTE_PROTOCOL), True),
        (route(24, 4), False),
        (rule(33, ROUTE_PROTOCOL), True),
        (rule(32, 4), False),
        (setting(7), True),
        (setting(-1), True),
        (setting(9), False),
        (route(24, 4) + route(25, ROUTE_PROTOCOL), True),
        (b"", False),
        (b"\x01", True),  # no message: something may have changed
        (pack_message(24, 0, 0, b""), True),
    ],
)
def test_only_what_is_ours_counts(message: bytes, touched: bool) -> None:
    assert ours().touched(message) is touched


def test_an_index_is_known_from_when_the_interface_is_made_until_it_goes() -> None:
    made = ours()
    assert not made.touched(address(20, 9))
    assert made.touched(address(20, 9) + link(16, 9, "pm0"))
    assert made.touched(address(20, 9))
    assert made.touched(link(17, 9, "pm0"))
    assert not made.touched(address(20, 9))


def way(kind: int, protocol: int, prefix: int, *, gateway: bool, flags: int = 0) -> bytes:
    body = struct.pack("=8BI", 2, prefix, 0, 0, 254, protocol, 0, 1, flags)
    return pack_message(kind, 0, 0, body + (attribute(5, bytes(4)) if gateway else b""))


@pytest.mark.parametrize(
    ("message", "moved"),
    [
        (link(16, 9, "eth0"), True),
        (link(17, 9, "eth0"), True),
        (link(16, 9, "pm0"), False),
        (link(17, 7, "pm0"), False),
        (address(20, 9), True),
        (address(21, 9), True),
        (address(20, 7), False),
        (address(20, 1), False),  # of the loopback
        (way(24, 4, 0, gateway=True), True),  # the default route
        (way(25, 4, 0, gateway=True), True),
        (way(24, 2, 24, gateway=False), True),  # a network of an interface
        (way(24, 186, 24, gateway=True), False),  # one of a router's million
        (way(24, ROUTE_PROTOCOL, 0, gateway=False), False),
        (way(24, 2, 32, gateway=False, flags=0x200), False),  # a cached copy
        (rule(32, 4), False),
        (setting(9), False),
        (b"", False),
        (b"\x01", True),
        (pack_message(24, 0, 0, b""), True),
    ],
)
def test_a_change_of_the_hosts_own_links_addresses_and_ways_out_is_told(message: bytes, moved: bool) -> None:
    assert ours().moved(message) is moved


@given(st.binary(max_size=200))
def test_nothing_that_comes_raises(message: bytes) -> None:
    assert ours().touched(message) in (True, False)


@given(st.integers(0, 90), st.binary(max_size=60))
def test_no_message_raises(kind: int, body: bytes) -> None:
    assert ours().touched(pack_message(kind, 0, 0, body)) in (True, False)
    assert ours().moved(pack_message(kind, 0, 0, body)) in (True, False)


TEXT = """\
Inter-| Receive | Transmit
 face |bytes packets errs ...
    lo:  100 1 0 0 0 0 0 0  200 1 0 0 0 0 0 0
   pm0: 7 1 0 0 0 0 0 0 30 1 0 0 0 0 0 0
   pm1:8 1 0 0 0 0 0 0 12 1 0 0 0 0 0 0
  pm10: 8 1 0 0 0 0 0 0 5000 1 0 0 0 0 0 0
"""


def test_only_the_named_interfaces_count() -> None:
    assert parse_sent(TEXT, {"pm0", "pm1", "pm2"}) == 42


def test_a_line_without_counters_is_refused() -> None:
    with pytest.raises(ValueError, match="without counters"):
        parse_sent(TEXT + "   pm2: 1 2\n", {"pm2"})
