# SPDX-License-Identifier: GPL-3.0-or-later
"""The largest overlay packet that one path carries: found, watched and followed.

The model is datagram path MTU discovery (RFC 8899): a probe of the size in question goes out, and only its
answer counts. An ICMP message is not needed. What differs from the RFC, and why:

- The search begins at the top. Nearly all paths carry it, so one probe is the whole search there.
- Answers are awaited for as long as the path's round trip says, since the small probes measure it, instead of
  a second or more (section 5.1.1).
- A missing answer counts only if a small probe that was sent later did come back. A path that is dark or busy
  says nothing of its MTU.
- A size is a multiple of `STEP` bytes, or the largest of all. WireGuard fills a packet up to a multiple of
  16, though not beyond its device's MTU (WireGuard paper, section 5.4.6). So a packet of such a size is as
  long outside as its probe was, with any WireGuard.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import ceil, log
from typing import Final

from phantommesh.paths.probe import OVER
from phantommesh.paths.restraint import Restraint

# Specification (docs/protocol.md, "Sized probes").
BASE: Final = 1200  # bytes; BASE_PLPMTU (RFC 8899, section 5.1.2), and what IPv6's 1280 leave WireGuard
STEP: Final = 16  # bytes
OVER_IP4, OVER_IP6 = 60, 80  # bytes that WireGuard, UDP and IP add to an overlay packet

# Tuning.
MISSES: Final = 3  # probes in a row without an answer that tell that a size is too large (MAX_PROBES)
MOST_MISSES: Final = 10  # the same on a path that loses much anyhow
DOUBT: Final = 1e-6  # chance to take mere loss for a size that is too large
GAP: Final = 0.1  # s between probes of one question
PATIENCE: Final = 0.2  # s at least that an answer may take
UNSURE: Final = 1.0  # s until the question is put again, where small probes had no answer either
RAISE: Final = 600.0  # s until a larger size is tried again (PMTU_RAISE_TIMER, RFC 8899, section 5.1.1)
TOLD: Final = 300.0  # s for which hops are not asked again; an idle path is looked at every `RAISE` only
KEPT: Final = 32  # unanswered probes that a late answer is still recognised for

NEVER: Final = float("inf")


def rung(limit: int, largest: int) -> int:
    """The largest size of `sizes` that is not above ``limit`` bytes; `BASE` where all of them are."""
    return largest if limit >= largest else max(BASE, limit // STEP * STEP)


def sizes(above: int, below: int) -> list[int]:
    """The sizes between these two, both left out; ascending."""
    return list(range((above // STEP + 1) * STEP, below, STEP))


def ceiling(underlay: int, *, ipv6: bool, largest: int) -> int:
    """The largest overlay packet of `sizes` that WireGuard's packet leaves room for in an ``underlay`` MTU in
    bytes, over IPv6 or IPv4."""
    return rung(underlay - (OVER_IP6 if ipv6 else OVER_IP4), largest)


def misses_needed(loss: float) -> int:
    """How many probes in a row have to be missed on a path that loses this ratio of small ones."""
    if loss <= 0.0:
        return MISSES
    if loss >= 1.0:
        return MOST_MISSES
    return min(MOST_MISSES, max(MISSES, ceil(log(DOUBT) / log(loss))))


@dataclass(slots=True)
class _Sent:
    size: int
    at: float
    deadline: float


@dataclass(slots=True)
class PathMtu:
    """One path's MTU. Sizes are those of overlay packets, in bytes, times in seconds on the protocol's clock.

    ``largest`` is the interfaces' MTU; ``own`` and ``theirs`` are what the two ends' uplinks take whole.
    ``size`` is what traffic may have: at first the most that both ends know of, so that a connection that
    begins at once does not begin small.
    """

    largest: int
    number: int  # of the next probe
    own: int = 0
    theirs: int = 0
    size: int = 0
    proved: int = 0  # the largest that was answered on this way; 0: none
    refused: int | None = None  # the smallest that surely was not
    asked: int = 0  # the size in question; 0: none
    narrow: bool = False  # small probes are answered, and none of `BASE` bytes is
    next_at: float = NEVER
    missed: int = 0
    first_missed: float = 0.0
    hint: int = 0  # a size that another path of the peer has found
    lost: int = 0  # bytes of probes that had no answer, as WireGuard counts them, since this was asked last
    raise_at: float = NEVER
    whole: bool = False  # this way has no limit of its own, so there is nothing to ask
    restraint: Restraint = field(default_factory=Restraint)  # when searches that others bring about may begin
    searched: bool = False  # the size has to be found or confirmed before `take_found` tells of it
    hops_at: float = NEVER
    _raising: bool = False
    _waiting: OrderedDict[int, _Sent] = field(default_factory=OrderedDict)
    _late: OrderedDict[int, _Sent] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.own = self.own or self.largest
        self.theirs = self.theirs or self.largest
        self.size = self.size or self.top

    @property
    def top(self) -> int:
        """The most that both ends' uplinks and interfaces take."""
        return rung(min(self.own, self.theirs), self.largest)

    @property
    def settled(self) -> bool:
        """Whether the size was found and nothing is in question."""
        return not self.asked and self.proved == self.size

    @property
    def hole(self) -> bool:
        """Whether something between the ends swallows packets that both ends' uplinks take."""
        return self.narrow or (self.proved > 0 and self.size < self.top and not self.asked)

    @property
    def due(self) -> float:
        """When `tick` has something to do."""
        oldest = next(iter(self._waiting.values()), None)
        return self.next_at if oldest is None else min(self.next_at, oldest.deadline)

    # --- what is known without a probe ---

    def begin(self, at: float) -> None:
        """There are keys, or another way: ask for the most from ``at`` on, or as soon as `restraint` allows.
        What was proved was of the way before."""
        self._forget()
        self.proved, self.refused, self.narrow, self._raising = 0, None, False, False
        self.size, self.raise_at = min(self.size, self.top), NEVER
        if self.whole:
            self._be_whole()
        else:
            self._ask(self.top, self.restraint.begin(at))
            self.searched = True

    def pause(self) -> None:
        """The path is dark: nothing that it swallows says anything of sizes."""
        self._forget()
        self.asked, self.next_at = 0, NEVER

    def resume(self, at: float) -> None:
        """It answers again, maybe over another way: see whether the size still holds, then whether a larger
        one does, or go on searching."""
        if not self.asked and not self.whole:
            self.narrow, at = False, self.restraint.begin(at)
            self._ask(self.size if self.proved else self.top, at)
            self.raise_at, self.searched = at, True

    def limit(self, now: float, *, own: int | None = None, theirs: int | None = None) -> None:
        """One end's uplink takes packets of this size whole, and no larger ones. If that is another than
        before, the search begins anew, with what was proved."""
        before = self.top
        self.own = self.own if own is None else own
        self.theirs = self.theirs if theirs is None or self.whole else min(theirs, self.largest)
        if self.top == before:
            return
        if self.whole:
            self._be_whole()
            return
        self.size, self.proved = min(self.size, self.top), min(self.proved, self.top)
        self.refused, self._raising = None, False  # somebody changed the way, or mended it
        self.searched = True
        if self.next_at != NEVER:
            self._forget()
            self._next(now)
            if self.asked:
                self.next_at = self.restraint.begin(now)

    def take_whole(self, now: float, whole: bool) -> None:
        """Say whether this way has no limit of its own. Then it carries all that both ends take."""
        if self.whole is not whole:
            self.whole, self.theirs = whole, self.largest  # what the other end's uplink takes is cut there
            self.begin(now)

    def _be_whole(self) -> None:
        self._forget()
        self.asked, self.next_at, self.size, self.proved = 0, NEVER, self.top, self.top

    def take_found(self, now: float) -> bool:
        """Whether a size was found of which this has not told, or `TOLD` has passed since it told."""
        if not self.settled or not (self.searched or now >= self.hops_at):
            return False
        self.searched, self.hops_at = False, now + TOLD
        return True

    def confirm(self, at: float) -> None:
        """Ask no later than ``at`` whether the size still holds, or for a larger one if that is due."""
        if not self.asked and self.next_at != NEVER:
            self.next_at = min(self.next_at, at)

    # --- probes ---

    def tick(self, now: float, *, small: float, patience: float, needed: int, hold: float) -> int | None:
        """Judge the probes that are overdue. Return the size to send a probe of now, or None.

        ``small``: when the newest small probe that came back was sent; ``patience``: how long an answer may
        take; ``needed``: of `misses_needed`; ``hold``: before it nobody's time is up.
        """
        self._overdue(now, hold)
        if self.asked and self.missed >= needed:
            if small >= self.first_missed:
                self._too_large(now)
            elif self.missed >= 2 * needed:
                self.missed = 0  # nothing comes back at all: that is the path's trouble
                self.next_at = max(self.next_at, now + UNSURE)
        if self.next_at > now:
            return None
        if not self.asked:
            self._ask_again(now)
        self._waiting[self.number] = _Sent(self.asked, now, now + max(PATIENCE, patience))
        # The first probe is waited for: most often it is the only one.
        self.next_at = now + (GAP if self.missed else max(PATIENCE, patience))
        return self.asked

    def put_off(self, at: float) -> None:
        """The probe that `tick` returned cannot be sent yet."""
        self._waiting.pop(self.number, None)
        self.next_at = at

    def hold(self, at: float) -> None:
        """Go on at ``at``: until then no probe may be sent, and those under way say nothing."""
        self._forget()
        self.next_at = at

    def sent(self) -> int:
        """The number of the probe that `tick` returned."""
        number = self.number
        self.number = (number + 1) & 0xFFFF_FFFF
        return number

    def answered(self, number: int, size: int, now: float) -> bool:
        """Take an answer; False for one that nobody waits for."""
        sent = self._waiting.pop(number, None) or self._late.pop(number, None)
        if sent is None or sent.size != size:
            return False
        self.lost = max(0, self.lost - sent.size - OVER)
        if size > self.top:
            return True
        self.narrow = False
        self.proved = max(self.proved, size)
        if self.refused is not None and self.refused <= size:
            self.refused = None
        if self.asked and size >= self.asked:
            self._raising = self._raising and size == self.size
            self._forget()
            self._next(now)
        return True

    def _ask_again(self, now: float) -> None:
        if now >= self.raise_at and self.size < self.top:
            self.refused, self._raising, self.raise_at = None, True, now + RAISE
            self._ask(self.top, now)
        else:
            self._ask(self.size, now)

    def _ask(self, size: int, at: float) -> None:
        self.asked, self.missed, self.next_at = size, 0, at

    def _forget(self) -> None:
        """What is under way belongs to another question."""
        self._waiting.clear()
        self._late.clear()
        self.missed = 0

    def _overdue(self, now: float, hold: float) -> None:
        while self._waiting:
            number, sent = next(iter(self._waiting.items()))
            sent.deadline = max(sent.deadline, hold) if sent.deadline < hold else sent.deadline
            if sent.deadline > now:
                return
            del self._waiting[number]
            self._late[number] = sent
            if len(self._late) > KEPT:
                self._late.popitem(last=False)
            if not self.missed:
                self.first_missed = sent.at
                self.next_at = min(self.next_at, now)
            self.missed += 1
            self.lost += sent.size + OVER

    def _too_large(self, now: float) -> None:
        """The size in question is swallowed, and small probes are not."""
        self.refused = self.asked if self.refused is None else min(self.refused, self.asked)
        if self.proved >= self.refused:
            self.proved = 0  # it was carried before: what else was proved then need not hold either
        self.size = min(self.size, self.proved or BASE)
        if not self._raising:
            self.raise_at = NEVER
        self._waiting.clear()  # a late answer may still show that this was wrong
        self._next(now)

    def _next(self, now: float) -> None:
        """Ask the next question, or be done."""
        if self.refused is None:
            if self.proved < self.top:
                self._ask(self.top, now)
                return
        elif not self.proved:
            if self.refused > BASE:
                self._ask(BASE, now)
                return
            self.narrow = True
        elif between := sizes(self.proved, min(self.refused, self.top + 1)):
            if self.hint in between and self.hint:
                size, self.hint = self.hint, 0
            else:
                size = between[0 if self._raising else len(between) // 2]
            self._ask(size, now)
            return
        self.asked, self._raising = 0, False
        self.size = self.proved or BASE
        if self.raise_at == NEVER or (self.raise_at <= now and self.size >= self.top):
            self.raise_at = now + RAISE
        self.next_at = self.raise_at
