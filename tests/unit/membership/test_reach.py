# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to members, and damping: the pure parts."""

from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.membership.damping import DEATHS, FLAP, MAX_NODES, Damping, Limits
from phantommesh.membership.reach import HELPED, IN_A_ROW, KEPT_HELPERS, PATIENCE, Reach, proof, proves

T, H, G = b"t" * 16, b"h" * 16, b"g" * 16
EVENT = b"e" * 48


def test_a_proof_is_of_one_asker_one_member_one_nonce_and_one_event() -> None:
    code = proof(b"secret", H, T, b"12345678", EVENT)
    assert len(code) == 16
    assert proves(code, b"secret", H, T, b"12345678", EVENT)
    for other in (
        (b"secreT", H, T, b"12345678", EVENT),
        (b"secret", G, T, b"12345678", EVENT),
        (b"secret", H, G, b"12345678", EVENT),
        (b"secret", T, H, b"12345678", EVENT),
        (b"secret", H, T, b"12345679", EVENT),
        (b"secret", H, T, b"12345678", EVENT[:-1] + b"f"),
    ):
        assert not proves(code, *other)
    assert not proves(b"", b"secret", H, T, b"12345678", EVENT)


def test_a_member_is_partly_reachable_after_some_probes_in_a_row_and_direct_after_as_many() -> None:
    reach = Reach()
    assert reach.weigh(T, direct=False) is None and not reach  # nobody has carried anything
    reach.carried(T, H, 0.0)
    assert reach.known(T) and reach.unsettled(T) and not reach.partly and not reach.leans(T)
    assert [reach.weigh(T, direct=False) for _ in range(IN_A_ROW)] == [None] * (IN_A_ROW - 1) + ["partly"]
    assert reach.partly == {T} and reach.through(T) == (H,) and reach.leans(T)
    assert reach.weigh(T, direct=True) is None
    assert reach.weigh(T, direct=False) is None  # not in a row
    assert [reach.weigh(T, direct=True) for _ in range(IN_A_ROW)] == [None] * (IN_A_ROW - 1) + ["direct"]
    assert not reach.partly and not reach.known(T) and reach.through(T) == ()


def test_a_node_is_badly_placed_once_two_probes_of_another_member_say_so() -> None:
    reach = Reach()
    reach.carried(T, H, 0.0)
    reach.weigh(T, direct=False)
    assert not reach.badly_placed(G)
    reach.weigh(T, direct=False)
    assert reach.badly_placed(G) and not reach.badly_placed(T)


def test_one_direct_answer_ends_what_a_few_lost_pings_began() -> None:
    reach = Reach()
    reach.carried(T, H, 0.0)
    reach.weigh(T, direct=False)
    assert reach.weigh(T, direct=True) is None
    assert not reach.known(T)


def test_the_helpers_that_carried_last_are_asked_first_and_old_ones_not_at_all() -> None:
    reach = Reach()
    for i in range(10):
        reach.carried(T, bytes([i]) * 16, float(i))
    assert reach.helpers(T, 10.0) == [bytes([9]) * 16, bytes([8]) * 16]
    assert reach.helpers(T, 10.0, {bytes([9]) * 16}) == [bytes([8]) * 16, bytes([7]) * 16]
    assert reach.helpers(T, 9.0 + HELPED) == []
    for _ in range(IN_A_ROW):
        reach.weigh(T, direct=False)
    assert len(reach.through(T)) == KEPT_HELPERS


def test_a_member_with_helpers_is_asked_again_before_it_is_suspected() -> None:
    reach = Reach()
    assert not reach.missed(T)  # others have no helpers
    reach.carried(T, H, 0.0)
    assert [reach.missed(T) for _ in range(PATIENCE + 2)] == [True] * (PATIENCE - 1) + [False] * 3
    reach.carried(T, H, 1.0)
    assert reach.missed(T)


def test_the_helpers_of_a_dead_member_are_kept_and_those_of_a_forgotten_one_not() -> None:
    reach = Reach()
    reach.carried(T, H, 0.0)
    for _ in range(IN_A_ROW):
        reach.weigh(T, direct=False)
    reach.down(T)
    assert not reach.partly and reach.through(T) == () and reach.helpers(T, 1.0) == [H]
    assert not reach.elsewhere(T) and reach.elsewhere(G)
    reach.forget(T)
    assert reach.helpers(T, 1.0) == []


@example(0.0, [0.0, 0.0, 0.0])
@given(st.floats(0, 1e9), st.lists(st.floats(0, 30), min_size=1, max_size=6))
def test_whoever_has_waited_as_told_need_not_wait_again(start: float, gaps: list[float]) -> None:
    """Else a timer that is due at once is set again, for ever: a node of a simulation stood still."""
    damping, now = Damping(), start
    for gap in gaps:
        now += gap
        damping.flap(T, now)
    assert damping.holds(T, now + damping.holds(T, now)) == 0


def test_one_flap_holds_the_next_verdict_back_for_a_minute() -> None:
    damping = Damping()
    assert damping.holds(T, 0.0) == 0
    damping.flap(T, 0.0)
    assert damping.holds(T, 0.0) == 60
    assert 0 < damping.holds(T, 59.9) < 0.2
    assert damping.holds(T, 60.1) == 0
    assert damping.holds(G, 0.0) == 0


def test_a_flap_below_the_cut_holds_nothing_back() -> None:
    damping = Damping(Limits(cut=2.5 * FLAP))
    damping.flap(T, 0.0)
    damping.flap(T, 1.0)
    assert damping.holds(T, 1.0) == 0
    damping.flap(T, 2.0)
    assert damping.holds(T, 2.0) > 0


@given(st.lists(st.floats(0, 100), max_size=50))
def test_no_verdict_is_held_back_for_longer_than_the_ceiling_allows(pauses: list[float]) -> None:
    damping, now = Damping(), 0.0
    for pause in pauses:
        now += pause
        damping.flap(T, now)
        assert 60 - 1e-6 <= damping.holds(T, now) <= DEATHS.longest + 1e-6
    assert damping.holds(T, now + DEATHS.longest + 1) == 0


def test_penalties_of_many_members_are_bounded() -> None:
    damping = Damping()
    for i in range(MAX_NODES + 100):
        damping.flap(i.to_bytes(16), float(i))
    assert len(damping._penalties) == MAX_NODES
    assert damping._held <= damping._penalties.keys()
