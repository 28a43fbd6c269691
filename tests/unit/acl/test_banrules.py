# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of bans as text, and what its sets tell."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.acl import banrules
from phantommesh.acl.banrules import FAR, NEAR, Ports, Sender, insert, read_senders, render, reshed
from phantommesh.acl.bans import Ban
from phantommesh.errors import DecodeError
from phantommesh.routing import binding, knocks

PORTS = Ports("pm", ("pm0", "pm1"), 51800, (51821, 51820), (ip_network("10.0.0.0/24"),))


def ban(network: str, origin: str, until: float = 600.0) -> Ban:
    return Ban(network=network, origin=origin, since=0.0, until=until, why="")  # type: ignore[arg-type]


def test_bans_are_in_the_set_of_their_origin_and_blocks_of_ipv6_by_their_first_address() -> None:
    text = render(
        PORTS,
        [
            ban("192.0.2.1/32", "own"), ban("2001:db8::/64", "hinted", 0.2),
            ban("198.51.100.0/24", "operator"), ban("198.51.100.7/32", "operator", 9000.0),
        ],
        [ip_network("203.0.113.9/32")],
        0.0,
    )  # fmt: skip
    table = "add element inet phantommesh_bans_pm"
    assert f"{table} own4 {{ 192.0.2.1 timeout 600s }}" in text
    assert f"{table} hinted6 {{ 2001:db8:: timeout 1s }}" in text
    assert f"{table} operator4 {{ 198.51.100.0/24 timeout 600s }}" in text  # the narrower one comes later
    assert f"{table} known4 {{ 203.0.113.9/32 }}" in text


def test_nothing_but_numbers_comes_into_the_script() -> None:
    scoped = "2001:db8::%} ; flush ruleset ; #/64"
    for origin in ("own", "operator"):
        assert "flush" not in insert("pm", [ban(scoped, origin)], 0.0)
    assert "flush" not in render(PORTS, (), [ip_network(scoped)], 0.0)


@pytest.mark.parametrize("now", [0.0, -101e6, -1.79e9, 1e18])
def test_no_clock_and_no_ban_makes_a_timeout_that_nft_refuses(now: float) -> None:
    text = insert("pm", [ban("192.0.2.1/32", "own"), ban("192.0.2.2/32", "operator", 315_360_000.0)], now)
    timeouts = [int(found) for found in re.findall(r"timeout (\S+)s ", text)]
    assert len(timeouts) == 2 and all(1 <= one <= banrules.MOST_TIMEOUT for one in timeouts)


def test_what_the_tunnels_bring_and_known_sources_pass_before_anything_is_counted() -> None:
    lines = [line.strip() for line in render(PORTS, (), (), 0.0).splitlines()]
    order = [
        next(i for i, line in enumerate(lines) if line.startswith(begin))
        for begin in (
            'iifname { "lo", "pm", "pm0", "pm1" } return', "ip saddr @own4 drop", "ip saddr @known4 goto",
            "udp dport 51800 goto control",
        )
    ]  # fmt: skip
    assert order == sorted(order)


def test_shedding_is_one_rule_more() -> None:
    assert "limit rate over" not in reshed(PORTS)
    shedding = Ports("pm", (), 51800, (51820,), (), 200.0)
    assert "limit rate over 200/second burst 50 packets goto shedding" in reshed(shedding)


def test_all_datagrams_of_ours_at_wireguards_ports_have_the_size_that_passes() -> None:
    assert {knocks.SIZE, binding.SIZE} == {banrules.OWN_SIZE}


def near_key(host: str, port: int, interface: int = 3, mac: bytes = b"\2\0\0\0\0\1") -> bytes:
    import sys

    packed = interface.to_bytes(4, sys.byteorder) + mac + bytes(2) + IPv4Address(host).packed
    return packed + port.to_bytes(2, "big") + bytes(2)


def test_senders_are_read_as_the_kernel_pads_them() -> None:
    assert read_senders(NEAR, {near_key("10.0.0.7", 51800): (5, 99)}) == {
        (Sender("10.0.0.7", 3, b"\2\0\0\0\0\1"), 51800): 5
    }
    far = ip_address("198.51.100.7").packed + (51820).to_bytes(2, "big") + bytes(2)
    assert read_senders(FAR[4], {far: (2, 0)}) == {(Sender("198.51.100.7"), 51820): 2}
    far = ip_address("2001:db8::7").packed + (51820).to_bytes(2, "big") + bytes(2)
    assert read_senders(FAR[6], {far: (2, 0)}) == {(Sender("2001:db8::7"), 51820): 2}


@given(st.sampled_from([NEAR, *FAR.values()]), st.binary(max_size=40))
def test_a_key_of_another_shape_is_refused(name: str, key: bytes) -> None:
    try:
        read_senders(name, {key: (1, 1)})
    except DecodeError:
        pass


@pytest.mark.parametrize("name", [NEAR, *FAR.values()])
def test_a_short_key_is_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        read_senders(name, {b"1": (1, 1)})
