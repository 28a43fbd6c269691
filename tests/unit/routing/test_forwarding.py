# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay's rules as text."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.routing.forwarding import Drop, Frame, change, read_counted, read_drops, render
from phantommesh.routing.leases import Forward

FRAME = Frame("pm", 51700, IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1"), 12_500_000)
ONE, TWO = Address("192.0.2.7", 40001), Address("192.0.2.8", 40002)
SIX, SEVEN = Address("2001:db8::6", 6), Address("2001:db8::7", 7)


def test_what_a_packet_meets_in_order() -> None:
    text = render(FRAME, [Forward(1, 5, ONE, TWO)])
    chain = text[text.index("chain relay4 {") : text.index("chain relay6 {")]
    order = (
        "notrack",
        "frag-off",
        "0x504d5231 accept",
        "@th,64,8 != 1-4 goto drop_form",
        "map @legs4",
        "meta mark 0 goto drop_stranger",
        "goto drop_rate",
        "@counted",
        "ip daddr set",
        "goto drop_stranded",
        "udp sport set 51700",
        "udp dport set",
        "meta mark set 0x52000000",
    )
    at = [chain.index(part) for part in order]
    assert at == sorted(at)
    assert "legs4 { 192.0.2.7 . 40001 . 0x5 : 1 }" in text
    assert "to4 { 1 : 192.0.2.8 }" in text
    assert "ports { 1 : 40002 }" in text


def test_only_what_is_opened_for_the_relay_is_confined() -> None:
    assert "goto drop_unmarked" not in render(FRAME, [])
    text = render(replace(FRAME, opened=("eth0", "eth1")), [])
    passing = text[text.index("chain passing") : text.index("chain leaving")]
    assert passing.index("accept\n") < passing.index('iifname { "eth0", "eth1" } goto drop_unmarked')


def test_a_relay_of_one_family_has_no_rules_for_the_other() -> None:
    text = render(replace(FRAME, here6=None), [])
    assert "ip6 daddr" not in text
    assert "chain relay6" not in text


def test_nothing_changes_where_nothing_has_changed() -> None:
    forwards = {Forward(1, 0, ONE, TWO), Forward(2, 0, TWO, ONE)}
    assert change(FRAME, forwards, set(forwards)) == ""


def test_a_leg_that_has_moved_is_taken_out_before_it_is_put_in() -> None:
    moved = Address("192.0.2.7", 40009)
    lines = change(FRAME, [Forward(1, 0, ONE, TWO)], [Forward(1, 0, moved, TWO)]).splitlines()
    assert [line.split()[0] for line in lines] == ["delete"] * 4 + ["add"] * 4
    assert "40001" in lines[0]
    assert "40009" in lines[4]


FORWARDS = st.frozensets(
    st.builds(
        Forward,
        st.integers(1, 50),
        st.integers(0, 255),
        st.sampled_from((ONE, TWO)),
        st.sampled_from((ONE, TWO)),
    )
    | st.builds(Forward, st.integers(51, 99), st.integers(0, 255), st.just(SIX), st.just(SEVEN)),
    max_size=8,
)


def elements(text: str) -> list[tuple[str, str, str]]:
    """The edits of a script: verb, name, element."""
    found = []
    for line in text.splitlines():
        if line.startswith(("add element", "delete element")):
            head, _, rest = line.partition(" { ")
            verb, name = head.split()[0], head.split()[-1]
            found += [(verb, name, element) for element in rest.removesuffix(" }").split(", ")]
    return found


@given(FORWARDS, FORWARDS)
def test_a_change_leads_from_one_to_the_other(before: frozenset[Forward], after: frozenset[Forward]) -> None:
    drops = [("add", "drops", str(int(drop))) for drop in Drop]
    held = [edit for edit in elements(render(FRAME, before)) if edit not in drops]
    for verb, name, element in elements(change(FRAME, before, after)):
        if verb == "delete":
            held.remove(("add", name, element))
        else:
            held.append((verb, name, element))
    assert sorted(held) == sorted(edit for edit in elements(render(FRAME, after)) if edit not in drops)


def test_counters_are_read() -> None:
    assert read_counted({1: (2, 300)}) == {1: 300}
    assert read_drops({1: (7, 0), 2: (1, 0)}) == {"relay-stranger": 7, "relay-rate": 1}
