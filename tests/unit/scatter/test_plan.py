# SPDX-License-Identifier: GPL-3.0-or-later
"""Which transactions a plan gives for what it is told, without a kernel and without a clock."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.epochs import EpochCounts, Moment, ScatterPeer
from phantommesh.scatter.goals import SCHEDULES, Schedule
from phantommesh.scatter.intents import TrafficClass
from phantommesh.scatter.peermap import mark
from phantommesh.scatter.plan import ADOPTED, JITTER, MAX_GONE, Plan
from phantommesh.scatter.ruleset import FLOWLETS, STRANDED, Frame
from phantommesh.scatter.steering import Steering
from phantommesh.scatter.transactions import Ended
from phantommesh.secret import Secret

EPOCH = 60.0
OWN = IPv4Address("100.64.0.1"), IPv6Address("fd00::1")
FRAME = Frame("egress", "phantommesh_pm", "pm", [IPv4Network("100.64.0.0/10")], OWN, 7, 50)


def at(seconds: float) -> Moment:
    return Moment(1e9 + seconds, 500.0 + seconds)


def peer(number: int, link: int | None = 1, schedule: Schedule = SCHEDULES["throughput"]) -> ScatterPeer:
    ip4, ip6 = IPv4Address("100.64.0.0") + number, IPv6Address("fd00::") + number
    keying = None if link is None else (link, Secret(bytes([number, link]) * 16))
    return ScatterPeer(bytes([number]) * 16, ip4, ip6, keying, schedule)


def make(*peers: ScatterPeer) -> Plan:
    """A plan of a node with all seven interfaces."""
    numbers = count(1)
    plan = Plan(
        b"m" * 16,
        batch=8,
        epoch_seconds=EPOCH,
        jitter=Random(1),
        secret=lambda: Secret(next(numbers).to_bytes(32)),
    )
    plan.devices(range(10, 17))
    plan.update(peers, at(0.0))
    return plan


def placed(*peers: ScatterPeer) -> Plan:
    """A plan that the kernel has."""
    plan = make(*peers)
    plan.whole(FRAME, plan.ways, at(0.0))
    plan.placed()
    return plan


class Counters(dict[int, tuple[int, int]]):
    """What the kernel counts: every mark that a table has is listed, from 0 on."""

    def __init__(self) -> None:
        slots = range(1, 64)
        marks = (mark(slot, parity, i) for slot in slots for parity in (0, 1) for i in range(DIMENSIONS))
        super().__init__(dict.fromkeys(marks, (0, 0)))
        self.parity: Counter[int] = Counter(dict.fromkeys(slots, 1))

    def send(self, slot: int, packets: int) -> None:
        """Send by the map as it is, the same number to each dimension."""
        for i in range(DIMENSIONS):
            had = self[mark(slot, self.parity[slot], i)][0]
            self[mark(slot, self.parity[slot], i)] = had + packets, 10 * (had + packets)


def packets(counts: EpochCounts) -> int:
    return counts.hits.packets[0]


def test_what_is_told_says_whether_the_table_has_to_change() -> None:
    plan = placed(peer(2))
    assert not plan.update([peer(2)], at(1.0)) and plan.is_placed(at(1.0))
    assert not plan.change(peer(2, link=2), at(1.0))  # the next epoch has the new key
    assert not plan.update([peer(2), peer(3, None)], at(1.0))  # nothing can be sent to it yet
    assert not plan.change(peer(4), at(1.0))  # nobody has named it
    assert plan.change(peer(3), at(1.0)) and not plan.is_placed(at(1.0))
    assert plan.change(peer(2, None), at(1.0))
    assert plan.update([replace(peer(2), ip4=IPv4Address("100.64.9.9"))], at(1.0))
    assert plan.update([peer(2, schedule=SCHEDULES["private"])], at(1.0))
    assert plan.update([], at(1.0))


def test_interfaces_that_come_and_go_are_noticed_once() -> None:
    plan = make()
    assert plan.ways == {i + 1: 10 + i for i in range(7)} | {STRANDED: 10}
    assert not plan.devices(range(10, 17))
    assert plan.devices([None, *range(11, 17)])
    assert plan.ways[STRANDED] == 11 and 1 not in plan.ways
    assert plan.devices([None] * 7) and plan.ways == {}
    told = []
    for indexes in (range(10, 17), [None, *range(11, 17)]):
        plan.devices(indexes)
        told.append(plan.has_all_seven)
    assert told == [True, False]


def test_the_whole_table_has_the_keyed_peers_and_nobody_else() -> None:
    plan = make(peer(2), peer(3, None), peer(4))
    new = plan.whole(FRAME, plan.ways, at(0.0))
    assert [f"100.64.0.{number} : goto" in new.text for number in (2, 3, 4)] == [True, False, True]
    assert "delete table netdev phantommesh_pm" in new.text and not new.ended
    assert plan.is_placed(at(0.0)) and len(plan.installed) == 2
    assert plan.snapshot(peer(3).node_id) is None


def test_changes_leave_the_other_peers_alone() -> None:
    plan = placed(peer(2), peer(3))
    counters = Counters()
    counters.send(1, 5)
    plan.update([peer(3), peer(4)], at(7.0))
    new = plan.changes(FRAME, counters, at(7.0))
    assert "delete map netdev phantommesh_pm deck_1\n" in new.text
    assert "deck_2" not in new.text and "delete table" not in new.text
    assert (
        "100.64.0.4 : goto peer_3" in new.text
    )  # a number of its own: the counters of the one that left stand
    ((node_id, counts),) = new.ended
    assert node_id == peer(2).node_id and packets(counts) == 5 and counts.ended == at(7.0).wall
    assert plan.is_placed(at(7.0))


def test_maps_are_due_once_an_epoch_and_apart_from_each_other() -> None:
    plan = placed(*(peer(number) for number in range(2, 12)))
    assert not plan.due(at(EPOCH * (1 - JITTER) - 1))
    assert set(plan.due(at(EPOCH * (1 + JITTER)))) == set(plan.installed)
    first = plan.next_due()
    (soonest,) = plan.due(Moment(0.0, first))  # by the steady clock, whatever the other one says
    plan.rotation([soonest], Moment(1e9, first))
    assert plan.next_due() > first
    assert make().next_due() == math.inf


def test_a_rotation_ends_the_epochs_before_with_what_was_counted_after_it() -> None:
    plan = placed(peer(2), peer(3))
    counters = Counters()
    counters.send(1, 3)
    rotation = plan.rotation([peer(2).node_id], at(EPOCH))
    assert set(rotation.maps) == {"deck_1"} and rotation.peers == [peer(2).node_id]
    assert not rotation.leaving
    counters.send(1, 2)  # by the old map, before the kernel had the new one
    counters.parity[1] = 0
    counters.send(1, 4)
    ((node_id, counts),) = plan.close(rotation, counters, at(EPOCH + 1))
    assert node_id == peer(2).node_id and packets(counts) == 5
    plan.read(counters)
    snapshot = plan.snapshot(node_id)
    assert snapshot is not None and packets(snapshot.current) == 4 and snapshot.previous == counts


def test_a_flow_that_is_remembered_is_forgotten_with_its_map() -> None:
    plan = placed(peer(2, schedule=Schedule("flowlet")))
    assert plan.rotation(plan.installed, at(EPOCH)).maps[FLOWLETS] == {}


def test_a_peer_that_is_to_leave_gets_no_new_map() -> None:
    plan = placed(peer(2), peer(3))
    plan.change(peer(2, None), at(1.0))
    rotation = plan.rotation(plan.installed, at(EPOCH))
    assert rotation.leaving and set(rotation.maps) == {"deck_2"}
    assert plan.due(at(9 * EPOCH)) == [peer(3).node_id]  # the other waits to be taken out


def test_a_score_makes_peers_of_the_table_due_and_bad_ones_change_nothing() -> None:
    plan = placed(peer(2), peer(3, None))
    drained = (1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    wanted = {peer(number).node_id: drained for number in (2, 3, 4)}
    for bad in ((1.0,) * 6, (*drained[:6], -1.0), (*drained[:6], math.nan), (*drained[:6], math.inf)):
        with pytest.raises(ValueError, match="seven scores"):
            plan.score({**wanted, peer(3).node_id: bad})
    assert plan.scores(peer(2).node_id) == (1.0,) * 7
    assert plan.score(wanted) == [peer(2).node_id]
    assert plan.score(wanted) == []
    assert plan.scores(peer(3).node_id) == drained
    rotation = plan.rotation([peer(2).node_id], at(1.0))
    assert 2 not in {(value & 15) - 1 for value in rotation.maps["deck_1"].values()}


def test_a_dimension_without_an_interface_gets_no_cards_though_its_score_stands() -> None:
    plan = placed(peer(2))
    plan.devices([*range(10, 16), None])
    rotation = plan.rotation(plan.installed, at(1.0))
    assert {(value & 15) - 1 for value in rotation.maps["deck_1"].values()} == set(range(6))
    assert plan.scores(peer(2).node_id) == (1.0,) * 7


def test_a_table_of_an_earlier_run_is_kept_for_as_long_as_its_sessions_live() -> None:
    plan = make(peer(2, None), peer(3))
    plan.change(peer(3, None), at(0.0))  # its keys were lost: the table of the earlier run is not for it
    plan.adopt(at(0.0))
    new = plan.whole(FRAME, plan.ways, at(ADOPTED - 1))
    assert "100.64.0.2 : goto" in new.text and "100.64.0.3 : goto" not in new.text
    assert plan.is_placed(at(ADOPTED - 1)) and not plan.is_placed(at(ADOPTED))


def test_what_a_refused_table_would_have_counted_is_nobodys_epoch() -> None:
    plan = make(peer(2))
    plan.whole(FRAME, plan.ways, at(0.0))
    plan.refused()
    assert plan.whole(FRAME, plan.ways, at(1.0)).ended == []
    plan.placed()
    ((_, counts),) = plan.whole(FRAME, plan.ways, at(2.0)).ended
    assert not counts.whole and counts.ended == at(2.0).wall
    plan.refused()
    assert plan.whole(FRAME, plan.ways, at(3.0)).ended == []


def test_refused_changes_end_the_epochs_of_peers_that_leave_and_begin_none() -> None:
    plan = placed(peer(2), peer(3))
    counters = Counters()
    counters.send(1, 5)
    plan.update([peer(3), peer(4)], at(7.0))
    ((node_id, counts),) = plan.changes(FRAME, counters, at(7.0)).ended
    assert node_id == peer(2).node_id and packets(counts) == 5
    # The kernel refused it, so there is a whole table next: the epoch of peer 4 never was.
    told = [node_id for node_id, _ in plan.whole(FRAME, plan.ways, at(8.0)).ended]
    assert told == [peer(3).node_id]


def test_a_peer_that_leaves_while_the_table_is_gone_has_its_epoch_ended() -> None:
    plan = placed(peer(2), peer(3))
    plan.update([peer(3)], at(7.0))
    ended = dict(plan.whole(FRAME, plan.ways, at(7.0)).ended)
    assert set(ended) == {peer(2).node_id, peer(3).node_id}
    assert not ended[peer(2).node_id].whole and ended[peer(2).node_id].ended == at(7.0).wall


def test_no_epoch_has_a_number_twice_though_its_peer_left_and_came_back() -> None:
    plan = placed(peer(2))
    counters, seen = Counters(), list[EpochCounts]()
    for turn in range(3):
        plan.update([], at(10.0 * turn + 1))
        seen += [counts for _, counts in plan.changes(FRAME, counters, at(10.0 * turn + 1)).ended]
        plan.update([peer(2)], at(10.0 * turn + 2))
        plan.changes(FRAME, counters, at(10.0 * turn + 2))
        plan.added()
    assert [counts.epoch.number for counts in seen] == [0, 1, 2]
    for number in range(MAX_GONE + 10):
        plan.update([replace(peer(2), node_id=number.to_bytes(16))], at(99.0))
    assert len(plan._numbers) == MAX_GONE


def test_drops_are_told_once_and_from_nothing_after_a_new_table() -> None:
    plan = placed(peer(2))
    counters = Counters()
    counters[STRANDED] = 3, 30
    assert plan.read(counters).fresh == Counter({"scatter-stranded": 3})
    counters[STRANDED] = 5, 50
    assert plan.read(counters).fresh == Counter({"scatter-stranded": 2})
    plan.whole(FRAME, plan.ways, at(1.0))
    plan.placed()
    counters[STRANDED] = 1, 10
    assert plan.read(counters).fresh == Counter({"scatter-stranded": 1})


def test_a_map_or_a_set_that_somebody_emptied_is_noticed() -> None:
    plan = placed(peer(2))
    counters = Counters()
    assert not plan.read(counters).emptied
    assert plan.read({}).emptied
    counters[1 << 8] = 1, 10  # a packet whose card was not in the map
    assert plan.read(counters).emptied


STEP = st.tuples(st.sampled_from(["send", "swap", "lose", "key"]), st.integers(2, 5))


@given(st.lists(STEP, max_size=40))
def test_no_packet_is_lost_nor_told_twice(steps: list[tuple[str, int]]) -> None:
    """Whatever peers are keyed and lose their keys, the epochs that ended and those under way hold all that
    was sent, and no two of a peer have one number."""
    keyed = dict.fromkeys(range(2, 6), True)
    plan = placed(*(peer(number) for number in keyed))
    counters, sent, told = Counters(), Counter[bytes](), list[Ended]()
    slots, unused = {number: number - 1 for number in keyed}, count(5)
    for second, (what, number) in enumerate(steps, 1):
        node_id, now = peer(number).node_id, at(float(second))
        match what:
            case "send" if keyed[number]:
                counters.send(slots[number], 1)
                sent[node_id] += 1
            case "swap" if keyed[number]:
                rotation = plan.rotation([node_id], now)
                counters.parity[slots[number]] ^= 1
                told += plan.close(rotation, counters, now)
            case "lose" | "key" if keyed[number] != (what == "key"):
                keyed[number] = what == "key"
                if keyed[number]:
                    slots[number] = next(unused)
                plan.update([peer(other, 1 if has else None) for other, has in keyed.items()], now)
                told += plan.changes(FRAME, counters, now).ended
                plan.added()
                assert plan.is_placed(now)
    plan.read(counters)
    for node_id in plan.installed:
        snapshot = plan.snapshot(node_id)
        assert snapshot is not None
        told.append((node_id, snapshot.current))
    seen = Counter[bytes]()
    for node_id, counts in told:
        seen[node_id] += packets(counts)
    assert +seen == +sent
    numbers = [(node_id, counts.epoch) for node_id, counts in told]
    assert len(numbers) == len(set(numbers))


def test_a_map_that_nothing_is_sent_by_holds_on_for_ten_lengths_at_most() -> None:
    """A change of the map has both ends read all interfaces, open a channel and sign a statement."""
    plan, counters = placed(peer(2), peer(3)), Counters()
    counters.send(1, 5)
    assert not plan.can_rest(at(0.9 * EPOCH)), "nothing is due"
    assert plan.can_rest(at(1.2 * EPOCH))
    plan.read(counters)
    plan.rest(at(1.2 * EPOCH))
    assert plan.due(at(1.2 * EPOCH)) == [peer(2).node_id], "by its map something was sent"
    held = 2.4 * EPOCH
    while plan.can_rest(at(held)):
        plan.rest(at(held))
        assert plan.next_due() <= at(1.2 * EPOCH).steady
        assert peer(3).node_id not in plan.due(at(held))
        held += 1.2 * EPOCH
    assert 10 * EPOCH <= held < 11.2 * EPOCH


def test_from_the_first_packet_on_a_map_holds_for_one_length() -> None:
    plan, counters = placed(peer(2)), Counters()
    for turn in range(1, 4):
        plan.rest(at(1.2 * turn * EPOCH))
    counters.send(1, 1)
    plan.read(counters)
    assert not plan.can_rest(at(4.8 * EPOCH))
    assert plan.due(at(4.8 * EPOCH)) == [peer(2).node_id]


def test_epochs_that_were_set_short_end_whatever_flows() -> None:
    plan = placed(peer(2))
    plan._epoch_seconds = 2.0
    assert not plan.can_rest(at(1.2 * EPOCH)) and plan.due(at(1.2 * EPOCH))


def test_flows_are_split_until_further_notice_and_moved_until_the_epoch_ends() -> None:
    plan = placed(peer(2, schedule=SCHEDULES["auto"]), peer(3))
    node_id = bytes([2]) * 16
    assert plan.homes(bytes([3]) * 16) is None
    found = plan.homes(node_id)
    assert found is not None and len(found[1]) == 256 and plan.steered(node_id) == Steering()
    to = (found[1][8] or 0) ^ 1
    steering = Steering(frozenset({7, 9}), frozenset({(8, to)}))
    (name, elements), *more = plan.steer(node_id, steering).items()
    assert not more and {b for b, value in elements.items() if value & 15 == 9} == {7, 9}
    assert elements[8] & 15 == to + 1 and plan.steered(node_id) == steering
    maps = plan.rotation([node_id], at(1.0)).maps
    assert plan.steered(node_id) == Steering(frozenset({7, 9}))
    assert maps.keys() == {name, name.replace("deck", "split")}
    assert {b for b, value in maps[name].items() if value & 15 == 9} == {7, 9}


LAN, WIDE = IPv4Network("10.1.0.0/16"), IPv4Network("10.0.0.0/8")


def beyond_rules(text: str) -> list[str]:
    found = (line.partition(" beyond ")[2] for line in text.splitlines() if line.startswith("add rule"))
    return [rule for rule in found if rule]


def test_prefixes_beyond_the_mesh_lead_to_their_peers_the_longest_first() -> None:
    plan = placed(peer(1), peer(2))
    assert plan.carry({WIDE: peer(1).node_id, LAN: peer(2).node_id})
    assert not plan.is_placed(at(1.0))
    text = plan.changes(FRAME, Counters(), at(1.0)).text
    plan.added()
    assert beyond_rules(text) == ["ip daddr 10.1.0.0/16 goto peer_2", "ip daddr 10.0.0.0/8 goto peer_1"]
    assert plan.is_placed(at(1.0))
    assert not plan.carry({WIDE: peer(1).node_id, LAN: peer(2).node_id})


def test_a_prefix_moves_in_one_transaction() -> None:
    plan = placed(peer(1), peer(2))
    plan.carry({LAN: peer(1).node_id})
    plan.changes(FRAME, Counters(), at(1.0))
    plan.added()
    assert plan.carry({LAN: peer(2).node_id})
    text = plan.changes(FRAME, Counters(), at(2.0)).text
    assert text.startswith("flush chain netdev phantommesh_pm beyond\n")
    assert beyond_rules(text) == ["ip daddr 10.1.0.0/16 goto peer_2"]


def test_a_peer_that_leaves_takes_its_prefix_out_of_the_rules_first() -> None:
    """A chain that a rule leads to cannot be deleted."""
    plan = placed(peer(1), peer(2))
    plan.carry({LAN: peer(1).node_id})
    plan.changes(FRAME, Counters(), at(1.0))
    plan.added()
    plan.update([peer(2)], at(2.0))
    text = plan.changes(FRAME, Counters(), at(2.0)).text
    assert text.index("flush chain netdev phantommesh_pm beyond") < text.index("delete chain")
    assert beyond_rules(text) == []


def test_a_table_that_is_made_anew_has_the_prefixes_too() -> None:
    plan = placed(peer(1))
    plan.carry({LAN: peer(1).node_id, WIDE: peer(9).node_id})
    text = plan.whole(FRAME, plan.ways, at(1.0)).text
    assert beyond_rules(text) == ["ip daddr 10.1.0.0/16 goto peer_1"]
    plan.refused()
    assert not plan.is_placed(at(1.0))


def test_the_quickest_dimension_has_all_traffic_of_a_peer_that_wants_it_and_of_no_other() -> None:
    plan = placed(peer(2, schedule=SCHEDULES["latency"]), peer(3))
    quick = dict.fromkeys((peer(number).node_id for number in (2, 3)), 4)
    scores = dict.fromkeys(quick, (1.0,) * 7)
    assert plan.score(scores, quick) == [peer(2).node_id]
    assert plan.score(scores, quick) == []
    rotation = plan.rotation(plan.installed, at(1.0))
    used = {(value & 15) - 1 for value in rotation.maps["deck_1"].values()}
    assert len(used) == 1 and len({(value & 15) - 1 for value in rotation.maps["deck_2"].values()}) == 7
    assert plan.scores(peer(2).node_id) == (1.0,) * 7
    # Where nothing may go by the quickest one any more, or none is known, all that may serve.
    dark = {peer(2).node_id: tuple(float(i != 4) for i in range(7))}
    assert plan.score(dark, quick) == [peer(2).node_id]
    rotation = plan.rotation([peer(2).node_id], at(2.0))
    assert len({(value & 15) - 1 for value in rotation.maps["deck_1"].values()}) == 6
    assert plan.score({peer(2).node_id: (1.0,) * 7}, {}) == [peer(2).node_id]


def test_a_class_takes_the_quickest_dimension_while_the_rest_takes_all() -> None:
    ssh = TrafficClass("ssh", "latency", SCHEDULES["latency"], ("meta l4proto 6",))
    plan = placed(replace(peer(1), classes=(ssh,)))
    scores = {peer(1).node_id: (1.0,) * DIMENSIONS}
    assert plan.score(scores, {peer(1).node_id: 4}) == [peer(1).node_id]
    assert plan.score(scores, {peer(1).node_id: 4}) == []
    maps = plan.rotation(plan.installed, at(1.0)).maps
    assert {(value & 15) - 1 for value in maps["deck_1_1"].values()} == {4}
    assert {(value & 15) - 1 for value in maps["deck_1"].values()} == set(range(DIMENSIONS))
