# SPDX-License-Identifier: GPL-3.0-or-later
"""The judgement of traffic between a node and its peers: what is a fault, what a state, what the cause."""

import errno
import os
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import DIMENSIONS
from phantommesh.faults import Fault
from phantommesh.management.peerfaults import (
    FIRST,
    HEARD,
    JOINING,
    MAX_NAMED,
    RENEWAL,
    Here,
    PeerSeen,
    Starts,
    flow,
    judge,
    partly_reachable,
)
from phantommesh.management.views import Flow, LinkState, MemberState, PathView, Reached
from tests.support.fakenode import link_view, path_view

HERE = Here(51800, "51820 to 51826")
LONG = 1000.0


def path(number: int = 1, dimension: int = 1, **changes: object) -> PathView:
    return msgspec.structs.replace(path_view(number, 1), dimension=dimension, **changes)


def peer(number: int = 1, *, standing: MemberState = "alive", control_s: float | None = 0.5) -> PeerSeen:
    paths = [path(number, i) for i in range(DIMENSIONS)]
    return PeerSeen(link_view(number), paths, standing, LONG, control_s, handshake_s=60.0)


def dark(one: PeerSeen, since: float = 5.0, **changes: object) -> PeerSeen:
    """The same peer, no dimension of which brings a probe back."""
    gone = {
        "state": "dark",
        "since_s": since,
        "answers": False,
        "answered_s": since + 2,
        "heard_s": since + 2,
    }
    return replace(one, paths=[msgspec.structs.replace(p, **(gone | changes)) for p in one.paths])


def closed(one: PeerSeen, since: float, **link: object) -> PeerSeen:
    none = {"state": "closed", "since_s": since, "answers": False, "answered_s": None, "heard_s": None}
    paths = [msgspec.structs.replace(p, **none, opened_s=None) for p in one.paths]
    return replace(
        one,
        paths=paths,
        link=msgspec.structs.replace(one.link, **({"state": "none", "dimensions": 0} | link)),
    )


def told(*peers: PeerSeen, here: Here = HERE) -> list[tuple[str, str]]:
    return [(fault.code, fault.subject) for fault in judge(here, peers)]


def the_fault(*peers: PeerSeen) -> Fault:
    [fault] = judge(HERE, peers)
    return fault


def test_a_well_mesh_has_no_fault() -> None:
    assert told() == [] and told(peer(1), peer(2)) == []
    assert flow(peer()) == "up"


def test_a_handshake_is_no_evidence_that_traffic_flows() -> None:
    """All seven dimensions are dark, WireGuard shakes hands and gossip is well: nothing flows."""
    stopped = replace(dark(peer()), handshake_s=1.0)
    assert flow(stopped) == "dark" and stopped.link.dimensions == DIMENSIONS
    fault = the_fault(stopped)
    assert (fault.code, fault.severity, fault.subject) == ("traffic-stopped", "critical", "")
    assert "handshakes still succeed" in fault.text and "rp_filter" in fault.fix


def test_a_peer_that_started_again_has_its_time_to_answer() -> None:
    """Its old keys carry nothing, and are in the interfaces here until the new ones are agreed."""
    for known_s, wanted in ((FIRST - 0.1, "joining"), (FIRST, "dark")):
        back = replace(dark(peer()), known_s=known_s)
        assert flow(back) == wanted and bool(told(back)) == (wanted == "dark")
        some = peer()
        gone = msgspec.structs.replace(some.paths[0], state="dark", answers=False)
        half = replace(some, paths=[gone, *some.paths[1:]], known_s=known_s)
        assert flow(half) == "up" and bool(told(half)) == (wanted == "dark")


def test_one_dark_peer_of_two_is_that_peers() -> None:
    assert told(dark(peer(1)), peer(2)) == [("peer-dark", "pm-1")]


def test_all_dark_at_once_is_said_once() -> None:
    stopped = [dark(peer(i, control_s=None, standing="suspect")) for i in range(1, 20)]
    fault = the_fault(*stopped)
    assert fault.code == "traffic-stopped" and "cut off" in fault.text and "default route" in fault.fix
    assert f"and {19 - MAX_NAMED} more" in fault.text


def test_one_peer_that_is_silent_in_every_way_may_be_switched_off() -> None:
    for standing in ("suspect", "dead"):
        assert told(dark(peer(standing=standing, control_s=LONG))) == [("peer-gone", "pm-1")]
    assert told(dark(peer(control_s=LONG))) == [("peer-dark", "pm-1")]  # gossip has not asked yet


def test_a_suspicion_is_no_fault_while_traffic_flows() -> None:
    assert told(peer(standing="suspect", control_s=LONG)) == []
    assert told(peer(standing="dead", control_s=LONG)) == [("control-silent", "pm-1")]


