# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from phantommesh.dimensions import ALL
from phantommesh.link.psk import (
    ALTERNATE,
    DIAL_AFTER,
    FORGET_OLD_AFTER,
    INSTALL_GRACE,
    Agreement,
    PskPhase,
    PskState,
)
from phantommesh.secret import Secret


def agreement(epoch: int, born: float = 0.0, *, by_lower_id: bool = True) -> Agreement:
    rng = random.Random(f"{epoch} {by_lower_id}")
    psks = tuple(Secret(rng.randbytes(32)) for _ in range(7))
    chain, scatter = Secret(rng.randbytes(64)), Secret(rng.randbytes(32))
    return Agreement(epoch, by_lower_id, rng.randbytes(16), chain, psks, scatter, born)


@pytest.fixture
def state() -> PskState:
    return PskState(random.Random(1).randbytes, alarm_after=180.0, random_after=300.0)


def chains(state: PskState) -> list[bytes]:
    return [chain_id for chain_id, _ in state.held_chains()]


def handshakes(at: float | None) -> Sequence[float | None]:
    return [at] * 7


def test_before_any_agreement_the_keys_are_random(state: PskState) -> None:
    assert state.phase(0.0) is PskPhase.NONE and not state.open
    found = {psk.reveal() for psk in state.desired}
    assert len(found) == 7 and bytes(32) not in found
    assert state.deadline == float("inf")


def test_a_later_wireguard_handshake_confirms_and_destroys_the_old(state: PskState) -> None:
    one, two = agreement(1), agreement(2, 90.0)
    assert state.commit(one, 0.0)
    assert state.installed(ALL, 0.1) == ALL
    state.observe(handshakes(0.05), 0.2)  # older than the set
    assert state.confirmed == 0
    state.observe(handshakes(0.1), 0.2)
    assert state.confirmed == ALL
    assert state.commit(two, 90.0)
    assert chains(state) == [two.chain_id, one.chain_id]
    assert state.confirmed == 0
    state.installed(ALL, 90.1)
    state.observe([None, 91.0, *[91.2] * 5], 91.3)  # the second may have begun under the old key
    assert state.confirmed == 0b1111100
    assert one.chain_id in chains(state)
    state.observe(handshakes(91.2), 91.3)
    assert state.confirmed == ALL
    assert chains(state) == [two.chain_id]


def test_without_a_handshake_the_old_is_destroyed_after_180_seconds(state: PskState) -> None:
    state.commit(agreement(1), 0.0)
    state.commit(agreement(2, 90.0), 90.0)
    state.tick(90.0 + FORGET_OLD_AFTER - 0.1)
    assert len(chains(state)) == 2
    state.tick(90.0 + FORGET_OLD_AFTER)
    assert chains(state) == [agreement(2).chain_id]


def test_a_read_back_that_no_longer_holds_confirms_nothing(state: PskState) -> None:
    state.commit(agreement(1), 0.0)
    assert state.installed(ALL, 0.1) == ALL
    assert state.installed(ALL & ~1, 5.0) == ALL & ~1  # a rival `wg set` on dimension 0
    state.observe(handshakes(6.0), 6.0)
    assert state.confirmed == ALL & ~1
    assert state.installed(ALL, 7.0) == ALL
    state.observe(handshakes(6.0), 7.0)
    assert state.confirmed == ALL & ~1


def test_a_lower_rank_never_replaces_a_higher(state: PskState) -> None:
    assert state.commit(agreement(5), 0.0)
    for late in (agreement(4), agreement(5), agreement(5, by_lower_id=False)):
        assert not state.commit(late, 1.0)
        assert not state.stage(late)
    assert state.commit(agreement(6, by_lower_id=False), 1.0)
    assert state.commit(agreement(6), 1.0)
    assert state.desired == agreement(6).psks


def unsure(state: PskState) -> tuple[Agreement, Agreement]:
    one, two = agreement(1), agreement(2, 90.0)
    state.commit(one, 0.0)
    state.installed(ALL, 0.1)
    state.observe(handshakes(0.2), 0.3)
    assert state.stage(two)
    assert state.desired == one.psks and state.phase(90.0) is PskPhase.FRESH
    state.doubt(95.0)
    return one, two


def test_without_an_ack_staged_and_old_are_shown_in_turn(state: PskState) -> None:
    one, two = unsure(state)
    shown = []
    for _ in range(4):
        assert state.phase(state.deadline - 0.1) is PskPhase.UNSURE
        shown.append(state.desired)
        changed, alarms = state.tick(state.deadline)
        assert changed and not alarms
    assert shown == [two.psks, one.psks, two.psks, one.psks]


