# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an address leads that is no member's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.overlay.beyond import beyond
from phantommesh.overlay.prefixes import HostRange
from phantommesh.routable import EXITS
from phantommesh.routing.leading import Lead, Prefixes, lead, read_address
from phantommesh.routing.prefixes import Conflict, Offer, Taken

OVERLAY = (IPv4Network("100.64.0.0/10"), ip_network("fd00::/48"))
WIDE, LONG, OTHER = (IPv4Network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "203.0.113.0/24"))
A, B = b"a" * 16, b"b" * 16
HERE = ip_address("10.1.2.3")
NONE = Prefixes(OVERLAY)


def put(known: Prefixes, *host: HostRange, held: tuple[IPv4Network, ...] = ()) -> Prefixes:
    """The same once the host's kernel was told."""
    prefixes = [*(one.prefix for one in known.taken), *held]
    return replace(known, plan=beyond(prefixes, known.carried, host))


@pytest.mark.parametrize("text", ["10.0.0.0/8", "nas", "", "fe80::1%eth0", "1", "010.0.0.1", "::1::"])
def test_what_is_no_address(text: str) -> None:
    assert read_address(text) is None


def test_an_ipv4_address_in_ipv6_is_that_address() -> None:
    assert read_address("::ffff:10.1.2.3") == HERE == read_address("10.1.2.3")
    assert read_address("fd00::1") == ip_address("fd00::1")


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    read_address(text)


def test_an_address_in_nothing_leads_elsewhere_and_one_of_the_overlay_is_nobodys() -> None:
    assert lead(HERE, NONE) == Lead("elsewhere")
    assert lead(ip_address("100.64.9.9"), NONE) == lead(ip_address("fd00::9"), NONE) == Lead("unclaimed")


def test_the_longest_prefix_that_is_taken_decides_whether_it_is_carried_or_not() -> None:
    known = replace(NONE, taken=(Taken(WIDE, (A,)), Taken(LONG, (B, A))), carried={WIDE: A, LONG: A})
    for each in (known, put(known)):
        assert lead(HERE, each) == Lead("carried", LONG, (B, A), A)
        assert lead(ip_address("10.9.9.9"), each) == Lead("carried", WIDE, (A,), A)
    idle = replace(known, carried={WIDE: A})
    for each in (idle, put(idle)):
        assert lead(HERE, each) == Lead("refused", LONG, (B, A))


def test_a_part_that_the_host_has_itself_stays_the_hosts() -> None:
    known = replace(NONE, taken=(Taken(WIDE, (A,)),), carried={WIDE: A})
    here = put(known, HostRange("route", IPv4Network("10.1.2.0/24"), "eth0"))
    assert lead(HERE, here) == Lead("host", WIDE, (A,))
    assert lead(ip_address("10.1.3.3"), here).leads == "carried"


def test_what_was_taken_and_nobody_offers_is_refused() -> None:
    assert lead(HERE, put(NONE, held=(LONG,))) == Lead("refused", LONG, stale=True)
    known = replace(NONE, taken=(Taken(WIDE, (A,)),), carried={WIDE: A})
    assert lead(HERE, put(known, held=(LONG,))) == Lead("refused", LONG, stale=True)
    assert lead(ip_address("10.9.9.9"), put(known, held=(LONG,))).leads == "carried"
    longer = replace(NONE, taken=(Taken(LONG, (A,)),), carried={LONG: A})
    assert lead(HERE, put(longer, held=(WIDE,))).leads == "carried"


def test_what_comes_nearest_where_nothing_is_taken() -> None:
    claimed = replace(NONE, claims=(Offer(LONG, A),))
    asked = replace(claimed, asked=(Offer(LONG, B),))
    offered = replace(asked, offers=(Offer(WIDE, A), Offer(LONG, B), Offer(LONG, A)))
    conflict = replace(offered, conflicts=(Conflict(LONG, (B,), "why"),))
    assert lead(HERE, claimed) == Lead("uncertified", LONG, (A,))
    assert lead(HERE, asked) == Lead("asked", LONG, (B,))
    assert lead(HERE, offered) == Lead("offered", LONG, (B, A))
    assert lead(HERE, conflict) == Lead("conflict", LONG, (B,), why="why")
    assert lead(HERE, replace(offered, own=(LONG,))) == Lead("own", LONG)
    assert lead(ip_address("203.0.113.9"), conflict) == Lead("elsewhere")


def test_a_longer_prefix_of_ones_own_or_in_conflict_is_not_the_takers() -> None:
    known = replace(NONE, taken=(Taken(WIDE, (A,)),), carried={WIDE: A})
    assert lead(HERE, replace(known, own=(LONG,))) == Lead("own", LONG)
    assert lead(HERE, replace(known, conflicts=(Conflict(LONG, (B,), "why"),))).leads == "conflict"
    assert lead(HERE, replace(known, own=(IPv4Network("10.0.0.0/7"),))).leads == "carried"


def test_an_address_of_ones_own_prefix_with_a_site_is_told_as_it_is_there() -> None:
    there = ip_network("172.16.0.0/16")
    known = replace(NONE, own=(LONG,), sites={LONG: there})
    assert "goes to 172.16.2.3 of 172.16.0.0/16" in lead(HERE, known).why


def test_all_that_leads_nowhere_else_leaves_by_the_exit() -> None:
    far, lan = ip_address("9.9.9.9"), IPv4Network("192.168.7.0/24")
    known = replace(
        NONE, taken=[Taken(EXITS[0], (A,)), Taken(LONG, (B,))], carried={EXITS[0]: A, LONG: B},
    )  # fmt: skip
    known = replace(known, plan=beyond([*EXITS, LONG], known.carried, (), lan=(lan,)))
    assert lead(far, known) == Lead("carried", EXITS[0], (A,), A)
    assert lead(HERE, known) == Lead("carried", LONG, (B,), B)
    assert lead(lan[7], known).leads == "host"
    assert lead(ip_address("2001:db8::1"), known) == Lead("refused", EXITS[1], stale=True)
    assert lead(far, replace(known, carried={})) == Lead("refused", EXITS[0], (A,))
    assert lead(far, replace(NONE, offers=[Offer(EXITS[0], A)])) == Lead("offered", EXITS[0], (A,))
