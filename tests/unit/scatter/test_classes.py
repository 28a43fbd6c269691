# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes of the traffic to one peer: chains, maps, marks and counters of their own, in one epoch."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.config.sections import Goal, IntentSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.epochs import EQUAL, Keying, PeerScatter
from phantommesh.scatter.epochs import Numbers as EpochNumbers
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.intents import Intents, TrafficClass
from phantommesh.scatter.peermap import Hits, PeerMap, mark
from phantommesh.scatter.ruleset import render_peer, render_removal
from phantommesh.scatter.steering import NOTHING, Steering
from phantommesh.secret import Secret
from tests.unit.scatter.test_plan import FRAME, Counters, at, peer, placed

KEYING = Keying(1, Secret(b"1" * 32))
ADDRESSES = IPv4Address("100.64.0.2"), IPv6Address("fd00::2")


def traffic(name: str, goal: Goal = "order") -> TrafficClass:
    return TrafficClass(name, goal, SCHEDULES[goal], (f"meta skuid {len(name)}",))


CLASSES = traffic("a"), traffic("bulk", "throughput"), traffic("secret", "private"), traffic("fine", "auto")


def scatter(*classes: TrafficClass, goal: Goal = "throughput") -> PeerScatter:
    made = PeerScatter(b"n" * 16, 4, ADDRESSES, SCHEDULES[goal], 8, EpochNumbers(), classes)
    made.live = True
    return made


def opened(*classes: TrafficClass, goal: Goal = "throughput") -> PeerMap:
    return scatter(*classes, goal=goal).open(KEYING, EQUAL, at(0.0))


INTENTS = (
    IntentSection("ssh", "order", protocol="tcp", ports=(22,)),
    IntentSection("bulk", "throughput", ports=(873, "8000-8010")),
    IntentSection("voice", "auto", dscp="ef"),
    IntentSection("dumps", "private", user=34),
    IntentSection("pings", "order", protocol="icmp"),
    IntentSection("all", "private", protocol=6, ports=("1-9", 22), dscp=8, user=0),
    IntentSection("le", "throughput", protocol="udp", dscp=1),
)


def with_classes(slot: int) -> PeerMap:
    """A peer with as many classes as there may be, of all kinds."""
    address = IPv4Address("100.64.1.0") + slot, IPv6Address("fd00::1:0") + slot
    classes = Intents(INTENTS).classes("db")
    made = PeerScatter(b"n" * 16, slot, address, SCHEDULES["auto"], 8, EpochNumbers(), classes)
    return made.open(KEYING, EQUAL, at(0.0))


def shares(part: PeerMap) -> list[float]:
    return [part.dealt.count(i) / len(part.dealt) for i in range(DIMENSIONS)]


def test_each_class_has_a_chain_a_map_and_marks_of_its_own() -> None:
    made = opened(*CLASSES)
    assert [part.name for part in made.each] == ["deck_4", "deck_4_1", "deck_4_2", "deck_4_3", "deck_4_4"]
    marks = [set(part.elements.values()) for part in made.each]
    assert len(set.union(*marks)) == sum(map(len, marks)) == 5 * DIMENSIONS
    text = render_peer(FRAME, made)
    rules = re.findall(r"add rule \S+ \S+ peer_4 (.*)", text)
    assert rules[:4] == [
        f"{each.matches[0]} goto peer_4_{number}" for number, each in enumerate(CLASSES, 1)
    ], "the first that matches has it"
    assert "map @deck_4 goto out" in rules[-2] and "numgen" in rules[-2], "the rest"
    chains = re.findall(r"add rule \S+ \S+ peer_4_(\d) (.*)", text)
    assert any(number == "3" and "maxseg" in rule for number, rule in chains)
    assert not any(number != "3" and "maxseg" in rule for number, rule in chains)
    assert text.splitlines()[-1].startswith("add element netdev phantommesh_pm peers6")


def test_a_removal_takes_away_the_classes_too() -> None:
    made = opened(*CLASSES)
    added, removed = render_peer(FRAME, made), render_removal(FRAME, made)
    for kind in ("map", "set", "chain"):
        names = set(re.findall(rf"add {kind} netdev phantommesh_pm (\S+)", added))
        assert names == set(re.findall(rf"delete {kind} netdev phantommesh_pm (\S+)", removed))

    def counted(text: str, verb: str) -> set[str]:
        found = re.findall(rf"{verb} element netdev phantommesh_pm hits {{ (.*?) }}", text)
        return {one for listed in found for one in listed.split(", ")}

    assert counted(added, "add") == counted(removed, "delete") and len(counted(added, "add")) == 5 * 16 + 4


def test_classes_are_dealt_one_distribution_but_those_whose_weights_are_others() -> None:
    """What the receiver counts is all of them together."""
    own, order, bulk, secret, fine = opened(*CLASSES).each
    assert shares(own) == shares(order) == shares(bulk) == shares(fine) != shares(secret)
    assert own.dealt[:256] != bulk.dealt[:256] and sorted(own.dealt) == sorted(bulk.dealt)
    assert fine.deck is not None and sorted(fine.deck) == sorted(fine.dealt)
    assert secret.length == 256 * 8
    both = opened(traffic("a", "private"), goal="private").each
    assert shares(both[0]) == shares(both[1])
    alone, private = opened(traffic("a", "private")), opened(traffic("a"), goal="private")
    assert shares(alone.classes[0]) != shares(private), "the weights of the rest tell nothing of a class's"


