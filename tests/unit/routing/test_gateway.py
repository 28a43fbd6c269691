# SPDX-License-Identifier: GPL-3.0-or-later
"""A router's rules as text. What they do to packets: tests/lab."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from phantommesh.nursery.host.leftovers import device_of
from phantommesh.routable import EXITS
from phantommesh.routing.gateway import SURELY, Gateway, Passing, read_drops, render, table_name

GATEWAY = Gateway(
    "pm",
    ("pm", "pm0"),
    (ip_network("100.64.0.0/10"), ip_network("fd00::/48")),
    (ip_network("10.1.0.0/16"),),
    masquerade=True,
)


def test_only_what_leaves_for_its_prefixes_is_masqueraded() -> None:
    (rule,) = [line.strip() for line in render(GATEWAY).splitlines() if line.endswith("masquerade")]
    assert rule == (
        'oifname != { "pm", "pm0" } ip saddr { 100.64.0.0/10 } ip daddr { 10.1.0.0/16 } masquerade'
    )


def test_an_exit_masquerades_all_that_leaves() -> None:
    rules = [r.strip() for r in render(replace(GATEWAY, routes=EXITS)).splitlines() if "masquerade" in r]
    outward = 'oifname != { "pm", "pm0" }'
    assert rules == [
        f"{outward} ip saddr {{ 100.64.0.0/10 }} masquerade",
        f"{outward} ip6 saddr {{ fd00::/48 }} masquerade",
    ]


def test_without_masquerade_nothing_is() -> None:
    assert "masquerade" not in render(replace(GATEWAY, masquerade=False))


def test_an_interface_that_was_opened_forwards_to_the_mesh_alone() -> None:
    assert "iifname @opened" not in render(GATEWAY)
    rules = [r.strip() for r in render(replace(GATEWAY, opened=("lan0",))).splitlines() if "@opened" in r]
    assert rules[0] == 'iifname @opened oifname { "pm", "pm0" } accept'
    assert rules[-1] == "iifname @opened goto drop_stray"
    assert 'elements = { "lan0" }' in render(replace(GATEWAY, opened=("lan0",)))


def test_drops_are_counted_under_a_name() -> None:
    assert read_drops({1: (7, 420)}) == {"routes-stray": 7}
    assert read_drops({}) == {}


def test_the_table_is_told_from_others_that_are_left() -> None:
    assert device_of(table_name("pm")) == "pm"


HERE, PART, THERE = (ip_network(text) for text in ("10.77.0.0/16", "10.77.9.0/24", "172.16.0.0/16"))
SIX, SITE6 = ip_network("fd77:1::/64"), ip_network("fd01:1::/64")


def rules(gateway: Gateway, chain: str) -> list[str]:
    lines = [line.strip() for line in render(gateway).splitlines()]
    start = lines.index(f"chain {chain} {{") + 2
    return lines[start : lines.index("}", start)]


def test_a_prefix_with_a_site_is_translated_for_members_alone() -> None:
    assert "dnat" not in render(GATEWAY)
    gateway = replace(GATEWAY, routes=(HERE, SIX), sites={HERE: THERE, SIX: SITE6})
    assert rules(gateway, "translating") == [
        (
            'iifname { "pm", "pm0" } ip6 saddr { fd00::/48 } '
            "dnat ip6 prefix to ip6 daddr map { fd77:1::/64 : fd01:1::/64 }"
        ),
        (
            'iifname { "pm", "pm0" } ip saddr { 100.64.0.0/10 } '
            "dnat ip prefix to ip daddr map { 10.77.0.0/16 : 172.16.0.0/16 }"
        ),
    ]
    leaving = rules(gateway, "leaving")
    assert leaving[0].endswith("ip daddr { 172.16.0.0/16 } masquerade")
    assert leaving[1].endswith("ip6 daddr { fd01:1::/64 } masquerade")


def test_a_longer_prefix_in_one_that_is_translated_has_its_turn_first() -> None:
    for sites, first in (
        ({HERE: THERE}, f'iifname {{ "pm", "pm0" }} ip daddr {PART} accept'),
        ({HERE: THERE, PART: ip_network("192.168.9.0/24")}, f"map {{ {PART} : 192.168.9.0/24 }}"),
    ):
        one, other = rules(replace(GATEWAY, routes=(HERE, PART), sites=sites), "translating")
        assert one.endswith(first) and str(THERE) in other


def test_a_site_of_a_prefix_that_is_not_routed_is_not_translated() -> None:
    assert render(replace(GATEWAY, sites={HERE: THERE})) == render(GATEWAY)


def test_packets_of_a_direction_that_come_and_never_leave_are_blocked() -> None:
    passing = Passing()

    def count(*packets: int) -> bool:
        there, back, gone, returned = ((number, 84 * number) for number in packets)
        passing.count({b"\0": there, b"\1": back}, {b"\0": gone, b"\1": returned})
        return passing.blocked

    assert not count(5, 5, 5, 5)
    assert not count(5 + SURELY - 1, 5, 5, 5)
    assert count(5 + SURELY, 5, 5, 5)
    assert not count(6 + SURELY, 5, 6, 5)  # one has left
    assert count(30, 5 + SURELY, 30, 5)  # only answers are dropped
    passing.restart()  # another program has flushed the rules
    assert passing.blocked
    assert not count(1, 1, 1, 1)
