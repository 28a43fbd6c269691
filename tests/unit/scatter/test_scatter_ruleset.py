# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.maps import SCHEDULERS, Epoch, Scheduler, cards, deal, epoch_keys
from phantommesh.scatter.peermap import Hits, PeerMap, length_of, mark, read_hits
from phantommesh.scatter.ruleset import (
    STRANDED,
    UNKNOWN,
    Beyond,
    Frame,
    Hook,
    dropped,
    render,
    render_beyond,
    render_peer,
    render_removal,
    table_name,
    ways,
)
from phantommesh.scatter.steering import Steering
from phantommesh.secret import Secret

FRAME = Frame(
    "egress",
    table_name("pm"),
    "pm",
    (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48")),
    (IPv4Address("100.64.0.1"), IPv6Address("fd00::1")),
    0xABC,
    60,
)
HOOKS: tuple[Hook, Hook] = ("egress", "mark")


def peer(slot: int = 1, scheduler: Scheduler = "deck", parity: int = 0) -> PeerMap:
    keys = epoch_keys(Secret(b"s" * 32), b"n" * 16, Epoch(1, slot))
    length = length_of(scheduler, 8)
    committed = cards((1.0,) * DIMENSIONS, keys.noise, length // (8 if scheduler == "batch" else 1))
    dealt = deal(committed, scheduler, keys.stream, 8)
    ip4, ip6 = IPv4Address("100.64.1.0") + slot, IPv6Address("fd00::1:0") + slot
    return PeerMap(slot, ip4, ip6, scheduler, length, parity, dealt)


def splitting(slot: int, *buckets: int) -> PeerMap:
    """A peer some buckets of whose flows are split."""
    made = peer(slot, "flow")
    return replace(made, deck=made.dealt[::-1], steering=Steering(frozenset(buckets)))


def test_a_split_bucket_is_marked_for_the_deck_and_a_moved_one_for_its_new_dimension() -> None:
    made = splitting(4, 3, 200)
    assert {b for b, value in made.elements.items() if value == 4 << 8 | 9} == {3, 200}
    assert made.maps.keys() == {"deck_4", "split_4"}
    assert set(made.maps["split_4"].values()) == {mark(4, 0, i) for i in range(DIMENSIONS)}
    rules = [line for line in render_peer(FRAME, made).splitlines() if "rule netdev" in line]
    split = next(i for i, rule in enumerate(rules) if "numgen" in rule)
    assert f"meta mark {4 << 8 | 9} " in rules[split] and "map @split_4 goto out" in rules[split]
    drained = replace(made, dealt=(), deck=())
    assert {value for cards in drained.maps.values() for value in cards.values()} == {4 << 8 | 15}
    assert splitting(4, 3).homes == made.homes
    steered = replace(made, steering=Steering(moved=frozenset({(5, 6)})))
    assert {b for b in steered.elements if steered.elements[b] != peer(4, "flow").elements[b]} <= {5}
    assert steered.elements[5] == mark(4, 0, 6)
    two = replace(made, dealt=(0, 1) * 128, deck=(0, 1) * 128, steering=Steering(moved=frozenset({(5, 6)})))
    assert two.elements[5] == mark(4, 0, 1)  # a dimension without a card is not in use
    none = replace(made, dealt=(), deck=())
    assert all(value & 15 == 15 for value in none.elements.values())
    with pytest.raises(ValueError, match="only flows are split"):
        replace(peer(1, "deck"), deck=(0,) * 1022)


def test_a_mark_tells_peer_epoch_and_dimension() -> None:
    found = {mark(s, p, d) for s in range(1, 60) for p in (0, 1) for d in range(DIMENSIONS)}
    assert len(found) == 59 * 2 * 7
    assert not {UNKNOWN, STRANDED} & found
    assert not {value & 15 for value in found} & {0, STRANDED, 15}  # missed, stranded, dropped


def test_a_map_holds_its_cards_or_drops() -> None:
    made = peer(3, parity=1)
    assert made.elements == {i: mark(3, 1, d) for i, d in enumerate(made.dealt)}
    drained = replace(made, dealt=())
    assert drained.elements == dict.fromkeys(range(made.length), 3 << 8 | 15)


def test_a_map_that_does_not_fit_is_refused() -> None:
    made = peer()
    for change in ({"slot": 0}, {"slot": 1 << 24}, {"parity": 2}, {"dealt": (1, 2)}):
        with pytest.raises(ValueError, match=r"slot|cards"):
            replace(made, **change)


def test_ways_leave_out_what_is_missing_and_fall_back_to_what_is_there() -> None:
    assert ways([None] * 7) == {}
    assert ways([None, 12, None, 14, None, None, None]) == {2: 12, 4: 14, STRANDED: 12}


def test_counters_are_told_apart_by_peer_and_epoch() -> None:
    counters = {
        mark(s, p, d): (100 * s + 10 * p + d, 7 * d) for s in (1, 2) for p in (0, 1) for d in range(7)
    }
    assert read_hits(counters, 2, 1) == Hits(tuple(range(210, 217)), tuple(range(0, 49, 7)))
    assert read_hits({}, 2, 1) == Hits()
    later, earlier = read_hits(counters, 2, 0), read_hits(counters, 1, 0)
    assert later.since(earlier) == Hits((100,) * 7, (0,) * 7)


def test_what_was_not_scattered_is_counted_by_reason() -> None:
    counters = {0: (5, 0), 8: (3, 0), 1 << 8: (2, 0), 1 << 8 | 15: (4, 0), 2 << 8 | 15: (1, 0)}
    counters[1 << 8 | 7 << 5 | 14] = 6, 0
    assert dropped(counters, [1, 2]) == {
        "scatter-unknown": 5,
        "scatter-stranded": 3,
        "scatter-missed": 2,
        "scatter-drained": 5,
        "scatter-closed": 6,
    }


@pytest.mark.parametrize("hook", HOOKS)
def test_the_text_suits_the_oldest_nft(hook: Hook) -> None:
    """nft 1.0.6 (Debian 12) wants a line break before the brace that closes a block of the table."""
    peers = [peer(i + 1, scheduler) for i, scheduler in enumerate(SCHEDULERS)]
    text = render(replace(FRAME, hook=hook), ways(range(10, 17)), peers)
    inside = text[: text.index("\n}\n")]
    for line in inside.splitlines():
        assert line.count("{") == line.count("}") or line.strip() == "}" or line.endswith("{")
    assert text.isascii()
    assert inside.count("{") == inside.count("}") + 1


def test_the_table_is_replaced_in_one_transaction_and_drops_what_it_does_not_know() -> None:
    lines = render(FRAME, ways(range(10, 17)), []).splitlines()
    assert lines[:3] == [
        "add table netdev phantommesh_pm",
        "delete table netdev phantommesh_pm",
        "table netdev phantommesh_pm {",
    ]
    (hook,) = (line.strip() for line in lines if "hook" in line)
    assert hook == 'type filter hook egress device "pm" priority 0; policy drop;'


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_removal_takes_away_all_that_was_added(scheduler: Scheduler) -> None:
    made = peer(5, scheduler)
    added, removed = render_peer(FRAME, made), render_removal(FRAME, made)
    for kind in ("map", "chain"):
        names = set(re.findall(rf"add {kind} netdev phantommesh_pm (\S+)", added))
        assert names == set(re.findall(rf"delete {kind} netdev phantommesh_pm (\S+)", removed))

    def elements(text: str, verb: str) -> set[tuple[str, str]]:
        found = re.findall(rf"{verb} element netdev phantommesh_pm (\S+) {{ (.*?) }}", text)
        return {(name, one.split(" : ")[0]) for name, listed in found for one in listed.split(", ")}

    decks = {(made.name, str(i)) for i in range(made.length)}
    assert elements(added, "add") - decks == elements(removed, "delete")


def test_no_two_peers_share_a_map_a_chain_or_a_mark() -> None:
    one, two = peer(1), peer(2)
    assert one.name != two.name
    assert not set(one.elements.values()) & set(two.elements.values())
    text = render_peer(FRAME, two)
    assert (
        one.name not in text and "peer_1 " not in text and str(one.ip4) not in text.replace(str(two.ip4), "")
    )


def test_an_exit_has_what_is_routed_to_the_mesh_and_nothing_that_comes_from_elsewhere() -> None:
    gates = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    plain, gated = (
        render(replace(FRAME, hook="mark", networks=networks), ways(range(10, 17)), [peer()])
        for networks in (FRAME.networks, (*FRAME.networks, *gates))
    )
    more = [line.strip() for line in gated.splitlines() if line not in plain.splitlines()]
    assert more == [
        'oifname "pm" meta protocol ip goto overlay',
        'oifname "pm" meta protocol ip6 goto overlay',
    ]
    leads = render_beyond(FRAME, [Beyond(gates[0], 1), Beyond(IPv4Network("10.0.0.0/8"), 2)]).splitlines()
    assert leads[0].endswith("ip daddr 10.0.0.0/8 goto peer_2")
    assert leads[1].endswith("meta protocol ip goto peer_1")
    known = replace(FRAME, overlay=(IPv4Network("100.64.0.0/10"),))
    nobody, exit_ = render_beyond(known, [Beyond(gates[0], 1)]).splitlines()
    assert nobody.endswith("ip daddr { 100.64.0.0/10 } return"), "an address that no peer has is nobody's"
    assert exit_.endswith("meta protocol ip goto peer_1")
    assert len(render_beyond(known, [Beyond(gates[1], 1)]).splitlines()) == 1
