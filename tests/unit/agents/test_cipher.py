# SPDX-License-Identifier: GPL-3.0-or-later
"""CIPHER's policy, judged by the council: what it does, and what nobody can make it do."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from phantommesh.agents.actions import Action, Quarantine, Raise, Renew, ReplaceKey, Rotate, check
from phantommesh.agents.base import Subject
from phantommesh.agents.cipher import (
    ALL_BURST,
    ALL_RATE,
    EVERY,
    FORGED,
    GROUP_SLACK,
    LASTS,
    MOST,
    SETTLE,
    SIGN_BURST,
    SIGN_RATE,
    SLACK,
    Cipher,
    LinkSeen,
    Seen,
    SignKind,
    SignSeen,
)
from phantommesh.agents.council import MOST_PROPOSALS, Council, Order
from phantommesh.node.steps import Moment

DAY = 86_400.0


class Node:
    """A council of CIPHER alone, and the clock."""

    def __init__(self, *, quarantines: bool = True) -> None:
        numbers = count()
        self.now = 1000.0
        self.council = Council(
            [Cipher(quarantines=quarantines)], trace=lambda: str(next(numbers)), now=self.now
        )

    def look(self, seen: Seen, wait: float = EVERY) -> list[Order]:
        """Look once, and then let time pass; return what is to be done and lifted."""
        at = Moment(self.now, self.now)
        look = self.council.look("cipher", seen, (), at)()
        assert len(look.proposals) <= MOST_PROPOSALS
        assert not [one for one in look.proposals if check(one.action)]
        orders = self.council.looked("cipher", look, 0.0, at).orders
        self.now += wait
        return [*orders, *self.council.lapse(self.now)]

    def stands(self, peer: str) -> bool:
        found = self.council.apex.at(Subject("peer", peer))
        return found is not None and isinstance(found.proposal.action, Quarantine)


def link(age: float | None, peer: str = "p", **more: object) -> LinkSeen:
    made = LinkSeen(peer=peer, name=peer.upper(), age=age)
    return replace(made, **more)


def seen(*links: LinkSeen, **more: object) -> Seen:
    return replace(Seen(links=links), **more)


def done(orders: list[Order]) -> list[Action]:
    return [one.proposal.action for one in orders if not one.lift]


def rules(orders: list[Order]) -> set[str]:
    return {action.rule for action in done(orders) if isinstance(action, Raise)}


def lifted(orders: list[Order]) -> list[Action]:
    return [one.proposal.action for one in orders if one.lift]


@pytest.mark.parametrize("age", [None, 0.0, 95.0, 150.0, 154.9])
@pytest.mark.parametrize("failing", [False, True])
def test_links_that_the_machinery_keeps_young_are_left_alone(age: float | None, failing: bool) -> None:
    orders = Node().look(seen(link(age, failing=failing)))
    assert not orders


def test_a_psk_that_nothing_renews_is_renewed_and_one_that_fails_is_left_to_the_machinery() -> None:
    assert done(Node().look(seen(link(160.0)))) == [Rotate("p")]
    assert not Node().look(seen(link(160.0, failing=True)))


def test_a_rotation_neither_delays_a_quarantine_nor_ends_one() -> None:
    node, made = Node(), list[Action]()
    for age in range(100, 301, 5):
        made += done(node.look(seen(link(float(age))), wait=5.0))
        assert node.stands("p") is (age >= 180)
    assert 4 <= made.count(Rotate("p")) <= 6  # from 155 s on, as often as its rest allows


def test_a_stale_link_is_closed_reported_and_opened_at_the_look_that_finds_it_fresh() -> None:
    node = Node()
    orders = node.look(seen(link(180.0, failing=True)), wait=0.0)
    assert Quarantine("p", LASTS) in done(orders) and rules(orders) == {"cipher-quarantine"}
    for age in (190.0, 200.0, 210.0):
        assert not node.look(seen(link(age, failing=True)), wait=10.0)  # it stands, and is not done again
        assert node.stands("p")
    orders = node.look(seen(link(0.1)), wait=0.0)
    assert {type(action) for action in lifted(orders)} == {Quarantine, Raise} and not done(orders)
    assert not node.stands("p")


def test_a_quarantine_is_measured_by_what_the_kernel_has() -> None:
    for closed, met in ((True, True), (False, False)):
        node = Node()
        node.look(seen(link(180.0)), wait=10.0)
        node.look(seen(link(190.0, closed=closed)), wait=0.0)
        seat = node.council.seats["cipher"]
        assert (seat.met, seat.unmet) == ((1, 0) if met else (0, 1))


def test_a_quarantine_ends_when_wireguard_can_carry_no_more() -> None:
    """A peer that is gone for good is closed by its random PSK; no quarantine stands for ever."""
    node = Node()
    node.look(seen(link(180.0)))
    node.look(seen(link(470.0, handshake_age=170.0)))
    assert node.stands("p")
    # The PSK of 300 s ago is still in the kernel: it could not be replaced, and WireGuard goes on.
    node.look(seen(link(500.0, handshake_age=60.0)))
    assert node.stands("p")
    assert Quarantine("p", LASTS) in lifted(node.look(seen(link(490.0, handshake_age=181.0)), wait=0.0))


def test_a_peer_that_is_no_member_any_more_is_let_go() -> None:
    node = Node()
    node.look(seen(link(180.0)))
    assert Quarantine("p", LASTS) in lifted(node.look(seen(), wait=0.0))


def test_a_quarantine_of_an_agent_that_looks_no_more_lapses() -> None:
    node = Node()
    node.look(seen(link(180.0)), wait=LASTS - 1)
    assert node.stands("p")
    assert Quarantine("p", LASTS) in [one.proposal.action for one in node.council.lapse(node.now + 2)]


def test_the_operator_may_forbid_quarantines() -> None:
    assert not Node(quarantines=False).look(seen(link(400.0, failing=True, handshake_age=1.0)))


def test_hundreds_of_stale_links_are_all_closed_and_stay_closed() -> None:
    node, age = Node(), 180.0
    peers = [f"{i:03}" for i in range(200)]
    for _ in range(25):
        node.look(seen(*(link(age, peer) for peer in peers)))
        age += EVERY
    assert all(node.stands(peer) for peer in peers)
    fresh = node.look(seen(*(link(1.0, peer) for peer in peers)), wait=0.0)
    assert len([one for one in lifted(fresh) if isinstance(one, Quarantine)]) == len(peers)
    assert len(peers) > MOST


@pytest.mark.parametrize("kind", ["chain-reset", "copied", "equivocation"])
def test_a_sign_is_answered_once_with_new_keys(kind: SignKind) -> None:
    node, answered = Node(), Counter[type[Action]]()
    for wait in range(0, 60, 5):
        age = None if kind == "equivocation" else float(wait)
        keyed = float(wait) if not answered[Rotate] else 1.0
        orders = node.look(
            seen(link(keyed), link(keyed, "q"), signs=(SignSeen(peer="p", name="P", kind=kind, age=age),)),
            wait=5.0,
        )
        answered.update(type(action) for action in done(orders))
        assert not [action for action in done(orders) if isinstance(action, Rotate) and action.peer != "p"]
        assert wait >= SETTLE or not orders
    assert answered[Rotate] == 1
    assert answered[Raise] == (kind == "chain-reset")


def test_a_loss_of_keys_that_a_start_explains_in_time_is_no_sign() -> None:
    node = Node()
    sign = SignSeen(peer="p", name="P", kind="chain-reset", age=SETTLE - 0.1)
    assert not node.look(seen(link(SETTLE - 0.1), signs=(sign,)), wait=0.2)
    assert not node.look(seen(link(SETTLE + 0.1)))


def test_a_copy_of_this_node_has_it_make_keys_anew_with_all() -> None:
    sign = SignSeen(peer="", name="me", kind="copied", age=10.0)
    orders = Node().look(seen(link(50.0), link(50.0, "q"), link(3.0, "r"), signs=(sign,)))
    assert done(orders) == [Rotate("p"), Rotate("q")]


def test_a_flood_of_signs_is_bounded_for_a_peer_and_for_all() -> None:
    """Each member breaks its chain once in five seconds, for an hour: the attacker has to shake hands each
    time, and this node does not do so more often."""
    node, made, hour = Node(), Counter[str](), 3600.0
    peers, began = [f"{i:02}" for i in range(40)], node.now
    while node.now < began + hour:
        signs = tuple(SignSeen(peer=one, name=one, kind="chain-reset", age=5.0) for one in peers)
        orders = node.look(seen(*(link(5.0, one) for one in peers), signs=signs), wait=5.0)
        made.update(action.peer for action in done(orders) if isinstance(action, Rotate))
        assert not [one for one in done(orders) if isinstance(one, Quarantine)]
    assert 0 < made.total() <= ALL_BURST + ALL_RATE * hour
    assert max(made.values()) <= SIGN_BURST + SIGN_RATE * hour


def test_one_peer_that_floods_does_not_use_up_what_others_have() -> None:
    node = Node()
    for _ in range(60):
        sign = SignSeen(peer="p", name="P", kind="chain-reset", age=5.0)
        node.look(seen(link(5.0), link(5.0, "q"), signs=(sign,)), wait=1.0)
    both = tuple(SignSeen(peer=one, name=one, kind="chain-reset", age=5.0) for one in ("p", "q"))
    assert Rotate("q") in done(node.look(seen(link(5.0), link(5.0, "q"), signs=both)))


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(
            SignSeen,
            peer=st.sampled_from(["p", "q", ""]),
            name=st.text(max_size=300),
            kind=st.sampled_from(["chain-reset", "copied", "equivocation"]),
            age=st.none() | st.floats(0, 1e6),
        ),
        max_size=50,
    ),
    st.floats(0, 179.9),
    st.integers(0, 10**9),
)
def test_nothing_but_the_age_of_its_own_link_puts_a_peer_in_quarantine(
    signs: list[SignSeen], age: float, forged: int
) -> None:
    """Signs, their names and counts are what members can bring about."""
    node = Node()
    for _ in range(8):
        orders = node.look(seen(link(age), link(age, "q"), signs=tuple(signs), forged=forged), wait=30.0)
        assert not [one for one in done(orders) if isinstance(one, Quarantine)]
        forged += forged


def test_the_machinery_has_its_turn_before_a_wireguard_key_is_replaced() -> None:
    node, ages = Node(), [DAY + 1.0, *[100.0] * 5, DAY + 2.0]
    acted = list[Action]()
    while not acted:
        acted = done(node.look(seen(key_life=DAY, key_ages=tuple(ages))))
        assert node.now <= 1000.0 + SLACK + 2 * EVERY
    assert node.now > 1000.0 + SLACK
    assert ReplaceKey(6) in acted and ReplaceKey(0) not in acted
    assert "cipher-wireguard-key" in {one.rule for one in acted if isinstance(one, Raise)}
    # As the machinery does it after a night in which the machine was off, one by one.
    node = Node()
    for dimension in range(7):
        late = tuple(0.0 if i < dimension else DAY + 10.0 for i in range(7))
        for _ in range(int(SLACK / 7 / EVERY)):
            assert not node.look(seen(key_life=DAY, key_ages=late))


def test_a_certificate_that_nobody_renews_is_renewed_and_reported() -> None:
    for failing in (False, True):
        node, orders = Node(), list[Order]()
        for late in range(0, int(SLACK) + 50, 10):
            orders += node.look(seen(renewal_late=float(late + 1), renewal_failing=failing))
        assert done(orders).count(Renew()) == (0 if failing else 1)
        assert rules(orders) == (set() if failing else {"cipher-certificate"})


def test_a_group_key_that_no_authority_makes_is_a_finding() -> None:
    node, orders = Node(), list[Order]()
    for _ in range(int(GROUP_SLACK / EVERY) + 2):
        orders += node.look(seen(group_key_due=True))
    assert rules(orders) == {"cipher-group-key"} and len(orders) == 1
    assert lifted(node.look(seen(), wait=0.0))


@pytest.mark.parametrize(("forged", "told"), [(FORGED, True), (FORGED - 1, False)])
def test_wrong_signatures_are_a_finding_for_a_minute_and_close_nothing(forged: int, told: bool) -> None:
    node, orders = Node(), list[Order]()
    for _ in range(8):
        orders += node.look(seen(link(5.0), forged=forged if node.now > 1005 else 0))
    assert (rules(orders) == {"cipher-forged-handshakes"}) is told
    for _ in range(15):
        orders += node.look(seen(link(5.0), forged=forged))
    assert bool(lifted(orders)) is told


def test_each_link_is_judged_once_in_a_look() -> None:
    judged = Counter[str]()

    class Counting(Cipher):
        def _shuts(self, seen: Seen, link: LinkSeen) -> bool:
            judged[link.peer] += 1
            return super()._shuts(seen, link)

    agent = Counting()
    peers = [f"{i:04}" for i in range(1000)]
    view = seen(*(link(200.0, one) for one in peers))
    council = Council([agent], trace=lambda: "", now=0.0)
    at = Moment(0.0, 0.0)
    council.looked("cipher", council.look("cipher", view, (), at)(), 0.0, at)
    council.look("cipher", view, (), Moment(5.0, 5.0))()
    assert set(judged.values()) == {2}