def test_a_peer_that_lives_by_its_traffic_alone_is_silent_and_not_gone() -> None:
    """Gossip's datagrams are dropped, and probes inside the dimensions come back."""
    mute = replace(peer(control_s=LONG), reached="traffic")
    assert flow(mute) == "up" and told(mute) == [("control-silent", "pm-1")]
    assert told(replace(mute, through=["pm-2"])) == []
    over_tcp = [msgspec.structs.replace(path, way="tcp") for path in mute.paths]
    assert told(replace(mute, paths=over_tcp)) == []  # `udp-blocked` says it
    stopped = replace(dark(mute, since=LONG), standing="alive")
    assert told(stopped) == [("peer-dark", "pm-1")]
    assert told(replace(stopped, standing="dead")) == [("peer-gone", "pm-1")]  # nothing answers on any way


def test_a_peer_behind_a_nat_is_well_and_said_to_be_there_where_it_is_dark() -> None:
    behind = replace(peer(), reached="elsewhere")
    assert told(behind) == []
    fault = the_fault(dark(behind))
    assert "answers at the control port, reachable only from the other side" in fault.text


def test_a_packet_filter_of_this_host_is_known_by_what_it_refuses() -> None:
    refused = [os.strerror(errno.EPERM)] * DIMENSIONS
    stopped = replace(dark(peer(control_s=None)), unsent=refused)
    fault = the_fault(stopped)
    assert fault.code == "traffic-stopped" and "packet filter of this host" in fault.text
    assert the_fault(stopped, peer(2)).code == "peer-dark"
    down = replace(stopped, unsent=[os.strerror(errno.ENETDOWN)] * DIMENSIONS)
    assert "Network is down" in the_fault(down).text and "packet filter" not in the_fault(down).text
    some = replace(stopped, unsent=[*refused[1:], ""])
    assert "packet filter of this host" not in the_fault(some).text


def test_one_direction_is_told() -> None:
    fault = the_fault(dark(peer(), heard_s=0.3))
    assert fault.code == "traffic-stopped" and "does not arrive there" in fault.text
    long_ago = the_fault(dark(peer(), since=60.0, heard_s=HEARD + 1))  # in another phase of the same outage
    assert "does not arrive there" not in long_ago.text


def test_blocked_ports_are_told_with_the_ports() -> None:
    fault = the_fault(dark(peer()))
    assert "51820 to 51826" in fault.fix and "answers at the control port" in fault.text


def test_a_peer_that_joins_is_no_fault_and_one_that_cannot_is() -> None:
    new = closed(peer(), 3.0)
    assert flow(new) == "joining" and told(new) == []
    stuck = closed(peer(), JOINING, last_error="clock")
    assert flow(stuck) == "unkeyed"
    assert told(stuck, peer(2)) == [("link-incomplete", "pm-1")]
    fault = the_fault(stuck)
    assert fault.code == "traffic-stopped" and "no keys are agreed: clock" in fault.text
    assert flow(replace(stuck, known_s=1.0)) == "joining"  # the node starts
    assert told(replace(stuck, standing="dead", known_s=1.0)) == []


def test_keys_that_are_agreed_are_not_called_missing_where_interfaces_are() -> None:
    stuck = closed(peer(), JOINING)
    missing = replace(stuck, link=msgspec.structs.replace(stuck.link, state="unsure", epoch=4))
    fault = the_fault(missing)
    assert "no keys are agreed" not in fault.text and "do not have the keys" in fault.text
    assert "clocks" not in fault.fix and "other faults" in fault.fix


def test_the_first_probes_may_be_lost_for_as_long_as_wireguard_needs() -> None:
    young = dark(peer(), answered_s=None, opened_s=FIRST - 1)
    assert flow(young) == "joining" and told(young) == []
    assert flow(dark(peer(), answered_s=None, opened_s=FIRST)) == "dark"


def test_a_peer_that_left_is_nobodys_fault() -> None:
    left = dark(peer(standing="left", control_s=None))
    assert flow(left) == "left" and told(left) == [] and told(left, peer(2)) == []


@pytest.mark.parametrize(
    ("state", "since", "is_told"),
    [("dark", 0.0, True), ("proving", RENEWAL, True), ("proving", 0.0, False), ("closed", 3.0, False)],
)
def test_a_dark_dimension_is_a_fault_where_others_answer(state: str, since: float, is_told: bool) -> None:
    one = peer()
    changed = msgspec.structs.replace(one.paths[0], state=state, since_s=since, answers=state == "proving")
    seen = replace(one, paths=[changed, *one.paths[1:]])
    assert told(seen) == ([("dimensions-dark", "pm-1")] if is_told else [])


def test_stale_keys_are_told_though_traffic_flows() -> None:
    one = peer()
    fault = the_fault(replace(one, link=msgspec.structs.replace(one.link, state="stale", last_error="late")))
    assert fault.code == "link-incomplete" and fault.text.endswith("are not renewed: late")
    for state in ("unsure", "fresh"):
        assert told(replace(one, link=msgspec.structs.replace(one.link, state=state))) == []


def test_where_probes_cannot_be_sent_nothing_is_made_of_their_silence() -> None:
    unmeasured = replace(HERE, measured=False)
    assert told(dark(peer()), here=unmeasured) == []
    assert flow(dark(peer()), measured=False) == "up"
    assert flow(closed(peer(), LONG), measured=False) == "unkeyed"


