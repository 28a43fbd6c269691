# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard's rules as text. What they do to packets: tests/attacks."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from phantommesh.overlay.beyond import beyond
from phantommesh.overlay.guard import Drop, Guard, Visitor, read_drops, render, render_arp
from phantommesh.overlay.prefixes import HostRange

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


def test_peers_in_quarantine_exchange_probes_and_nothing_else() -> None:
    assert "quarantine" not in chains(render(GUARD))
    apart = (IPv4Address("100.64.0.2"), IPv6Address("fd00::2"), IPv6Address("fd00::3"))
    there = chains(render(replace(GUARD, quarantined=apart, probes=51801)))
    assert there["quarantine"] == [
        "udp sport 51801 udp dport 51801 return",
        "goto drop_quarantined",
    ]
    for chain, end in (("inside", "saddr"), ("entering", "daddr")):
        assert f"ip {end} {{ 100.64.0.2 }} jump quarantine" in there[chain]
        assert f"ip6 {end} {{ fd00::2, fd00::3 }} jump quarantine" in there[chain]
    # Before anything of theirs is accepted.
    first = next(i for i, rule in enumerate(there["inside"]) if "accept" in rule)
    assert max(i for i, rule in enumerate(there["inside"]) if "quarantine" in rule) < first


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


WIDE, LAN = IPv4Network("10.0.0.0/8"), IPv4Network("10.1.0.0/16")


def test_a_prefix_that_is_taken_comes_and_goes_by_the_mesh_alone() -> None:
    there = chains(render(replace(GUARD, beyond=(LAN,))))
    assert "ip saddr { 10.1.0.0/16 } goto outside" in there["arriving"]
    assert "ip daddr { 10.1.0.0/16 } goto drop_foreign" in there["arriving"]
    assert there["leaving"][-1] == "ip daddr { 10.1.0.0/16 } goto drop_clear"
    # What carries the mesh, and nothing else of a member's or a neighbour's.
    exempt = [rule for rule in there["leaving"] if rule.endswith("accept") and "lo" not in rule][1:]
    assert exempt and all(rule.startswith("meta mark & 0xff000000 == 0x50000000") for rule in exempt)
    assert there["outside"][-1] == "goto drop_foreign"
    assert there["outside"][:2] == [
        f"{header} daddr {net} goto drop_foreign"
        for header, net in (("ip", "{ 100.64.0.0/10 }"), ("ip6", "{ fd00::/48 }"))
    ]


def test_a_router_does_not_speak_for_the_hosts_own_part_of_its_prefix() -> None:
    """WireGuard lets the router of 10.0.0.0/8 send as anybody there, and this host may live in a part."""
    own, six = IPv4Network("10.5.0.0/24"), IPv6Network("fd77::/64")
    taken = beyond([WIDE, six], {WIDE: b"r" * 16}, [HostRange("route", own, "eth0")]).closed
    assert not any(own.overlaps(network) for network in taken if network.version == 4)
    inside = chains(render(replace(GUARD, beyond=taken)))["inside"]
    four, six_rule = [rule for rule in inside if "saddr !=" in rule]
    assert four == (
        f"ip saddr != {{ 100.64.0.0/10, {', '.join(str(n) for n in taken if n.version == 4)} }} "
        "goto drop_beyond"
    )
    assert six_rule == "ip6 saddr != { fd00::/48, fd77::/64 } goto drop_beyond"
    assert inside.index(six_rule) < inside.index("ip daddr 100.64.0.1 accept")
    assert not any("saddr !=" in rule for rule in chains(render(GUARD))["inside"])


def test_without_prefixes_beyond_the_mesh_nothing_is_another_than_before() -> None:
    there = chains(render(GUARD))
    assert "outside" not in there and "clamping" not in there
    assert not any("10.1" in rule or " ct " in rule for rules in there.values() for rule in rules)


def test_a_router_takes_from_the_mesh_what_members_send_to_its_prefixes_and_no_more() -> None:
    there = chains(render(replace(GUARD, routes=(LAN,))))
    members = "ip saddr { 100.64.0.0/10 } ip daddr { 10.1.0.0/16 }"
    assert there["inside"][-2:] == [f"{members} accept", "goto drop_beyond"]
    out, back, *rest = there["passing"][1:]
    assert f"{members} accept" in out and out.startswith("iifname {") and "oifname != {" in out
    assert back.endswith(
        "ip saddr { 10.1.0.0/16 } ip daddr { 100.64.0.0/10 } ct state established,related accept"
    )
    assert all("goto drop_forwarded" in rule for rule in rest) and len(rest) == 2
    assert "clamping" in there


