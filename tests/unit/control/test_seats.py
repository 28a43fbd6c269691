# SPDX-License-Identifier: GPL-3.0-or-later
"""The places at the control port over TCP: which connection gets one, and which makes room."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from phantommesh.control import seats
from phantommesh.control.seats import Holder, Ruling, Seat, Seats

A, B, C = (Holder(name) for name in (b"a", b"b", b"c"))
JOINER, OTHER_JOINER = Holder(b"invite", newcomer=True), Holder(b"another", newcomer=True)


def take(table: Seats, host: str, holder: Holder | None = None) -> tuple[Seat, list[Seat]]:
    """A place that is got for certain, and what was closed for it."""
    seat = Seat(host)
    rulings = [table.admit(seat)]
    if holder is not None:
        rulings.append(table.prove(seat, holder))
    assert all(ruling.stays for ruling in rulings)
    return seat, [ruling.displaced for ruling in rulings if ruling.displaced is not None]


def test_the_shares_leave_room_for_arrivals() -> None:
    assert seats.MEMBERS + seats.NEWCOMERS < seats.TOTAL


def test_a_peer_displaces_its_own_longest_idle_place() -> None:
    table = Seats(per_holder=3)
    first, second, third = (take(table, "h", A)[0] for _ in range(3))
    table.begin(first)
    table.begin(second)
    table.done(second)
    assert take(table, "elsewhere", A)[1] == [third]
    assert take(table, "elsewhere", A)[1] == [second]
    assert first in table


def test_a_peer_whose_places_are_all_busy_gets_no_more() -> None:
    table = Seats(per_holder=2)
    held = [take(table, "h", A)[0] for _ in range(2)]
    for seat in held:
        table.begin(seat)
    late = Seat("h")
    assert table.admit(late).stays
    assert table.prove(late, A) == Ruling(stays=False)
    assert all(seat in table for seat in held)


def test_the_greediest_member_makes_room_even_if_busy() -> None:
    table = Seats(total=6, members=4, newcomers=1)
    greedy = [take(table, "h", A)[0] for _ in range(3)]
    small, _ = take(table, "h", B)
    for seat in greedy:
        table.begin(seat)
    assert take(table, "h", C)[1] == [greedy[0]]
    assert small in table


def test_among_equals_only_an_idle_place_is_displaced() -> None:
    table = Seats(total=4, members=2, newcomers=1)
    one, _ = take(table, "h", A)
    two, _ = take(table, "h", B)
    table.begin(one)
    table.begin(two)
    late = Seat("h")
    table.admit(late)
    assert table.prove(late, C) == Ruling(stays=False)
    table.done(two)
    assert table.prove(late, C) == Ruling(True, two)


def test_who_has_a_place_displaces_nobody_that_has_one() -> None:
    table = Seats(total=4, members=2, newcomers=1)
    take(table, "h", A)
    take(table, "h", B)
    late = Seat("h")
    table.admit(late)
    assert table.prove(late, A) == Ruling(stays=False)


def test_a_newcomer_gets_in_while_members_have_all_their_places() -> None:
    table = Seats(total=8, members=5, newcomers=2)
    members = [take(table, str(i), Holder(bytes([i])))[0] for i in range(5)]
    for i in range(20):
        take(table, f"s{i}")
    joiner, _ = take(table, "j", JOINER)
    assert joiner in table and all(seat in table for seat in members)


def test_one_invite_does_not_shut_out_another() -> None:
    table = Seats(total=8, members=4, newcomers=2)
    for _ in range(2):
        take(table, "h", JOINER)
    assert len(take(table, "h", OTHER_JOINER)[1]) == 1


def test_who_was_displaced_proves_nothing_any_more() -> None:
    table = Seats(total=1, members=1, newcomers=0)
    seat, _ = take(table, "one")
    assert take(table, "two")[1] == [seat]
    assert table.prove(seat, A) == Ruling(stays=False)
    table.begin(seat)
    table.leave(seat)
    assert len(table) == 1


HOLDERS = [A, B, C, Holder(b"d"), JOINER, OTHER_JOINER]
LIMITS = {"total": 9, "members": 5, "newcomers": 2, "per_host": 4, "per_holder": 3}


def bound_of(holder: Holder) -> int:
    return LIMITS["newcomers" if holder.newcomer else "per_holder"]


class Table(RuleBasedStateMachine):
    """Anybody connects, proves, asks and leaves in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Seats(**LIMITS)
        self.open: list[Seat] = []

    def held(self) -> Counter[Holder]:
        return Counter(seat.holder for seat in self.open if seat.holder is not None)

    @rule(host=st.sampled_from("pqrstu"))
    def connect(self, host: str) -> None:
        before, of_host = len(self.open), sum(seat.host == host for seat in self.open)
        strangers = Counter(seat.host for seat in self.open if seat.holder is None)
        seat = Seat(host)
        ruling = self.table.admit(seat)
        # However many members and newcomers there are, an arrival finds room.
        assert ruling.stays == (of_host < LIMITS["per_host"])
        if not ruling.stays:
            assert ruling.displaced is None
            return
        assert (ruling.displaced is not None) == (before == LIMITS["total"])
        if ruling.displaced is not None:
            assert ruling.displaced.holder is None
            assert strangers[ruling.displaced.host] == max(strangers.values())
            self.open.remove(ruling.displaced)
        self.open.append(seat)

    @precondition(lambda self: any(seat.holder is None for seat in self.open))
    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def prove(self, data: st.DataObject, holder: Holder) -> None:
        seat = data.draw(st.sampled_from([seat for seat in self.open if seat.holder is None]))
        held = self.held()
        alike = {other: n for other, n in held.items() if other.newcomer == holder.newcomer}
        share = LIMITS["newcomers" if holder.newcomer else "members"]
        ruling = self.table.prove(seat, holder)
        lost = ruling.displaced
        if not ruling.stays:
            assert lost is None
            mine = [other for other in self.open if other.holder == holder]
            full = len(mine) == bound_of(holder) and all(other.busy for other in mine)
            # Else all have theirs, and nobody has two more than this one would have had.
            assert full or (sum(alike.values()) == share and max(alike.values()) <= held[holder] + 1)
            self.table.leave(seat)
            self.open.remove(seat)
            return
        assert seat.holder == holder
        if lost is not None:
            assert lost.holder is not None and lost.holder.newcomer == holder.newcomer
            if lost.holder == holder:
                assert held[holder] == bound_of(holder) and not lost.busy
            else:
                assert held[lost.holder] == max(alike.values()) > held[holder]
                assert not lost.busy or held[lost.holder] > held[holder] + 1
            self.open.remove(lost)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), busy=st.booleans())
    def ask(self, data: st.DataObject, busy: bool) -> None:
        seat = data.draw(st.sampled_from([seat for seat in self.open if seat.holder is not None]))
        assert seat.holder is not None
        assert self.table.prove(seat, seat.holder) == Ruling(stays=True)
        (self.table.begin if busy else self.table.done)(seat)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        seat = data.draw(st.sampled_from(self.open))
        self.table.leave(seat)
        self.open.remove(seat)

    @invariant()
    def nobody_is_above_a_bound(self) -> None:
        held = self.held()
        assert all(n <= bound_of(holder) for holder, n in held.items())
        assert sum(n for holder, n in held.items() if not holder.newcomer) <= LIMITS["members"]
        assert sum(n for holder, n in held.items() if holder.newcomer) <= LIMITS["newcomers"]
        assert max(Counter(seat.host for seat in self.open).values(), default=0) <= LIMITS["per_host"]
        assert len(self.table) == len(self.open) <= LIMITS["total"]
        assert all(seat in self.table for seat in self.open)


TestTable = Table.TestCase
TestTable.settings = settings(stateful_step_count=60, deadline=None)
