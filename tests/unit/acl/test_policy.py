# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's policy: its tests decide whether it is taken, and a node's own rules only tighten it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.acl import policy as policies
from phantommesh.acl.compiled import compile_for
from phantommesh.acl.policy import (
    MAX_POLICY_BYTES,
    MAX_WORK,
    PolicyError,
    PolicySection,
    TestSection,
    accept,
    decode_untrusted,
    holding,
    parse,
)
from phantommesh.acl.rules import TCP, UDP, IpAddress, Party, Policy, by_address, decide, policy_of
from phantommesh.config.acl import AclSection, RuleSection
from phantommesh.trust.identity import NodeId, format_node_id
from tests.support.makemesh import make_mesh

MESH = make_mesh().mesh
TEXT = """
default = "deny"
[[rule]]
name = "ssh"
from = ["tag:ops"]
protocol = "tcp"
ports = [22]
[[rule]]
name = "no-guests"
action = "deny"
from = ["tag:guest"]
[[rule]]
name = "http"
ports = [80]
"""


def taken(*tests: str, text: str = TEXT) -> Policy:
    """Accept a policy with tests in short: ``FROM > TO PORT`` may, ``FROM ! TO PORT`` may not."""
    found = list[TestSection]()
    for test in tests:
        source, sign, target = test.partition("!" if "!" in test else ">")
        *to, port = target.split()
        found.append(TestSection(tuple(source.split()), tuple(to), port, "deny" if sign == "!" else "allow"))
    return accept(msgspec.structs.replace(parse(text), test=tuple(found)), MESH)


def test_a_policy_that_passes_its_tests_is_taken() -> None:
    policy = taken(
        "tag:ops > db 22", "laptop tag:ops > db tag:data 22", "laptop ! db 22", "laptop > db 80",
        "tag:guest ! db 80", "tag:guest tag:ops > db 22", "laptop ! db 53/udp", "tag:guest ! db icmp",
        "laptop > db icmp", "10.1.2.3 ! db 22", "10.1.2.3 > db 80", "fd00::1 > db 80", "laptop ! db sctp",
    )  # fmt: skip
    assert policy.whose == "mesh" and [rule.name for rule in policy.rules][:3] == ["ssh", "no-guests", "http"]


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("laptop > db 22", "its default denies it, and the test expects allow"),
        ("tag:ops ! db 22", "the rule ssh of the mesh's policy allows it, and the test expects deny"),
        ("tag:guest > db 80", "the rule no-guests of the mesh's policy denies it"),
        ("laptop > db 0", "is about no port"),
        ("laptop > db http", "is about no port"),
        ("any > db 80", "is no member"),
        ("10.0.0.0/8 > db 80", "is no member"),
        ("Laptop > db 80", "no name of a member"),
        ("tag:X > db 80", "is no tag"),
        ("laptop desk > db 80", "names two members"),
        ("10.0.0.1 10.0.0.2 > db 80", "two addresses"),
        ("10.0.0.1 > fd00::1 80", "no family in common"),
        ("laptop 10.0.0.1 > db 10.0.0.1 80", "one address at both ends"),
    ],
)
def test_a_test_that_fails_or_means_nobody_is_named(test: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said) as caught:
        taken("laptop > db 80", test)
    assert caught.value.fix and test.split()[0] in str(caught.value)


def test_one_family_that_differs_fails_a_test() -> None:
    only4 = '[[rule]]\nname = "four"\nfrom = ["0.0.0.0/0"]\nports = [22]\n'
    with pytest.raises(PolicyError, match="over IPv6"):
        taken("laptop > db 22", text='default = "deny"\n' + only4)
    taken("laptop 100.64.0.9 > db 22", text='default = "deny"\n' + only4)


