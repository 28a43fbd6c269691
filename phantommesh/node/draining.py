# SPDX-License-Identifier: GPL-3.0-or-later
"""When this node may drain, and when it has nothing left to do for others. Sans-I/O.

A node that drains says so in its record. Members then choose other routers, exits and relays, and move what
went over this one. What is sent to the node itself is not touched. The flag stands until the operator takes
it back or its time is over, also across restarts: a node that is being upgraded is out of the way until
somebody says that it is well again.

Of one region never two nodes drain at once: the one could be all that the other's traffic can move to. A node
that has gone while it drained counts as draining until the moment that its record names. Where two begin at
the same moment, before either has heard of the other, the one with the greater node id gives way.

A record is its node's mere word. So each node counts by itself how long each member has held others up
(`Turns`): for `LONGEST` at most, and then not more than half of the time. It gives way to one member once in
that time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import structs

from phantommesh.errors import PhantomMeshError
from phantommesh.records.roster import Entry

# Tuning.
HEARD: Final = 3.0  # s from the beginning in which all members hear of it, by far: gossip takes about one
QUIET: Final = 2.0  # s without any packet forwarded until the node counts as drained
LONGEST: Final = 86_400.0  # s: a node that nobody takes back is at work again after a day at most
AT_ONCE: Final = 10.0  # s from the beginning in which a second one of the region gives way, not later


class Drained(msgspec.Struct, frozen=True):
    """What the state directory keeps while a node drains: since and until when, in Unix seconds."""

    since: float
    until: float
    forced: bool = False


class DrainRefusedError(PhantomMeshError):
    """Another node of the region drains."""


def drains(entry: Entry, wall: float) -> bool:
    """Whether a member drains, or went away while it did. One whose time is over, or whose certificate ran
    out since, counts as gone for good."""
    condition = entry.record.condition
    return condition.draining and condition.until > wall and entry.valid(wall)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A member's turn: the seconds of it that are used, and whether it drained, when it was looked at."""

    used: float
    drained: bool
    at: float


class Turns:
    """How long each member has drained of late, as this node saw it. A second of draining uses one, a second
    at work gives one back. Bounded by the members."""

    def __init__(self) -> None:
        self._of = dict[bytes, _Turn]()

    def look(self, entries: Iterable[Entry], now: float, wall: float) -> None:
        """Take in how the members stand. What lies between two looks counts as draining where one of them
        saw that."""
        found = dict[bytes, _Turn]()
        for entry in entries:
            member, drained = entry.member.node_id, drains(entry, wall)
            turn = self._of.get(member, _Turn(0.0, drained, now))
            passed = now - turn.at
            used = turn.used + passed if drained or turn.drained else max(0.0, turn.used - passed)
            if drained or used:
                found[member] = _Turn(min(used, LONGEST), drained, now)
        self._of = found

    def over(self, member: bytes) -> bool:
        """Whether a member has drained for so long that it holds nobody up any more."""
        turn = self._of.get(member)
        return turn is not None and turn.used >= LONGEST


def refusal(others: Iterable[Entry], region: str) -> DrainRefusedError | None:
    """Why this node may not drain now, given the members of its region that do."""
    names = sorted(entry.member.name for entry in others)
    if not names:
        return None
    where = f"in the region {region}" if region else "among the nodes without a region"
    return DrainRefusedError(
        f"{', '.join(names[:3])} drains {where}: this node would be the second one there",
        fix="wait until it is at work again (`phantommesh drain --wait` does), or give --force",
    )


@dataclass(frozen=True, slots=True)
class Work:
    """What a node does for others, as counted since it started: packets to and from prefixes that it routes
    (None: not known yet), leases that it forwards now, and connections that it joins now."""

    packets: int | None
    leases: int
    bridges: int


class Draining:
    """The draining of one node; ``me`` is its node id."""

    def __init__(self, me: bytes, region: str, kept: Drained | None = None) -> None:
        self._me, self._region = me, region
        self.drained = kept
        """Since and until when; None: the node does not drain."""
        self._began = float("-inf")
        self._turns = Turns()
        self._yielded = dict[bytes, float]()
        self._packets: int | None = None
        self._moved = float("-inf")

    @property
    def on(self) -> bool:
        """Whether the node drains."""
        return self.drained is not None

    def begin(self, others: Iterable[Entry], until: float, *, force: bool, now: float, wall: float) -> None:
        """Drain until so many Unix seconds, from now on or still. Raises DrainRefusedError."""
        until = min(until, wall + LONGEST)
        if self.drained is not None:
            forced = force or self.drained.forced
            self.drained = Drained(self.drained.since, until, forced)
            return
        self.check(others, force=force, now=now, wall=wall)
        self.drained, self._began = Drained(wall, until, force), now
        self._packets, self._moved = None, now

    def holding(self, others: Iterable[Entry], now: float, wall: float) -> list[Entry]:
        """The members of this node's region that drain, so that it may not. Nodes without a region are one
        region of their own. Ask for it every minute or so, that each member's turn is known."""
        entries = list(others)
        self._turns.look(entries, now, wall)
        return [
            entry
            for entry in entries
            if entry.record.region == self._region
            and drains(entry, wall)
            and not self._turns.over(entry.member.node_id)
        ]

    def check(self, others: Iterable[Entry], *, force: bool, now: float, wall: float) -> None:
        """Raise DrainRefusedError where this node may not begin now."""
        if not force and not self.on and (why := refusal(self.holding(others, now, wall), self._region)):
            raise why

    def end(self) -> bool:
        """Be at work again; return whether the node drained."""
        was, self.drained = self.drained is not None, None
        return was

    def clamp(self, wall: float) -> bool:
        """Have the draining end within `LONGEST` from now, and return whether that is a change. The clock may
        have been ahead when it began, in this run or in an earlier one."""
        drained = self.drained
        if drained is None or (drained.until <= wall + LONGEST and drained.since <= wall):
            return False
        until = min(drained.until, wall + LONGEST)
        self.drained = structs.replace(drained, since=min(drained.since, wall), until=until)
        return True

    def over(self, wall: float) -> bool:
        """Whether its time is over."""
        return self.drained is not None and self.drained.until <= wall

    def gives_way(self, others: Iterable[Entry], now: float, wall: float) -> str:
        """The name of a member that began at the same moment and stays, so that this node is to end; empty
        where there is none."""
        if self.drained is None or self.drained.forced or now - self._began > AT_ONCE:
            return ""
        self._yielded = {one: at for one, at in self._yielded.items() if now - at < LONGEST}
        for entry in self.holding(others, now, wall):
            member = entry.member
            if member.node_id < self._me and member.node_id not in self._yielded:
                self._yielded[member.node_id] = now
                return member.name
        return ""

    def count(self, work: Work, now: float) -> None:
        """Take in what the node does for others now."""
        if work.leases or work.bridges or (self._packets is not None and work.packets != self._packets):
            self._moved = now
        self._packets = work.packets

    def idle(self, now: float) -> bool:
        """Whether all have heard of it and nothing is forwarded for others any more."""
        return self.on and now - self._began >= HEARD and now - self._moved >= QUIET
