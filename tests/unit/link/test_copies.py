# SPDX-License-Identifier: GPL-3.0-or-later
"""What broken chains say of identities."""

from __future__ import annotations

import pytest

from phantommesh.link.copies import GRACE, KEPT, TURNS, WINDOW, Copies, Why
from phantommesh.link.effects import ResetSign

A, B, C, D = (bytes([i]) * 16 for i in range(4))
EMPTY, UNANSWERED, SUPERSEDED, UNKNOWN = (
    ResetSign.EMPTY, ResetSign.UNANSWERED, ResetSign.SUPERSEDED, ResetSign.UNKNOWN,
)  # fmt: skip


def linked(*peers: bytes) -> Copies:
    copies = Copies()
    for peer in peers:
        copies.chained(peer, 7, 0.0)
    return copies


def found(copies: Copies) -> list[tuple[bytes | None, Why]]:
    return [(s.node, s.why) for s in copies.suspicions]


@pytest.mark.parametrize("sign", [EMPTY, UNANSWERED, None])
@pytest.mark.parametrize("delay", [-1.0, 0.0, GRACE - 1])
def test_a_restart_is_no_theft_whether_its_news_comes_before_or_after(
    sign: ResetSign | None, delay: float
) -> None:
    copies = linked(A, B, C)
    copies.reset(A, sign, 8 if delay < 0 else 7, 100.0)
    copies.chained(A, 8 if delay < 0 else 7, 100.1)
    copies.look(lambda _: 8, 100.0 + max(delay, 0.1))
    copies.look(lambda _: 8, 100.0 + GRACE + 1)
    assert not copies.suspicions


def test_restarts_are_no_theft_until_there_are_many_of_them() -> None:
    copies = linked(A, B, C)
    for i in range(TURNS - 1):
        copies.reset(A, EMPTY, 8 + i, 100.0 + i)
        copies.look(lambda _, i=i: 8 + i, 100.5 + i)  # type: ignore[misc]
        copies.chained(A, 8 + i, 100.6 + i)
    assert not copies.suspicions
    copies.reset(A, EMPTY, 20, 110.0)
    assert found(copies) == [(A, Why.TURNS)]


def test_restarts_far_apart_are_no_theft_however_many() -> None:
    copies = linked(A, B, C)
    for i in range(20):
        now = 100.0 + i * (WINDOW / (TURNS - 1) + 1)
        copies.reset(A, EMPTY, 8 + i, now)
        copies.look(lambda _, i=i: 8 + i, now + 1)  # type: ignore[misc]
        copies.chained(A, 8 + i, now + 1)
    assert not copies.suspicions


@pytest.mark.parametrize("sign", [EMPTY, UNANSWERED])
def test_keys_lost_without_a_start_are_one(sign: ResetSign) -> None:
    copies = linked(A, B, C)
    copies.reset(A, sign, 7, 100.0)
    copies.chained(A, 7, 100.1)
    copies.look(lambda _: 7, 100.0 + GRACE - 1)
    assert not copies.suspicions
    copies.look(lambda _: 7, 100.0 + GRACE)
    assert found(copies) == [(A, Why.NO_START)]


def test_one_loss_that_shows_twice_is_one() -> None:
    """Both ends begin at once after a restart; the news of the start comes between the two handshakes."""
    copies = linked(A, B, C)
    for i in range(TURNS - 1):
        now = 100.0 + 3 * i
        copies.reset(A, UNANSWERED, 7 + i, now)
        copies.look(lambda _, i=i: 8 + i, now + 0.5)  # type: ignore[misc]
        copies.reset(A, EMPTY, 8 + i, now + 1)
        copies.chained(A, 8 + i, now + 1)
        copies.look(lambda _, i=i: 8 + i, now + 1)  # type: ignore[misc]
    copies.look(lambda _: 8 + TURNS, 200.0 + GRACE)
    assert not copies.suspicions


def test_where_gossip_says_nothing_nothing_is_concluded() -> None:
    copies = Copies()
    copies.reset(A, EMPTY, None, 100.0)
    copies.look(lambda _: None, 100.0 + GRACE)
    assert not copies.suspicions


def test_a_replaced_key_that_comes_back_is_one_at_once_and_stays_for_a_day() -> None:
    copies = linked(A, B, C)
    copies.reset(A, EMPTY, 8, 100.0)
    copies.look(lambda _: 8, 101.0)
    copies.reset(A, SUPERSEDED, 9, 150.0)
    assert found(copies) == [(A, Why.CAME_BACK)]
    copies.look(lambda _: 9, 150.0 + KEPT - 1)
    assert found(copies) == [(A, Why.CAME_BACK)]
    copies.look(lambda _: 9, 150.0 + KEPT)
    assert not copies.suspicions


def test_two_peers_that_know_us_by_keys_we_never_made_accuse_ourselves() -> None:
    copies = linked(A, B, C)
    copies.reset(A, UNKNOWN, 7, 100.0)
    assert found(copies) == [(A, Why.STRANGE_KEY)]
    copies.reset(B, UNKNOWN, 7, 101.0)
    assert found(copies) == [(None, Why.SELF)]
    copies.reset(C, UNKNOWN, 7, 102.0)
    assert found(copies) == [(None, Why.SELF)]
    assert copies.suspicions[0].accusers == 3


def test_peers_that_no_longer_know_our_keys_accuse_ourselves_too() -> None:
    copies = linked(A, B, C)
    for peer in (A, B, C):
        copies.reset(peer, UNANSWERED, 7, 100.0)
    copies.look(lambda _: 7, 100.0 + GRACE)
    assert found(copies) == [(None, Why.SELF)]


def test_the_only_peer_there_is_can_accuse_us_alone() -> None:
    copies = linked(A)
    copies.reset(A, UNKNOWN, 7, 100.0)
    assert found(copies) == [(None, Why.SELF)]


def test_one_liar_among_many_accuses_itself_only() -> None:
    copies = linked(A, B, C, D)
    for now in range(100, 900, 10):
        copies.reset(A, UNKNOWN, 7, float(now))
        copies.look(lambda _: 7, now + 1.0)
    assert {s.node for s in copies.suspicions} == {A}


def test_who_is_revoked_is_suspected_no_longer() -> None:
    copies = linked(A, B)
    copies.reset(A, SUPERSEDED, 7, 100.0)
    copies.retain({B})
    assert not copies.suspicions
