# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a node may be reached: its own addresses, what witnesses agree on, and when the record follows."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control.messages import MAX_AGE_MS, Sighting
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.node import whereabouts
from phantommesh.node.whereabouts import (
    ASKED,
    EVERY,
    HINTS,
    LASTS,
    LONGEST,
    MAX_WITNESSES,
    QUIET,
    RECORDS,
    ROAMED,
    SOON,
    Mapped,
    Pace,
    Place,
    Rounds,
    Whereabouts,
    sighting,
)
from phantommesh.reachable import HostAddress, HostNetworks, Reach, Why
from phantommesh.records.candidate import Candidate, Kind, flaw
from phantommesh.records.record import MAX_CONTROL_ENDPOINTS
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import Endpoint, PeerState

PORTS = tuple(range(40_001, 40_001 + DIMENSIONS))
HOME = HostAddress(ip_address("192.168.1.5"), 2, "eth0")
PUBLIC = "203.0.113.7"


def member(number: int) -> NodeId:
    return NodeId(number.to_bytes(16))


def word(host: str = PUBLIC, port: int = 40_000, ports: tuple[int, ...] = PORTS, age_ms: int = 0) -> Sighting:
    return Sighting(f"{host}:{port}", age_ms, tuple(f"{host}:{one}" for one in ports))


def there() -> Whereabouts:
    found = Whereabouts(51_800)
    found.host([HOME], 0.0)
    return found


def seen(found: Whereabouts, now: float) -> list[Candidate]:
    return [one for one in found.candidates(now) if one.kind == Kind.SEEN]


# What gateways map.


def mapped(host: str = PUBLIC, port: int = 51_800, ports: tuple[int, ...] = PORTS) -> Mapped:
    return Mapped(HOME.address, Place(ip_address(host), port), ports)


def test_a_mapped_port_comes_first_and_needs_no_witness() -> None:
    found = there()
    found.mapped = (mapped(),)
    first, *rest = found.candidates(1.0)
    assert first == Candidate.of(Kind.MAPPED, ip_address(PUBLIC), 51_800, PORTS)
    assert [one.kind for one in rest] == [Kind.OWN]
    for number in (1, 2):
        found.told(member(number), word(port=51_800), 1.0, authority=False)
    assert [one.kind for one in found.candidates(1.0)] == [Kind.MAPPED, Kind.OWN]  # the same place


def test_other_ports_that_members_see_at_a_mapped_place_are_told_too() -> None:
    """A gateway that lists a mapping and forwards nothing leaves the node to its NAT's own ports."""
    found, own = there(), tuple(port + 1000 for port in PORTS)
    found.mapped = (mapped(),)
    for number in (1, 2):
        found.told(member(number), word(port=51_800, ports=own), 1.0, authority=False)
    first, second, _ = found.candidates(1.0)
    assert (first.kind, first.wg_ports) == (Kind.MAPPED, PORTS)
    assert (second.kind, second.wg_ports) == (Kind.SEEN, own)


@pytest.mark.parametrize("host", ["192.168.0.7", "100.64.0.9", "127.0.0.1", "0.0.0.0", "169.254.169.254"])
def test_a_gateway_behind_another_nat_opens_nothing(host: str) -> None:
    found = there()
    found.mapped = (mapped(host),)
    assert [one.kind for one in found.candidates(1.0)] == [Kind.OWN]


def test_what_members_see_comes_before_a_gateways_other_word() -> None:
    found = there()
    found.mapped = (mapped("198.51.100.1"),)
    for number in (1, 2):
        found.told(member(number), word(), 1.0, authority=False)
    assert [one.kind for one in found.candidates(1.0)] == [Kind.SEEN, Kind.MAPPED, Kind.OWN]


# What witnesses say.


