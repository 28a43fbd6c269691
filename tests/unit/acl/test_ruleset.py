# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules as nftables text: what is written, what a change of members costs, what counters say.
tests/lab/test_access.py has the kernel read it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from phantommesh.acl.compiled import compile_for
from phantommesh.acl.rules import Party, policy_of
from phantommesh.acl.ruleset import Ruleset, render
from phantommesh.acl.standing import Connection, Standing
from phantommesh.config.acl import AclSection, RuleSection
from phantommesh.trust.identity import NodeId


def party(number: int, name: str, *tags: str) -> Party:
    addresses = IPv4Address(f"100.64.0.{number}"), IPv6Address(f"fd00::{number}")
    return Party(name, NodeId(bytes([number]) * 16), addresses, frozenset(tags))


ME, WEB, OPS = party(1, "db"), party(2, "web", "front"), party(3, "ops", "front")
RULES = (
    RuleSection("http", source=("tag:front",), protocol="tcp", ports=(80, "8000-8010")),
    RuleSection("lan", source=("10.1.0.0/16",), ports=(53,)),
)


def rendered(others: Sequence[Party], rules: tuple[RuleSection, ...] = RULES) -> Ruleset:
    policy = policy_of(AclSection("deny", rules), "node")
    return render(compile_for(ME, [policy], others, (51801,)), "pm", ("pm0", "pm1"))


def test_the_table_looks_at_the_mesh_before_translation_and_lets_answers_pass_first() -> None:
    text = rendered([WEB]).install()
    rules = text.split("chain arriving {")[1].split("}\n", 1)[0]
    assert "hook prerouting priority dstnat - 10" in rules
    assert 'iifname != { "pm", "pm0", "pm1" } accept' in rules
    assert rules.index("ct state established ct direction reply jump answers") < rules.index("goto to0")
    assert "ip6 daddr fd00::1 udp dport { 51801 } accept" in rules
    assert text.startswith("add table inet phantommesh_acl_pm\ndelete table inet phantommesh_acl_pm\n")
    assert '8000-8010 comment "http" : accept' in text


def test_a_further_member_of_a_tag_is_one_element_in_each_family() -> None:
    before, after = rendered([WEB]), rendered([WEB, OPS])
    assert after.update(before) == (
        "add element inet phantommesh_acl_pm from_to0_4 { 100.64.0.3 : goto class0 }\n"
        "add element inet phantommesh_acl_pm from_to0_6 { fd00::3 : goto class0 }\n"
    )
    assert before.update(after) == (
        "delete element inet phantommesh_acl_pm from_to0_4 { 100.64.0.3 }\n"
        "delete element inet phantommesh_acl_pm from_to0_6 { fd00::3 }\n"
    )
    assert after.update(after) == ""


def test_other_rules_are_another_table() -> None:
    assert rendered([WEB], RULES[:1]).update(rendered([WEB])) is None
    assert rendered([]).update(rendered([WEB])) is None  # nobody has the tag: a class less


def test_a_member_that_no_rule_means_is_no_element() -> None:
    assert rendered([WEB, party(9, "other")]).update(rendered([WEB])) == ""


def test_counters_are_told_by_rule() -> None:
    rules = rendered([WEB])
    counted = {
        name: {one.first.to_bytes(2, "big"): (1, 60) for one in slices}
        for name, slices in rules.counted.items()
        if name.startswith("tcp")
    }
    counts = rules.count(counted | {"other": {b"\0\0": (9, 9)}})
    assert counts["node", "http"] == 2  # two ranges of ports
    assert ("node", "(default)") in rules.denying and counts["node", "(default)"] > 2
    assert rules.count({}) == {}


def test_what_is_known_of_sockets_changes_elements_alone() -> None:
    four = Connection(IPv4Address("100.64.0.1"), 40000, IPv4Address("100.64.0.2"), 443)
    six = Connection(IPv6Address("fd00::1"), 40001, IPv6Address("fd00::2"), 80)
    table, plain = "inet phantommesh_acl_pm", rendered([WEB])
    knowing = plain.knowing(Standing(frozenset({22, 80}), frozenset({four, six})))
    assert knowing.update(plain) == (
        f"add element {table} served {{ 22, 80 }}\n"
        f"add element {table} begun4 {{ 100.64.0.2 . 443 . 100.64.0.1 . 40000 }}\n"
        f"add element {table} begun6 {{ fd00::2 . 80 . fd00::1 . 40001 }}\n"
    )
    assert knowing.install().endswith(knowing.update(plain) or "-")
    assert plain.knowing(Standing(frozenset({22}))).update(knowing) == (
        f"delete element {table} served {{ 80 }}\n"
        f"delete element {table} begun4 {{ 100.64.0.2 . 443 . 100.64.0.1 . 40000 }}\n"
        f"delete element {table} begun6 {{ fd00::2 . 80 . fd00::1 . 40001 }}\n"
    )
