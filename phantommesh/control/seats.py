# SPDX-License-Identifier: GPL-3.0-or-later
"""The places at the control port over TCP: how many connections there may be, and which one makes room.

A connection is a stranger's until its other end has proved to hold a session's keys; then it is a member's or
a newcomer's. Members and newcomers have a share each, and both shares are together less than all places. So
where all are taken some are strangers', and an arrival never needs to push out anybody that proved something.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

# Tuning. A member opens some three channels to another at once.
TOTAL: Final = 512
MEMBERS: Final = 448  # of those; so 64 are left for arrivals, however many members are connected
NEWCOMERS: Final = 32  # of those 64
PER_HOLDER: Final = 8  # of a member
PER_HOST: Final = 32  # a host is an IPv4 address or an IPv6 /64; everything from it counts


@dataclass(frozen=True, slots=True)
class Holder:
    """The party that proved itself on a connection: a member by its node id, a newcomer by its invite, since
    whoever has an invite can have as many node ids as it likes."""

    id: bytes
    newcomer: bool = False


@dataclass(eq=False, slots=True)
class Seat:
    """The place of one connection. ``busy`` is one that has a request under way, ``spoke`` one on which
    something came that could be read."""

    host: str
    holder: Holder | None = None
    busy: bool = False
    spoke: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether a connection may stay, and which other one has to be closed for it. That one has lost its place
    already."""

    stays: bool
    displaced: Seat | None = None


_REFUSED: Final = Ruling(stays=False)


class Seats:
    """Decides who may stay. No stranger displaces a member or a newcomer, no newcomer a member, no member a
    newcomer, and nobody displaces another that had no more places than itself."""

    def __init__(
        self,
        *,
        total: int = TOTAL,
        members: int = MEMBERS,
        newcomers: int = NEWCOMERS,
        per_host: int = PER_HOST,
        per_holder: int = PER_HOLDER,
    ) -> None:
        """An arrival always finds room if ``members`` and ``newcomers`` together are less than ``total``."""
        self._total, self._per_host, self._per_holder = total, per_host, per_holder
        self._shares = {False: members, True: newcomers}
        self._seats: OrderedDict[Seat, None] = (
            OrderedDict()
        )  # in the order of their last use, of their arrival

    def __len__(self) -> int:
        return len(self._seats)

    def __contains__(self, seat: Seat) -> bool:
        return seat in self._seats

    def admit(self, seat: Seat) -> Ruling:
        """Give a stranger a place. If all are taken, the oldest stranger of the host that has most of them
        makes room: so whoever fills the table from a few hosts pushes out itself."""
        if sum(other.host == seat.host for other in self._seats) >= self._per_host:
            return _REFUSED
        displaced = None
        if len(self._seats) >= self._total:
            held = Counter(other.host for other in self._seats if other.holder is None)
            if not held:
                return _REFUSED
            most = max(held.values())
            displaced = next(s for s in self._seats if s.holder is None and held[s.host] == most)
            self.leave(displaced)
        self._seats[seat] = None
        return Ruling(True, displaced)

    def prove(self, seat: Seat, holder: Holder) -> Ruling:
        """Make a stranger's place this holder's. If the holder has its bound already, its longest idle place
        makes room. If all members, or all newcomers, have theirs, the longest idle place of the one that has
        most of them does."""
        if seat not in self._seats:
            return _REFUSED
        if seat.holder == holder:
            return Ruling(stays=True)
        alike = [s.holder for s in self._seats if s.holder and s.holder.newcomer == holder.newcomer]
        held = Counter(alike)
        displaced = None
        # One invite may bring in many machines at once; the newcomers' share bounds them.
        bound = self._shares[True] if holder.newcomer else self._per_holder
        if held[holder] >= bound:
            displaced = next((s for s in self._seats if s.holder == holder and not s.busy), None)
            if displaced is None:
                return _REFUSED
        elif len(alike) >= self._shares[holder.newcomer]:
            displaced = self._greediest(held, held[holder])
            if displaced is None:
                return _REFUSED
        if displaced is not None:
            self.leave(displaced)
        seat.holder = holder
        self._seats.move_to_end(seat)
        return Ruling(True, displaced)

    def _greediest(self, held: Counter[Holder], mine: int) -> Seat | None:
        """The place to free for one that has ``mine`` of them. A connection in use is cut off only if its
        holder would still have as many as the one that comes."""
        most = max(held.values(), default=0)
        if most <= mine:
            return None
        theirs = [s for s in self._seats if s.holder and held[s.holder] == most]
        idle = next((s for s in theirs if not s.busy), None)
        return theirs[0] if idle is None and most > mine + 1 else idle

    def begin(self, seat: Seat) -> None:
        """A request is under way on this place's connection."""
        self._use(seat, busy=True)

    def done(self, seat: Seat) -> None:
        """The request is answered."""
        self._use(seat, busy=False)

    def _use(self, seat: Seat, *, busy: bool) -> None:
        seat.busy = busy
        if seat in self._seats:
            self._seats.move_to_end(seat)

    def leave(self, seat: Seat) -> None:
        """Free a place, if it is held."""
        self._seats.pop(seat, None)