def test_a_handshake_while_staged_is_shown_commits_it(state: PskState) -> None:
    _, two = unsure(state)
    state.installed(ALL, 95.1)
    state.observe([None] * 6 + [95.5], 95.6)  # too soon to tell
    assert state.committed != two
    state.observe([None] * 6 + [96.2], 96.3)
    assert state.committed == two and state.staged is None
    assert state.phase(96.3) is PskPhase.FRESH
    assert state.confirmed == 0b1000000
    assert state.deadline > 96.3 + ALTERNATE


def test_a_handshake_while_the_old_is_shown_keeps_it_and_keeps_staged_for_later(state: PskState) -> None:
    one, two = unsure(state)
    state.tick(95.0 + ALTERNATE)
    state.installed(ALL, 102.1)
    state.observe(handshakes(103.2), 103.3)
    assert state.committed == one and state.desired == one.psks
    assert state.phase(103.3) is PskPhase.FRESH
    assert chains(state)[0] == two.chain_id  # AUTH may still arrive


def test_an_old_handshake_does_not_end_the_doubt(state: PskState) -> None:
    unsure(state)
    state.installed(ALL, 95.1)
    state.observe(handshakes(94.0), 95.2)
    assert state.phase(95.2) is PskPhase.UNSURE


def test_doubt_ends_with_the_old_keys_after_300_seconds(state: PskState) -> None:
    unsure(state)
    alarms = []
    while state.deadline < 95.0 + 310.0:
        alarms += state.tick(state.deadline)[1]
    assert alarms == ["stale", "random"]
    assert not state.open
    assert state.phase(400.0) is PskPhase.RANDOM
    assert len(chains(state)) == 2  # whichever the other end has, the next handshake builds on it


def test_stale_alarm_at_180_and_random_at_300(state: PskState) -> None:
    one = agreement(1)
    state.commit(one, 0.0)
    state.installed(ALL, 0.1)
    assert state.tick(179.9) == (False, [])
    assert state.phase(179.9) is PskPhase.FRESH
    assert state.phase(180.0) is PskPhase.STALE
    assert state.deadline == 180.0
    assert state.tick(180.0) == (False, ["stale"])
    assert state.tick(181.0) == (False, [])
    assert state.desired == one.psks and state.deadline == 300.0
    assert state.tick(300.0) == (True, ["random"])
    assert state.phase(300.0) is PskPhase.RANDOM and not state.open
    state.installed(ALL, 300.1)
    found = {psk.reveal() for psk in state.desired}
    assert len(found) == 7 and not found & {psk.reveal() for psk in one.psks} and bytes(32) not in found
    assert chains(state) == [one.chain_id]  # the next handshake still builds on it
    assert state.commit(agreement(2, 310.0), 310.0)
    assert state.phase(311.0) is PskPhase.FRESH


def test_random_keys_are_new_each_time(state: PskState) -> None:
    first = state.desired
    state.commit(agreement(1), 0.0)
    state.tick(300.0)
    second = state.desired
    state.commit(agreement(2, 300.0), 300.0)
    state.tick(700.0)
    assert len({psk.reveal() for psks in (first, second, state.desired) for psk in psks}) == 21


def test_the_first_set_needs_no_margin(state: PskState) -> None:
    """Nothing could have shaken hands under a random key."""
    state.commit(agreement(1), 0.0)
    state.installed(ALL, 0.1)
    state.observe(handshakes(0.2), 0.3)
    assert state.confirmed == ALL


def test_keys_out_of_the_kernel_are_not_fresh_for_long(state: PskState) -> None:
    state.commit(agreement(1), 0.0)
    assert state.phase(INSTALL_GRACE - 0.1) is PskPhase.FRESH
    assert state.phase(INSTALL_GRACE) is PskPhase.UNSURE
    state.installed(ALL - 1, 11.0)
    assert state.phase(11.0) is PskPhase.UNSURE
    state.installed(ALL, 12.0)
    assert state.phase(12.0) is PskPhase.FRESH


def dials(state: PskState) -> bool:
    """A call, so that a type checker does not think it constant."""
    return state.dials == ALL