def test_a_member_in_a_test_is_in_no_network_but_the_meshs_own() -> None:
    """A rule for one address says nothing of members in general."""
    first = MESH.network4[1]
    narrow = f'[[rule]]\nname = "one"\nfrom = ["{first}", "{MESH.network4[0]}/30", "{MESH.network6[1]}"]\n'
    text = f'default = "deny"\n{narrow}ports = [22]\n'
    taken("laptop ! db 22", f"laptop {first} > db 22", text=text)
    wide = f'[[rule]]\nname = "mesh"\nfrom = ["{MESH.network4}", "{MESH.network6}"]\nports = [22]\n'
    taken("laptop > db 22", text='default = "deny"\n' + wide)


def test_tests_that_look_at_too_much_are_refused() -> None:
    words = tuple(f"tag:t{number}" for number in range(1000))
    rule = RuleSection("many", source=words)
    test = TestSection(("laptop",), ("db",), "22")
    assert 2 * len(words) * 256 * 2 > MAX_WORK
    with pytest.raises(PolicyError, match="look at"):
        accept(PolicySection("allow", (rule, msgspec.structs.replace(rule, name="m")), (test,) * 256), MESH)


def test_what_is_signed_is_bounded() -> None:
    many = tuple(RuleSection(f"r{number}", source=("tag:x" * 12,)) for number in range(2000))
    with pytest.raises(PolicyError, match="are the most"):
        PolicySection("allow", many).encode()
    with pytest.raises(PolicyError, match="too long"):
        decode_untrusted(bytes(MAX_POLICY_BYTES + 1))


@pytest.mark.parametrize("where", ["policy", "rule", "test"])
def test_a_key_that_is_not_known_is_refused(where: str) -> None:
    """It could be what denies: a later version's rule by something that this one does not know."""
    rule = {"name": "x", "from": ["any"]}
    test = {"from": ["a"], "to": ["b"], "port": "22"}
    whole: dict[str, object] = {"default": "allow", "rule": [rule], "test": [test]}
    assert decode_untrusted(msgspec.msgpack.encode(whole)).rule[0].name == "x"
    {"policy": whole, "rule": rule, "test": test}[where]["unless"] = "y"  # type: ignore[index]
    with pytest.raises(PolicyError):
        decode_untrusted(msgspec.msgpack.encode(whole))
    keys = {
        "policy": "",
        "rule": '[[rule]]\nname = "x"\n',
        "test": '[[test]]\nfrom=["a"]\nto=["b"]\nport="1"\n',
    }
    with pytest.raises(PolicyError):
        parse(keys[where] + 'unless = "y"\n')


def test_rules_that_cannot_be_are_refused_with_a_fix() -> None:
    with pytest.raises(PolicyError, match=r"acl\.rule\.x\.ports") as caught:
        taken(text='[[rule]]\nname = "x"\nports = [22]\nprotocol = "icmp"')
    assert caught.value.fix


@given(st.binary(max_size=200))
@example(msgspec.msgpack.encode({"rule": {"a": 1}}))
@example(msgspec.msgpack.encode({"rule": [1, {2: 3}]}))
@example(b"\x91" * 199)
def test_any_bytes_are_a_policy_or_a_policy_error(data: bytes) -> None:
    try:
        accept(decode_untrusted(data), MESH)
    except PolicyError:
        pass


# Whatever rules there are.

NAMES, TAGS = ("db", "laptop"), ("ops", "data")
PARTIES = tuple(
    Party(
        name, NodeId(bytes([number]) * 16),
        (IPv4Address(f"100.64.0.{number}"), IPv6Address(f"fd00::{number}")), frozenset(tags),
    )
    for number, (name, tags) in enumerate(
        [("db", ["data"]), ("laptop", ["ops"]), ("other", []), ("none", ["ops", "data"])], 1
    )
)  # fmt: skip
words = st.sampled_from(
    ["any", *NAMES, *(f"tag:{tag}" for tag in TAGS), format_node_id(PARTIES[2].node_id), "100.64.0.0/30",
     "10.0.0.0/8", "fd00::/127"]
)  # fmt: skip
ends = st.lists(words, min_size=1, max_size=3, unique=True).map(tuple)
ruled = st.builds(
    RuleSection, st.just("x"), st.sampled_from(["allow", "deny"]), ends, ends,
    st.sampled_from([None, "tcp", "udp"]), st.lists(st.integers(1, 4), max_size=2, unique=True).map(tuple),
)  # fmt: skip


