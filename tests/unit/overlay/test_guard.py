# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard's rules as text. What they do to packets: tests/attacks."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from phantommesh.overlay.guard import Drop, Guard, read_drops, render, render_arp

GUARD = Guard(
    "pm",
    tuple(f"pm{i}" for i in range(7)),
    (IPv4Address("100.64.0.1"), IPv6Address("fd00::1")),
    (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48")),
    51800,
    tuple(range(51820, 51827)),
)


def chains(text: str) -> dict[str, list[str]]:
    found = re.findall(r"  chain (\w+) \{\n(.*?)\n  \}", text, re.DOTALL)
    return {name: [line.strip() for line in body.splitlines()] for name, body in found}


def test_each_reason_is_counted_in_one_table_and_drops_without_its_counter() -> None:
    both = chains(render(GUARD)) | chains(render_arp(GUARD))
    for drop in Drop:
        assert both[f"drop_{drop.name.lower()}"][-1] == "drop"
    assert {f"drop_{drop.name.lower()}" for drop in Drop} == {
        name for name in both if name.startswith("drop_")
    }


def test_every_way_that_is_taken_exists() -> None:
    for text in (render(GUARD), render_arp(GUARD), render(replace(GUARD, forward=("docker0",)))):
        there = chains(text)
        assert {
            name
            for rules in there.values()
            for rule in rules
            for name in re.findall(r"(?:goto|jump) (\w+)", rule)
        } <= (there.keys())


def test_connections_are_tracked_only_for_machines_behind_this_one() -> None:
    """Connection tracking costs every packet of the host, the mesh's or not."""
    assert " ct " not in render(GUARD)
    assert " ct " in render(replace(GUARD, forward=("docker0",)))


def test_segments_of_machines_behind_this_one_fit_the_route() -> None:
    assert "clamping" not in chains(render(GUARD))
    hook, *rules = chains(render(replace(GUARD, forward=("docker0",))))["clamping"]
    assert "hook forward" in hook
    assert [rule.partition(" ")[0] for rule in rules] == ["oifname", "iifname"]
    assert all('"pm", "pm0"' in rule and rule.endswith("maxseg size set rt mtu") for rule in rules)


def test_segments_fit_ways_of_which_no_route_over_ipv6_can_say_what_they_carry() -> None:
    short = (IPv6Address("fd00::2"), 1156), (IPv6Address("fd00::3"), 1140)
    assert chains(render(replace(GUARD, short=short))) == chains(render(GUARD))
    rules = chains(render(replace(GUARD, forward=("docker0",), short=short)))["clamping"][3:]
    assert [rule.partition(" ")[0] for rule in rules] == ["oifname", "iifname"]
    sizes = "map { fd00::2 : 1156, fd00::3 : 1140 }"
    assert [rule.partition("size set ")[2] for rule in rules] == [
        f"ip6 {end} {sizes}" for end in ("daddr", "saddr")
    ]


def test_all_networks_are_guarded_in_both_directions() -> None:
    narrow = replace(GUARD, networks=(IPv4Network("100.64.0.1/32"), IPv4Network("100.64.0.2/32")))
    there = chains(render(narrow))
    both = "{ 100.64.0.1/32, 100.64.0.2/32 }"
    assert f"ip saddr {both} goto drop_foreign" in there["arriving"]
    assert f"ip daddr {both} goto drop_foreign" in there["arriving"]
    assert f"ip daddr {both} goto drop_clear" in there["leaving"]
    assert not any("ip6" in rule for name in ("arriving", "leaving") for rule in there[name])


def test_drops_have_names() -> None:
    assert read_drops({1: (3, 200), 5: (1, 60), 99: (7, 7)}) == {"guard-foreign": 3, "guard-nested": 1}


def test_the_ports_of_the_underlay_are_not_reached_through_the_mesh() -> None:
    inside = chains(render(GUARD))["inside"]
    assert (
        inside[0] == "udp dport { 51800, 51820, 51821, 51822, 51823, 51824, 51825, 51826 } goto drop_nested"
    )
    assert inside[1] == "tcp dport 51800 tcp flags & (syn | ack) == syn goto drop_nested"


def test_a_host_without_a_network_of_one_family_has_rules_that_load() -> None:
    assert "arp daddr" not in render_arp(replace(GUARD, networks=(IPv6Network("fd00::/48"),)))
