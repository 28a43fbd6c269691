# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying: a member that two others reach carries the datagrams of their handshake between them, and passes
frames of their channels. Sans-I/O.

Neither NAT nor firewall lets two such members call each other. But each of them can call a third one, and
lends it a connection (`control.messages.Attend`): a member that has it is a *home* of the lender. So all
members lend connections to the same few members, as far as they can call these: authorities first.

`Carrier` bounds what a member carries for others, and what others have carried to it. A carrier reads no
more than the header of what it carries. It can drop, delay and repeat datagrams, and invent some in any
member's name, as each router on a path can; and what it invents has a budget of its own
(`link.admission.Standing.CARRIED`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from phantommesh.endpoint import MAX_DATAGRAM
from phantommesh.errors import DecodeError
from phantommesh.link import wire
from phantommesh.rates import Bucket, Rates
from phantommesh.records.roster import Entry
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import NodeId

# Tuning.
HOMES: Final = 2  # connections that a node lends, so that one home may be away
EACH: Final = 256  # bytes that a datagram or frame counts for beside its own
# Bytes a second, and at once. A handshake has 8 kB each way, and repeats a message up to five times.
PAIR: Final = 16 * 1024, 96 * 1024  # from one member to another
MEMBER: Final = 128 * 1024, 2 * 1024 * 1024  # from one member, or to one
IN_ALL: Final = 1024 * 1024, 16 * 1024 * 1024  # for all members together
LINES: Final = 16 * 1024, 256 * 1024  # of frames from one member to another, and back
SLOW: Final = 0.5  # s without an answer until another member is called beside
AT_ONCE: Final = 6  # members that are called at once
REST: Final = 4.0, 300.0  # s after a failure until a member is asked again to be a home: the first, the most


class Carrier:
    """The limits of one node. ``standing`` has the members whose certificates hold and who are not revoked.
    ``dropped`` counts what was not carried, by reason."""

    def __init__(self, me: NodeId, standing: Callable[[], Container[bytes]], now: float) -> None:
        self._me, self._standing = me, standing
        self._pairs, self._lines = Rates[tuple[bytes, bytes]](*PAIR), Rates[tuple[bytes, bytes]](*LINES)
        self._from, self._to = Rates[bytes](*MEMBER), Rates[bytes](*MEMBER)
        self._taken_pairs, self._taken = Rates[tuple[bytes, bytes]](*PAIR), Rates[bytes](*MEMBER)
        self._in_all = Bucket(*IN_ALL, now)
        self.dropped: Counter[str] = Counter()

    def carry(self, origin: bytes, to: bytes, datagrams: Iterable[bytes], now: float) -> list[bytes]:
        """Return the datagrams of one member that this node carries on to another now."""
        if not self._may(origin, to):
            self.dropped["carry-standing"] += 1
            return []
        return [
            datagram
            for datagram in datagrams
            if self._is_handshake(datagram) and self._fits(origin, to, EACH + len(datagram), now)
        ]

    def take(self, carrier: bytes, origin: bytes, datagrams: Iterable[bytes], now: float) -> list[bytes]:
        """Return the datagrams for this node itself that a carrier says are of ``origin``, as far as they
        are looked at."""
        standing = self._standing()
        if origin == self._me or origin not in standing or carrier not in standing:
            self.dropped["carried-standing"] += 1
            return []
        taken = list[bytes]()
        for datagram in datagrams:
            cost = EACH + len(datagram)
            if not self._is_handshake(datagram):
                continue
            pair, whole = self._taken_pairs.of((carrier, origin), now), self._taken.of(carrier, now)
            if _take((pair, whole), cost, now):
                taken.append(datagram)
            else:
                self.dropped["carried-rate"] += 1
        return taken

    def passes(self, origin: bytes, to: bytes, size: int, now: float) -> bool:
        """Whether this node passes a frame of so many bytes on."""
        if not self._may(origin, to):
            self.dropped["carry-standing"] += 1
            return False
        buckets = self._lines.of((origin, to), now), self._from.of(origin, now), self._to.of(to, now)
        if not _take((*buckets, self._in_all), EACH + size, now):
            self.dropped["carry-rate"] += 1
            return False
        return True

    def passed_back(self, origin: bytes, to: bytes, size: int, now: float) -> None:
        """The answer to a frame had so many bytes: they count for the one that asked."""
        for bucket in (self._lines.of((origin, to), now), self._from.of(origin, now), self._in_all):
            bucket.owe(now, EACH + size)

    def _may(self, origin: bytes, to: bytes) -> bool:
        standing = self._standing()
        return self._me not in (origin, to) and origin != to and origin in standing and to in standing

    def _fits(self, origin: bytes, to: bytes, cost: int, now: float) -> bool:
        buckets = self._pairs.of((origin, to), now), self._from.of(origin, now), self._to.of(to, now)
        if _take((*buckets, self._in_all), cost, now):
            return True
        self.dropped["carry-rate"] += 1
        return False

    def _is_handshake(self, datagram: bytes) -> bool:
        """Whether it is a datagram of a handshake between members."""
        try:
            whole = len(datagram) <= MAX_DATAGRAM
            fits = whole and wire.decode_untrusted(datagram).mode is wire.Mode.MEMBER
        except DecodeError:
            fits = False
        self.dropped["carry-malformed"] += not fits
        return fits


def _take(buckets: Collection[Bucket], cost: int, now: float) -> bool:
    """Take from all of these buckets or from none."""
    if any(bucket.wait(now, cost) for bucket in buckets):
        return False
    for bucket in buckets:
        bucket.owe(now, cost)
    return True


class Move(NamedTuple):
    """Members to lend a connection to; those of the present homes to take it back from; and when to look
    again, unless something changes before."""

    call: list[NodeId]
    give_back: list[NodeId]
    due: float


@dataclass(slots=True)
class _Rest:
    """How long a member is not asked again to be a home, after it could not be called."""

    until: float
    pause: float


@dataclass(slots=True)
class Homes:
    """The choice of homes. All members rank the others alike, so that two of them find a common home."""

    me: NodeId
    _resting: dict[bytes, _Rest] = field(default_factory=dict)

    def ranked(self, entries: Iterable[Entry]) -> list[NodeId]:
        """All others in the order in which they are to be homes."""
        return [
            entry.member.node_id for entry in sorted(entries, key=_rank) if entry.member.node_id != self.me
        ]

    def look(
        self, ranked: Iterable[NodeId], live: Collection[NodeId], trying: Mapping[NodeId, float], now: float
    ) -> Move:
        """Say what to do about the homes. ``ranked`` are the members with which there is a session and that
        may be there, ``live`` the present homes, ``trying`` those that are being called, since when."""
        kept, call = list[NodeId](), list[NodeId]()
        under_way = sum(now - began < SLOW for began in trying.values())
        for member in ranked:
            if len(kept) == HOMES:
                break
            if member in live:
                kept.append(member)
            elif (
                member not in trying
                and not self._rests(member, now)
                and len(kept) + under_way + len(call) < HOMES
                and len(trying) + len(call) < AT_ONCE
            ):
                call.append(member)
        give_back = [home for home in live if home not in kept] if len(kept) == HOMES else []
        moments = [rest.until for rest in self._resting.values()]
        moments += [began + SLOW for began in trying.values()]
        return Move(call, give_back, min((at for at in moments if at > now), default=inf))

    def failed(self, member: bytes, now: float) -> None:
        """A member could not be called, or does not take a connection."""
        rest = self._resting.get(member)
        pause = REST[0] if rest is None else min(REST[1], 2 * rest.pause)
        self._resting[member] = _Rest(now + pause, pause)

    def lives(self, member: bytes) -> None:
        """A member is a home now."""
        self._resting.pop(member, None)

    def retain(self, members: Container[bytes]) -> None:
        """Keep nothing of others than these."""
        self._resting = {member: rest for member, rest in self._resting.items() if member in members}

    def _rests(self, member: bytes, now: float) -> bool:
        rest = self._resting.get(member)
        return rest is not None and now < rest.until


def _rank(entry: Entry) -> tuple[bool, bytes]:
    return entry.member.role is not Role.AUTHORITY, entry.member.node_id
