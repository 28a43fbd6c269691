# SPDX-License-Identifier: GPL-3.0-or-later
"""FORTRESS's policy: what it bans, sheds and raises, and what it never does."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.acl.bans import STEPS
from phantommesh.acl.threats import ENOUGH, KINDS, Kind, Proof, SourceSeen
from phantommesh.agents.actions import Ban, Raise, Shed, Throttle, check
from phantommesh.agents.base import Observation, Proposal
from phantommesh.agents.fortress import (
    CALM,
    DNS_RULE,
    ENOUGH_ASKED,
    ENOUGH_MISSING,
    ENOUGH_WALKED,
    HINT,
    MOST_ASKERS,
    SHIELDED_RULE,
    STILL,
    Fortress,
    FortressSeen,
    Source,
)
from phantommesh.config.agents import FortressSection
from phantommesh.names.askers import AskerSeen
from phantommesh.node.steps import Moment

BLOCK = "192.0.2.7/32"


def source(**bound: float) -> Source:
    counts = tuple((kind, bound[kind.replace("-", "_")]) for kind in KINDS if kind.replace("-", "_") in bound)
    return Source(SourceSeen(BLOCK, ("cookie",), counts, ()))


def look(agent: Fortress, now: float, *sources: Source, arrived: float = 0.0) -> list[Proposal]:
    seen = FortressSeen(tuple(sources), arrived)
    return list(agent.observe(Observation(at=Moment(now, 1e9 + now), seen=seen)))


def bans(proposals: Iterable[Proposal]) -> list[Ban]:
    return [p.action for p in proposals if isinstance(p.action, Ban)]


def changed(one: Source, **fields: object) -> Source:
    import msgspec

    return msgspec.structs.replace(one, **fields)


def test_enough_is_banned_for_ten_minutes_and_less_is_not() -> None:
    agent = Fortress()
    assert look(agent, 1.0, source(scan=ENOUGH["scan"] - 1)) == []
    (made,) = look(agent, 1.0, source(scan=ENOUGH["scan"]))
    assert made.action == Ban(BLOCK, STEPS[0]) and made.until == 1.0 + STEPS[0] and not check(made.action)
    assert [(e.what, e.value, e.bound) for e in made.evidence] == [("scan_count", 4.0, 4.0)]


def test_two_halves_are_a_whole() -> None:
    assert bans(look(Fortress(), 0.0, source(scan=2.0, replay=15.0)))


def test_an_offender_is_banned_at_its_first_offence_and_longer() -> None:
    agent = Fortress()
    for times in (1, 2, 3, 9):
        (made,) = bans(look(agent, 0.0, changed(source(scan=1.0), times=times)))
        assert made.seconds == STEPS[min(times, 3)]
    assert not look(agent, 0.0, changed(source(), times=3))  # no offence, no ban


def test_a_hint_lowers_and_never_bans_alone() -> None:
    agent = Fortress()
    assert not look(agent, 0.0, changed(source(), lowering=0.75))
    assert not look(agent, 0.0, source(scan=2.0))
    (made,) = look(agent, 0.0, changed(source(scan=2.0), lowering=0.5))
    assert HINT in {e.what for e in made.evidence}
    (made,) = look(agent, 0.0, changed(source(scan=4.0), lowering=0.5))  # enough without
    assert HINT not in {e.what for e in made.evidence}


def test_who_is_never_banned_is_reported() -> None:
    agent = Fortress()
    for guilty in (
        changed(source(scan=9.0, flood=900.0), never="a seed of this node"),
        changed(source(scan=9.0), member=True),
        changed(source(scan=9.0), member=True, times=3),
    ):
        (made,) = look(agent, 0.0, guilty)
        assert isinstance(made.action, Raise) and made.action.rule == SHIELDED_RULE and not check(made.action)


def test_no_evidence_bans_a_members_address() -> None:
    """A stranger behind the member's NAT makes two kinds by TCP; who reads the path makes two with a cookie,
    by the member's own datagrams, sent again."""
    agent = Fortress()
    for proofs, kinds in (
        (("tcp",), (("bad-mac", 99.0), ("slow-tcp", 99.0))),
        (("cookie",), (("flood", 999.0), ("bad-mac", 99.0))),
        (("cookie", "neighbour", "tcp"), tuple((kind, 9999.0) for kind in KINDS)),
    ):
        guilty = Source(SourceSeen(BLOCK, proofs, kinds, ()), times=3, lowering=0.75, member=True)  # type: ignore[arg-type]
        (made,) = look(agent, 0.0, guilty)
        assert isinstance(made.action, Raise) and made.action.rule == SHIELDED_RULE and not check(made.action)


def test_what_may_be_forged_bans_nobody_beside_what_is_proved() -> None:
    seen = SourceSeen(BLOCK, ("tcp",), (("bad-mac", 1.0),), (("flood", 9999.0), ("scan", 99.0)))
    assert not look(Fortress(), 0.0, Source(seen))
    (made,) = look(Fortress(), 0.0, Source(seen, times=1))  # an offender, for what is proved
    assert [one.what for one in made.evidence] == ["bad-mac_count", "bans_before"]


