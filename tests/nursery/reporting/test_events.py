# SPDX-License-Identifier: GPL-3.0-or-later
"""The event log: numbers, the ring, gaps, choices of types."""

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

import phantommesh
from phantommesh.config.sections import Goal, IntentSection
from phantommesh.link.effects import Alarm
from phantommesh.management import peerfaults
from phantommesh.management.events import FAMILIES, GAP, MAX_PATTERNS, EventLog, Filter, FilterError
from phantommesh.management.views import Event
from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import State
from phantommesh.nursery.node import Node
from phantommesh.nursery.parts import Settings
from phantommesh.nursery.reporting import localcauses
from phantommesh.nursery.reporting.recording import ALL_BURST, ONE_BURST, Telling
from phantommesh.records.roster import Equivocation
from phantommesh.scatter.intents import Intents
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId, format_node_id
from tests.support.loopback import join, make_authority, make_invite, serving, until

ALL = Filter()


def log_of(count: int, kept: int = 4) -> EventLog:
    log = EventLog(run="r", clock=lambda: 1_700_000_000.25, kept=kept)
    for number in range(1, count + 1):
        log.publish(f"{FAMILIES[number % 2]}.x", f"pm-{number}", {"n": number})
    return log


def test_an_event_is_what_was_published() -> None:
    log = log_of(0)
    data = {"epoch": 3, "kinds": ["a"]}
    log.publish("link.opened", "pm-2", data)
    data["epoch"] = 4  # the caller's own, to go on with
    [event] = log.read(0, ALL, 9).events
    assert event == Event(
        seq=1,
        time="2023-11-14T22:13:20.250Z",
        type="link.opened",
        node="pm-2",
        data={"epoch": 3, "kinds": ["a"]},
        run="r",
    )
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event


def test_nothing_that_is_no_json_raises_or_gets_out() -> None:
    log = log_of(0)
    endless: list[object] = []
    endless.append(endless)
    for data in ({"key": Secret(b"4711" * 8)}, {"it": object()}, {"it": endless}, {"it": "\ud800"}):
        log.publish("agent.x", None, data)
    events = log.read(0, ALL, 9).events
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert all(list(event.data) == ["unpublishable"] for event in events)
    assert b"4711" not in msgspec.json.encode(events)


def test_a_reader_that_keeps_up_sees_each_event_once() -> None:
    log, place, seen = log_of(0), 0, []
    for number in range(10):
        log.publish("peer.x", None, {"n": number})
        batch = log.read(place, ALL, 9)
        seen += [event.seq for event in batch.events]
        place = batch.place
    assert seen == list(range(1, 11))
    assert log.read(place, ALL, 9).events == []


def test_a_slow_reader_is_told_how_many_it_missed() -> None:
    log = log_of(10, kept=4)
    batch = log.read(2, ALL, 9)
    gap, *rest = batch.events
    assert (gap.type, gap.seq, gap.data) == (GAP, 6, {"missed": 4})
    assert [event.seq for event in rest] == [7, 8, 9, 10]
    assert log.read(6, ALL, 9).events[0].seq == 7  # the first still kept: nothing missed
    assert log.read(5, ALL, 9).events[0].data == {"missed": 1}


def test_what_is_no_longer_kept_is_no_longer_held() -> None:
    assert len(log_of(100, kept=4)._events) == 4


def test_a_place_of_another_run_is_the_beginning() -> None:
    assert [event.seq for event in log_of(3).read(900, ALL, 9).events] == [1, 2, 3]


def test_who_waits_is_woken_and_may_go_while_being_woken() -> None:
    log, woken = log_of(0), []

    def once() -> None:
        woken.append(log.last)
        log.wakes.discard(once)

    log.wakes.add(once)
    log.publish("peer.x", None, {})
    log.publish("peer.x", None, {})
    assert woken == [1]


@given(
    count=st.integers(0, 30),
    kept=st.integers(1, 12),
    place=st.integers(0, 35),
    limit=st.integers(1, 8),
    wanted=st.sampled_from(["", "peer.*", "link.*", "peer.y"]),
)
def test_reading_on_and_on_gives_every_wanted_event_that_is_kept(
    count: int, kept: int, place: int, limit: int, wanted: str
) -> None:
    log, choice = log_of(count, kept), Filter.parse(wanted)
    start = place if place <= count else 0
    seen: list[Event] = []
    more = True
    while more:
        batch = log.read(place, choice, limit)
        assert len([event for event in batch.events if event.type != GAP]) <= limit
        seen += batch.events
        place, more = batch.place, batch.more
    assert place == count
    oldest = max(1, count - kept + 1)
    missed = max(0, oldest - 1 - start)
    expected = [n for n in range(max(oldest, start + 1), count + 1) if choice.wants(f"{FAMILIES[n % 2]}.x")]
    assert [event.data for event in seen if event.type == GAP] == ([{"missed": missed}] if missed else [])
    assert [event.seq for event in seen if event.type != GAP] == expected


