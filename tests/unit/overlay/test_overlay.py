# SPDX-License-Identifier: GPL-3.0-or-later
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.overlay.prefixes import (
    MAX_SPARED,
    Address,
    Closing,
    HostRange,
    Kind,
    OverlapError,
    check_range,
    plan,
    refusal,
)
from phantommesh.routable import overlap

FOUR, SIX = IPv4Network("100.64.0.0/10"), IPv6Network("fd00:1::/48")
MEMBERS: dict[Address, str] = {ip_address("100.64.9.9"): "alpha", ip_address("fd00:1::9"): "alpha"}


def own(network: str, kind: Kind = "route", interface: str = "eth0") -> HostRange:
    return HostRange(kind, ip_network(network), interface)


def test_a_host_of_another_range_routes_the_whole_overlay() -> None:
    found = plan((FOUR, SIX), MEMBERS, [])
    assert found.routed == (FOUR, SIX)
    assert found.closed == {
        Closing(kind, network) for kind in ("route", "overlay", "fence") for network in (FOUR, SIX)
    }
    assert refusal(found) is None


def test_a_range_inside_the_overlay_is_left_to_the_host() -> None:
    host = [own("100.64.5.0/24"), own("100.64.5.7/32", "address"), own("100.64.5.1/32", "gateway")]
    found = plan((FOUR, SIX), MEMBERS, host)
    assert refusal(found) is None
    assert set(found.avoided) == set(host)
    for kept in ("100.64.5.1", "100.64.5.255"):
        assert not any(ip_address(kept) in prefix for prefix in found.routed)
    for routed in ("100.64.4.255", "100.64.6.0", "100.127.255.255", "100.64.9.9", "fd00:1::ffff"):
        assert sum(ip_address(routed) in prefix for prefix in found.routed) == 1
    assert len(found.routed) == 14 + 1
    assert Closing("spare", IPv4Network("100.64.5.0/24")) in found.closed
    assert Closing("fence", FOUR) in found.closed


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (
            own("100.64.9.9/32", "address"),
            "this host's address 100.64.9.9 (eth0) is the overlay address of alpha",
        ),
        (own("100.64.9.9/32"), "this host's route 100.64.9.9/32 (eth0) takes the overlay address of alpha"),
        (
            own("100.64.9.0/24", interface="tailscale0"),
            (
                "this host's route 100.64.9.0/24 (tailscale0) overlaps the overlay 100.64.0.0/10 where it "
                "has alpha (100.64.9.9)"
            ),
        ),
        (
            own("100.0.0.0/8"),
            (
                "this host's route 100.0.0.0/8 (eth0) overlaps the overlay 100.64.0.0/10 where it has "
                "alpha (100.64.9.9)"
            ),
        ),
        (
            own("fd00::/8", interface=""),
            "this host's route fd00::/8 overlaps the overlay fd00:1::/48 where it has alpha (fd00:1::9)",
        ),
    ],
)
def test_what_holds_a_members_address_is_named(host: HostRange, said: str) -> None:
    found = plan((FOUR, SIX), MEMBERS, [host])
    assert found.conflicts == (said,)
    error = refusal(found)
    assert isinstance(error, OverlapError)
    assert str(error) == said
    assert "--cidr" in error.fix
    # Should it appear while the node runs, the members' addresses are routed and closed all the same.
    for address in MEMBERS:
        assert any(address in prefix for prefix in found.routed)
        assert any(c.kind == "route" and address in c.network for c in found.closed)


def test_a_range_around_the_whole_overlay_is_refused_without_members_too() -> None:
    assert plan((FOUR,), {}, [own("100.64.0.0/10")]).conflicts
    assert not any(c.kind == "fence" for c in plan((FOUR,), MEMBERS, [own("100.0.0.0/8")]).closed)


def test_very_many_ranges_are_refused_and_members_stay_routed() -> None:
    host = [own(f"100.{64 + i % 60}.{i // 60}.1/32") for i in range(400)]
    found = plan((FOUR,), MEMBERS, host)
    assert any("more ranges" in sentence for sentence in found.conflicts)
    assert found.routed == (IPv4Network("100.64.9.9"),)


Range = st.builds(
    lambda bits, length: IPv4Network((int(FOUR.network_address) | bits & 0x3FFFFF, length), strict=False),
    st.integers(0, 2**22 - 1),
    st.integers(8, 32),
)


@given(
    st.lists(Range, max_size=30),
    st.lists(st.integers(0, 2**22 - 1), max_size=8),
    st.integers(0, 2**22 - 1),
)
def test_every_address_is_the_hosts_or_the_overlays(
    ranges: list[IPv4Network], members: list[int], probed: int
) -> None:
    named: dict[Address, str] = {FOUR[number]: str(number) for number in members}
    found = plan((FOUR,), named, [HostRange("route", network, "eth0") for network in ranges])
    assert all(network.subnet_of(FOUR) for network in found.routed if isinstance(network, IPv4Network))
    assert {c.network for c in found.closed if c.kind == "route"} == set(found.routed)
    assert sum(c.kind == "spare" for c in found.closed) <= MAX_SPARED
    for address in (*named, FOUR[probed]):
        routed = sum(address in network for network in found.routed)
        hosts = any(address in network for network in ranges)
        assert routed == (address in named or not hosts)
    in_the_way = any(a in network for a in named for network in ranges)
    swallowed = any(FOUR.subnet_of(network) for network in ranges)
    assert bool(found.conflicts) == (in_the_way or swallowed)


@given(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), st.integers(0, 128))
def test_families_never_overlap(four: tuple[int, int], length: int) -> None:
    assert not overlap(IPv4Network(four, strict=False), IPv6Network((four[0], length), strict=False))


def test_the_certificate_decides_on_the_range() -> None:
    check_range("100.64.0.0/10", FOUR)
    with pytest.raises(OverlapError, match=r"its certificate says 100\.64\.0\.0/10") as error:
        check_range("10.9.0.0/16", FOUR)
    assert "init --mesh NAME --cidr 10.9.0.0/16" in error.value.fix