def test_answers_to_members_own_addresses_come_in_only_where_they_are_not_masqueraded() -> None:
    assert not any("10.1" in rule for rule in chains(render(replace(GUARD, routes=(LAN,))))["arriving"])
    there = chains(render(replace(GUARD, routes=(LAN,), returns=True)))["arriving"]
    _, rule = [rule for rule in there if "10.1" in rule]
    assert rule.endswith("ip daddr != 100.64.0.1 accept")
    assert there.index(rule) < there.index("ip daddr { 100.64.0.0/10 } goto drop_foreign")


def test_connections_that_move_between_routers_are_let_through_only_where_nothing_is_translated() -> None:
    site = replace(GUARD, routes=(HERE,), sites=((HERE, THERE),), returns=True)
    for without in (GUARD, replace(GUARD, routes=(LAN,)), replace(GUARD, returns=True), site):
        assert "@moved" not in render(without) and "limit rate" not in render(without)
    there = chains(render(replace(GUARD, routes=(LAN,), returns=True)))["passing"]
    noted, known, few = [rule for rule in there if "@moved4" in rule or "limit rate" in rule]
    out, back = "ip saddr { 100.64.0.0/10 } ip daddr", "ip saddr { 10.1.0.0/16 } ip daddr { 100.64.0.0/10 }"
    assert out in noted and " ct state invalid update @moved4 " in noted and "accept" not in noted
    assert there.index(noted) < next(n for n, rule in enumerate(there) if out in rule and "accept" in rule)
    assert back in known and " tcp flags & syn == 0 " in known and known.endswith("@moved4 accept")
    assert back in few and " tcp flags & (syn | rst | ack) == ack limit rate " in few


def test_members_of_another_mesh_reach_what_a_pact_opens() -> None:
    theirs, web = IPv6Network("fd99::/48"), IPv6Address("fd99::2")
    visited = replace(
        GUARD, networks=(*GUARD.networks, theirs), others=(theirs,), forward=("docker0",),
        visitors=(Visitor(web, (("tcp", 443, 443), ("udp", 50, 60)), (("udp", 53, 53),)),),
    )  # fmt: skip
    there = chains(render(visited))
    hook, into = there["visiting"]
    assert "hook input" in hook and into.endswith("ip6 saddr { fd99::/48 } goto agreed")
    assert there["agreed"] == [
        f"ip6 saddr {web} tcp dport 443-443 accept",
        f"ip6 saddr {web} udp dport 50-60 accept",
        f"ip6 saddr {web} udp sport 53-53 ct direction reply ct state established accept",
        "goto drop_agreed",
    ]
    # To this node's own address alone, and never to what the host publishes or forwards.
    inside = there["inside"]
    at = inside.index("ip6 saddr { fd99::/48 } ip6 daddr fd00::1 accept")
    assert inside[at + 1] == "ip6 saddr { fd99::/48 } goto drop_agreed"
    assert not [rule for rule in inside[:at] if rule.endswith("accept")]
    assert there["passing"][1].endswith("ip6 saddr { fd99::/48 } goto drop_forwarded")
    # With nobody there, all of the other mesh is closed; without pacts nothing is as before.
    assert chains(render(replace(visited, visitors=())))["agreed"] == ["goto drop_agreed"]
    assert "visiting" not in chains(render(GUARD))


HERE, THERE = IPv4Network("10.77.1.0/24"), IPv4Network("192.168.1.0/24")


