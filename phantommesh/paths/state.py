# SPDX-License-Identifier: GPL-3.0-or-later
"""One path, that is one peer on one dimension: whether it carries traffic, and what its probes say."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from phantommesh.paths.probe import ON_WIRE
from phantommesh.paths.quality import Quality

# Specification (docs/protocol.md, "Probes").
MISSES: Final = 3  # probes in a row without an answer that make a path dark

# Tuning.
SILENT: Final = 10  # the same where no other path of the peer answers either: it may be the peer itself
# Answers in a row before a path carries traffic that was taken out on purpose, or fell silent as all of its
# peer's did.
PROVE_PLANNED: Final = 3
PROVE: Final = 10  # the same after it alone went dark
STEADY: Final = 60.0  # s up, below which going dark again doubles what the path has to prove
MOST_FLAPS: Final = 4  # doublings at most: 160 answers, about 16 s
LATE_KEPT: Final = 128  # unanswered probes that a late answer is recognised for: 0.4 s of the fastest probes
SHED_STEP, GROW_STEP = 0.7, 0.05  # what the share is multiplied by and grows by, each second
SHED_FROM, SHED_RATIO = 0.002, 1.5  # how much more than the best one at most a path must lose to be shed
GROW_WITHIN: Final = 0.001  # and how much more it may lose to come back
ASIDE: Final = 8.0  # s without a probe for which a path is not judged that the peer has set aside
SHARE_FLOOR, LEAST_SHARE = 0.1, 0.05  # a smaller share than the first is none


class PathState(Enum):
    """CLOSED has no keys yet; PROVING has to answer some probes in a row before it carries traffic."""

    CLOSED = "closed"
    PROVING = "proving"
    UP = "up"
    DARK = "dark"


@dataclass(slots=True)
class _Sent:
    number: int
    at: float
    deadline: float


@dataclass(slots=True)
class Path:
    """The state of one path. Times are on the protocol's clock."""

    peer: bytes
    dimension: int
    number: int  # of the next ping
    state: PathState = PathState.CLOSED
    since: float = 0.0
    quality: Quality = field(default_factory=Quality)
    share: float = 1.0
    next_probe: float = float("inf")
    misses: int = 0
    first_missed: float = 0.0
    peer_leaving: bool = False
    peer_drained: bool = False
    probes: int = 0  # sent on it, pings and pongs
    opened_at: float | None = None  # when it got its keys
    answered_at: float | None = None  # when a probe came back last since then
    heard_at: float | None = None  # and when one of the peer's came in
    latest: float = float("-inf")  # when the newest probe that came back was sent
    sizes: bool = False  # the peer answers sized probes
    narrow: bool = False  # no packet of a useful size comes through
    beside: int = 0  # bytes of sized probes sent on it, as WireGuard counts them
    aside: bool = False  # out of use on purpose, at both ends: it may fall silent
    _waiting: OrderedDict[int, _Sent] = field(default_factory=OrderedDict)
    _late: OrderedDict[int, _Sent] = field(default_factory=OrderedDict)
    _needed: int = PROVE_PLANNED
    _streak: int = 0
    _flaps: int = 0
    _with_peer: bool = False  # it went dark as all others did: that says nothing of the path

    @property
    def due(self) -> float:
        """When something is to be done about it."""
        oldest = next(iter(self._waiting.values()), None)
        return self.next_probe if oldest is None else min(self.next_probe, oldest.deadline)

    @property
    def probe_bytes(self) -> int:
        """The bytes of all probes sent on it, as WireGuard counts them."""
        return self.probes * ON_WIRE + self.beside

    @property
    def waits(self) -> bool:
        """Whether the answer to a probe is still to come."""
        return bool(self._waiting)

    def open(self, now: float, *, first: bool) -> None:
        """There are keys: let it prove itself, unless with ``first`` no other path of the peer has done so
        and something has to carry the traffic."""
        self._forget()
        self.state, self.since, self.next_probe = PathState.UP if first else PathState.PROVING, now, now
        self.opened_at = now
        self._needed, self._flaps = PROVE_PLANNED, 0
        self.share, self.peer_leaving, self.peer_drained = 1.0, False, False

    def close(self, now: float) -> None:
        """There are no keys any more."""
        self._forget()
        self.state, self.since, self.next_probe = PathState.CLOSED, now, float("inf")
        self.peer_leaving = self.peer_drained = False

    def _forget(self) -> None:
        self._waiting.clear()
        self._late.clear()
        self.quality = Quality()
        self.misses = self._streak = 0
        self.opened_at = self.answered_at = self.heard_at = None
        self.narrow = False

    def ping(self, now: float, timeout: float) -> int:
        """Note a probe sent now; return its number."""
        self.number = (self.number + 1) & 0xFFFF_FFFF
        self._waiting[self.number] = _Sent(self.number, now, now + timeout)
        self.probes += 1
        return self.number

    def move(self, now: float) -> None:
        """One of the ends is somewhere else: ask now. The path that fell silent before was another one, so
        it has no more to prove than a path that was taken out on purpose."""
        self.next_probe = min(self.next_probe, now)
        self._flaps, self._with_peer = 0, True
        self._needed = min(self._needed, PROVE_PLANNED)

    def answered(self, number: int, now: float) -> float | None:
        """Take an answer; return when its ping was sent, or None where no such one is awaited."""
        sent = self._waiting.pop(number, None)
        if sent is None:
            sent = self._late.pop(number, None)
            if sent is None:
                return None
            self.quality.came_late(number)
        self.quality.answered(now - sent.at, now)
        self.answered_at = now
        self.latest = max(self.latest, sent.at)
        self.misses = 0
        self._streak += 1
        if self.state is PathState.DARK:
            self.state, self.since, self._streak = PathState.PROVING, now, 1
            self._needed = PROVE_PLANNED if self._with_peer else PROVE << self._flaps
            self.next_probe = now
        if self.state is PathState.PROVING and self._streak >= self._needed:
            self.state, self.since, self.share = PathState.UP, now, 1.0
            self.quality.forget_loss()
        return sent.at

    def overdue(self, now: float, hold: float) -> int:
        """Count the probes whose time is up; before ``hold`` nobody's is. Return how many in a row by now."""
        while self._waiting:
            sent = next(iter(self._waiting.values()))
            if sent.deadline < hold:
                sent.deadline = hold
            if sent.deadline > now:
                break
            del self._waiting[sent.number]
            self._late[sent.number] = sent
            if len(self._late) > LATE_KEPT:
                self._late.popitem(last=False)
            if sent.at > self.latest:  # else a later probe was answered: it is lost, and the path not silent
                if not self.misses:
                    self.first_missed = sent.at
                self.misses += 1
            self._streak = 0
            self.quality.missed(sent.number, now)
        return self.misses

    def answers(self, now: float, lately: float) -> bool:
        """Whether probes come back: one has within ``lately`` seconds, and not so many were lost since then
        that the path is dark."""
        alive = self.state in (PathState.UP, PathState.PROVING)
        return alive and self.answered_at is not None and now - self.answered_at <= lately

    def pardon(self) -> None:
        """The path fell silent on purpose: what is unanswered counts for nothing."""
        self.misses = 0
        self._late.update(self._waiting)
        self._waiting.clear()
        while len(self._late) > LATE_KEPT:
            self._late.popitem(last=False)
        self.quality.forget_loss()

    def judge(self, siblings_answered: float, now: float, pace: float = 0.0) -> None:
        """Go dark after `MISSES` if another path of the peer has answered a later probe, else `SILENT`; not
        sooner than so many probes ``pace`` seconds apart would take, where they are closer."""
        if self.aside or (self.peer_leaving and now < (self.heard_at or 0.0) + ASIDE):
            return
        enough = MISSES if siblings_answered >= self.first_missed else SILENT
        if self.misses < enough or self.state not in (PathState.UP, PathState.PROVING):
            return
        if now - self.first_missed < enough * pace:
            return
        self._with_peer = enough == SILENT
        if self.state is PathState.UP and not self._with_peer:
            self._flaps = min(self._flaps + 1, MOST_FLAPS) if now - self.since < STEADY else 0
        self.state, self.since = PathState.DARK, now

    def weigh(self, probes: float, counted: float) -> None:
        """Once a second under traffic, and until the share is whole again: let go of a path that loses more
        than the best one does at most, by probes, which tell of both ways, or by counters, which tell of one;
        step by step.

        A path whose loss comes from too much traffic finds the share that it can carry; one that loses
        whatever it carries ends with none.
        """
        compared = ((self.quality.bounds[0], probes), (self.quality.counted.bounds[0], counted))
        if any(surely > SHED_RATIO * best + SHED_FROM for surely, best in compared):
            self.share = max(LEAST_SHARE, self.share * SHED_STEP)
        elif all(surely <= best + GROW_WITHIN for surely, best in compared):
            self.share = min(1.0, self.share + GROW_STEP)