def test_two_members_that_agree_are_believed_and_one_is_not() -> None:
    found = there()
    assert found.told(member(1), word(), 1.0, authority=False)
    assert found.told(member(1), word(), 1.5, authority=False)  # one voice, however often
    assert seen(found, 2.0) == []
    found.told(member(2), word(), 2.0, authority=False)
    assert seen(found, 2.0) == [Candidate.of(Kind.SEEN, ip_address(PUBLIC), 40_000, PORTS)]


def test_one_authority_is_enough() -> None:
    found = there()
    found.told(member(1), word(), 1.0, authority=True)
    assert [one.host for one in seen(found, 1.0)] == [PUBLIC]


def test_a_dimension_whose_port_differs_is_not_known() -> None:
    found = there()
    found.told(member(1), word(), 1.0, authority=False)
    found.told(member(2), word(ports=(50_000, *PORTS[1:])), 1.0, authority=False)
    (one,) = seen(found, 1.0)
    assert one.wg_ports == (0, *PORTS[1:])


def test_a_nat_with_a_port_for_each_destination_gives_an_address_and_no_candidate() -> None:
    found = there()
    for number in range(4):
        found.told(member(number), word(port=50_000 + number), 1.0, authority=False)
    assert seen(found, 1.0) == []
    assert found.public(1.0) == {ip_address(PUBLIC)}


def test_the_ports_of_another_address_do_not_count() -> None:
    found = there()
    lie = Sighting(f"{PUBLIC}:40000", 0, tuple(f"198.51.100.1:{port}" for port in PORTS))
    for number in (1, 2):
        found.told(member(number), lie, 1.0, authority=False)
    assert seen(found, 1.0)[0].wg_ports == (0,) * DIMENSIONS


def test_an_unasked_word_is_a_reason_to_ask_and_no_more() -> None:
    found = there()
    assert found.hinted(f"{PUBLIC}:40000", 1.0)
    assert seen(found, 1.0) == [] and found.public(1.0) == frozenset()
    for number in (1, 2):
        found.told(member(number), word(), 2.0, authority=False)
    assert not found.hinted(f"{PUBLIC}:40000", 3.0)  # known
    assert not found.hinted(f"{HOME.address}:51800", 3.0)  # our own
    assert found.hinted("203.0.113.99:40000", 3.0)
    assert found.hinted(f"{PUBLIC}:40001", 4.0)  # the NAT was started anew


@pytest.mark.parametrize("text", ["", "junk", "127.0.0.1:5", "name.example:1", "[::1]:9", "224.0.0.1:9"])
def test_an_unasked_word_that_is_no_place_is_counted(text: str) -> None:
    found = there()
    assert not found.hinted(text, 1.0)
    assert found.dropped == {"hint-malformed": 1}


def test_few_unasked_words_are_followed_however_many_come() -> None:
    """Any member can forge them in any member's name."""
    found = there()
    followed = sum(found.hinted(f"203.0.113.{i % 250 + 1}:40000", i / 10) for i in range(1000))
    assert followed <= HINTS[1] + HINTS[0] * 100 + 1
    assert found.dropped["hint-rate"] == 1000 - followed


def test_a_nat_with_a_port_for_each_destination_makes_no_news() -> None:
    found = there()
    for number in range(4):
        found.told(member(number), word(port=50_000 + number), 1.0, authority=False)
    assert not found.hinted(f"{PUBLIC}:50999", 2.0)
    assert found.hinted("203.0.113.99:50999", 2.0)


def test_a_sighting_ends() -> None:
    found = there()
    for number in (1, 2):
        found.told(member(number), word(), 1.0, authority=False)
    assert seen(found, 1.0 + LASTS)
    assert not seen(found, 1.1 + LASTS)


def test_what_was_seen_before_a_move_counts_no_more() -> None:
    found = there()
    for number in (1, 2):
        found.told(member(number), word(), 1.0, authority=False)
    assert found.host([HostAddress(ip_address("192.168.7.7"), 2, "eth0")], 10.0)
    assert not seen(found, 10.0)
    assert not found.told(member(1), word(age_ms=2000), 11.0, authority=True)
    assert found.told(member(1), word(age_ms=500), 11.0, authority=True)
    assert seen(found, 11.0)


