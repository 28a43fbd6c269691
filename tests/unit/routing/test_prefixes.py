# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes of others a node takes."""

from ipaddress import IPv4Network, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.overlay.prefixes import HostRange
from phantommesh.routable import Network, order, overlap
from phantommesh.routing.prefixes import EVERYTHING, Accept, Conflict, Offer, Taken, taken

A, B = b"a" * 16, b"b" * 16
OVERLAY: tuple[Network, ...] = (IPv4Network("100.64.0.0/10"), IPv6Network("fd12::/48"))
SITE, LAB, ALL4, ALL6 = (ip_network(n) for n in ("10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "::/0"))


def offers(*pairs: tuple[Network, bytes]) -> list[Offer]:
    return [Offer(prefix, router) for prefix, router in pairs]


def test_nothing_is_taken_unless_the_operator_says_so() -> None:
    assert taken(offers((SITE, A), (ALL4, B)), Accept(), OVERLAY, ()) == ((), ())


def test_what_is_within_an_accepted_prefix_is_taken_and_nothing_else() -> None:
    accept = Accept(within=(ip_network("10.1.0.0/16"),))
    other = ip_network("10.2.0.0/16")
    wider = ip_network("10.0.0.0/8")
    found, conflicts = taken(offers((SITE, A), (LAB, B), (other, A), (wider, A)), accept, OVERLAY, ())
    assert found == (Taken(SITE, (A,)), Taken(LAB, (B,)))
    assert conflicts == ()


def test_routers_of_one_prefix_keep_the_order_of_the_offers() -> None:
    accept = Accept(within=EVERYTHING)
    assert taken(offers((SITE, B), (SITE, A), (SITE, B)), accept, OVERLAY, ())[0] == (Taken(SITE, (B, A)),)


def test_a_default_route_is_taken_of_the_exit_alone() -> None:
    all_of_it = offers((ALL4, A), (ALL6, A), (ALL4, B))
    assert taken(all_of_it, Accept(within=EVERYTHING), OVERLAY, ()) == ((), ())
    found, _ = taken(all_of_it, Accept(exit=A), OVERLAY, [HostRange("route", SITE, "eth0")])
    assert found == (Taken(ALL4, (A,)), Taken(ALL6, (A,)))


def test_a_range_of_the_hosts_own_is_a_conflict_that_is_named() -> None:
    own = HostRange("route", ip_network("10.1.0.0/16"), "eth0")
    found, conflicts = taken(offers((SITE, A), (LAB, B)), Accept(EVERYTHING), OVERLAY, [own])
    assert found == ()
    why = "this host's route 10.1.0.0/16 (eth0) has these addresses already"
    assert conflicts == (Conflict(SITE, (A,), why), Conflict(LAB, (B,), why))


def test_a_range_of_the_hosts_own_within_a_prefix_is_no_conflict() -> None:
    own = [HostRange("route", LAB, "eth0"), HostRange("address", ip_network("10.1.2.3/32"), "eth0")]
    assert taken(offers((SITE, A)), Accept(EVERYTHING), OVERLAY, own) == ((Taken(SITE, (A,)),), ())


def test_the_overlay_is_never_taken_in_part_or_whole() -> None:
    some = offers(
        (ip_network("100.64.7.0/24"), A), (ip_network("100.0.0.0/8"), A), (ip_network("fd12::/64"), A)
    )
    found, conflicts = taken(some, Accept(EVERYTHING), OVERLAY, ())
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
    st.builds(
        Accept, st.lists(networks, max_size=3).map(tuple), st.one_of(st.none(), st.sampled_from([A, B]))
    ),
    st.lists(st.builds(HostRange, st.just("route"), networks, st.just("eth0")), max_size=3),
)
def test_each_prefix_is_taken_or_a_conflict_and_was_offered_by_each_of_its_routers(
    some: list[Offer], accept: Accept, host: list[HostRange]
) -> None:
    found, conflicts = taken(some, accept, OVERLAY, host)
    both = [(one.prefix, one.routers) for one in found] + [(one.prefix, one.routers) for one in conflicts]
    assert len(both) == len({prefix for prefix, _ in both})
    assert [one.prefix for one in found] == sorted((one.prefix for one in found), key=order)
    for prefix, routers in both:
        assert routers and all(Offer(prefix, router) in some for router in routers)
        if prefix.prefixlen == 0:
            assert routers == (accept.exit,)
        else:
            assert any(within(prefix, network) for network in accept.within)
    for mine in found:
        if mine.prefix.prefixlen:
            assert not any(overlap(mine.prefix, network) for network in OVERLAY)
            assert not any(within(mine.prefix, own.network) for own in host)

    for conflict in conflicts:
        own_range = any(within(conflict.prefix, own.network) for own in host)
        assert own_range or any(overlap(conflict.prefix, network) for network in OVERLAY)


def within(prefix: Network, network: Network) -> bool:
    return overlap(prefix, network) and prefix.prefixlen >= network.prefixlen