def test_the_responder_of_a_first_agreement_leaves_wireguard_to_the_initiator(state: PskState) -> None:
    assert not dials(state)
    state.commit(agreement(1), 0.0, responder=True)
    assert state.open and not dials(state)
    assert state.deadline == DIAL_AFTER
    assert state.tick(DIAL_AFTER) == (True, [])
    assert dials(state)
    state.commit(agreement(2, 90.0), 90.0, responder=True)
    assert dials(state)  # WireGuard sessions are alive: nothing to wait for


def test_a_wireguard_handshake_ends_the_wait_and_initiators_never_wait(state: PskState) -> None:
    state.commit(agreement(1), 0.0, responder=True)
    state.installed(ALL, 0.1)
    state.observe(handshakes(0.5), 0.6)
    assert dials(state)
    other = PskState(random.Random(2).randbytes, alarm_after=180.0, random_after=300.0)
    other.commit(agreement(1), 0.0)
    assert dials(other)


def test_an_unbound_dimension_fails_closed_and_the_others_do_not_notice(state: PskState) -> None:
    one, two = agreement(1), agreement(2, 90.0)
    state.commit(one, 0.0)
    state.installed(ALL, 0.1)
    state.observe(handshakes(0.2), 0.3)
    state.stage(two)
    state.unbind(0b100, 10.0)
    assert state.bound == state.dials == state.confirmed == ALL & ~0b100
    kept = [psk for i, psk in enumerate(one.psks) if i != 2]
    assert [psk for i, psk in enumerate(state.desired) if i != 2] == kept
    assert state.desired[2] not in (*one.psks, *two.psks, Secret(bytes(32)))
    assert state.installed(ALL & ~0b100, 10.1) == ALL & ~0b100
    state.installed(ALL, 11.0)
    state.observe(handshakes(12.0), 12.1)  # one that began under the old keys may still be told of
    assert state.confirmed == ALL & ~0b100
    state.doubt(95.0)  # the staged agreement names the old keys too
    assert state.bound == ALL & ~0b100 and state.desired[2] not in (*one.psks, *two.psks)
    assert chains(state) == [two.chain_id, one.chain_id]
    assert state.phase(96.0) is PskPhase.UNSURE


def test_the_responder_leaves_wireguard_to_the_initiator_on_a_new_dimension_alone(state: PskState) -> None:
    state.commit(agreement(1), 0.0)
    state.unbind(0b11, 10.0)
    assert state.commit(agreement(2, 10.0), 10.0, responder=True)
    assert state.dials == ALL & ~0b11 and state.deadline == 10.0 + DIAL_AFTER
    state.installed(ALL, 10.1)
    state.observe([None, None, *[12.0] * 5], 12.1)  # an old dimension says nothing of the new ones
    assert state.dials == ALL & ~0b11
    state.observe([10.2, None, *[12.0] * 5], 12.2)  # nothing could have shaken hands under a random key
    assert state.dials == ALL


def ready(state: PskState) -> int:
    """A call, so that a type checker does not think it constant."""
    return state.ready


def test_nothing_is_sent_before_the_kernel_has_what_to_send_it_with(state: PskState) -> None:
    state.commit(agreement(1), 0.0)
    assert ready(state) == 0
    state.installed(0b111, 0.1)
    assert ready(state) == 0b111
    state.installed(ALL, 0.2)
    assert ready(state) == ALL
    state.commit(agreement(2, 90.0), 90.0)
    assert ready(state) == ALL  # the sessions carry on
    state.unbind(0b10, 100.0)
    assert ready(state) == ALL & ~0b10
    state.commit(agreement(3, 101.0), 101.0, responder=True)
    state.installed(ALL, 101.1)
    assert ready(state) == ALL & ~0b10  # it leaves the dialling to the other end
    state.observe([None, 101.2, *[None] * 5], 101.3)
    state.installed(ALL, 101.4)
    assert ready(state) == ALL
    state.tick(1000.0)
    assert ready(state) == 0
    state.commit(agreement(4, 1001.0), 1001.0)
    assert ready(state) == 0


def test_with_nothing_bound_there_is_no_link(state: PskState) -> None:
    state.commit(agreement(1), 0.0)
    state.unbind(ALL, 1.0)
    assert state.phase(1.0) is PskPhase.NONE and not state.dials
    assert chains(state) == [agreement(1).chain_id]  # the next handshake builds on it
    assert state.commit(agreement(2, 2.0), 2.0)
    assert state.phase(2.0) is PskPhase.FRESH


def test_nothing_secret_shows(state: PskState) -> None:
    one = agreement(1)
    assert "psks" not in repr(one) and one.chain_key.reveal().hex() not in repr(one)