def test_a_place_that_is_the_hosts_own_is_listed_once() -> None:
    found = Whereabouts(51_800)
    found.host([HostAddress(ip_address(PUBLIC), 2, "eth0")], 0.0)
    found.told(member(1), word(port=51_800), 1.0, authority=True)
    assert [one.kind for one in found.candidates(1.0)] == [Kind.OWN]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (Sighting("nonsense"), "sighting-malformed"),
        (Sighting("example.net:1"), "sighting-malformed"),
        (Sighting(f"{PUBLIC}:1", 0, ("x",)), "sighting-malformed"),
        (Sighting("127.0.0.1:51800"), "sighting-special"),
        (Sighting("169.254.169.254:80"), "sighting-special"),
        (Sighting("[fe80::1]:80"), "sighting-special"),
    ],
)
def test_what_is_no_sighting_is_counted(said: Sighting, why: str) -> None:
    found = there()
    assert not found.told(member(1), said, 1.0, authority=True)
    assert found.dropped == {why: 1}
    assert not seen(found, 1.0)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.builds(
                Sighting,
                st.one_of(st.text(max_size=64), st.just(f"{PUBLIC}:40000"), st.just("[2001:db8::1]:7")),
                st.integers(0, MAX_AGE_MS),
                st.lists(st.one_of(st.just(f"{PUBLIC}:1"), st.text(max_size=64)), max_size=7).map(tuple),
            ),
            st.booleans(),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_members_say_the_record_stays_good(
    said: list[tuple[int, Sighting, bool, bool]],
) -> None:
    found, now = there(), 0.0
    for number, one, authority, moves in said:
        now += 7.0
        if moves:
            found.host([HostAddress(ip_address(f"10.0.0.{number}"), number, "eth0")], now)
        found.told(member(number), one, now, authority=authority)
        assert len(found.witnesses(now)) <= MAX_WITNESSES
        assert flaw(found.candidates(now)) == ""


def test_forgotten_members_count_no_more() -> None:
    found = there()
    for number in (1, 2):
        found.told(member(number), word(), 1.0, authority=False)
    found.retain(lambda one: one == member(1))
    assert not seen(found, 1.0)


# The host's own.


def test_each_interface_gives_one_endpoint_and_all_addresses_are_candidates() -> None:
    found = Whereabouts(51_800)
    found.host(
        [
            HostAddress(ip_address("2001:470::7"), 3, "wlan0"),
            HostAddress(ip_address("fd12::1"), 2, "eth0"),
            HostAddress(ip_address("192.168.1.5"), 2, "eth0"),
            HostAddress(ip_address("10.0.0.9"), 3, "wlan0"),
        ],
        0.0,
    )
    assert found.endpoints() == ("192.168.1.5:51800", "[2001:470::7]:51800")
    assert [(one.host, one.uplink) for one in found.candidates(0.0)] == [
        ("192.168.1.5", 0), ("fd12::1", 0), ("2001:470::7", 1), ("10.0.0.9", 1),
    ]  # fmt: skip


def test_a_host_with_many_addresses_stays_within_the_records_bounds() -> None:
    found = Whereabouts(51_800)
    found.host([HostAddress(IPv4Address(0x0A000000 + i), i, f"e{i}") for i in range(300)], 0.0)
    assert len(found.endpoints()) == MAX_CONTROL_ENDPOINTS
    assert flaw(found.candidates(0.0)) == ""


def test_the_order_in_which_addresses_are_read_changes_nothing() -> None:
    both = [HOME, HostAddress(ip_address("10.0.0.9"), 3, "wlan0")]
    found = Whereabouts(51_800)
    assert found.host(both, 0.0)
    assert not found.host(both[::-1], 1.0)


OVERLAY = ip_network("100.64.0.0/10")
BRIDGE = HostAddress(ip_address("172.17.0.1"), 5, "docker0", "bridge")


