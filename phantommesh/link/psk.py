# SPDX-License-Identifier: GPL-3.0-or-later
"""Which WireGuard preshared keys a peer should have, and how sure we are that the other end has them too.

Theory of operation. The kernel holds one PSK a peer and dimension. It uses a PSK only in WireGuard's own
handshakes, about every two minutes; the session that such a handshake makes lives on for up to 180 s,
whatever the PSK is changed to. So this module never has to change both ends at one moment. It has to see to
it that both ends hold the same PSK again before WireGuard's next handshake, and to know when they do.

A link's handshake makes an *agreement*: seven PSKs, a chain key, an epoch. An agreement is

    staged      at the initiator, from the moment it sends AUTH: the responder may or may not come to have it
    committed   both ends have it: at the responder once AUTH is verified, at the initiator once ACK arrives
    previous    replaced, and kept for its chain key until the new PSKs are confirmed, or for 180 s

Without any agreement the PSKs are random, so the peer is shut out (fail closed). They are random again 300 s
after the last agreement.

Only the initiator can be unsure, and only between AUTH and ACK: AUTH may be lost, or its ACK. It cannot ask,
since nothing of the link gets through. WireGuard answers instead: the initiator *shows* the kernel the staged
and the committed PSKs in turn, 7 s each. A WireGuard handshake succeeds under a PSK that both ends have and
no other, so the PSKs that were shown when one succeeded are the ones to keep.

A WireGuard handshake also *confirms* an installed PSK, one dimension each. The kernel stamps it with the time
when it ended, and it may have begun under the PSK before. So it confirms only when it is a second newer than
the read-back of the PSK; no margin is needed where the PSK before was random and could not have worked.

A PSK is bound to the WireGuard keys of both ends of its dimension. If one of the two keys is replaced, or the
ends name different keys in a handshake, that dimension alone has a random PSK until the next handshake.

Two handshakes may cross. Agreements have a *rank* that both ends compute alike, and an agreement of lower
rank never takes the place of one of higher rank. docs/protocol.md has the table of states and events
("PSKs"); decisions 13, 15, 25 and 33 have the reasons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from phantommesh.dimensions import ALL, DIMENSIONS, bits, has, only, without
from phantommesh.link.handshake import Random
from phantommesh.secret import Secret

# Specification (docs/protocol.md, "PSKs"; the 180 s are WireGuard's REJECT_AFTER_TIME).
FORGET_OLD_AFTER = 180.0

# Tuning.
DIAL_AFTER = 3.0  # s that a first agreement's responder leaves the WireGuard handshake to the initiator
ALTERNATE = 7.0  # s; longer than WireGuard's REKEY_TIMEOUT of 5 s, so that each showing sees an attempt
SAME_HANDSHAKE = 1.0  # s; a WireGuard handshake this soon after a set may have begun under the PSK before it
PAST_CHAINS = 16  # ids of chains given up that are remembered: about 24 minutes of epochs
INSTALL_GRACE = 10.0  # s that a PSK may stay out of the kernel before the link is no longer called fresh


class PskPhase(Enum):
    """How a link stands. Only FRESH claims that both ends hold the same, recent PSKs."""

    NONE = "none"
    FRESH = "fresh"
    UNSURE = "unsure"
    STALE = "stale"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Result of one finished handshake. ``rank`` orders agreements the same way at both ends; ``bound`` is
    the bitmap of dimensions whose PSK the other end has too: those of the others are random."""

    epoch: int
    by_lower_id: bool
    chain_id: bytes
    chain_key: Secret
    psks: tuple[Secret, ...] = field(repr=False)
    scatter: Secret
    born: float
    bound: int = ALL

    @property
    def rank(self) -> tuple[int, bool]:
        """Epoch first; of two handshakes that crossed, the lower node id's wins."""
        return (self.epoch, self.by_lower_id)


