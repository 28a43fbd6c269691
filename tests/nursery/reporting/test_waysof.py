# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way a dimension takes, in an operator's words."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from msgspec import structs

from phantommesh.nursery.reporting.waysof import NOWHERE, Taken, endpoint_of, taken, why
from phantommesh.paths.effects import PathView
from phantommesh.paths.state import PathState
from phantommesh.records.candidate import Candidate
from phantommesh.records.candidate import Kind as Source
from phantommesh.records.record import NodeRecord
from phantommesh.routing.search import Standing, State
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.wireguard.device import Endpoint
from tests.support.makemesh import identity, plain_record

RELAY, PEER = b"r" * 16, b"p" * 16
AT = Endpoint("203.0.113.7", 51820)
DIRECT, FRAMED = Way(Kind.DIRECT, AT), Way(Kind.FRAMED, Endpoint("127.0.0.1", 40000))
RELAYED = Way(Kind.RELAYED, Endpoint("198.51.100.1", 51900), relay=RELAY)


def path(state: PathState = PathState.UP, *, answered: float | None = 1.0) -> PathView:
    return PathView(state, 1.0, 0.01, 0.0, 0.0, 1.0, 1.0, answered, 1.0, True)


def record(*control: str, found: tuple[Candidate, ...] = ()) -> NodeRecord:
    return structs.replace(plain_record(identity("a")), control=control, candidates=found)


def reason(
    offered: Way | None, endpoint: Endpoint | None, there: PathView, of: NodeRecord,
    tried: tuple[str, ...] = (), *, search: State = State(Standing.IDLE), keyed: bool = True,
) -> str:  # fmt: skip
    way = taken(offered, endpoint, there)
    return why(way, of, offered, endpoint, there, search=search, keyed=keyed, tried=tried)


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (None, Taken("direct", answers=True)),
        (DIRECT, Taken("direct", answers=True)),
        (RELAYED, Taken("relayed", RELAY, answers=True)),
        (FRAMED, Taken("tcp", answers=True)),
    ],
)
def test_the_way_is_the_one_whose_endpoint_wireguard_has(offered: Way | None, expected: Taken) -> None:
    endpoint = AT if offered is None else offered.endpoint
    assert taken(offered, endpoint, path()) == expected
    assert taken(offered, endpoint, path(PathState.PROVING)).shown == expected.kind
    dark = taken(offered, endpoint, path(PathState.DARK))
    assert (dark.kind, dark.shown, dark.relay) == (expected.kind, "none", expected.relay)
    assert taken(offered, endpoint, path(PathState.CLOSED)) == NOWHERE
    assert taken(None, None, path()) == NOWHERE


def test_an_offer_is_found_by_its_endpoint_the_best_first() -> None:
    ways = Ways()
    for way in (FRAMED, RELAYED, DIRECT, Way(Kind.RELAYED, AT, relay=RELAY)):
        ways.offer(PEER, 3, way)
    assert ways.at(PEER, 3, AT) == DIRECT
    assert ways.at(PEER, 3, FRAMED.endpoint) == FRAMED
    assert ways.at(PEER, 3, RELAYED.endpoint) is None  # another one took its place
    assert ways.at(PEER, 2, AT) is ways.at(RELAY, 3, AT) is None


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (record("203.0.113.7:51800"), "address of its record"),
        (record("node.example:51800"), "address that its packets come from"),
        (
            record("192.168.1.5:1", found=(Candidate.of(Source.SEEN, ip_address(AT.host), 9),)),
            "address that others see",
        ),
        (
            record("192.168.1.5:1", found=(Candidate.of(Source.MAPPED, ip_address(AT.host), 9),)),
            "mapped at its router",
        ),
        (
            record("203.0.113.7:9", found=(Candidate.of(Source.OWN, ip_address(AT.host), 9),)),
            "address of its host",
        ),
        (  # its operator has named it
            record("203.0.113.7:1", found=(Candidate.of(Source.SEEN, ip_address(AT.host), 9),)),
            "address of its record",
        ),
    ],
)
def test_a_direct_way_says_how_the_address_is_known(of: NodeRecord, expected: str) -> None:
    assert reason(None, AT, path(), of) == expected
    assert reason(None, AT, path(answered=None), of) == f"{expected}, not answered yet"


def test_the_other_ways_say_why_there_is_no_better_one() -> None:
    of = record("203.0.113.7:51800")
    assert reason(DIRECT, AT, path(), of) == "address of its record"  # a knock there proves no NAT
    own = record("198.51.100.9:1", found=(Candidate.of(Source.OWN, ip_address(AT.host), 9),))
    assert reason(DIRECT, AT, path(), own) == "address of its host"
    seen = record("192.168.1.5:1", found=(Candidate.of(Source.SEEN, ip_address(AT.host), 9),))
    assert reason(DIRECT, AT, path(), seen) == "found by NAT traversal"
    assert reason(DIRECT, AT, path(), record("192.168.1.5:1")) == "found by NAT traversal"
    assert reason(RELAYED, RELAYED.endpoint, path(), of) == "no direct way answers"
    silent = State(Standing.SILENT, failed=3)
    assert reason(RELAYED, RELAYED.endpoint, path(), of, search=silent) == (
        "no direct way: a NAT or a firewall lets nothing in"
    )
    assert reason(FRAMED, FRAMED.endpoint, path(), of) == "UDP does not pass"


def test_no_way_says_what_is_missing() -> None:
    of, closed, dark = record("203.0.113.7:51800"), path(PathState.CLOSED), path(PathState.DARK)
    assert reason(None, AT, closed, of, keyed=False) == "no keys are agreed yet"
    for standing, expected in (
        (Standing.TRYING, "NAT traversal is under way"),
        (Standing.AGREEING, "NAT traversal is under way"),
        (Standing.SILENT, "a NAT or a firewall lets nothing in"),
        (Standing.NOWHERE, "NAT traversal has no address to try"),
    ):
        assert reason(None, None, closed, of, (AT.host,), search=State(standing)) == expected
    apart = State(Standing.APART, why="it gave no answer")
    assert reason(None, None, closed, of, search=apart).endswith("NAT traversal: it gave no answer")
    assert reason(None, None, path(), of) == "no address of its record may be used"
    assert reason(None, None, path(), of, (AT.host,)) == "the peer is to begin"
    assert reason(None, AT, dark, of, (AT.host,)) == "no answer from 203.0.113.7"
    assert reason(None, AT, dark, of, (AT.host, "192.168.1.5")) == "no answer from 2 addresses"
    assert reason(RELAYED, RELAYED.endpoint, dark, of, (AT.host,)) == "no answer by the relay"
    assert reason(FRAMED, FRAMED.endpoint, dark, of) == "no answer over TCP"


def test_a_peers_endpoint_is_the_one_in_use_not_the_first_of_its_record() -> None:
    of = record("192.168.1.5:51800", "203.0.113.7:51800")
    both = ["192.168.1.5:51820", "203.0.113.7:51821"]
    dark, works = path(PathState.DARK), path()
    assert endpoint_of(both, [dark, works], of) == "203.0.113.7:51821"
    assert endpoint_of(both, [works, works], of) == "192.168.1.5:51820"
    assert endpoint_of([None, both[1]], [dark, dark], of) == "203.0.113.7:51821"
    assert endpoint_of(both, [], of) == "192.168.1.5:51820"
    assert endpoint_of([None, None], [dark, dark], of) == "192.168.1.5:51800"
    assert endpoint_of([], [], record()) is None