def test_every_family_that_is_published_may_be_chosen() -> None:
    """All words that the node publishes by, wherever its code does."""
    root = Path(phantommesh.__file__).parent
    text = "".join(path.read_text() for path in root.rglob("*.py"))
    told = re.findall(r'publish(?:_paced)?\(\s*f?"([a-z]+)\.', text)
    assert {"peer", "link", "path", "route", "topology"} <= set(told) <= set(FAMILIES)


def test_choices_of_types() -> None:
    for text in ("", "*", "peer.*,*"):
        assert all(Filter.parse(text).wants(f"{family}.x") for family in FAMILIES)
    some = Filter.parse("peer.*, link.opened")
    assert [some.wants(kind) for kind in ("peer.up", "link.opened", "link.alarm", "peers.up")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "text",
    ["pear.*", "peer", "peer.", ".*", "peer.*.x", "peer.a b", "p*", "gap", ",", "peer.\u00b2", "PEER.*"],
)
def test_a_choice_that_means_nothing_is_said_so(text: str) -> None:
    with pytest.raises(FilterError) as error:
        Filter.parse(text)
    assert "peer, link" in error.value.fix


def test_choices_are_bounded() -> None:
    Filter.parse(",".join(["peer.x"] * MAX_PATTERNS))
    with pytest.raises(FilterError, match="too many"):
        Filter.parse(",".join(["peer.x"] * (MAX_PATTERNS + 1)))


# --- what a node publishes


def told(node: Node, wanted: str) -> list[Event]:
    return node.parts.events.read(0, Filter.parse(wanted), 1000).events


def check_that_forged_claims_flood_nothing(node: Node, member: NodeId) -> None:
    """One message brings as many changes as it can: all are counted, few are told."""
    count = node.parts.metrics.registry.get_sample_value
    name, labels = "phantommesh_membership_changes_total", {"state": "alive"}
    counted, last = count(name, labels) or 0.0, node.parts.events.last
    with capture_logs() as logs:
        for _ in range(65_536):
            node.recorder.member_changed(Changed(member, State.ALIVE, State.ALIVE, "updated"))
    assert count(name, labels) == counted + 65_536
    assert node.parts.events.last - last == len(logs) <= ONE_BURST + 10


def changed(index: int, event: str, new: State | None = State.ALIVE) -> Changed:
    return Changed(index.to_bytes(16), State.ALIVE, new, event)


@pytest.mark.parametrize("event", ["updated", "restarted"])
def test_of_what_one_member_can_make_up_little_is_told(event: str) -> None:
    telling = Telling(0.0)
    assert sum(telling.wants(changed(1, event), 0.0) for _ in range(1000)) == ONE_BURST
    assert telling.untold == 1000 - ONE_BURST
    assert telling.wants(changed(2, event), 0.0)
    assert not telling.wants(changed(1, event), 0.5)
    assert telling.wants(changed(1, event), 1.0)


def test_nor_of_all_members_together() -> None:
    telling = Telling(0.0)
    assert sum(telling.wants(changed(i, "updated"), 0.0) for i in range(5000)) == ALL_BURST
    assert telling.wants(changed(1, "updated"), 60.0)


def test_an_update_does_not_hide_a_suspicions_end() -> None:
    telling = Telling(0.0)
    changes = [changed(1, "suspected", State.SUSPECT), changed(1, "updated"), changed(1, "vetoed")]
    assert all(telling.wants(change, 0.0) for change in changes)
    assert not telling.wants(changed(1, "vetoed"), 0.0)


def test_a_suspicion_and_its_end_are_told_both_or_neither() -> None:
    telling = Telling(0.0)
    told = [
        telling.wants(changed(1, event, state), 0.0)
        for _ in range(100)
        for event, state in (("suspected", State.SUSPECT), ("refuted", State.ALIVE))
    ]
    assert told[: 2 * ONE_BURST] == [True] * 2 * ONE_BURST
    assert not any(told[2 * ONE_BURST :])
    for event, state in (
        ("dead", State.DEAD),
        ("returned", State.ALIVE),
        ("left", State.LEFT),
        ("purged", None),
    ):
        assert telling.wants(changed(1, event, state), 0.0)  # no one member's word makes these
    assert telling.wants(changed(1, "updated"), 0.0)  # it came anew