class PskState:
    """The PSKs of one peer, on all dimensions."""

    def __init__(self, random: Random, *, alarm_after: float, random_after: float) -> None:
        self._random = random
        self._alarm_after, self._random_after = alarm_after, random_after
        self.committed: Agreement | None = None
        self.staged: Agreement | None = None
        self._previous: Agreement | None = None
        self.past: deque[bytes] = deque(maxlen=PAST_CHAINS)
        self._blank = self._fresh_random()
        self._failed_closed = False
        self._alarmed = False
        self._unsure_since: float | None = None
        self._showing_staged = False
        self._toggled = 0.0
        self._installed_at: list[float | None] = [None] * DIMENSIONS
        self._lacking_since: float | None = None
        self._replaced_agreed = 0
        self._dial_after: float | None = None
        self._dial_later = 0
        self._usable = 0
        self.confirmed = 0

    def _fresh_random(self) -> tuple[Secret, ...]:
        return tuple(Secret(self._random(32)) for _ in range(DIMENSIONS))

    @property
    def desired(self) -> tuple[Secret, ...]:
        """The preshared key that each dimension should have now. Never all zero."""
        if self._showing_staged and self.staged is not None:
            return self.staged.psks
        if self.committed is None or self._failed_closed:
            return self._blank
        return self.committed.psks

    @property
    def open(self) -> bool:
        """Whether the PSKs come from a finished handshake: until then the peer gets no endpoint either."""
        return self.desired is not self._blank

    @property
    def bound(self) -> int:
        """The dimensions whose PSK comes from a finished handshake, as a bitmap; the others fail closed."""
        if self._showing_staged and self.staged is not None:
            return self.staged.bound
        return 0 if self.committed is None or self._failed_closed else self.committed.bound

    @property
    def dials(self) -> int:
        """On which dimensions this end should start WireGuard handshakes, as a bitmap: there it has the
        peer's endpoint and keepalive.

        The responder of a dimension's first agreement waits: the initiator has not set its PSKs yet, and a
        WireGuard handshake that fails is not repeated for 5 s, by either end.
        """
        return self.bound & ~self._dial_later

    @property
    def agreed(self) -> Agreement | None:
        """The agreement that `desired` comes from; None while it is random."""
        if self._showing_staged and self.staged is not None:
            return self.staged
        return None if self._failed_closed else self.committed

    @property
    def ready(self) -> int:
        """Dimensions on which something may be sent to the peer, as a bitmap: they dial, and the kernel has
        their PSK. Sending earlier makes WireGuard try with the wrong PSK and then wait 5 s. Replacing the PSK
        later does no harm: sessions outlive it."""
        return self._usable & self.dials

    @property
    def epoch(self) -> int:
        """The highest epoch known, staged ones included."""
        return max((a.epoch for a in (self.committed, self.staged) if a is not None), default=0)

    def held_chains(self) -> list[tuple[bytes, bytes]]:
        """Chain ids and keys this end can build on, newest first."""
        known = (a for a in (self.staged, self.committed, self._previous) if a is not None)
        return [(a.chain_id, a.chain_key.reveal()) for a in known]

    def had(self, chain_id: bytes) -> bool:
        """Whether a newer chain has taken the place of this one here."""
        return chain_id in self.past

    def stage(self, agreement: Agreement) -> bool:
        """Initiator, at AUTH: the other end may or may not come to have this. False, and nothing is staged,
        if a handshake that crossed this one has put an agreement of higher rank in place."""
        if self._overtaken(agreement):
            return False
        self.staged = agreement
        return True

    def _overtaken(self, agreement: Agreement) -> bool:
        return self.committed is not None and agreement.rank <= self.committed.rank

    def drop_staged(self) -> None:
        """The other end has shown that it never had the staged agreement."""
        self.staged, self._unsure_since, self._showing_staged = None, None, False

    def doubt(self, now: float) -> None:
        """Initiator, without an ACK: start to show the staged PSKs and the old ones in turn."""
        if self.staged is not None and self._unsure_since is None:
            self._unsure_since = now
            self._show(True, now)

    def commit(self, agreement: Agreement, now: float, *, responder: bool = False) -> bool:
        """Both ends have it, or (responder) will once the initiator hears of it. False if an agreement of
        higher rank is already in place: a late message of a handshake that has been overtaken."""
        if self._overtaken(agreement):
            return False
        self._replaced_agreed = self.bound
        self._dial_later = agreement.bound & ~self.dials if responder else 0
        self._dial_after = now + DIAL_AFTER if self._dial_later else None
        for replaced in (self.committed, self.staged):
            if replaced is not None and replaced.chain_id != agreement.chain_id:
                self.past.append(replaced.chain_id)
        self._previous, self.committed = self.committed, agreement
        if self.staged is not None and self.staged.rank <= agreement.rank:
            self.staged = None
        self._unsure_since, self._showing_staged = None, False
        self._failed_closed = self._alarmed = False
        self._forget_installs(now)
        return True

    def unbind(self, dimensions: int, now: float) -> None:
        """The WireGuard key of these dimensions, a bitmap, was replaced at one end: what was agreed for them
        holds no more. The other dimensions and the chain stay as they are."""
        self._blank = self._unbound(self._blank, dimensions)
        if self.committed is not None:
            psks, bound = self._unbound(self.committed.psks, dimensions), self.committed.bound
            self.committed = replace(self.committed, psks=psks, bound=without(bound, dimensions))
        if self.staged is not None:
            psks, bound = self._unbound(self.staged.psks, dimensions), self.staged.bound
            self.staged = replace(self.staged, psks=psks, bound=without(bound, dimensions))
        self._dial_later = without(self._dial_later, dimensions)
        self._usable = without(self._usable, dimensions)
        self.confirmed = without(self.confirmed, dimensions)
        self.installed(without(self._noted(), dimensions), now)

    def _unbound(self, psks: tuple[Secret, ...], dimensions: int) -> tuple[Secret, ...]:
        random = self._fresh_random()
        return tuple(random[i] if has(dimensions, i) else psk for i, psk in enumerate(psks))

    def _forget_installs(self, now: float) -> None:
        self._installed_at = [None] * DIMENSIONS
        if self._lacking_since is None:
            self._lacking_since = now
        self.confirmed = 0

    def _show(self, staged: bool, now: float) -> None:
        self._replaced_agreed = self.bound
        self._showing_staged, self._toggled = staged, now
        self._forget_installs(now)

    def installed(self, bitmap: int, now: float) -> int:
        """Note the dimensions whose PSK was read back equal to `desired`; return all noted so far."""
        for i in range(DIMENSIONS):
            if has(bitmap, i):
                if self._installed_at[i] is None:
                    self._installed_at[i] = now
            else:
                self._installed_at[i] = None
        noted = self._noted()
        self._usable |= noted & self.dials
        if noted == ALL:
            self._lacking_since = None
        elif self._lacking_since is None:
            self._lacking_since = now
        return noted

    def _noted(self) -> int:
        return bits(moment is not None for moment in self._installed_at)

    def observe(self, handshakes: Sequence[float | None], now: float) -> None:
        """Take in the time of the newest WireGuard handshake on each dimension (None: never). One that is
        newer than the set confirms that the other end has the same PSK. One in the future confirms nothing:
        the clock that the kernel stamps them with was set back."""
        for i, (seen, set_at) in enumerate(zip(handshakes, self._installed_at, strict=True)):
            if seen is None or set_at is None or not has(self.bound, i):
                continue
            margin = SAME_HANDSHAKE if has(self._replaced_agreed, i) else 0.0
            if set_at + margin <= seen <= now:
                self.confirmed |= only(i)
        if self.confirmed and self._unsure_since is not None:
            staged, confirmed = self.staged, self.confirmed
            if self._showing_staged and staged is not None:
                installs = self._installed_at
                if self.commit(staged, now):
                    self._installed_at, self.confirmed = installs, confirmed
            else:
                self._unsure_since = None  # the other end has the old ones; AUTH may yet arrive: keep staged
        if self.confirmed & self._dial_later:  # so the initiator has set them all
            self._dial_after, self._dial_later = None, 0
        if self.confirmed and self.confirmed == self.bound:
            self._previous = None

    def age(self, now: float) -> float | None:
        """Seconds since the agreement in use was made; None where there is none."""
        return None if self.committed is None else now - self.committed.born

    def phase(self, now: float) -> PskPhase:
        """How the link stands."""
        if self.committed is None or not (self.committed.bound or self._failed_closed):
            return PskPhase.UNSURE if self._showing_staged else PskPhase.NONE
        if self._failed_closed:
            return PskPhase.UNSURE if self._showing_staged else PskPhase.RANDOM
        if now - self.committed.born >= self._alarm_after:
            return PskPhase.STALE
        if self._lacking_since is not None and now - self._lacking_since >= INSTALL_GRACE:
            return PskPhase.UNSURE
        return PskPhase.UNSURE if self._unsure_since is not None else PskPhase.FRESH

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        times = []
        if self.committed is not None:
            if not self._alarmed:
                times.append(self.committed.born + self._alarm_after)
            if not self._failed_closed:
                times.append(self.committed.born + self._random_after)
            if self._previous is not None:
                times.append(self.committed.born + FORGET_OLD_AFTER)
        if self._dial_after is not None:
            times.append(self._dial_after)
        if self._unsure_since is not None:
            times.append(self._toggled + ALTERNATE)
        return min(times, default=float("inf"))

    def tick(self, now: float) -> tuple[bool, list[str]]:
        """Return whether `desired` or `dials` changed, and the alarms to raise: ``stale``, ``random``."""
        changed, alarms = False, list[str]()
        if self._dial_after is not None and now >= self._dial_after:
            self._dial_after, self._dial_later, changed = None, 0, True
        if self.committed is not None:
            born = self.committed.born  # compared as `deadline` computes it: a difference rounds otherwise
            if self._previous is not None and now >= born + FORGET_OLD_AFTER:
                self._previous = None
            if now >= born + self._alarm_after and not self._alarmed:
                self._alarmed = True
                alarms.append("stale")
            if now >= born + self._random_after and not self._failed_closed:
                self._fail_closed(now)
                changed = True
                alarms.append("random")
        if self._unsure_since is not None and now >= self._toggled + ALTERNATE:
            if now - self._unsure_since >= self._random_after:
                # No longer shown, but kept: if the other end has it, the next handshake builds on it.
                self._unsure_since, self._showing_staged = None, False
            else:
                self._show(not self._showing_staged, now)
            changed = True
        return changed, alarms

    def _fail_closed(self, now: float) -> None:
        self._blank = self._fresh_random()
        self._failed_closed = True
        self._usable = 0
        self._forget_installs(now)
