# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter for addresses that come from others; `tests/attacks/test_forbidden_addresses.py` attacks it."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.reachable import HostNetworks, Network, Reach, Why, all_loopback, embedded, special

ETH, ETH1, BRIDGE = 2, 3, 4  # interfaces: the default route's, another network card, a container bridge


def networks(*texts: str) -> frozenset[Network]:
    return frozenset(ip_network(text) for text in texts)


HOST = HostNetworks(
    own=networks("127.0.0.0/8", "::1", "10.9.0.2", "10.8.0.2", "172.17.0.1", "2001:db8:9::2"),
    broadcast=frozenset({IPv4Address("10.9.0.255"), IPv4Address("172.17.255.255")}),
    connected=frozenset(
        {
            (ip_network("10.9.0.0/24"), ETH),
            (ip_network("2001:db8:9::/64"), ETH),
            (ip_network("10.8.0.0/24"), ETH1),
            (ip_network("172.17.0.0/16"), BRIDGE),
            (ip_network("fd17::/64"), BRIDGE),
        }
    ),
    uplinks=frozenset({ETH}),
)
REACH = Reach((IPv4Network("100.64.0.0/10"), ip_network("fd5a:1:2::/48")), HOST)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", None),
        ("10.9.0.7", None),  # a neighbour by the default route's interface
        ("2001:db8:9::7", None),
        ("10.9.0.2", Why.OWN),
        ("10.9.0.255", Why.BROADCAST),
        ("172.17.0.2", Why.HOST_NETWORK),
        ("fd17::2", Why.HOST_NETWORK),
        ("10.8.0.7", Why.HOST_NETWORK),
        ("64:ff9b::172.17.0.2", Why.HOST_NETWORK),
        ("64:ff9b::192.0.2.1", None),  # how a host without IPv4 reaches one with nothing else
        ("100.64.3.4", Why.OVERLAY),
        ("fd5a:1:2::9", Why.OVERLAY),
        ("::ffff:100.64.3.4", Why.OVERLAY),
        ("2002:6440:304::1", Why.OVERLAY),
        ("fe80::1%eth0", Why.LINK_LOCAL),
        ("a.example", Why.NO_ADDRESS),
        ("0x7f000001", Why.NO_ADDRESS),
        ("127.1", Why.NO_ADDRESS),
    ],
)
def test_what_may_be_sent_to(host: str, why: Why | None) -> None:
    assert REACH.refuses(host, seen=False) is why


def test_a_network_by_which_this_node_is_reached_is_open() -> None:
    for home, host in (("10.8.0.2", "10.8.0.7"), ("172.17.0.1", "172.17.0.2"), ("172.17.0.1", "fd17::2")):
        assert REACH.refuses(host, seen=False) is Why.HOST_NETWORK
        assert Reach(host=HOST, home=frozenset({ip_address(home)})).refuses(host, seen=False) is None
    # An endpoint beyond a NAT is on no interface, and opens none.
    outside = Reach(host=HOST, home=frozenset({ip_address("172.17.0.77")}))
    assert outside.refuses("172.17.0.2", seen=False) is Why.HOST_NETWORK


def test_who_was_heard_in_a_network_of_the_host_may_be_answered_there_and_nowhere_worse() -> None:
    assert REACH.refuses("172.17.0.2", seen=True) is None
    for host in ("127.0.0.1", "172.17.0.1", "100.64.3.4", "169.254.169.254", "172.17.255.255"):
        assert REACH.refuses(host, seen=True) is not None


def test_a_seed_of_the_operators_is_open_and_its_neighbours_are_not() -> None:
    told = Reach(host=HOST, told=frozenset({ip_address("172.17.0.2")}))
    assert told.refuses("172.17.0.2", seen=False) is None
    assert told.refuses("172.17.0.3", seen=False) is Why.HOST_NETWORK


def test_the_nearest_network_decides() -> None:
    host = HostNetworks(
        connected=frozenset({(ip_network("10.0.0.0/8"), ETH), (ip_network("10.88.0.0/16"), BRIDGE)}),
        uplinks=frozenset({ETH}),
    )
    assert Reach(host=host).refuses("10.88.0.2", seen=False) is Why.HOST_NETWORK
    assert Reach(host=host).refuses("10.89.0.2", seen=False) is None


def test_loopback_is_for_meshes_within_one_machine() -> None:
    assert all_loopback(["127.0.0.1", "::1"])
    assert not all_loopback(["127.0.0.1", "192.0.2.1"])
    assert not all_loopback(["localhost"])
    assert not all_loopback([])
    within = Reach(host=HOST, loopback=True)
    assert within.refuses("127.0.0.1", seen=False) is None
    assert within.refuses("::1", seen=False) is None
    assert within.refuses("::ffff:127.0.0.1", seen=False) is not None
    assert within.refuses("169.254.169.254", seen=False) is Why.LINK_LOCAL


FORBIDDEN4 = st.sampled_from(["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"]).flatmap(
    lambda network: st.ip_addresses(network=network)
)


def disguises(inner: IPv4Address, noise: int) -> list[IPv6Address]:
    """Every form in which an IPv6 address carries an IPv4 one."""
    v, low = int(inner), noise & 0xFFFF
    forms = [
        v,  # compatible
        0xFFFF << 32 | v,  # mapped
        0xFFFF << 48 | v,  # translated
        0x0064_FF9B << 96 | v,
        0x0064_FF9B_0001 << 80 | low << 64 | v,
        0x2002 << 112 | v << 80 | noise & (1 << 80) - 1,
        0x2001_0000 << 96 | v << 64 | noise & (1 << 64) - 1,
        0x2001_0000 << 96 | 0x0808_0808 << 64 | v ^ 0xFFFFFFFF,
        0x2001_0DB8 << 96 | 0x0000_5EFE << 32 | v,
        0x2001_0DB8 << 96 | 0x0200_5EFE << 32 | v,
    ]
    return [IPv6Address(form) for form in forms]


@given(inner=FORBIDDEN4, noise=st.integers(0, 2**128 - 1))
def test_no_disguise_of_a_forbidden_address_passes(inner: IPv4Address, noise: int) -> None:
    assert REACH.refuses(str(inner), seen=True) is not None
    for form in disguises(inner, noise):
        for text in (str(form), form.exploded, str(form).upper()):
            assert REACH.refuses(text, seen=True) is not None, text


@given(inner=st.ip_addresses(network="100.64.0.0/10"), noise=st.integers(0, 2**128 - 1))
def test_no_disguise_of_an_overlay_address_passes(inner: IPv4Address, noise: int) -> None:
    assert REACH.refuses(str(inner), seen=True) is Why.OVERLAY
    for form in disguises(inner, noise):
        assert REACH.refuses(str(form), seen=True) is not None, form


@given(address=st.ip_addresses())
def test_what_python_calls_unusable_is_refused(address: IPv4Address | IPv6Address) -> None:
    """Another's list of special addresses, as a check of ours."""
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        assert special(address) is not None
    assert REACH.never(str(address)) is None or REACH.refuses(str(address), seen=True) is not None


@given(text=st.text(max_size=40))
def test_nothing_raises(text: str) -> None:
    REACH.refuses(text, seen=False)
    REACH.refuses(text, seen=True)


def test_an_address_of_the_internet_carries_none() -> None:
    assert list(embedded(ip_address("2606:4700::1"))) == []
    assert list(embedded(ip_address("192.0.2.1"))) == []