async def test_a_node_tells_of_its_links_and_its_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peerfaults, "FIRST", 0.0)
    monkeypatch.setattr(localcauses, "LOOK", 3600.0)  # this host has no interfaces of the mesh's to send by
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        joined = await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b") as beta:
            await until(lambda: bool(told(alpha, "link.opened") and told(beta, "link.opened")))
            [event], [other] = told(alpha, "link.opened"), told(beta, "link.opened")
            assert (event.node, event.data["peer"]) == ("beta", "beta")
            assert event.data["node_id"] == format_node_id(joined.node_id)
            assert {event.data["role"], other.data["role"]} == {"initiator", "responder"}
            assert event.data["epoch"] == other.data["epoch"] == 1
            assert event.run != other.run
            with capture_logs() as logs:
                alpha.parts.driver.carry_out([Alarm(joined.node_id, "stale", "silence")])
            [line] = [entry for entry in logs if entry["event"] == "link alarm"]
            assert (line["peer"], line["node_id"]) == ("beta", format_node_id(joined.node_id))
            [alarm] = told(alpha, "link.alarm")
            assert (alarm.node, alarm.data["kind"], alarm.data["detail"]) == ("beta", "stale", "silence")
            # The model's WireGuard never shakes hands, so beta does not answer.
            await until(lambda: any("beta" in str(e.data) for e in told(alpha, "health.degraded")))
            check_that_forged_claims_flood_nothing(alpha, joined.node_id)
        await until(lambda: bool(told(alpha, "peer.left")))
        assert {event.node for event in told(alpha, "peer.*")} == {"beta"}
        alpha.recorder.measure()
        before = len(told(alpha, "health.*"))
        alpha.recorder.measure()
        assert len(told(alpha, "health.*")) == before  # nothing new to tell
        alpha.parts.keeper.roster.equivocations[joined.node_id] = cast("Equivocation", None)
        assert any("beta signed two different" in reason for reason in alpha.reporter.degraded())
        assert alpha.reporter.ready().ready  # one member's lie puts no other out of service
        with capture_logs():
            await alpha.reporter.revoke("beta", force=False, dry_run=False)
        alpha.parts.scattering.problem = None  # two nodes in one namespace can be in each other's way
        alpha.recorder.measure()
        assert told(alpha, "health.*")[-1].type == "health.well", told(alpha, "health.*")[-1]
        peers: dict[str, Goal] = {"alpha": "order", "gama": "private"}
        scatter = msgspec.structs.replace(alpha.parts.config.scatter, peers=peers)
        intent = IntentSection("dumps", "private", ("gama",), user="nobody-here")
        relay = msgspec.structs.replace(alpha.parts.config.relay, never=("alpha", "gama"))
        changed = Settings(
            msgspec.structs.replace(alpha.parts.config, scatter=scatter, relay=relay), Intents((intent,), {})
        )
        alpha.reporter._parts = replace(alpha.parts, settings=changed)
        [reason, *more] = alpha.reporter.status().degraded
        assert "gama, who is no member" in reason and alpha.reporter.ready().ready
        [fault, relays, peer, user] = alpha.reporter.status().faults
        assert (fault.code, fault.severity, fault.subject) == ("scatter-unknown-peer", "low", "gama")
        assert fault.line == reason and fault.fix
        assert (peer.code, user.code) == ("intent-unknown-peer", "intent-unknown-user")
        assert (relays.code, relays.text) == ("relay-unknown-member", "relay.never names gama: no members")
        assert "dumps names gama" in more[1] and "the user nobody-here" in more[2]
        alpha.reporter._parts = alpha.parts
        alpha.parts.reconciler.actual = {}
        alpha.recorder.measure()
        assert told(alpha, "health.*")[-1].data["total"] == 1
        assert told(alpha, "health.*")[-1].data["codes"] == ["interfaces-missing"]


async def test_a_member_that_has_the_interfaces_read_again_and_again_makes_no_report_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report looks at every member: that is two thirds of the time that a reading takes."""
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        measured = list[None]()
        monkeypatch.setattr(alpha.recorder, "look", lambda: measured.append(None))
        for _ in range(50):
            await alpha.parts.reconciler.converge()
        assert len(measured) < 25
        measured.clear()
        await until(lambda: bool(measured))