def named(rules: list[RuleSection]) -> tuple[RuleSection, ...]:
    return tuple(msgspec.structs.replace(rule, name=f"r{number}") for number, rule in enumerate(rules))


ruleds = st.lists(ruled, max_size=5).map(named)
defaults = st.sampled_from(["allow", "deny"])
addresses = st.sampled_from(
    [*(address for party in PARTIES for address in party.addresses), ip_address("10.1.2.3")]
)


@given(
    defaults, ruleds, defaults, ruleds,
    st.lists(st.tuples(addresses, st.sampled_from([TCP, UDP]), st.integers(1, 5)), min_size=1, max_size=9),
)  # fmt: skip
def test_a_nodes_own_rules_only_tighten_the_policy(
    whole: str, mesh: tuple[RuleSection, ...], own: str, node: tuple[RuleSection, ...],
    asked: list[tuple[IpAddress, int, int]],
) -> None:  # fmt: skip
    policy = PolicySection(whole, mesh).policy()  # type: ignore[arg-type]
    mine = policy_of(AclSection(own, node), "node")  # type: ignore[arg-type]
    both = holding(policy, mine)
    holders, compiled = by_address(PARTIES), compile_for(PARTIES[0], both, PARTIES)
    for source, protocol, port in asked:
        target = PARTIES[0].addresses[source.version == 6]
        said = decide(both, holders, source, target, protocol, port)
        each = [decide([one], holders, source, target, protocol, port).allowed for one in (policy, mine)]
        assert said.allowed == all(each)
        assert compiled.decide(source, target, protocol, port) == said


members = st.tuples(st.sampled_from(["", *NAMES]), st.frozensets(st.sampled_from(TAGS))).map(
    lambda two: tuple(word for word in (two[0], *(f"tag:{tag}" for tag in sorted(two[1]))) if word)
)
tests = st.builds(
    TestSection, members.filter(bool), members.filter(bool), st.sampled_from(["1", "2/udp", "5", "icmp"]),
    st.sampled_from(["allow", "deny"]),
)  # fmt: skip


@given(defaults, ruleds, tests)
def test_a_policy_passes_a_test_or_its_contrary(
    default: str, rules: tuple[RuleSection, ...], test: TestSection
) -> None:
    """In both families, unless rules by network tell those apart: then it passes neither."""
    contrary = msgspec.structs.replace(test, expect="deny" if test.expect == "allow" else "allow")
    passed = 0
    for one in (test, contrary):
        try:
            accept(PolicySection(default, rules, (one,)), MESH)  # type: ignore[arg-type]
            passed += 1
        except PolicyError:
            pass
    telling = any(word[0] in "1f" and "/" in word for rule in rules for word in (*rule.source, *rule.target))
    assert passed == 1 or (telling and passed == 0)


@given(defaults, ruleds, st.lists(tests, max_size=3).map(tuple))
def test_what_is_signed_is_what_was_written(
    default: str, rules: tuple[RuleSection, ...], found: tuple[TestSection, ...]
) -> None:
    section = PolicySection(default, rules, found)  # type: ignore[arg-type]
    assert decode_untrusted(section.encode()) == section


def test_the_mesh_has_room_for_members_in_tests() -> None:
    full = tuple(
        RuleSection(f"r{number}", source=(str(one),)) for number, one in enumerate(MESH.network4.subnets(1))
    )
    section = PolicySection("allow", full, (TestSection(("a",), ("b",), "1"),))
    with pytest.raises(PolicyError, match="one by one"):
        accept(section, MESH)
    assert ip_network("100.64.0.0/10") == MESH.network4 and policies.MAX_TESTS == 256
