# SPDX-License-Identifier: GPL-3.0-or-later
"""What is evidence against whom: offences with a proof, and what may be forged."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.acl import threats
from phantommesh.acl.threats import ENOUGH, MOST_BOUND, MOST_LOOSE, Offences, ThreatLog, judge
from phantommesh.rates import FADE

HOST, BLOCK = "192.0.2.7", "192.0.2.7/32"


def score(offences: Offences, now: float = 0.0, block: str = BLOCK) -> float:
    return max((judge(seen).score for seen in offences.bound(now) if seen.block == block), default=0.0)


def test_a_flood_without_a_proof_is_evidence_against_nobody() -> None:
    offences = Offences()
    for _ in range(100_000):
        offences.note("malformed", HOST, None, 0.0)
    assert list(offences.bound(0.0)) == [] and offences.unproven.at(0.0) == 100_000
    assert [seen.block for seen in offences.loose(0.0)] == [BLOCK]


def test_a_proof_of_an_innocent_host_makes_no_evidence_of_what_others_forge() -> None:
    offences = Offences()
    offences.note("stream-ended", HOST, "tcp", 0.0)  # it connected: no offence
    for _ in range(10_000):
        offences.note("malformed", HOST, None, 0.0)
    assert score(offences) == 0.0


def test_one_small_offence_of_an_honest_host_makes_no_evidence_of_what_others_forge() -> None:
    """An HTTP monitor that tries the control port is refused; a scan is forged beside it."""
    offences = Offences()
    offences.note("stream-refused", HOST, "tcp", 0.0)
    alone = score(offences)
    for kind in threats.KINDS:
        offences.add(BLOCK, kind, 1000.0, None, 0.0)
    (seen,) = offences.bound(0.0)
    assert score(offences) == alone < 0.1 and judge(seen).kinds == ()


def test_an_offence_of_a_while_ago_opens_no_door_to_forgeries() -> None:
    offences = Offences()
    offences.note("mac", HOST, "cookie", 0.0)
    for _ in range(5 * int(ENOUGH["flood"])):
        offences.note("malformed", HOST, None, FADE)
    assert score(offences, now=FADE) < 0.1


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("mac", "bad-mac"), ("replay", "replay"), ("invite-proof", "guessing"), ("rate", "flood")],
)
def test_offences_with_a_cookie_are_enough_alone(reason: str, kind: threats.Kind) -> None:
    offences = Offences()
    for _ in range(int(ENOUGH[kind]) - 1):
        offences.note(reason, HOST, "cookie", 0.0)
    assert score(offences) < 1.0
    offences.note(reason, HOST, "cookie", 0.0)
    assert score(offences) >= 1.0
    assert judge(next(iter(offences.bound(0.0)))).kinds == (kind,)


def test_a_look_proves_what_was_noted_since_the_last_one_and_nothing_before_or_after() -> None:
    offences = Offences()
    for _ in range(1000):
        offences.note("malformed", HOST, None, 0.0)  # perhaps another's, in its name
    offences.settle()  # a look that proves nothing
    offences.note("malformed", HOST, None, 0.1)
    offences.settle()
    for _ in range(1000):
        offences.note("malformed", HOST, None, 0.2)  # while the look is under way
    offences.neighbour(BLOCK, 5, 0.3)
    (seen,) = offences.bound(0.3)
    assert dict(seen.bound)["flood"] == 1.0 and seen.proofs == ("neighbour",)
    assert 1900 < dict(seen.loose)["flood"] < 2000


def test_a_look_proves_no_more_than_it_saw_come() -> None:
    """What else is noted came in that name where nobody looked who sent it: the address was known."""
    offences = Offences()
    for _ in range(1283):
        offences.note("malformed", HOST, None, 0.0)
    offences.note("replay", HOST, None, 0.0)
    offences.settle()
    offences.neighbour(BLOCK, 3, 0.0)
    (seen,) = offences.bound(0.0)
    assert sum(count for _, count in seen.bound) == 3.0 and dict(seen.loose)["flood"] == 1280.0
    told = ThreatLog().see([seen], 100.0)
    assert [(one.kind, one.proofs, one.count) for one in told] == [("flood", (), 1280.0)]
    offences.note("malformed", HOST, None, 0.0)
    offences.unsettle()
    offences.settle()
    offences.neighbour(BLOCK, 9, 0.0)
    assert sum(count for _, count in next(iter(offences.bound(0.0))).bound) == 3.0


def test_ipv6_counts_by_the_hosts_whole_64() -> None:
    offences = Offences()
    for i in range(int(ENOUGH["replay"])):
        offences.note("replay", str(ip_address(0x20010DB8 << 96 | i)), "cookie", 0.0)
    assert score(offences, block="2001:db8::/64") >= 1.0


def test_forged_sources_crowd_nobody_out_of_what_is_proved() -> None:
    offences = Offences()
    for _ in range(5):
        offences.note("mac", HOST, "cookie", 0.0)
    for i in range(3 * MOST_BOUND):
        offences.note("malformed", str(ip_address(0x0A000000 + i)), None, 0.0)
    assert dict(next(iter(offences.bound(0.0))).bound)["bad-mac"] == 5.0
    assert len(list(offences.loose(0.0))) == MOST_LOOSE


def test_other_reasons_speak_against_nobody() -> None:
    offences = Offences()
    for reason in ("duplicate", "unknown-node", "expired", "glare", "overtaken", "stream-ended"):
        offences.note(reason, HOST, "cookie", 0.0)
    assert list(offences.bound(0.0)) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(threats._BY_REASON)), st.integers(0, 3), st.floats(0, 3)),
        max_size=60,
    )
)
def test_whatever_is_forged_bans_nobody(sent: list[tuple[str, int, float]]) -> None:
    offences, now = Offences(), 0.0
    for reason, host, wait in sent:
        now += wait
        offences.note(reason, f"192.0.2.{host}", None, now)
        assert not list(offences.bound(now))


def test_a_threat_is_told_once_and_again_after_a_pause() -> None:
    offences, log = Offences(), ThreatLog()
    for _ in range(20):
        offences.note("mac", HOST, "cookie", 0.0)
    seen = list(offences.bound(0.0))
    assert [(t.kind, t.source, t.severity) for t in log.see(seen, 100.0)] == [("bad-mac", BLOCK, "medium")]
    assert log.see(seen, 101.0) == []
    assert len(log.see(seen, 102.0 + ThreatLog.AGAIN)) == 1 and len(list(log)) == 1
