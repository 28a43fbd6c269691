# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules: what they mean, and that what is compiled means the same."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.acl.compiled import Classes, compile_for
from phantommesh.acl.rules import (
    DEFAULT,
    ICMP,
    ICMP6,
    OWN,
    PING,
    TCP,
    UDP,
    Anybody,
    Identified,
    IpAddress,
    Named,
    Party,
    Policy,
    Rule,
    Tagged,
    Within,
    by_address,
    decide,
    policy_of,
    selector_of,
)
from phantommesh.config.acl import AclSection, RuleSection
from phantommesh.config.reading import parse
from phantommesh.config.sections import ConfigError
from phantommesh.config.writing import render
from phantommesh.trust.identity import NodeId, format_node_id

HEAD = '[node]\nname = "a"\nmesh = "m"\n'
SCTP = 132


def party(number: int, name: str, *tags: str) -> Party:
    addresses = IPv4Address(f"100.64.0.{number}"), IPv6Address(f"fd00::{number}")
    return Party(name, NodeId(bytes([number]) * 16), addresses, frozenset(tags))


DB, WEB, OPS, TWIN = (
    party(1, "db", "data"),
    party(2, "web", "front"),
    party(3, "ops", "front", "data"),
    party(4, "web"),
)
PARTIES = (DB, WEB, OPS, TWIN)
OUTSIDE = ip_address("10.1.2.3")


def section(default: str, *rules: RuleSection) -> AclSection:
    return AclSection(default, rules)  # type: ignore[arg-type]


def asks(acl: AclSection, own: tuple[int, ...] = ()) -> Callable[..., tuple[bool, str]]:
    """Ask about what comes to `DB`: of the rules and of what is compiled, which have to say the same."""
    policies, holders = [policy_of(acl, "node")], by_address(PARTIES)
    compiled = compile_for(DB, policies, PARTIES, own)

    def ask(
        source: Party | IpAddress, protocol: int, port: int = 0, *, target: IpAddress = DB.addresses[0]
    ) -> tuple[bool, str]:
        address = source.addresses[target.version == 6] if isinstance(source, Party) else source
        said = decide(policies, holders, address, target, protocol, port, own)
        assert compiled.decide(address, target, protocol, port) == said
        return said.allowed, said.rule.name

    return ask


def test_without_rules_all_passes_and_the_kernel_needs_none() -> None:
    assert compile_for(DB, [policy_of(AclSection(), "node")], PARTIES).idle
    assert asks(AclSection())(WEB, TCP, 22) == (True, DEFAULT)


def test_deny_leaves_icmp_what_is_listed_and_the_meshs_own_measuring() -> None:
    ask = asks(section("deny", RuleSection("ssh", source=("ops",), protocol="tcp", ports=(22,))), (51801,))
    assert ask(OPS, TCP, 22) == (True, "ssh")
    assert ask(OPS, UDP, 22) == (False, DEFAULT)
    assert ask(WEB, TCP, 22) == (False, DEFAULT)
    assert ask(WEB, ICMP) == (True, PING)
    assert ask(WEB, ICMP6, target=DB.addresses[1]) == (True, PING)
    assert ask(WEB, UDP, 51801) == (True, OWN)
    assert ask(OUTSIDE, UDP, 51801) == (False, DEFAULT)
    assert ask(WEB, UDP, 51801, target=OUTSIDE) == (False, DEFAULT)
    assert ask(WEB, SCTP) == (False, DEFAULT)


def test_a_rule_may_deny_icmp() -> None:
    ask = asks(section("deny", RuleSection("quiet", action="deny", source=("web",), protocol="icmp")))
    assert ask(WEB, ICMP) == (False, "quiet")
    assert ask(OPS, ICMP) == (True, PING)


def test_the_first_rule_that_matches_decides() -> None:
    few = RuleSection("few", action="deny", ports=("100-200",))
    many = RuleSection("many", ports=("1-1000",))
    assert asks(section("deny", few, many))(WEB, TCP, 150) == (False, "few")
    assert asks(section("deny", many, few))(WEB, TCP, 150) == (True, "many")
    assert asks(section("deny", few, many))(WEB, TCP, 201) == (True, "many")


def test_an_unknown_protocol_matches_no_rule_of_tcp_and_udp() -> None:
    ask = asks(section("allow", RuleSection("all-ports", action="deny", ports=("1-65535",))))
    assert ask(WEB, SCTP) == (True, DEFAULT)
    assert ask(WEB, 253) == (True, DEFAULT)
    assert ask(WEB, UDP, 9) == (False, "all-ports")
    any_of_them = asks(section("allow", RuleSection("none", action="deny")))
    assert any_of_them(WEB, 253) == (False, "none")


