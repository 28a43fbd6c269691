# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes beyond the mesh are routed and closed on a host."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.overlay.beyond import Beyond, beyond
from phantommesh.overlay.prefixes import HostRange
from phantommesh.routable import EXITS, overlap

A, B = b"a" * 16, b"b" * 16
WIDE, LAN, SIX = ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16"), ip_network("fd77::/64")


def test_what_is_taken_is_closed_and_what_is_carried_routed() -> None:
    found = beyond([LAN, SIX], {LAN: A}, [])
    assert found.closed == (LAN, SIX)
    assert found.routed == ((LAN, A),)


def test_a_default_route_is_closed_as_a_whole_whatever_the_host_has() -> None:
    own = [HostRange("route", ip_network("192.168.7.0/24"), "eth0")]
    found = beyond([*EXITS, LAN], {EXITS[0]: A, LAN: B}, own)
    assert found.closed == (EXITS[0], LAN, EXITS[1])
    assert dict(found.routed) == {EXITS[0]: A, LAN: B}
    assert found.exit and found.beside == ()
    assert not beyond([LAN], {}, own, lan=[LAN]).exit


def test_private_networks_alone_stay_beside_an_exit() -> None:
    lan = [ip_network(text) for text in ("192.168.7.0/24", "fd77::/64", "203.0.113.0/24", "0.0.0.0/1")]
    assert beyond(EXITS, {}, (), lan=lan).beside == (lan[0], lan[1])
    assert beyond([LAN], {}, (), lan=lan).beside == ()


def test_the_hosts_own_part_stays_the_hosts() -> None:
    own = ip_network("10.0.0.0/24")
    found = beyond([WIDE], {WIDE: A}, [HostRange("route", own, "eth0")])
    assert not any(overlap(network, own) for network in found.closed)
    assert sum(network.num_addresses for network in found.closed) == WIDE.num_addresses - 256
    assert {network for network, _ in found.routed} == set(found.closed)


def test_a_prefix_that_the_host_has_as_a_whole_is_the_hosts() -> None:
    assert beyond([LAN], {LAN: A}, [HostRange("route", WIDE, "eth0")]) == Beyond()


def test_the_longer_of_two_prefixes_has_its_own_router() -> None:
    found = beyond([WIDE, LAN], {WIDE: A, LAN: B}, [])
    assert dict(found.routed) == {WIDE: A, LAN: B}


def test_a_longer_prefix_that_nobody_carries_stays_closed() -> None:
    found = beyond([WIDE, LAN], {WIDE: A}, [])
    assert found.closed == (WIDE, LAN)
    assert dict(found.routed) == {WIDE: A}


NETWORKS = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(10 << 24, (11 << 24) - 1),
    st.integers(9, 32),
)


@given(st.lists(NETWORKS, max_size=4), st.lists(NETWORKS, max_size=6))
def test_no_part_of_the_hosts_is_closed_and_each_other_part_of_the_taken_is(
    taken: list[IPv4Network], host: list[IPv4Network]
) -> None:
    found = beyond(taken, dict.fromkeys(taken, A), [HostRange("route", one, "eth0") for one in host])
    for closed in found.closed:
        assert not any(overlap(closed, own) for own in host)
        assert any(overlap(closed, prefix) for prefix in taken)
    for prefix in taken:
        first = prefix.network_address
        if not any(first in own for own in host):
            assert any(first in closed for closed in found.closed)
    assert {network for network, _ in found.routed} == set(found.closed)


MANY = [HostRange("route", ip_network(f"10.1.{i}.1/32"), "eth0") for i in range(256)]


def test_more_ranges_of_the_hosts_than_can_be_gone_round_open_nothing() -> None:
    """A neighbour's router advertisements or DHCP server say which networks are the link's."""
    assert beyond([LAN, SIX], {LAN: A}, MANY).closed == (SIX,)
    after = beyond([LAN, SIX], {LAN: A}, MANY, before=(LAN, SIX))
    assert after.closed == (LAN, SIX) and after.routed == () and after.conflicts


@pytest.mark.parametrize("found", [["10.1.0.0/16"], ["10.0.0.0/8"], ["10.1.0.0/17", "10.1.128.0/17"]])
def test_a_host_that_comes_home_into_the_prefix_has_it_as_a_network_of_its_own(found: list[str]) -> None:
    own = [HostRange("route", ip_network(one), "eth0") for one in found]
    assert beyond([LAN, SIX], {LAN: A}, own, before=(LAN, SIX)).closed == (SIX,)


def test_what_a_conflict_leaves_closed_is_the_prefixs_own() -> None:
    lower, upper = ip_network("10.0.0.0/16"), ip_network("10.128.0.0/9")
    assert beyond([WIDE], {}, MANY, before=(lower, LAN, upper)).closed == (lower, LAN, upper)
    assert beyond([WIDE, LAN], {}, MANY, before=(lower, LAN, upper)).closed == (lower, LAN, upper)
    assert beyond([LAN], {}, MANY, before=(WIDE,)).closed == ()
