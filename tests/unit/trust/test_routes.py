# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes in a node's certificate: what an authority signs, what a member refuses, how one is withdrawn."""

import contextlib
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.routable import MAX_ROUTES, Network, in_order, order
from phantommesh.trust.certificates import Role, TrustError, verify_chain
from phantommesh.trust.issuing import choose_ip4
from phantommesh.trust.revocations import Revocations
from phantommesh.trust.routes import (
    Grant,
    RouteError,
    check_prefixes,
    merge,
    next_grant,
    parse_grants,
    standing,
)
from tests.support.makemesh import NOW, identity
from tests.unit.trust.test_trust import MESH, NODE, forge, mutated, names

OVERLAY = (MESH.mesh.network4, MESH.mesh.network6)
SITE, LAB, SIX, FAR = (
    ip_network(n) for n in ("10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "172.16.0.0/12")
)


def certified(*grants: Grant) -> bytes:
    ip4 = choose_ip4(MESH.mesh, NODE.node_id, ())
    return MESH.authority.issue(NODE.spki, "alpha", Role.NODE, ip4, NOW, grants=grants)


def forged(*uris: str) -> bytes:
    """What no authority of ours signs, signed all the same."""
    return forge([*names(), *map(x509.UniformResourceIdentifier, uris)])


def verify(der: bytes) -> tuple[Network, ...]:
    return verify_chain(MESH.root, MESH.authority.der, der, NOW).routes


def test_a_certificate_says_what_its_node_may_route() -> None:
    grants = (Grant(SITE, 3), Grant(LAB), Grant(FAR), Grant(SIX))
    member = verify_chain(MESH.root, MESH.authority.der, certified(*grants), NOW)
    assert member.grants == grants
    assert member.routes == (SITE, LAB, FAR, SIX)


def test_a_certificate_without_routes_is_as_before() -> None:
    assert verify(certified()) == ()
    assert verify(forge(names())) == ()


def test_the_most_routes_there_may_be_fit_a_certificate() -> None:
    longest = [ip_network(f"2001:db8:ffff:ffff:ffff:ffff:ffff:{n:x}/128") for n in range(0xFFF0, 0x10000)]
    assert verify(certified(*(Grant(one, 9999) for one in longest))) == tuple(longest)


ROUTE = "phantommesh:route:"
WRONG = {
    "the overlay": [f"{ROUTE}100.64.0.0/10"],
    "a part of the overlay": [f"{ROUTE}100.64.7.0/24"],
    "more than the overlay": [f"{ROUTE}100.0.0.0/8"],
    "the overlay's IPv6": [f"{ROUTE}{MESH.mesh.network6}"],
    "loopback": [f"{ROUTE}127.0.0.0/8"],
    "a part of loopback": [f"{ROUTE}127.0.0.1/32"],
    "link-local": [f"{ROUTE}169.254.169.254/32"],
    "link-local IPv6": [f"{ROUTE}fe80::/64"],
    "multicast": [f"{ROUTE}239.0.0.0/8"],
    "multicast IPv6": [f"{ROUTE}ff02::/16"],
    "IPv4 in IPv6": [f"{ROUTE}::ffff:0:0/96"],
    "half of all": [f"{ROUTE}128.0.0.0/1"],
    "all of IPv6's internet": [f"{ROUTE}2000::/3"],
    "host bits": [f"{ROUTE}10.1.0.1/16"],
    "another form": [f"{ROUTE}10.1.0.0/255.255.0.0"],
    "another form of IPv6": [f"{ROUTE}2001:db8:0::/32"],
    "no length": [f"{ROUTE}10.1.0.0"],
    "no prefix": [f"{ROUTE}nowhere"],
    "unsorted": [f"{ROUTE}10.2.0.0/16", f"{ROUTE}10.1.0.0/16"],
    "IPv6 first": [f"{ROUTE}2001:db8::/32", f"{ROUTE}10.1.0.0/16"],
    "twice": [f"{ROUTE}10.1.0.0/16", f"{ROUTE}10.1.0.0/16"],
    "twice by number": [f"{ROUTE}10.1.0.0/16", f"{ROUTE}10.1.0.0/16?grant=1"],
    "number 0": [f"{ROUTE}10.1.0.0/16?grant=0"],
    "a number with a zero before it": [f"{ROUTE}10.1.0.0/16?grant=01"],
    "too great a number": [f"{ROUTE}10.1.0.0/16?grant=10000"],
    "half of IPv4": [f"{ROUTE}0.0.0.0/1"],
    "half of IPv6": [f"{ROUTE}8000::/1"],
    "another word": ["phantommesh:way:10.1.0.0/16"],
    "too many": [f"{ROUTE}10.{n}.0.0/16" for n in range(MAX_ROUTES + 1)],
}


@pytest.mark.parametrize("case", WRONG)
def test_routes_that_nobody_may_have_are_refused_though_an_authority_signed(case: str) -> None:
    with pytest.raises(TrustError):
        verify(forged(*WRONG[case]))
    with pytest.raises(RouteError):
        parse_grants(WRONG[case], OVERLAY)


def test_the_forger_makes_good_routes_too() -> None:
    """Else every refusal above could be for another reason than the one it tests."""
    assert verify(forged(f"{ROUTE}10.1.0.0/16", f"{ROUTE}2001:db8::/32?grant=2")) == (SITE, SIX)


def test_a_route_in_place_of_the_nodes_own_uri_is_refused() -> None:
    route = x509.UniformResourceIdentifier(f"{ROUTE}10.1.0.0/16")
    with pytest.raises(TrustError):
        verify(forge([*names()[:3], route]))
    with pytest.raises(TrustError):
        verify(forge([*names(), x509.DNSName("other.pm.internal")]))


def test_an_authority_of_ours_signs_none_of_these() -> None:
    for wrong in (Grant(ip_network("100.64.1.0/24")), Grant(ip_network("127.0.0.0/8"))):
        with pytest.raises(RouteError):
            certified(wrong)
    with pytest.raises(RouteError):
        certified(Grant(SIX), Grant(SITE))


def test_a_grant_that_is_withdrawn_stays_withdrawn_and_the_next_one_counts() -> None:
    revocations = Revocations(MESH.root)
    first = next_grant(NODE.node_id, SITE, revocations)
    assert first == Grant(SITE)
    for statement in revocations.sign(MESH.authority, first.id_for(NODE.node_id), NOW):
        assert revocations.add(statement, NOW)
    assert NODE.node_id not in revocations
    assert standing((first, Grant(LAB)), NODE.node_id, revocations) == (Grant(LAB),)
    second = next_grant(NODE.node_id, SITE, revocations)
    assert second == Grant(SITE, 1)
    assert standing((second,), NODE.node_id, revocations) == (second,)


def test_a_grant_of_one_member_is_not_anothers() -> None:
    assert Grant(SITE).id_for(NODE.node_id) != Grant(SITE).id_for(identity("other").node_id)
    assert Grant(SITE).id_for(NODE.node_id) != Grant(SITE, 1).id_for(NODE.node_id)
    assert Grant(SITE).id_for(NODE.node_id) != Grant(LAB).id_for(NODE.node_id)


def test_a_certificate_keeps_what_it_has_and_gets_more_while_there_is_room() -> None:
    held = (Grant(SITE, 2), Grant(SIX))
    assert merge(held, (Grant(LAB, 7), Grant(SITE, 7))) == (Grant(SITE, 2), Grant(LAB, 7), Grant(SIX))
    many = tuple(Grant(ip_network(f"10.{n}.0.0/16")) for n in range(10, 10 + MAX_ROUTES))
    assert merge(many, (Grant(LAB),)) == many


def test_what_an_operator_may_ask_for_is_checked_with_a_reason() -> None:
    check_prefixes((SITE, SIX), OVERLAY)
    check_prefixes((ip_network("0.0.0.0/0"), ip_network("::/0")), OVERLAY)  # an exit
    with pytest.raises(RouteError, match=r"0\.0\.0\.0/1 is too short"):
        check_prefixes((ip_network("0.0.0.0/1"),), OVERLAY)
    with pytest.raises(RouteError, match=r"100\.64\.3\.0/24 overlaps the overlay 100\.64\.0\.0/10"):
        check_prefixes((ip_network("100.64.3.0/24"),), OVERLAY)
    with pytest.raises(RouteError, match="at most"):
        check_prefixes([ip_network(f"10.{n}.0.0/16") for n in range(17)], OVERLAY)


networks = st.one_of(
    st.builds(lambda a, n: IPv4Network((a, n), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)),
    st.builds(
        lambda a, n: IPv6Network((a, n), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
    ),
)


@given(st.lists(st.builds(Grant, networks, st.integers(0, 9999)), max_size=20, unique_by=lambda g: g.prefix))
def test_what_is_read_is_what_was_written_or_is_refused(grants: list[Grant]) -> None:
    wanted = sorted(grants, key=lambda grant: order(grant.prefix))
    try:
        read = parse_grants([grant.uri for grant in wanted], OVERLAY)
    except RouteError:
        with pytest.raises(RouteError):
            check_prefixes((grant.prefix for grant in grants), OVERLAY)
    else:
        assert read == tuple(wanted)
        assert in_order(grant.prefix for grant in grants) == tuple(grant.prefix for grant in read)
        check_prefixes((grant.prefix for grant in grants), OVERLAY)


@settings(max_examples=60)
@given(mutated(certified(Grant(SITE, 3), Grant(FAR), Grant(SIX))))
def test_a_changed_certificate_with_routes_raises_nothing_but_a_trust_error(der: bytes) -> None:
    with contextlib.suppress(TrustError):
        verify(der)


@given(st.lists(st.text(max_size=60), max_size=3))
def test_no_text_raises_anything_but_a_route_error(uris: list[str]) -> None:
    for prefix in ("", ROUTE):
        try:
            parse_grants([prefix + uri for uri in uris], OVERLAY)
        except RouteError:
            pass