def reach(**given: object) -> Reach:
    host = HostNetworks(
        connected=frozenset({(ip_network("192.168.1.0/24"), 2), (ip_network("172.17.0.0/16"), 5)}),
        **given,  # type: ignore[arg-type]
    )
    return Reach((OVERLAY,), host)


def test_addresses_of_uplinks_are_offered_and_those_of_containers_are_not() -> None:
    assert reach(uplinks=frozenset({2})).offers([BRIDGE, HOME]) == [HOME]


def test_without_a_default_route_bridges_are_left_out() -> None:
    assert reach().offers([BRIDGE, HOME]) == [HOME]


def test_a_bridge_with_the_default_route_is_offered() -> None:
    assert reach(uplinks=frozenset({5})).offers([BRIDGE, HOME]) == [BRIDGE]


def test_the_network_of_a_seed_counts_beside_the_uplinks() -> None:
    seeded = Reach(
        (OVERLAY,), reach(uplinks=frozenset({9})).host, told=frozenset({ip_address("192.168.1.77")})
    )
    assert seeded.offers([BRIDGE, HOME]) == [HOME]


def test_the_next_address_in_the_network_of_an_endpoint_counts() -> None:
    """This host no longer has the endpoint that its operator named, and a default route by another link."""
    named = frozenset({ip_address("192.168.1.77")})
    moved = Reach((OVERLAY,), reach(uplinks=frozenset({5})).host, home=named)
    assert moved.offers([BRIDGE, HOME]) == [BRIDGE, HOME]


UPLINKS = [HostAddress(ip_address(f"10.201.{i}.2"), 10 + i, f"up{i}") for i in range(3)]


def with_uplinks(*there: int, default: frozenset[int] = frozenset()) -> Reach:
    """A host that has these of three uplinks, and was found at some of them."""
    connected = frozenset((ip_network(f"10.201.{i}.0/24"), 10 + i) for i in there)
    return Reach((OVERLAY,), HostNetworks(connected=connected, uplinks=default))


def test_an_uplink_without_a_default_route_that_comes_back_is_offered_again() -> None:
    found = frozenset(one.address for one in UPLINKS[1:])
    back = replace(with_uplinks(0, 1, 2), found=found)
    assert back.offers(UPLINKS) == UPLINKS


def test_a_network_at_which_this_host_was_counts_beside_the_default_route() -> None:
    both = replace(with_uplinks(0, 1, 2, default=frozenset({12})), found=frozenset({UPLINKS[0].address}))
    assert both.offers(UPLINKS) == [UPLINKS[0], UPLINKS[2]]


@pytest.mark.parametrize(
    "bad", ["127.0.0.1", "169.254.3.4", "fe80::1", "100.64.0.9", "::ffff:100.64.0.9", "0.0.0.0", "::1"]
)
def test_addresses_that_no_other_may_use_are_not_offered(bad: str) -> None:
    one = HostAddress(ip_address(bad), 2, "eth0")
    assert reach(uplinks=frozenset({2})).offers([one, HOME]) == [HOME]


@pytest.mark.parametrize("bad", ["192.0.0.1", "192.0.0.4"])
def test_the_ipv4_of_a_host_on_ipv6_alone_is_not_offered(bad: str) -> None:
    """Each host with a translator (464XLAT) has the same, on an interface with the default route of IPv4."""
    clat = HostAddress(ip_address(bad), 7, "clat", "tun")
    assert reach(uplinks=frozenset({2, 7})).offers([clat, HOME]) == [HOME]
    assert reach().refuses(bad, seen=True) is Why.TRANSLATOR


# A witness's side.


def state(endpoint: Endpoint | None, handshake: float) -> PeerState:
    return PeerState(b"k" * 32, Secret(b"p" * 32), endpoint, frozenset({IPv4Network("100.64.0.1/32")}),
                     last_handshake=handshake)  # fmt: skip