def send(counters: dict[int, tuple[int, int]], parity: int, number: int, packets: int) -> None:
    for i in range(DIMENSIONS):
        had = counters.get(mark(4, parity, i, number), (0, 0))
        counters[mark(4, parity, i, number)] = had[0] + packets, had[1] + 10 * packets


def test_an_epochs_counts_are_those_of_its_classes_together() -> None:
    found, counters = scatter(*CLASSES), dict[int, tuple[int, int]]()
    for turn in range(4):
        parity = found.open(KEYING, EQUAL, at(10.0 * turn)).parity
        for number in range(5):
            send(counters, parity, number, number + turn)
        if turn:
            ended = found.close(counters, at(10.0 * turn))
            assert ended is not None and ended.scheduler == "flow"
            assert [part.hits.packets[0] for part in ended.classes] == [
                number + turn - 1 for number in (1, 2, 3, 4, 0)
            ]
            assert [part.name for part in ended.classes] == ["a", "bulk", "secret", "fine", "rest"]
            total = sum(number + turn - 1 for number in range(5))
            assert ended.hits == Hits((total,) * DIMENSIONS, (10 * total,) * DIMENSIONS)


def test_an_epoch_is_by_its_plan_unless_a_class_with_weights_of_its_own_sent() -> None:
    found, counters = scatter(*CLASSES), dict[int, tuple[int, int]]()
    parity = found.open(KEYING, EQUAL, at(0.0)).parity
    assert found.current is not None and sum(found.current.cards) == 256
    for number in (0, 1, 2, 4):
        send(counters, parity, number, 5)
    found.read(counters)
    assert found.current.by_plan
    send(counters, parity, 3, 1)
    found.read(counters)
    assert not found.current.by_plan


def test_without_classes_nothing_is_other_than_before() -> None:
    found = scatter()
    made = found.open(KEYING, EQUAL, at(0.0))
    assert made.length == 1022 and found.current is not None and found.current.scheduler == "deck"
    assert found.current.classes == () and found.current.by_plan and made.each == (made,)


@given(st.frozensets(st.integers(0, 8 * 256 - 1), max_size=20))
def test_each_class_splits_buckets_of_its_own(buckets: frozenset[int]) -> None:
    found = scatter(CLASSES[3], CLASSES[0], CLASSES[3], goal="auto")
    found.open(KEYING, EQUAL, at(0.0))
    made = found.steer(Steering(buckets, frozenset((b, 6) for b in buckets)))
    wanted = {b for b in buckets if b // 256 in (0, 1, 3)}
    assert made.all_steering == Steering(frozenset(wanted), frozenset((b, 6) for b in wanted))
    assert made.counted == {"flows_4": 0, "flows_4_1": 256, "flows_4_3": 768}
    for number, part in zip((0, 1, 3), (made, made.classes[0], made.classes[2]), strict=True):
        assert {b for b, value in part.elements.items() if value & 15 == 9} == {
            b - 256 * number for b in wanted if b // 256 == number
        }
        assert made.homes[256 * number] == part.dealt[0]
    assert made.classes[1].steering == NOTHING and made.homes[512] is None and len(made.homes) == 1024


def test_a_plan_installs_classes_changes_them_and_keeps_count() -> None:
    plan = placed(replace(peer(2), classes=CLASSES), peer(3))
    counters = Counters()
    for number in range(1, 5):
        counters |= {mark(1, p, i, number): (0, 0) for p in (0, 1) for i in range(DIMENSIONS)}
    assert not plan.read(counters).emptied
    counters[mark(1, 1, 0, 2)] = 7, 70
    counters.send(1, 1)
    plan.read(counters)
    assert plan.taken() == Counter({"bulk": 7, "rest": 7})
    assert plan.update([replace(peer(2), classes=CLASSES[:1]), peer(3)], at(1.0))
    text = plan.changes(FRAME, counters, at(1.0)).text
    plan.added()
    assert text.index("delete map netdev phantommesh_pm deck_1_4") < text.index("peer_3_1")
    assert plan.is_placed(at(1.0)) and plan.taken() == Counter({"bulk": 7, "rest": 7})
    assert plan.rotation([peer(2).node_id], at(2.0)).maps.keys() == {"deck_3", "deck_3_1"}


def test_what_a_class_loses_counts() -> None:
    plan = placed(replace(peer(2), classes=CLASSES))
    counters = Counters()
    counters |= {mark(1, p, i, n): (0, 0) for n in range(5) for p in (0, 1) for i in range(DIMENSIONS)}
    counters[1 << 8 | 3 << 5 | 15] = 4, 40
    assert plan.read(counters).fresh == Counter({"scatter-drained": 4})


def test_a_number_that_no_mark_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="a number from 1 to 7"):
        replace(opened(), number=8)