def test_of_two_peers_with_one_name_the_one_that_is_gone_is_meant() -> None:
    twins = [replace(one, link=msgspec.structs.replace(one.link, peer="twin")) for one in (peer(1), peer(2))]
    assert told(twins[0], dark(replace(twins[1], standing="dead", control_s=None))) == [("peer-gone", "twin")]


def test_a_partly_reachable_peer_is_told_once() -> None:
    via = replace(dark(peer(control_s=None)), through=["pm-2"])
    assert told(via, peer(2)) == [("peer-partly-reachable", "pm-1")]
    assert "nobody carries traffic" in the_fault(via, peer(2)).text
    assert told(replace(peer(), through=["pm-2"]), peer(2)) == []  # NATs keep the control ports apart


def test_few_of_many_partly_reachable_peers_are_named() -> None:
    through = [(f"pm-{number}", ["pm-0"]) for number in range(MAX_NAMED + 3)]
    faults = list(partly_reachable(through, 1))
    assert len(faults) == MAX_NAMED + 1
    assert {fault.code for fault in faults} == {"peer-partly-reachable"}
    assert faults[-1].subject == "" and "3 more" in faults[-1].text


def test_a_start_gives_time_once_until_traffic_has_flowed() -> None:
    starts = Starts()

    def look(start: int, now: float, *, up: bool = False, left: bool = False) -> float:
        return starts.look(b"b", start, left=left, up=up, now=now)

    assert look(1, 0.0) == 0.0 and look(1, 5.0, up=True) == 5.0
    assert look(2, 6.0) == 0.0  # it started again, after traffic had flowed
    assert [look(3 + n, 7.0 + n) for n in range(20)] == [1.0 + n for n in range(20)]  # a crash loop
    assert look(3, 30.0, up=True) == 24.0 and look(99, 31.0) == 0.0
    assert look(99, 40.0, left=True) == 0.0 and look(100, 43.0) == 3.0  # it came back after a goodbye
    starts.retain([])
    assert look(1, 50.0) == 0.0


ages = st.floats(0, 10_000)
maybe = st.none() | ages


@st.composite
def peers_seen(draw: st.DrawFn) -> PeerSeen:
    def one(dimension: int) -> PathView:
        state = draw(st.sampled_from(["closed", "proving", "up", "dark"]))
        return path(
            dimension=dimension, state=state, since_s=draw(ages), answered_s=draw(maybe), heard_s=draw(maybe),
            opened_s=None if state == "closed" else draw(ages),
            answers=state in ("up", "proving") and draw(st.booleans()),
        )  # fmt: skip

    states: list[LinkState] = ["fresh", "unsure", "stale", "random", "none"]
    link = msgspec.structs.replace(
        link_view(draw(st.integers(1, 3))),
        state=draw(st.sampled_from(states)),
        dimensions=draw(st.integers(0, 7)),
        last_error=draw(st.none() | st.just("why")),
    )
    ways: list[Reached] = ["direct", "elsewhere", "helpers", "traffic"]
    standings: list[MemberState] = ["alive", "suspect", "dead", "left", "unknown"]
    return PeerSeen(
        link,
        [one(i) for i in range(DIMENSIONS)] if draw(st.booleans()) else [],
        draw(st.sampled_from(standings)),
        draw(ages), draw(maybe), draw(maybe),
        through=draw(st.sampled_from([(), ("pm-9",)])),
        reached=draw(st.sampled_from(ways)),
        unsent=draw(st.sampled_from([(), ("",) * 7, ("Network is down",) * 7])),
    )  # fmt: skip


@given(st.lists(peers_seen(), max_size=4), st.booleans())
def test_a_peer_is_up_by_a_probe_alone_and_what_has_stopped_is_told(
    seen: list[PeerSeen], measured: bool
) -> None:
    here = replace(HERE, measured=measured)
    faults = list(judge(here, seen))
    flows: list[Flow] = [flow(one, measured=measured) for one in seen]
    for one, state in zip(seen, flows, strict=True):
        if measured and one.standing != "left":
            assert (state == "up") == any(p.answers for p in one.paths)
        if state in ("dark", "unkeyed"):
            named = one.link.peer in {fault.subject for fault in faults}
            assert named or any(one.link.peer in f.text and not f.subject for f in faults)
    told_of = {fault.subject for fault in faults if fault.subject}
    quiet = {one.link.peer for one, state in zip(seen, flows, strict=True) if state in ("joining", "left")}
    loud = {
        one.link.peer
        for one, state in zip(seen, flows, strict=True)
        if state not in ("joining", "left") or one.through
    }
    assert not told_of & (quiet - loud)
    assert any(f.code == "traffic-stopped" for f in faults) <= ("up" not in flows)
    assert all(fault.text and fault.fix for fault in faults)


@pytest.mark.parametrize("state", ["fresh", "unsure"])
def test_a_peer_with_keys_and_no_address_is_not_called_fresh(state: LinkState) -> None:
    (fault,) = judge(HERE, [peer(1), closed(peer(2), LONG, state=state)])
    assert fault.code == "link-incomplete"
    assert "has keys agreed with this node, and no address" in fault.text and "is fresh" not in fault.text
