# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules that drop peers' cover: for this node's own addresses only, by its own interfaces only. That the
kernel takes them, and what they do there, `tests/lab/test_cover.py` shows."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

from phantommesh.scatter import flows
from phantommesh.scatter.cover import DISCARD
from phantommesh.scatter.coverrules import PRIORITY, render

OWN = IPv4Address("100.64.0.7"), IPv6Address("fd00::7")
TEXT = render("pm", ["pm0", "pm1"], OWN)


def chain(name: str) -> list[str]:
    (found,) = re.findall(rf"  chain {name} {{\n(.*?)  }}\n", TEXT, re.DOTALL)
    return [line.strip() for line in found.splitlines()]


def test_only_what_is_meant_for_this_node_is_dropped() -> None:
    _, *rules = chain("arriving")
    assert rules[:3] == [
        f"udp dport != {DISCARD} return", "meta l4proto != udp return", 'iifname != { "pm0", "pm1" } return',
    ]  # fmt: skip
    assert rules[3:] == ["ip daddr 100.64.0.7 goto dropping", "ip6 daddr fd00::7 goto dropping"]
    assert chain("dropping") == ["udp dport @cover drop", "drop"]
    assert TEXT.endswith(f"add element inet phantommesh_cover_pm cover {{ {DISCARD} }}\n")


def test_it_is_the_first_to_see_a_packet() -> None:
    assert f"hook prerouting priority {PRIORITY};" in chain("arriving")[0]
    assert PRIORITY < -flows.PRIORITY, "flows count what comes, and cover is no flow"


def test_the_table_is_replaced_whole() -> None:
    assert TEXT.splitlines()[:2] == [
        "add table inet phantommesh_cover_pm", "delete table inet phantommesh_cover_pm",
    ]  # fmt: skip