def test_a_flood_is_shed_until_it_is_over() -> None:
    agent = Fortress(FortressSection(shed_at=100.0, shed_rate=50.0))
    assert not look(agent, 0.0, arrived=99.0)
    made = look(agent, 1.0, arrived=101.0)
    assert [type(p.action) for p in made] == [Shed, Raise] and made[0].action == Shed(50.0)
    assert made[0].until == 1.0 + CALM
    assert look(agent, CALM, arrived=0.0)[0].until == 1.0 + CALM
    assert not look(agent, 1.0 + CALM, arrived=0.0)
    seen = FortressSeen((), 5000.0, 4960.0)
    assert agent.measure(seen, made[0]) == 40.0


def test_a_ban_is_measured_by_whether_the_source_still_gets_through() -> None:
    agent = Fortress()
    (made,) = look(agent, 0.0, source(scan=5.0))
    assert agent.measure(FortressSeen((source(scan=5.0),)), made) == 1.0
    assert agent.measure(FortressSeen(), made) == 0.0


def asked(agent: Fortress, now: float, *askers: AskerSeen) -> dict[str, Proposal]:
    made = list(agent.observe(Observation(at=Moment(now, 1e9 + now), seen=FortressSeen(askers=askers))))
    assert not bans(made) and not any(check(p.action) for p in made) and len(made) <= 2 * MOST_ASKERS
    raised = [p.action.rule for p in made if isinstance(p.action, Raise)]
    throttled = {p.action.address: p for p in made if isinstance(p.action, Throttle)}
    assert raised == [DNS_RULE] * len(throttled)
    return throttled


def test_an_asker_that_floods_guesses_or_walks_is_throttled_and_an_honest_one_is_not() -> None:
    for guilty in (
        AskerSeen("fd00::1", ENOUGH_ASKED),
        AskerSeen("fd00::1", ENOUGH_MISSING, missing=ENOUGH_MISSING),
        AskerSeen("fd00::1", ENOUGH_WALKED, walked=ENOUGH_WALKED),
    ):
        honest = AskerSeen("fd00::2", 0.9 * ENOUGH_ASKED, 0.9 * ENOUGH_MISSING, 0.9 * ENOUGH_WALKED)
        made = asked(Fortress(FortressSection(dns_rate=7.0)), 1.0, honest, guilty)
        assert set(made) == {"fd00::1"} and made["fd00::1"].action == Throttle("fd00::1", 7.0)


def test_a_scan_that_is_slowed_down_stays_throttled_and_is_let_go_once() -> None:
    """Under the throttle its misses alone would not be enough any more."""
    agent, rate, until = Fortress(), FortressSection().dns_rate, 300.0
    assert asked(agent, 0.0, AskerSeen("fd00::1", 500.0, missing=ENOUGH_MISSING))
    for now in range(1, int(until)):
        seen = AskerSeen("fd00::1", STILL * rate * 10.0, missing=10.0 * rate, kept_to=rate)
        (made,) = asked(agent, float(now), seen).values()
        assert agent.measure(FortressSeen(askers=(seen,)), made) == rate
    assert asked(agent, until + CALM - 2.0)
    assert not asked(agent, until + CALM)
    assert not asked(agent, until + CALM, AskerSeen("fd00::1", STILL * rate * 10.0))  # not before enough


def test_many_askers_at_once_stay_within_the_bounds_of_one_look() -> None:
    agent = Fortress()
    crowd = [AskerSeen(f"fd00::{i:x}", ENOUGH_ASKED * i) for i in range(1, 60)]
    assert set(asked(agent, 0.0, *crowd)) == {one.address for one in crowd[-MOST_ASKERS:]}
    assert len(asked(agent, 1.0, *crowd)) == MOST_ASKERS


_counts = st.lists(
    st.tuples(st.sampled_from(KINDS), st.floats(0, 1e9)), max_size=5, unique_by=lambda one: one[0]
).map(tuple)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    proofs: tuple[Proof, ...] = ("cookie",)
    bound: tuple[tuple[Kind, float], ...] = draw(_counts)
    seen = SourceSeen(f"192.0.2.{draw(st.integers(0, 9))}/32", proofs, bound, draw(_counts))
    return Source(
        seen, draw(st.integers(0, 5)), draw(st.floats(0, 0.75)), draw(st.sampled_from(["", "a seed"])),
        draw(st.booleans()),
    )  # fmt: skip


@given(st.lists(sources(), max_size=60), st.floats(0, 1e6))
def test_whatever_it_sees_it_stays_within_its_bounds(seen: list[Source], arrived: float) -> None:
    by_block = {one.seen.block: one for one in seen}
    for made in look(Fortress(), 5.0, *by_block.values(), arrived=arrived):
        assert made.evidence and made.until > 5.0 and not check(made.action)
        if isinstance(made.action, Ban):
            one = by_block[made.action.network]
            assert not one.never and any(count > 0 for _, count in one.seen.bound)
            assert not one.member
