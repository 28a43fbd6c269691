# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of many networks meet another."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.routable import Network, Places, overlap, within

FOURS = st.builds(
    lambda a, n: IPv4Network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
NEAR = st.builds(lambda a, n: IPv4Network((a, n), strict=False), st.integers(0, 255), st.integers(22, 32))
SIXES = st.builds(lambda a, n: IPv6Network((a, n), strict=False), st.integers(0, 255), st.integers(118, 128))
NETWORKS = st.one_of(FOURS, NEAR, SIXES)


@given(st.lists(NETWORKS, max_size=12), NETWORKS)
def test_those_that_meet_are_found_and_no_others(held: list[Network], asked: Network) -> None:
    places = Places(enumerate_by(held))
    assert sorted(places.meeting(asked)) == [i for i, one in enumerate(held) if overlap(one, asked)]
    assert places.meets(asked) == any(overlap(one, asked) for one in held)
    holding = places.holding(asked)
    assert sorted(holding) == [i for i, one in enumerate(held) if within(asked, one)]
    assert [held[i].prefixlen for i in holding] == sorted(held[i].prefixlen for i in holding)


@given(FOURS | SIXES, NETWORKS)
def test_a_network_holds_what_has_all_its_addresses_in_it(one: Network, other: Network) -> None:
    ends = (one.network_address, one.broadcast_address)
    assert within(one, other) == all(end in other for end in ends)


def enumerate_by(held: list[Network]) -> list[tuple[Network, int]]:
    return [(network, i) for i, network in enumerate(held)]
