# SPDX-License-Identifier: GPL-3.0-or-later
"""An exit in the guard's rules, as text. What they do to packets: tests/lab/test_exit.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.overlay import exits
from phantommesh.overlay.guard import render
from phantommesh.routable import EXITS
from tests.unit.overlay.test_guard import GUARD, chains

LAN = ip_network("192.168.7.0/24")


def test_with_an_exit_nothing_leaves_but_what_is_named() -> None:
    there = chains(render(replace(GUARD, beyond=EXITS)))
    assert there["leaving"][-2:] == ["meta nfproto ipv4 goto drop_clear", "meta nfproto ipv6 goto drop_clear"]
    accepted = [rule for rule in there["leaving"] if rule.endswith("accept")]
    assert not any("daddr" in rule for rule in accepted)
    assert len(accepted) == 6  # lo, the mesh by UDP and by TCP, neighbours, and DHCP in both families
    assert there["outside"][-1] == "goto drop_foreign"


def test_names_are_asked_by_no_network_beside_the_exit() -> None:
    there = chains(render(replace(GUARD, beyond=EXITS, beside=(LAN,))))["leaving"]
    beside = [rule for rule in there if str(LAN) in rule]
    assert beside[0].endswith("th dport { 53, 853 } goto drop_clear")
    assert beside[1].endswith("accept") and len(beside) == 2
    arriving = chains(render(replace(GUARD, beyond=EXITS, beside=(LAN,))))
    assert any(str(LAN) in rule and rule.endswith("accept") for rule in arriving["outside"])
    assert any(str(LAN) in rule and rule.endswith("goto drop_beyond") for rule in arriving["inside"])


def test_what_an_exit_sends_is_from_no_address_of_a_link() -> None:
    """A router's advertisement out of the mesh would give this host routes into one of the interfaces."""
    there = chains(render(replace(GUARD, beyond=EXITS)))["inside"]
    (four,) = [rule for rule in there if rule.startswith("ip saddr")]
    (six,) = [rule for rule in there if rule.startswith("ip6 saddr")]
    assert "224.0.0.0/4" in four and "fe80::/10" in six
    assert four.endswith("goto drop_beyond") and six.endswith("goto drop_beyond")
    assert there.index(six) < there.index("ip6 daddr fd00::1 accept")


def test_a_taken_prefix_is_no_part_of_a_wider_network_beside_the_exit() -> None:
    """Whoever runs the host's network says how wide that is."""
    taken, wide = ip_network("10.1.0.0/16"), ip_network("10.0.0.0/8")
    there = chains(render(replace(GUARD, beyond=(*EXITS, taken), beside=(wide,))))
    for name, end in (("outside", "saddr"), ("leaving", "daddr")):
        (rule,) = [one for one in there[name] if str(wide) in one and one.endswith("accept")]
        assert f"ip {end} != {{ {taken} }} accept" in rule
        assert not any(str(taken) in one for one in there[name] if one != rule)
    (strange,) = [one for one in there["inside"] if str(wide) in one]
    assert f"ip saddr != {{ {taken} }} goto drop_beyond" in strange, "its router speaks for it"


def test_nobody_behind_the_host_goes_by_the_mark_of_what_carries_the_mesh() -> None:
    there = chains(render(replace(GUARD, beyond=EXITS, forward=("docker0",))))
    marking = next(i for i, rule in enumerate(there["outside"]) if "meta mark set" in rule)
    before = there["outside"][:marking]
    assert any("docker0" in rule for rule in before)
    assert "mark" in there["passing"][1] and there["passing"][1].endswith("goto drop_forwarded")


def test_an_exit_leads_nowhere_before_it_knows_its_own_networks() -> None:
    unknown = chains(render(replace(GUARD, routes=EXITS)))
    assert unknown["inside"][-2].startswith("ip6 daddr") and unknown["inside"][-1].startswith("goto")
    known = chains(render(replace(GUARD, routes=EXITS, around=(ip_network("203.0.113.0/24"), LAN))))
    (four,) = [rule for rule in known["inside"] if rule.startswith("ip saddr")]
    for closed in ("203.0.113.0/24", "169.254.0.0/16", "10.0.0.0/8", "168.63.129.16/32", "100.64.0.0/10"):
        assert closed in four
    assert known["delivered"][-1] == "goto drop_beyond"
    assert "delivered" not in chains(render(replace(GUARD, routes=(LAN,))))


def test_an_exit_leads_into_a_private_network_that_was_granted_as_a_prefix() -> None:
    there = chains(render(replace(GUARD, routes=(EXITS[0], LAN), around=(LAN,))))
    assert f"ip saddr {{ 100.64.0.0/10 }} ip daddr {{ {LAN} }} accept" in there["inside"]
    assert f"ip daddr {{ {LAN} }} accept" in there["delivered"]


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_what_is_not_global_is_not_the_internet(address: object) -> None:
    one = ip_address(str(address))
    closed = any(one in network for network in exits.NOT_THE_INTERNET)
    if one.is_private and one not in ip_network("2001::/23") and one not in ip_network("192.0.0.0/16"):
        documentation = [ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
        assert closed or any(one in n for n in documentation) or one in ip_network("2001:db8::/32")
    if closed:
        assert (
            not one.is_global
            or one.is_multicast
            or one in ip_network("168.63.129.16/32")
            or (one.version == 6 or one in ip_network("192.0.0.0/24"))
        )