def test_tags_names_ids_and_networks_select() -> None:
    node_id = format_node_id(OPS.node_id)
    for words, chosen in (
        (("tag:front",), {"web2", "ops"}),
        (("web",), {"web2", "web4"}),
        ((node_id,), {"ops"}),
        (("100.64.0.2/31",), {"web2", "ops"}),
        (("tag:data", "100.64.0.2"), {"web2", "ops"}),
    ):
        ask = asks(section("deny", RuleSection("one", source=words)))
        found = {name for name, who in (("web2", WEB), ("ops", OPS), ("web4", TWIN)) if ask(who, TCP, 1)[0]}
        assert found == chosen, words


def test_a_member_that_calls_itself_like_anothers_id_is_not_meant_by_the_id() -> None:
    word = format_node_id(OPS.node_id)
    liar = party(9, word)
    acl = section("deny", RuleSection("ops", source=(word,)))
    policies = [policy_of(acl, "node")]
    compiled = compile_for(DB, policies, [*PARTIES, liar])
    assert not compiled.decide(liar.addresses[0], DB.addresses[0], TCP, 1).allowed
    assert compiled.decide(OPS.addresses[0], DB.addresses[0], TCP, 1).allowed


def test_a_member_as_target_means_its_own_addresses_and_not_what_it_routes() -> None:
    ask = asks(
        section(
            "deny",
            RuleSection("db", target=("db",)),
            RuleSection("lan", target=("10.1.0.0/16",), ports=(80,)),
        )
    )
    assert ask(WEB, TCP, 22) == (True, "db")
    assert ask(WEB, TCP, 22, target=OUTSIDE) == (False, DEFAULT)
    assert ask(WEB, TCP, 80, target=OUTSIDE) == (True, "lan")


def test_what_one_policy_denies_another_cannot_allow() -> None:
    mesh = policy_of(section("deny", RuleSection("web", ports=(80, 443))), "mesh")
    node = policy_of(section("allow", RuleSection("no-tls", action="deny", ports=(443,))), "node")
    compiled = compile_for(DB, [mesh, node], PARTIES)
    got = {port: compiled.decide(WEB.addresses[0], DB.addresses[0], TCP, port) for port in (22, 80, 443)}
    assert {port: (one.allowed, one.whose, one.rule.name) for port, one in got.items()} == {
        22: (False, "mesh", DEFAULT), 80: (True, "node", DEFAULT), 443: (False, "node", "no-tls"),
    }  # fmt: skip


def test_an_answer_says_whose_rule_it_is() -> None:
    acl = section("deny", RuleSection("ssh", ports=(22,)))
    said = [
        decide([policy_of(acl, "node")], by_address(PARTIES), WEB.addresses[0], DB.addresses[0], *what).why
        for what in ((TCP, 22), (TCP, 23), (ICMP, 0), (UDP, 5))
    ]
    assert said == [
        "the rule ssh of this node's configuration allows it",
        "this node's configuration has no rule for it, and its default denies it",
        "this node's configuration has no rule for it, and ICMP passes where none denies it",
        "it is the mesh's own measuring, which no rule closes",
    ]


# What is compiled means what the rules mean.

protocols = st.sampled_from([TCP, UDP, ICMP, ICMP6, SCTP, 0, 255])
ports = st.integers(0, 65535) | st.sampled_from([0, 1, 22, 80, 65535])
networks = st.sampled_from(
    [
        *map(
            ip_network,
            (
                "100.64.0.0/30",
                "100.64.0.2",
                "100.64.0.0/24",
                "0.0.0.0/0",
                "10.1.0.0/16",
                "10.1.2.0/24",
                "255.255.255.255/32",
                "fd00::/126",
                "fd00::1",
                "::/0",
            ),
        )
    ]
)
selectors = st.one_of(
    st.just(Anybody()), st.sampled_from([Named("db"), Named("web"), Named("none")]),
    st.sampled_from([Identified(DB.node_id), Identified(WEB.node_id)]),
    st.sampled_from([Tagged("data"), Tagged("front"), Tagged("none")]), st.builds(Within, networks),
)  # fmt: skip
ranges = st.lists(st.tuples(ports, ports).map(lambda two: (min(two), max(two))), max_size=4).map(tuple)
rules = st.builds(
    Rule, st.sampled_from(["one", "two"]), st.booleans(),
    *2 * [st.lists(selectors, min_size=1, max_size=3).map(tuple)],
    st.none() | st.frozensets(protocols, max_size=3), ranges,
)  # fmt: skip
policies = st.builds(
    lambda whose, some, allow: Policy(whose, (*some, Rule(DEFAULT, allow, builtin=True))),
    st.sampled_from(["mesh", "node"]), st.lists(rules, max_size=8), st.booleans(),
)  # fmt: skip
ADDRESSES = [
    *(address for one in PARTIES for address in one.addresses),
    *map(
        ip_address,
        (
            "100.64.0.0",
            "100.64.0.9",
            "10.1.2.3",
            "10.1.3.3",
            "0.0.0.0",
            "255.255.255.255",
            "fd00::9",
            "::",
            "ffff::",
        ),
    ),
]
addresses = st.sampled_from(ADDRESSES)
BLOCK, ONE = Within(ip_network("100.64.0.0/30")), Within(ip_network("100.64.0.2"))


