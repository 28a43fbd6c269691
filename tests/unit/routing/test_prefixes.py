# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes of others a node takes."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.overlay.prefixes import HostRange
from phantommesh.routable import Network, order, overlap
from phantommesh.routing.prefixes import EVERYTHING, Conflict, Offer, Taken, taken

A, B = b"a" * 16, b"b" * 16
OVERLAY: tuple[Network, ...] = (IPv4Network("100.64.0.0/10"), IPv6Network("fd12::/48"))
SITE, LAB = ip_network("10.1.0.0/16"), ip_network("10.1.2.0/24")


def offers(*pairs: tuple[Network, bytes]) -> list[Offer]:
    return [Offer(prefix, router) for prefix, router in pairs]


def test_nothing_is_taken_unless_the_operator_says_so() -> None:
    assert taken(offers((SITE, A), (LAB, B)), (), OVERLAY, ()) == ((), ())


def test_what_is_within_an_accepted_prefix_is_taken_and_nothing_else() -> None:
    accept = (ip_network("10.1.0.0/16"),)
    other = ip_network("10.2.0.0/16")
    wider = ip_network("10.0.0.0/8")
    found, conflicts = taken(offers((SITE, A), (LAB, B), (other, A), (wider, A)), accept, OVERLAY, ())
    assert found == (Taken(SITE, (A,)), Taken(LAB, (B,)))
    assert conflicts == ()


def test_routers_of_one_prefix_keep_the_order_of_the_offers() -> None:
    assert taken(offers((SITE, B), (SITE, A), (SITE, B)), EVERYTHING, OVERLAY, ())[0] == (
        Taken(SITE, (B, A)),
    )


def test_a_range_of_the_hosts_own_is_a_conflict_that_is_named() -> None:
    own = HostRange("route", ip_network("10.1.0.0/16"), "eth0")
    found, conflicts = taken(offers((SITE, A), (LAB, B)), EVERYTHING, OVERLAY, [own])
    assert found == ()
    why = "this host's route 10.1.0.0/16 (eth0) has these addresses already"
    assert conflicts == (Conflict(SITE, (A,), why), Conflict(LAB, (B,), why))


def test_a_range_of_the_hosts_own_within_a_prefix_is_no_conflict() -> None:
    own = [HostRange("route", LAB, "eth0"), HostRange("address", ip_network("10.1.2.3/32"), "eth0")]
    assert taken(offers((SITE, A)), EVERYTHING, OVERLAY, own) == ((Taken(SITE, (A,)),), ())


def test_the_overlay_is_never_taken_in_part_or_whole() -> None:
    some = offers(
        (ip_network("100.64.7.0/24"), A), (ip_network("100.0.0.0/8"), A), (ip_network("fd12::/64"), A)
    )
    found, conflicts = taken(some, EVERYTHING, OVERLAY, ())
    assert found == ()
    assert [one.why for one in conflicts] == [
        "it overlaps the overlay 100.64.0.0/10",
        "it overlaps the overlay 100.64.0.0/10",
        "it overlaps the overlay fd12::/48",
    ]


networks = st.one_of(
    st.builds(
        lambda base, length: IPv4Network((base, length), strict=False),
        st.sampled_from([0, 10 << 24, 10 << 24 | 1 << 16, 100 << 24 | 64 << 16, 192 << 24 | 168 << 16]),
        st.integers(0, 32),
    ),
    st.builds(
        lambda base, length: IPv6Network((base, length), strict=False),
        st.sampled_from([0, 0x20010DB8 << 96, 0xFD12 << 112]),
        st.integers(0, 128),
    ),
)


@given(
    st.lists(st.builds(Offer, networks, st.sampled_from([A, B])), max_size=12),
    st.lists(networks, max_size=3),
    st.lists(st.builds(HostRange, st.just("route"), networks, st.just("eth0")), max_size=3),
)
def test_each_prefix_is_taken_or_a_conflict_and_was_offered_by_each_of_its_routers(
    some: list[Offer], accept: list[Network], host: list[HostRange]
) -> None:
    found, conflicts = taken(some, accept, OVERLAY, host)
    both = [(one.prefix, one.routers) for one in found] + [(one.prefix, one.routers) for one in conflicts]
    assert len(both) == len({prefix for prefix, _ in both})
    assert [one.prefix for one in found] == sorted((one.prefix for one in found), key=order)
    for prefix, routers in both:
        assert routers and all(Offer(prefix, router) in some for router in routers)
        assert any(within(prefix, network) for network in accept)
    for mine in found:
        assert not any(overlap(mine.prefix, network) for network in OVERLAY)
        assert not any(within(mine.prefix, own.network) for own in host)
    for conflict in conflicts:
        own_range = any(within(conflict.prefix, own.network) for own in host)
        assert own_range or any(overlap(conflict.prefix, network) for network in OVERLAY)


def within(prefix: Network, network: Network) -> bool:
    return overlap(prefix, network) and prefix.prefixlen >= network.prefixlen
