# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packets an intent is for, as nftables text, and which classes a peer's traffic has."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config import intents as config
from phantommesh.config.sections import ConfigError, IntentSection
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.intents import Intents, matches

SSH = IntentSection("ssh", "order", ports=(22,), protocol="tcp")
BACKUP = IntentSection("backup", "throughput", ("db",), user="backup")
VOICE = IntentSection("voice", "order", ("db", "web"), dscp="ef")


def test_ports_are_those_of_either_end_and_never_a_fragments() -> None:
    assert matches(SSH, None) == (
        "meta protocol ip ip frag-off & 0x3fff == 0 meta l4proto 6 th dport 22",
        "meta protocol ip ip frag-off & 0x3fff == 0 meta l4proto 6 th sport 22",
        "meta protocol ip6 ip6 nexthdr != 44 meta l4proto 6 th dport 22",
        "meta protocol ip6 ip6 nexthdr != 44 meta l4proto 6 th sport 22",
    )


def test_what_an_intent_says_has_to_match_all_of_it() -> None:
    several = IntentSection("x", "order", dscp=0, protocol="udp", ports=(1, "5-9"), user=3)
    first, *more = matches(several, 3)
    assert len(more) == 3
    assert first.endswith("ip dscp 0 meta l4proto 17 meta skuid 3 th dport { 1, 5-9 }")
    assert matches(IntentSection("x", "order", protocol="icmp"), None) == ("meta l4proto { 1, 58 }",)
    assert matches(VOICE, None) == ("meta protocol ip ip dscp 46", "meta protocol ip6 ip6 dscp 46")


def test_a_peers_classes_are_those_that_are_for_the_peer_in_order() -> None:
    found = Intents((SSH, BACKUP, VOICE), {"backup": 34})
    assert [one.name for one in found.classes("db")] == ["ssh", "backup", "voice"]
    assert [one.name for one in found.classes("web")] == ["ssh", "voice"]
    assert [one.name for one in found.classes("gama")] == ["ssh"]
    backup = found.classes("db")[1]
    assert backup.matches == ("meta skuid 34",) and backup.schedule == SCHEDULES["throughput"]


def test_an_intent_for_a_user_who_is_not_there_is_left_out_and_named() -> None:
    found = Intents((SSH, BACKUP, VOICE))
    assert [one.name for one in found.classes("db")] == ["ssh", "voice"]
    assert found.unknown_users == {"backup": "backup"}
    assert found.unknown_peers(["db", "alpha"]) == {"voice": {"web"}}
    assert not Intents((SSH, BACKUP), {"backup": 0}).unknown_users


names = st.lists(st.sampled_from(["db", "web", "gama"]), max_size=2).map(tuple)


@given(st.lists(names, max_size=8))
def test_each_peer_has_its_classes_in_the_files_order(peers: list[tuple[str, ...]]) -> None:
    found = Intents([IntentSection(f"c{i}", "order", each, protocol=6) for i, each in enumerate(peers)])
    for name in ("db", "web", "gama", "new"):
        wanted = [f"c{i}" for i, each in enumerate(peers) if not each or name in each]
        assert [one.name for one in found.classes(name)] == wanted


small = st.integers(0, 70)
words = st.one_of(small, st.sampled_from([*config.PROTOCOLS, *config.DSCPS, "1-5", "x; drop", "a\n"]))


@given(st.fixed_dictionaries({}, optional={
    "protocol": words, "ports": st.lists(words, max_size=3).map(tuple), "dscp": words, "user": words,
}))  # fmt: skip
def test_a_match_is_made_of_nothing_but_words_of_ours_and_numbers(keys: dict[str, object]) -> None:
    intent = IntentSection("x", "order", **keys)  # type: ignore[arg-type]
    try:
        config.check([intent])
    except ConfigError:
        return
    known = r"meta|protocol|ip6?|frag-off|&|0x3fff|[!=]=|nexthdr|l4proto|skuid|dscp|th|[ds]port|[{}]"
    for match in matches(intent, 7 if intent.user is not None else None):
        assert all(re.fullmatch(rf"{known}|[0-9]+(-[0-9]+)?,?", word) for word in match.split()), match
