# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator is told of why traffic goes where it goes: each sentence against the code that decides."""

from __future__ import annotations

import re
from ipaddress import IPv4Network
from math import inf
from typing import get_args

import pytest

from phantommesh.config.sections import Goal, IntentSection, RelaySection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.management.explainview import Leads
from phantommesh.paths.cost import worth
from phantommesh.paths.quickest import HOLD, PATIENT, Candidate, Quickest
from phantommesh.paths.state import PathState
from phantommesh.routable import EXITS
from phantommesh.routing import explain
from phantommesh.routing.failover import Standing as Router
from phantommesh.routing.leading import Lead
from phantommesh.routing.search import Standing, State
from phantommesh.routing.ways import Kind
from phantommesh.scatter.goals import SCHEDULES

LAN = IPv4Network("10.1.0.0/16")
A, B, C = (name.encode() * 16 for name in "abc")
NAMES = {A: "nas", B: "gate", C: "spare", b"": ""}
ALL = (1.0,) * DIMENSIONS
UP = [PathState.UP] * DIMENSIONS


def seen(*trips: float) -> list[Candidate]:
    return [Candidate(True, trip, least=trip) for trip in trips]


def chosen(*trips: float, now: float = 0.0) -> Quickest:
    found = Quickest()
    found.look(seen(*trips), now)
    return found


def changes(found: Quickest, now: float = 0.0, scores: tuple[float, ...] = ALL) -> str:
    return "; ".join(explain.quickest_changes(found, scores, now))


def test_names_like_a_mistyped_one_are_offered() -> None:
    assert explain.names_near("nass", ["nas", "gateway", "nasa"]) == ["nas", "nasa"]
    assert explain.names_near("zzz", ["nas", "gateway"]) == []
    assert explain.names_near("x" * 10_000, ["nas"] * 10) == []


def test_the_cost_below_which_another_dimension_is_taken_is_the_one_at_which_it_is() -> None:
    found = chosen(0.100, 0.200)
    (told,) = re.findall(r"less than ([0-9.]+) ms", changes(found))
    least = float(told) / 1000
    assert not worth(0.100, least + 0.0001) and worth(0.100, least - 0.0001)
    for tenth in range(1, 600):  # smoothed costs follow in some time
        found.look(seen(0.100, least - 0.002), tenth / 10)
    assert (found.chosen, found.reason) == (1, "cheaper")
    stays = chosen(0.100, 0.200)
    for tenth in range(1, 600):
        stays.look(seen(0.100, least + 0.002), tenth / 10)
    assert stays.chosen == 0


def test_when_a_cheaper_dimension_is_taken_is_when_it_is() -> None:
    found = chosen(0.100, 0.100)
    now = 0.0
    while found.cheaper is None:
        now += 0.1
        found.look(seen(0.100, 0.010), now)
    (told,) = re.findall(r"dimension 1 costs less by enough: it is taken in (\d+) s", changes(found, now))
    assert float(told) == PATIENT
    found.look(seen(0.100, 0.010), now + PATIENT - 0.1)
    assert found.chosen == 0
    found.look(seen(0.100, 0.010), now + PATIENT + 0.1)
    assert found.chosen == 1
    assert found.free_at == found.since + HOLD
    assert f"not before {HOLD:.0f} s" in changes(found, found.since)
    assert "not before" not in changes(found, found.free_at)


def test_other_states_of_the_choice() -> None:
    assert "have answered" in changes(Quickest())
    assert "too little" in changes(chosen(0.005, 0.006))
    assert "no dimension but 0" in changes(chosen(0.1), scores=(1.0, *(0.0,) * 6))
    assert explain.reason_of(Quickest()) == "nothing is measured yet"
    assert "first choice" in explain.reason_of(chosen(0.1))


def test_which_dimension_takes_it_all_is_what_the_schedule_has_alone() -> None:
    found = chosen(0.3, 0.1, 0.2)
    for goal in get_args(Goal):
        schedule = SCHEDULES[goal]
        for scores in (ALL, (1.0, 0.0, *(1.0,) * 5)):
            dimension = explain.dimension_of(schedule, found, scores)
            capacities = schedule.capacities(scores, found.chosen)
            alone = sum(map(bool, capacities)) == 1
            assert (dimension is not None) == alone, goal
            assert dimension is None or capacities[dimension]
            assert explain.dealt(schedule, dimension)
    assert explain.dimension_of(SCHEDULES["latency"], None, ALL) is None


def test_which_packets_an_intent_is_for() -> None:
    intent = IntentSection("a", "order", protocol="tcp", ports=(22, "80-90"), dscp="ef", user=7)
    assert explain.about(intent) == "protocol tcp; ports 22, 80-90; DSCP ef; user 7"


def test_dimensions_that_carry_nothing_are_named_with_what_they_lack() -> None:
    assert not list(explain.state_changes(UP, ALL))
    states = [PathState.CLOSED, PathState.CLOSED, PathState.DARK, PathState.PROVING, *UP[4:]]
    closed, dark, proving, idle = explain.state_changes(states, (0.0,) * 6 + (1.0,))
    assert closed.startswith("dimensions 0, 1: ") and "3 to 160 answers" in dark
    assert proving.startswith("dimension 3: ") and idle.startswith("dimensions 4, 5: ")