@given(
    st.lists(policies, min_size=1, max_size=3), st.sampled_from([DB, WEB]),
    st.lists(st.tuples(addresses, addresses, protocols, ports), min_size=1, max_size=16),
)  # fmt: skip
@example(
    [Policy("node", (Rule("one", True, (BLOCK, ONE)), Rule(DEFAULT, False)))], DB,
    [(WEB.addresses[0], DB.addresses[0], TCP, 1), (OPS.addresses[0], DB.addresses[0], TCP, 1)],
)  # fmt: skip
def test_compiled_rules_decide_as_the_rules_do(
    these: list[Policy], me: Party, asked: list[tuple[IpAddress, IpAddress, int, int]]
) -> None:
    compiled, holders = compile_for(me, these, PARTIES), by_address(PARTIES)
    for source, target, protocol, port in asked:
        if target in holders and holders[target] != me:
            continue  # what is for another member never comes to this node
        assert compiled.decide(source, target, protocol, port) == decide(
            these, holders, source, target, protocol, port
        )
    for tables in compiled.tables.values():
        for slices, end in ((tables.tcp, 65535), (tables.udp, 65535), (tables.rest, 255)):
            assert slices[0].first == 0 and slices[-1].last == end
            assert all(one.last + 1 == two.first for one, two in pairwise(slices))


def test_members_without_a_rule_of_their_own_are_not_listed_by_themselves() -> None:
    def points(*rules: RuleSection) -> Classes:
        compiled = compile_for(DB, [policy_of(section("deny", *rules), "node")], PARTIES)
        return compiled.sources[compiled.targets.find(DB.addresses[0])]

    assert not points(RuleSection("ssh", ports=(22,))).points
    assert set(points(RuleSection("ssh", source=("ops",), ports=(22,))).points) == {*OPS.addresses}


# The configuration.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[acl]]\nname = "x"\nfrom = ["TAG:x"]', "acl.rule.x.from"),
        ('[[acl]]\nname = "x"\nfrom = ["tag:"]', "acl.rule.x.from"),
        ('[[acl]]\nname = "x"\nto = ["10.0.0.1/8"]', "has bits beyond its length"),
        ('[[acl]]\nname = "x"\nto = ["fe80::1%eth0"]', "has a scope"),
        ('[[acl]]\nname = "x"\nports = [22]\nprotocol = "icmp"', "acl.rule.x.ports"),
        ('[[acl]]\nname = "x"\nports = ["22-1"]', "acl.rule.x.ports"),
        ('[[acl]]\nname = "x"\nprotocol = "tpc"', "acl.rule.x.protocol"),
        ('[[acl]]\nname = "x"\nprotocol = 256', "acl.rule.x.protocol"),
        ('[[acl]]\nname = "x"\naction = "drop"', "acl.rule.x.action"),
        ('[[acl]]\nname = "x"\nfrom = []', "acl.rule.x.from"),
        ('[[acl]]\nname = "X"', "acl.rule.1.name"),
        ('[[acl]]\nfrom = ["any"]', "acl.rule.1.name is missing"),
        ('[[acl]]\nname = "x"\n[[acl]]\nname = "x"', '2 access rules are named "x"'),
        ('[[acl]]\nname = "x"\nsource = ["any"]', "unknown key acl.rule.x.source"),
        ('[acl]\ndefault = "drop"', "acl.default"),
        ("[acl]\nrule = 3", "is not a list of tables"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_named(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + text)
    assert said in str(caught.value) and caught.value.fix


def test_the_two_ways_to_write_rules_in_one_file_are_explained() -> None:
    for text in (
        '[acl]\ndefault = "deny"\n[[acl]]\nname = "x"',
        '[[acl]]\nname = "x"\n[acl]\ndefault = "deny"',
    ):
        with pytest.raises(ConfigError) as caught:
            parse(HEAD + text)
        assert "[[acl.rule]]" in caught.value.fix


def test_rules_are_written_as_they_are_read() -> None:
    config = parse(
        HEAD
        + '[acl]\ndefault = "deny"\n[[acl.rule]]\nname = "x"\nfrom = ["tag:a", "b"]\nto = ["10.0.0.0/8"]\n'
        'protocol = "tcp"\nports = [22, "80-90"]\n[[acl.rule]]\nname = "y"\naction = "deny"\n'
    )
    assert parse(render(config)) == config
    assert parse(HEAD + '[[acl]]\nname = "y"').acl == AclSection(rule=(RuleSection("y"),))


@given(st.text(max_size=20))
@example("1.2.3.4")
@example("1.2.3.4.5")
@example("1/2")
@example("::")
@example("a:b")
@example("999")
def test_a_word_that_the_configuration_lets_through_selects(word: str) -> None:
    try:
        parse(HEAD + f'[[acl]]\nname = "x"\nfrom = ["{word}"]')
    except ConfigError:
        return
    selector_of(word)