def test_a_prefix_with_a_site_passes_translated_or_not_at_all() -> None:
    guard = replace(GUARD, routes=(LAN, HERE), sites=((HERE, THERE),))
    there = chains(render(guard))
    assert there["inside"][-2] == "ip saddr { 100.64.0.0/10 } ip daddr { 10.1.0.0/16, 10.77.1.0/24 } accept"
    passing = [rule for rule in there["passing"] if "ip daddr" in rule]
    assert not any(str(HERE) in rule for rule in passing)
    out, back = [rule for rule in passing if str(THERE) in rule]
    assert out.endswith("ip daddr { 192.168.1.0/24 } ct status dnat accept")
    assert "ip saddr { 192.168.1.0/24 }" in back and back.endswith("ct status dnat accept")
    (landing,) = [rule for rule in there["landing"] if "policy" not in rule]
    assert landing.endswith("ip daddr { 10.77.1.0/24 } ct status & dnat == 0 goto drop_beyond")
    returning = chains(render(replace(guard, returns=True)))["arriving"]
    _, rule = [rule for rule in returning if str(THERE) in rule]
    assert rule.startswith("ip saddr { 10.1.0.0/16, 192.168.1.0/24 }") and rule.endswith("accept")


def test_a_site_of_a_prefix_that_is_not_offered_is_nobodys() -> None:
    assert render(replace(GUARD, routes=(LAN,), sites=((HERE, THERE),))) == render(
        replace(GUARD, routes=(LAN,))
    )


def test_only_who_carries_a_prefix_says_that_a_packet_for_it_was_too_big() -> None:
    assert chains(render(replace(GUARD, beyond=(LAN,))))["too_big"] == ["goto drop_beyond"]
    six = IPv6Network("fd77:1::/64")
    carriers = (LAN, IPv4Address("100.64.0.9")), (six, IPv6Address("fd00::9"))
    there = chains(render(replace(GUARD, beyond=(LAN, six), carriers=carriers)))
    *rules, last = there["too_big"]
    other, one = [rule for rule in rules if rule.endswith("accept")]  # the longer prefix comes first
    assert last == "goto drop_beyond"
    # Who says so, to whom, and about which packet: this node's own, for the prefix.
    assert one == (
        "icmp type destination-unreachable icmp code frag-needed "
        "ip saddr { 100.64.0.9, 10.1.0.0/16 } ip daddr 100.64.0.1 "
        f"@th,160,32 {int(GUARD.own[0]):#x} @th,192,16 0xa01 accept"
    )
    assert "ip6 saddr { fd00::9, fd77:1::/64 } ip6 daddr fd00::1" in other
    assert other.endswith(f"@th,128,128 {int(GUARD.own[1]):#x} @th,256,64 0xfd77000100000000 accept")
    inside = there["inside"]
    assert inside.index("icmpv6 type packet-too-big goto too_big") < inside.index(
        "ip daddr 100.64.0.1 accept"
    )


def test_whoever_carries_all_says_so_in_nobody_elses_name() -> None:
    everything = IPv4Network("0.0.0.0/0"), IPv4Address("100.64.0.9")
    there = chains(render(replace(GUARD, beyond=(everything[0],), carriers=(everything,))))["too_big"]
    assert there.pop(0).endswith("@th,192,10 0x191 goto drop_beyond"), "nor about a packet for a member"
    assert there.pop(0).endswith("@th,256,48 0xfd0000000000 goto drop_beyond")
    assert [rule.partition(" ip daddr")[0].rpartition("frag-needed ")[2] for rule in there[:-1]] == [
        "ip saddr 100.64.0.9",
        "ip saddr != { 100.64.0.0/10 }",
    ]
    assert all(rule.endswith(f"@th,160,32 {int(GUARD.own[0]):#x} accept") for rule in there[:-1])


def test_of_two_prefixes_in_each_other_the_longer_one_s_router_speaks() -> None:
    wide, four = IPv4Network("10.0.0.0/8"), [IPv4Address(f"100.64.0.{n}") for n in (8, 9)]
    carriers = (wide, four[0]), (LAN, four[1])
    there = chains(render(replace(GUARD, beyond=(wide, LAN), carriers=carriers)))["too_big"]
    said = [next((n for n in (8, 9) if f"100.64.0.{n}," in rule), 0) for rule in there]
    nobody = "icmp type destination-unreachable icmp code frag-needed @th,192,16 0xa01 goto drop_beyond"
    assert said.index(9) < there.index(nobody) < said.index(8)


def test_errors_about_members_packets_come_back_where_they_are_not_masqueraded() -> None:
    there = chains(render(replace(GUARD, routes=(LAN,), returns=True)))["arriving"]
    error, answer = [rule for rule in there if "10.1" in rule]
    assert error.startswith("icmp type {") and error.endswith(answer)
    assert there.index(error) < next(n for n, rule in enumerate(there) if "jump quoting" in rule)