def test_a_witness_says_the_latest_place_and_the_fresh_endpoints() -> None:
    at = Endpoint(PUBLIC, 40_001)
    answer = sighting(
        [(Address("192.0.2.1", 51_800), 5.0), (Address(PUBLIC, 40_000), 9.5),
         (Address("192.0.2.9", 1, "tcp"), 10.0)],
        [state(at, 1000.0), state(at, 1000.0 - ROAMED - 1), state(None, 1000.0), state(at, 0.0), None],
        10.0, 1000.0,
    )  # fmt: skip
    assert answer == Sighting(f"{PUBLIC}:40000", 500, (f"{PUBLIC}:40001", "", "", "", ""))


def test_a_witness_that_saw_nothing_says_so() -> None:
    assert sighting([], [None] * 7, 10.0, 1000.0) == Sighting("", 0, ("",) * 7)
    long_ago = [(Address(PUBLIC, 40_000), 0.0)]
    assert sighting(long_ago, [], MAX_AGE_MS / 1000 + 1, 0.0) == Sighting()


# Whom to ask, and when.


def test_an_authority_and_outsiders_are_asked_first() -> None:
    found = there()
    members = [member(i) for i in range(30)]
    found.told(member(7), word(), 1.0, authority=False)
    for number in range(8, 12):  # of the same network: they see nothing new
        found.told(member(number), word("192.168.1.5", 51_800), 1.0, authority=False)
    for seed in range(20):
        asked = found.ask(members, [member(3), member(99)], 1.0, Random(seed))
        assert asked[:2] == [member(3), member(7)]
        assert len(asked) == len(set(asked)) == ASKED


def test_few_members_are_all_asked() -> None:
    assert there().ask([member(1)], [member(1)], 0.0, Random(1)) == [member(1)]
    assert there().ask([], [member(1)], 0.0, Random(1)) == []


def test_witnesses_are_asked_soon_after_a_change_and_then_seldom() -> None:
    rounds, now, asked = Rounds(0.0), 0.0, []
    for _ in range(len(SOON) + 2):
        now = rounds.due
        asked.append(now)
        rounds.asked(now, now)
    assert asked == [*SOON, SOON[-1] + EVERY, SOON[-1] + 2 * EVERY]
    rounds.again(500.0)
    rounds.asked(499.0, 501.0)  # it began before
    assert rounds.due == 500.0 + SOON[0]
    rounds.asked(500.2, 500.3)
    rounds.soon(500.3)
    assert rounds.due == 500.3 + SOON[0]


def test_a_change_is_told_when_it_is_quiet() -> None:
    pace = Pace(0.0)
    assert pace.due(0.0) == inf
    assert not pace.take(0.0)
    pace.changed(1.0)
    assert pace.due(1.0) == 1.0 + QUIET
    assert not pace.take(1.0)
    assert pace.take(1.0 + QUIET)
    assert pace.due(2.0) == inf


@given(st.lists(st.floats(0.0, 0.5), min_size=1, max_size=200))
def test_the_first_of_many_changes_waits_no_longer_than_the_longest(gaps: list[float]) -> None:
    pace, now, told, first = Pace(0.0), 0.0, [], 0.0
    for gap in gaps:
        now += gap
        pace.changed(now)
        if pace.take(now):
            told.append(now)
    first = gaps[0]
    if now >= first + LONGEST:
        # The next change after the deadline takes it at the latest.
        assert told
        assert told[0] <= first + LONGEST + 0.5
    assert len(told) <= RECORDS[1] + now * RECORDS[0] + 1


def test_flapping_costs_a_bounded_number_of_records() -> None:
    pace, now, told = Pace(0.0), 0.0, 0
    while now < 600.0:
        pace.changed(now)
        now = max(now + 0.05, min(pace.due(now), now + 0.05))
        told += pace.take(now)
    assert told <= RECORDS[1] + 600 * RECORDS[0] + 1


def test_places_compare() -> None:
    assert Place(ip_address("10.0.0.1"), 2) < Place(ip_address("10.0.0.2"), 1)
    assert whereabouts.ENOUGH == whereabouts.AUTHORITY
