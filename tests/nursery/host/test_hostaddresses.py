# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of the host's interfaces, from netlink's messages: which of them others could use."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nlattr import attribute
from phantommesh.nursery.host.hostaddresses import parse, read_addresses
from phantommesh.reachable import HostAddress

UP, CARRIER = 0x1, 0x10000
TEMPORARY, DEPRECATED, TENTATIVE, FAILED, PERMANENT = 0x01, 0x20, 0x40, 0x08, 0x80


def link(index: int, name: str, flags: int = UP | CARRIER, *, kind: str = "", alias: str = "") -> bytes:
    fields = attribute(3, name.encode() + b"\0")
    if kind:
        fields += attribute(18, attribute(1, kind.encode()))
    if alias:
        fields += attribute(20, alias.encode() + b"\0")
    return struct.pack("=BxHiII", 0, 0, index, flags, 0) + fields


def address(index: int, text: str, flags: int = PERMANENT, *, wide: bool = True) -> bytes:
    one = ip_address(text)
    family = socket.AF_INET if one.version == 4 else socket.AF_INET6
    fields = attribute(1, one.packed) + (attribute(8, struct.pack("=I", flags)) if wide else b"")
    return struct.pack("=BBBBI", family, 24, flags & 0xFF, 0, index) + fields


def found(links: list[bytes], addresses: list[bytes]) -> list[str]:
    return [str(one.address) for one in parse(links, addresses, {"pm0"})]


def test_an_address_comes_with_its_interface() -> None:
    assert list(parse([link(2, "br0", kind="bridge")], [address(2, "192.0.2.7")], ())) == [
        HostAddress(ip_address("192.0.2.7"), 2, "br0", "bridge")
    ]


@pytest.mark.parametrize("flags", [DEPRECATED, TENTATIVE, FAILED, TEMPORARY])
@pytest.mark.parametrize("wide", [True, False])
def test_addresses_that_are_checked_or_go_soon_are_left_out(flags: int, wide: bool) -> None:
    given = [address(2, "2001:db8::1", flags, wide=wide), address(2, "2001:db8::2")]
    assert found([link(2, "eth0")], given) == ["2001:db8::2"]


def test_a_secondary_ipv4_address_counts() -> None:
    assert found([link(2, "eth0")], [address(2, "192.0.2.7", TEMPORARY | PERMANENT)]) == ["192.0.2.7"]


@pytest.mark.parametrize(
    "hidden",
    [
        link(2, "eth0", UP),
        link(2, "eth0", 0),
        link(2, "pm0"),
        link(2, "wg", alias="phantommesh"),
        link(3, "eth1"),
    ],
)
def test_interfaces_that_are_down_or_ours_are_left_out(hidden: bytes) -> None:
    assert found([hidden], [address(2, "192.0.2.7")]) == []


@given(st.lists(st.binary(max_size=80), max_size=3), st.lists(st.binary(max_size=80), max_size=3))
def test_whatever_comes_there_is_one_error(links: list[bytes], addresses: list[bytes]) -> None:
    try:
        list(parse(links, addresses, ()))
    except OSError:
        pass


def test_this_host_is_read() -> None:
    assert all(not one.name.startswith("pm") for one in read_addresses())
