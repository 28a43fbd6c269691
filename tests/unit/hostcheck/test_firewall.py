# SPDX-License-Identifier: GPL-3.0-or-later
import json
import shutil
import subprocess

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

STRANGER: Packet = {"protocol": "udp", "dport": 51800, "iif": "eth0", "state": "new", "status": "none"}


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


# What ufw makes of "default deny", and of ports that are allowed.
UFW = """
*filter
:INPUT DROP [0:0]
:ufw-before-input - [0:0]
:ufw-not-local - [0:0]
:ufw-user-input - [0:0]
:ufw-logging-deny - [0:0]
-A INPUT -j ufw-before-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -j ufw-not-local
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -m addrtype --dst-type MULTICAST -j RETURN
-A ufw-not-local -m limit --limit 3/min --limit-burst 10 -j ufw-logging-deny
-A ufw-not-local -j DROP
-A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min -j RETURN
-A ufw-logging-deny -m limit --limit 3/min -j LOG --log-prefix "[UFW BLOCK] "
{allowed}
COMMIT
"""


def test_ufw_is_told_for_what_it_does_not_allow() -> None:
    allowed = "-A ufw-user-input -p udp -m udp --dport 51800 -j ACCEPT"
    assert kinds(read_iptables(UFW.format(allowed=allowed).splitlines(), "ip")) == []
    other = "-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT"
    assert kinds(read_iptables(UFW.format(allowed=other).splitlines(), "ip")) == ["drop"]


def test_docker_publishing_one_of_our_ports_redirects_it() -> None:
    text = """
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p udp -m udp --dport {port} -j DNAT --to-destination 172.17.0.2:9
"""
    for port, expected in ((51800, ["redirect"]), (8080, [])):
        chains = read_iptables(text.format(port=port).splitlines(), "ip")
        assert kinds(chains, hook="prerouting") == expected


# firewalld's zone "public", as nft tells of it, without what takes no part in it.
FIREWALLD = """
table inet firewalld {{
 chain filter_INPUT {{
  type filter hook input priority filter + 10; policy accept;
  ct state {{ established, related }} accept
  ct status dnat accept
  iifname "lo" accept
  ct state invalid drop
  jump filter_INPUT_ZONES
  reject with icmpx admin-prohibited
 }}
 chain filter_INPUT_ZONES {{
  iifname "eth0" goto filter_IN_public
  goto filter_IN_public
 }}
 chain filter_IN_public {{
  jump filter_IN_public_allow
  meta l4proto {{ icmp, ipv6-icmp }} accept
 }}
 chain filter_IN_public_allow {{
  tcp dport 22 accept
  {allowed}
 }}
}}
"""


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft turns the rules into JSON")
def test_firewalld_is_told_for_what_it_does_not_allow() -> None:
    for allowed, expected in (("udp dport 51800 accept", []), ("tcp dport 51800 accept", ["drop"])):
        assert kinds(read_nft(as_json(FIREWALLD.format(allowed=allowed)), "phantommesh")) == expected


def as_json(ruleset: str) -> object:
    """The JSON of a ruleset, by an nft that holds it in a network namespace of its own."""
    script = f"nft -f - <<'E'\n{ruleset}\nE\nnft --json --terse list ruleset"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-euc", script],
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


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
