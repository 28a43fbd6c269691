# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes that keep packets to what their way carries."""

from ipaddress import IPv4Address, IPv6Address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.wireguard.device import Route
from phantommesh.wireguard.fits import Fitted, fitted_routes, narrowest_routes, segment_routes, short_segments

FOUR, SIX = ip_network("100.64.0.0/10"), ip_network("fd00:1::/48")
LARGEST = 1420


def peer(number: int, mtu: int) -> Fitted:
    return Fitted(IPv4Address(f"100.64.0.{number}"), IPv6Address(f"fd00:1::{number:x}"), mtu)


def test_where_all_carry_all_the_routes_say_nothing_of_it() -> None:
    bare = {Route(FOUR, 50), Route(SIX, 50)}
    assert fitted_routes([FOUR, SIX], 50, LARGEST, []) == bare
    assert fitted_routes([FOUR, SIX], 50, LARGEST, [peer(1, 1420), peer(2, 1500)]) == bare


def test_what_limits_all_peers_stands_on_the_networks_routes() -> None:
    found = fitted_routes([FOUR, SIX], 50, LARGEST, [peer(1, 1376), peer(2, 1376)])
    assert found == {Route(FOUR, 50, 1376), Route(SIX, 50, 1376)}


def test_one_peer_that_carries_less_does_not_make_packets_to_the_others_small() -> None:
    found = fitted_routes([FOUR, SIX], 50, LARGEST, [peer(1, 1420), peer(2, 1296)])
    assert found == {
        Route(FOUR, 50),
        Route(SIX, 50),
        Route(ip_network("100.64.0.2/32"), 50, 1296),
        Route(ip_network("fd00:1::2/128"), 50, 1296),
    }


def test_below_what_ipv6_needs_tcp_alone_is_kept_to_it() -> None:
    found = fitted_routes([FOUR, SIX], 50, LARGEST, [peer(1, 1216)])
    assert found == {Route(FOUR, 50, 1216), Route(SIX, 50, 1280, 1156)}


def test_tcp_over_ipv6_has_routes_below_1280_and_no_others() -> None:
    fits = [peer(1, 1420), peer(2, 1216), peer(3, 1280)]
    assert segment_routes([FOUR, SIX], 1, LARGEST, fits) == {
        Route(ip_network("fd00:1::2/128"), 1, 1216, 1156)
    }
    assert segment_routes([FOUR, SIX], 1, LARGEST, [peer(1, 1200)]) == {Route(SIX, 1, 1200, 1140)}
    assert short_segments(fits) == ((IPv6Address("fd00:1::2"), 1156),)
    assert segment_routes([FOUR], 1, LARGEST, [peer(1, 1200)]) == frozenset()
    assert segment_routes([FOUR, SIX], 1, 1280, [peer(1, 1200)]) == {Route(SIX, 1, 1200, 1140)}


def test_without_ipv6_there_are_no_routes_of_it() -> None:
    found = fitted_routes([FOUR], 50, LARGEST, [peer(1, 1420), peer(2, 1296)])
    assert found == {Route(FOUR, 50), Route(ip_network("100.64.0.2/32"), 50, 1296)}


def test_a_peer_beyond_the_networks_gets_no_route() -> None:
    found = fitted_routes([ip_network("100.64.1.0/24")], 50, LARGEST, [peer(1, 1420), peer(2, 1296)])
    assert found == {Route(ip_network("100.64.1.0/24"), 50)}


def test_an_interface_of_last_resort_never_takes_one_peers_traffic_from_another_interface() -> None:
    found = narrowest_routes([FOUR, SIX], 100, LARGEST, [peer(1, 1420), peer(2, 1296)])
    assert found == {Route(FOUR, 100, 1296), Route(SIX, 100, 1296)}
    assert narrowest_routes([FOUR], 100, LARGEST, []) == {Route(FOUR, 100)}


@given(st.dictionaries(st.integers(1, 254), st.integers(1200, 1420)))
def test_each_peers_longest_route_says_what_it_carries(mtus: dict[int, int]) -> None:
    routes = fitted_routes([FOUR], 50, LARGEST, [peer(number, mtu) for number, mtu in mtus.items()])
    for number, mtu in mtus.items():
        address = IPv4Address(f"100.64.0.{number}")
        best = max((route for route in routes if address in route.network), key=lambda r: r.network.prefixlen)
        assert (best.mtu or LARGEST) == mtu
    assert len(routes) <= 1 + len(mtus)