def test_better_ways_are_told_of_where_there_are_any() -> None:
    wanted = State(Standing.SILENT, wanted=1)
    assert not list(explain.way_changes([Kind.DIRECT], wanted, 30.0, 0.0))
    assert "again in 25 s" in next(explain.way_changes([None], wanted, 30.0, 5.0))
    assert not list(explain.way_changes([None], wanted, inf, 5.0))
    trying = State(Standing.TRYING, wanted=1)
    direct, relay, tcp = explain.way_changes([Kind.RELAYED, Kind.FRAMED], trying, inf, 0.0)
    assert "under way" in direct and "lower node id" in relay and "UDP" in tcp


def test_constraints_and_whom_they_refuse() -> None:
    assert explain.constraint_lines(RelaySection()) == []
    section = RelaySection(use=False, direct_only=True, never=("nas",), regions=("eu",))
    assert explain.constraint_lines(section) == [
        "relay.use = false", "relay.direct_only = true", "relay.never = nas", "relay.regions = eu",
    ]  # fmt: skip
    members = [("nas", "eu", "a" * 26), ("gate", "us", "b" * 26), ("spare", "eu", "c" * 26)]
    refused = explain.refusals(RelaySection(never=("nas",), regions=("eu",)), members)
    assert list(refused) == [("nas", "relay.never"), ("gate", "relay.regions")]


def router(node: bytes, *, works: bool, carries: bool, hold: float = 0.0, back_at: float = inf) -> Router:
    return Router(node, works, works, carries, 1.32, hold, back_at)


def test_what_would_have_another_router_carry_a_prefix() -> None:
    def told(*routers: Router) -> list[str]:
        return list(explain.router_changes(routers, NAMES, 100.0))

    idle = router(A, works=False, carries=False)
    assert told(idle)[0].startswith("the first of its routers that answers")
    better = router(A, works=True, carries=False, back_at=107.0)
    first, second = told(better, router(B, works=True, carries=True))
    assert first == "nas takes it back in 7 s if it works until then"
    assert second.startswith("nas carries it once gate is silent for 1.3 s")
    (alone,) = told(router(A, works=True, carries=True))
    assert alone.startswith("what is for it is refused here once nas is silent")
    broken, never, _ = told(
        router(A, works=False, carries=False, hold=20.0), idle, router(B, works=True, carries=True)
    )
    assert "has worked for 20 s" in broken and "once it answers" in never


@pytest.mark.parametrize("leads", [one for one in get_args(Leads) if one not in ("member", "self")])
def test_each_lead_has_a_sentence(leads: Leads) -> None:
    found = Lead(leads, LAN, (A, B), A, "why")
    said = explain.answer(found, NAMES)
    assert leads in ("unclaimed", "elsewhere") or str(LAN) in said
    assert leads != "conflict" or said.endswith("is not taken: why")
    for line in explain.lead_changes(found, NAMES):
        assert leads in ("conflict", "offered", "asked", "uncertified"), line


def test_two_routers_route_and_one_routes() -> None:
    assert "nas routes" in explain.answer(Lead("offered", LAN, (A,)), NAMES)
    assert "nas and gate route " in explain.answer(Lead("offered", LAN, (A, B)), NAMES)
    assert "which nas and gate route, is" in explain.answer(Lead("conflict", LAN, (A, B), why="x"), NAMES)
    assert "nas claims" in (one := explain.answer(Lead("uncertified", LAN, (A,)), NAMES))
    assert "its certificate does not" in one
    assert "their certificates do not" in explain.answer(Lead("uncertified", LAN, (A, B)), NAMES)


def test_the_sentence_on_a_carrier_says_why_that_one() -> None:
    assert "(the only one)" in explain.answer(Lead("carried", LAN, (A,), A), NAMES)
    assert "(the first of 2)" in explain.answer(Lead("carried", LAN, (A, B), A), NAMES)
    assert "no. 2 of 2" in explain.answer(Lead("carried", LAN, (A, B), B), NAMES)
    stale = Lead("refused", LAN, stale=True)
    assert "nobody offers it" in explain.answer(stale, NAMES)
    assert "routes.accept" in next(explain.lead_changes(stale, NAMES))


def test_the_sentences_on_an_exit_name_the_key_that_changes_it() -> None:
    stale = Lead("refused", EXITS[1], stale=True)
    assert "leave by an exit" in explain.answer(stale, NAMES)
    (line,) = explain.lead_changes(stale, NAMES)
    assert "routes.exit" in line and "::/0" in line
    (line,) = explain.lead_changes(Lead("offered", EXITS[0], (A,)), NAMES)
    assert f"put {NAMES[A]} into routes.exit" in line


def test_the_sentence_on_a_member_counts_its_ways() -> None:
    ways = [("direct", None)] * 5 + [("relayed", "gate"), ("none", None)]
    assert explain.member_answer(ways) == "5 dimensions direct, 1 dimension relayed by gate"
    assert "nothing comes back" in explain.member_answer([("none", None)])


def test_what_would_have_it_dealt_otherwise() -> None:
    (off,) = explain.scatter_changes("nas", "off", mapped=False)
    (unkeyed,) = explain.scatter_changes("nas", "egress", mapped=False)
    (dealt,) = explain.scatter_changes("nas", "egress", mapped=True)
    assert "scatter.hook" in off and "keys" in unkeyed and "scatter.peers.nas" in dealt
