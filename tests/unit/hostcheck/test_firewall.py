# SPDX-License-Identifier: GPL-3.0-or-later
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.hostcheck.firewall import (
    MOST_STEPS,
    Chain,
    Match,
    Packet,
    Rule,
    fates,
    read_iptables,
    read_nft,
)

STRANGER: Packet = {"protocol": "udp", "dport": 51800, "iif": "eth0", "state": "new"}


def nft(*expressions: object, policy: str = "accept", more: tuple[object, ...] = ()) -> list[Chain]:
    """A base chain at input with one rule of these expressions, and ``more`` items."""
    items = [
        {
            "chain": {
                "family": "inet",
                "table": "t",
                "name": "c",
                "type": "filter",
                "hook": "input",
                "policy": policy,
            }
        },
        {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": list(expressions)}},
        *more,
    ]
    return read_nft({"nftables": items}, "phantommesh")


def kinds(chains: list[Chain], packet: Packet = STRANGER, hook: str = "input") -> list[str]:
    return [fate.kind for fate in fates(chains, hook, packet)]


def match(left: object, right: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str) -> dict[str, object]:
    return {"payload": {"protocol": protocol, "field": field}}


DPORT = payload("udp", "dport")
DROP, ACCEPT = {"drop": None}, {"accept": None}


@pytest.mark.parametrize(
    ("expressions", "dropped"),
    [
        ([DROP], True),
        ([match(DPORT, 51800), DROP], True),
        ([match(DPORT, 51801), DROP], False),
        ([match(DPORT, 51801, "!="), DROP], True),
        ([match(DPORT, {"range": [51700, 51900]}), DROP], True),
        ([match(DPORT, {"set": [22, {"range": [51800, 51801]}]}), DROP], True),
        ([match(payload("tcp", "dport"), 51800), DROP], False),
        ([match(payload("th", "dport"), 51800), DROP], True),
        ([match({"meta": {"key": "iifname"}}, "eth*"), DROP], True),
        ([match({"meta": {"key": "iifname"}}, "lo"), DROP], False),
        ([match({"ct": {"key": "state"}}, ["established", "related"], "in"), DROP], False),
        ([match(payload("ip", "saddr"), "10.0.0.1"), DROP], False),
        ([match(DPORT, "@ports"), DROP], False),
        ([{"limit": {"rate": 10, "per": "second"}}, DROP], False),
        ([{"counter": {"packets": 1, "bytes": 2}}, {"log": None}, DROP], True),
        ([{"xt": None}, DROP], False),
        ([{"vmap": {"key": DPORT, "data": {"set": [[51800, DROP]]}}}], True),
        ([{"vmap": {"key": DPORT, "data": {"set": [[22, DROP]]}}}], False),
        ([{"vmap": {"key": DPORT, "data": "@verdicts"}}], False),
    ],
)  # fmt: skip
def test_what_is_dropped_for_sure_is_called_dropped(expressions: list[object], dropped: bool) -> None:
    assert kinds(nft(*expressions)) == (["drop"] if dropped else [])


def test_a_policy_drops_what_no_rule_may_let_in() -> None:
    assert kinds(nft(match(DPORT, 22), ACCEPT, policy="drop")) == ["drop"]
    assert kinds(nft(match(DPORT, 51800), ACCEPT, policy="drop")) == []
    assert kinds(nft(match(payload("ip", "saddr"), "10.0.0.1"), ACCEPT, policy="drop")) == []


def jumping(
    *before: object, inner: list[list[object]], outer: list[object], policy: str = "accept"
) -> list[Chain]:
    chain = {"chain": {"family": "inet", "table": "t", "name": "inner"}}
    rules = [{"rule": {"family": "inet", "table": "t", "chain": "inner", "expr": one}} for one in inner]
    after = {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": outer}}
    return nft(*before, {"jump": {"target": "inner"}}, policy=policy, more=(chain, *rules, after))


MAYBE = match(payload("ip", "saddr"), "10.0.0.1")


def test_a_jump_goes_on_behind_it_where_nothing_was_decided() -> None:
    assert kinds(jumping(inner=[[DROP]], outer=[ACCEPT])) == ["drop"]
    assert kinds(jumping(inner=[[match(DPORT, 22), DROP]], outer=[DROP])) == ["drop"]
    assert kinds(jumping(inner=[[ACCEPT]], outer=[DROP])) == []
    assert kinds(jumping(inner=[[{"return": None}], [ACCEPT]], outer=[DROP])) == ["drop"]


def test_what_may_return_is_not_dropped_for_sure() -> None:
    assert kinds(jumping(inner=[[MAYBE, {"return": None}], [DROP]], outer=[ACCEPT])) == []
    assert kinds(jumping(inner=[[MAYBE, {"return": None}], [DROP]], outer=[DROP])) == ["drop"]
    assert kinds(jumping(MAYBE, inner=[[DROP]], outer=[ACCEPT])) == []


def test_a_redirect_counts_where_it_names_the_port() -> None:
    dnat = {"dnat": {"addr": "10.0.0.2", "port": 99}}
    [fate] = fates(nft(MAYBE, match(DPORT, 51800), dnat), "input", STRANGER)
    assert (fate.kind, fate.target) == ("redirect", "10.0.0.2:99")
    assert kinds(nft(dnat)) == []


def test_chains_that_jump_to_each_other_come_to_an_end() -> None:
    loop = Chain(table="inet t", name="c", hook="input", policy="drop", rules=(Rule((), "jump", "c"),) * 40)
    assert kinds([loop]) == []
    long = Chain(
        table="inet t", name="c", hook="input", policy="drop", rules=(Rule((), "none"),) * (MOST_STEPS + 1)
    )
    assert kinds([long]) == []


def test_our_own_tables_are_left_out() -> None:
    chain = {
        "family": "inet",
        "table": "phantommesh_guard_pm",
        "name": "c",
        "hook": "input",
        "policy": "drop",
    }
    assert read_nft({"nftables": [{"chain": chain}]}, "phantommesh") == []


SAVED = """
# Generated by iptables-save v1.8.9
*filter
:INPUT {policy} [0:0]
:FORWARD ACCEPT [0:0]
:MINE - [0:0]
-A INPUT -m comment --comment "let others in" -j MINE
{rules}
COMMIT
"""


@pytest.mark.parametrize(
    ("policy", "rules", "dropped"),
    [
        ("ACCEPT", "-A INPUT -p udp -m udp --dport 51800 -j DROP", True),
        ("ACCEPT", "-A INPUT -p udp -m multiport --dports 22,51700:51900 -j REJECT --reject-with x", True),
        ("ACCEPT", "-A INPUT -p tcp -m tcp --dport 51800 -j DROP", False),
        ("ACCEPT", "-A INPUT ! -p tcp -j DROP", True),
        ("ACCEPT", "-A INPUT ! -i lo -j DROP", True),
        ("ACCEPT", "-A INPUT -i et+ -j DROP", True),
        ("ACCEPT", "-A INPUT -s 10.0.0.0/8 -j DROP", False),
        ("ACCEPT", "-A MINE -p udp -j DROP", True),
        ("ACCEPT", "-A INPUT -m set --match-set banned src -j DROP", False),
        ("DROP", "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", True),
        ("DROP", "-A INPUT -p udp -m udp --dport 51800 -j ACCEPT", False),
        ("DROP", "-A MINE -m set --match-set friends src -j ACCEPT", False),
    ],
)
def test_iptables_is_judged_alike(policy: str, rules: str, dropped: bool) -> None:
    chains = read_iptables(SAVED.format(policy=policy, rules=rules).splitlines(), "ip")
    assert kinds(chains) == (["drop"] if dropped else [])


def test_iptables_redirects() -> None:
    text = "*nat\n:PREROUTING ACCEPT [0:0]\n"
    text += "-A PREROUTING -p udp -m udp --dport 51800 -j DNAT --to-destination 10.0.0.2"
    [fate] = fates(read_iptables(text.splitlines(), "ip"), "prerouting", STRANGER)
    assert fate.target == "10.0.0.2"


KEYS = (
    "nftables", "rule", "chain", "expr", "match", "left", "right", "op", "vmap", "key", "data", "set", "jump",
    "drop", "dnat", "target", "payload", "protocol", "field", "meta", "ct", "range", "family", "hook", "name",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["udp", "dport", "@s"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=40,
)


@given(JSON, st.lists(JSON, max_size=4))
def test_no_ruleset_is_an_error(document: object, expressions: list[object]) -> None:
    for each in (document, {"nftables": document}, {"nftables": [{"rule": document}, {"chain": document}]}):
        assert isinstance(read_nft(json.loads(json.dumps(each)), "phantommesh"), list)
    assert kinds(nft(*expressions)) in ([], ["drop"], ["redirect"])


@given(st.lists(st.text(alphabet='-*:!+ ,0123456789ApdjiDROPINUTACE"', max_size=40), max_size=8))
def test_no_text_of_iptables_is_an_error(lines: list[str]) -> None:
    assert isinstance(read_iptables(["*filter", ":INPUT DROP [0:0]", *lines], "ip"), list)


def test_a_match_of_what_is_not_known_of_the_packet_is_open() -> None:
    assert Match("oif", ("eth0",)).holds(STRANGER) is None
    assert Match("iif", ("eth0",), negated=True).holds(STRANGER) is False
