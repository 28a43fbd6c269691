# SPDX-License-Identifier: GPL-3.0-or-later
"""What other members say of attackers, weighed. `Hints.lowering` says by how much the threshold of a ban is
lower for an address; nothing here bans.

A list of hints (`saying`) counts while its origin is a member whose signature it carries. Each hint has a
force between 0 and 1: its own strength, times the weight of its hinter, less for each member that passed it
on (`HOP`), halving with its age (`HALF_LIFE`). The number of those members is not signed: a member that lies
about it makes a hint stronger by three fifths at most.

**Who counts as two.** Hinters whom one authority introduced count as one, the strongest of them, as whoever
holds that authority can make as many members as it likes. An authority counts as those it introduced.

**Weight** (`reputation`). A hint is confirmed where this node would have banned the address without it, and
refuted where the ban was a false alarm. A ban that needed the hint confirms nothing.

**Canaries** (`canaries`). No honest node hints an address that members' records name. A hint about one that
they had named for `SETTLED` seconds when the hint was made exposes a liar: its weight is 0 for
`reputation.LIAR_FOR`. A hint about one that they name since then, about what this node alone never bans, and
about a private address is passed over, and costs nothing: an honest hinter cannot know better.

**Caps.** At most `CHARGES` bans an hour rest on one hinter: one that has used them up lowers nothing. The set
has `MOST_HINTED` addresses of `MOST_HINTERS` hinters, of which one authority introduced at most half; what
is weaker than all that is there finds no room. Each sender has a pace. What is dropped is counted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from math import exp2
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey

from phantommesh.mnemonic.canaries import everybodys
from phantommesh.mnemonic.reputation import Reputations
from phantommesh.mnemonic.saying import (
    LIFE,
    Hint,
    HintError,
    OwnHints,
    Said,
    SignedHints,
    check_signature,
    decode_hints_untrusted,
)
from phantommesh.rates import Bucket, Rates, source_block
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
ONE, MOST_LOWERING = (
    0.5,
    0.75,
)  # by hinters of one authority; of several. A ban always needs evidence of its own
MOST_HOPS: Final = 3  # members that pass a list on, each to 4 of them (`nursery/members/hinting.py`)
HOP: Final = 0.8  # of a hint's force is left after each
AGED: Final = 0.95  # of a lowering is left when a ban that was judged by it is carried out, within minutes
HALF_LIFE: Final = 3600.0  # s: attackers change their addresses within hours
SETTLED: Final = 3600.0  # s; records of members spread in seconds, but not over a split of the mesh
CHARGES, HOUR = 4, 3600.0  # bans that rest on one hinter within so many seconds
MOST_HINTED: Final = 256  # addresses
MOST_HINTERS: Final = 64  # whose lists are held
EARLY: Final = 300.0  # s that the clock of a hinter may be ahead of ours
RATE, BURST = 0.2, 32  # lists a second, and at once, of one sender
CHECKS, CHECKS_AT_ONCE = 10.0, 100  # signatures a second that are verified, 0.3 ms each

Never = Callable[[str], float | None]
"""Since when (Unix seconds) all members can know that an address is never banned; infinity where only this
node knows that; None where it may be banned."""


@dataclass(frozen=True, slots=True)
class Hinter:
    """A member that hints. ``authority``: the one that introduced it, itself where it is one; empty where
    nobody knows: all those count as one."""

    key: MLDSA65PublicKey
    authority: bytes


@dataclass(slots=True)
class _Held:
    """The newest list of a hinter. ``hints`` are those that count, by source; of ``confirmed`` and
    ``refuted`` sources the hinter's weight knows already."""

    said: Said
    hops: int
    authority: bytes = b""
    hints: dict[str, Hint] = field(default_factory=dict)
    confirmed: set[str] = field(default_factory=set)
    refuted: set[str] = field(default_factory=set)


class HinterView(msgspec.Struct, frozen=True):
    """A hinter for people. ``weight`` 0: it is a liar, or has used up its bans of this hour."""

    node: str
    weight: float
    confirmed: float
    refuted: float
    hints: int
    hops: int
    liar_until: float


class Summary(msgspec.Struct, frozen=True):
    """Hints for people: addresses that others hint, hints of our own, lists taken and dropped, hinters."""

    hinted: int
    most_hinted: int
    own: int
    taken: int
    dropped: dict[str, int]
    hinters: tuple[HinterView, ...]


class Hints:
    """What others hint, and in ``own`` what this node does. ``who`` finds a member, None where there is none
    in good standing. ``dropped`` counts by reason."""

    def __init__(self, me: NodeId, who: Callable[[NodeId], Hinter | None]) -> None:
        self._me, self._who = me, who
        self.own = OwnHints()
        self.taken = 0
        self.dropped = Counter[str]()
        self._held = dict[NodeId, _Held]()
        self._about = dict[str, set[NodeId]]()
        self.reputations = Reputations()
        self._charged = dict[NodeId, deque[float]]()
        self._rates = Rates[bytes](RATE, BURST)
        self._checks: Bucket | None = None

    def take(self, data: bytes, sender: NodeId, hops: int, never: Never, now: float) -> int | None:
        """Take a list that ``sender`` gave out, which ``hops`` members passed on. Return how many have when
        this node does, where the list is news and may go on; else None. What is dropped is counted."""
        if not self._rates.allow(sender, now):
            self._drop("rate")
            return None
        try:
            signed, said = decode_hints_untrusted(data)
        except HintError:
            self._drop("malformed")
            return None
        origin = NodeId(said.origin)
        if origin == self._me or (origin in self._held and said.made <= self._held[origin].said.made):
            return None
        new = _Held(said, 0 if origin == sender else max(1, hops))
        if reason := self._refusal(signed, new, origin, now) or self._keep(new, origin, never, now):
            self._drop(reason)
            return None
        self.taken += 1
        return new.hops + 1 if new.hops < MOST_HOPS else None

    def _refusal(self, signed: SignedHints, new: _Held, origin: NodeId, now: float) -> str:
        """Why a list is not even looked at; empty where it is. What costs most is checked last."""
        if new.hops > MOST_HOPS or new.said.at > now + EARLY or new.said.at + LIFE <= now:
            return "untimely"
        if self.reputations.of(origin, now).liar_until > now:
            return "liar"
        hinter = self._who(origin)
        if hinter is None:
            return "stranger"
        if self._checks is None:
            self._checks = Bucket(CHECKS, CHECKS_AT_ONCE, now)
        if not self._checks.take(now):
            return "busy"
        try:
            check_signature(signed, hinter.key)
        except HintError:
            return "signature"
        new.authority = hinter.authority
        return ""

    def _keep(self, new: _Held, origin: NodeId, never: Never, now: float) -> str:
        """Put a list in the place of its origin's last one; return why not, or nothing."""
        since = {hint.source: never(hint.source) for hint in new.said.hints}
        if any(moment is not None and new.said.at - moment >= SETTLED for moment in since.values()):
            self.reputations.expose(origin, now)
            if origin in self._held:
                self._leave(origin)
            return "canary"
        old = self._held.get(origin)
        if old is not None:
            new.confirmed, new.refuted = old.confirmed & since.keys(), old.refuted & since.keys()
            self._leave(origin)
        elif not self._room_for(new.authority, origin, now):
            return "full"
        self._held[origin] = new
        self._add(new, origin, {source for source, moment in since.items() if moment is not None}, now)
        return ""

    def _add(self, new: _Held, origin: NodeId, never: Container[str], now: float) -> None:
        """Hold the hints of a list. Where the set is full, what is hinted least makes room for what is hinted
        more."""
        others: list[tuple[float, str]] | None = None  # the least at the end
        for hint in new.said.hints:
            if hint.until <= now or hint.source in new.refuted:
                continue
            if hint.source in never or not everybodys(hint.source):
                self._drop("passed-over")
                continue
            if hint.source not in self._about and len(self._about) >= MOST_HINTED:
                if others is None:
                    others = sorted(((self.lowering(one, now), one) for one in self._about), reverse=True)
                if not others or others[-1][0] >= self._force(hint, new, origin, now):
                    self._drop("full")
                    continue
                least = others.pop()[1]
                for other in list(self._about[least]):
                    self._unhint(least, other)
            new.hints[hint.source] = hint
            self._about.setdefault(hint.source, set()).add(origin)

    def lowering(self, address: str, now: float) -> float:
        """By how much of itself the threshold of a ban is lower for an address: 0 to `MOST_LOWERING`."""
        forces = self._forces(_block(address), now)
        left = 1.0
        for force in forces.values():
            left *= 1.0 - force
        return min(1.0 - left, ONE if len(forces) < 2 else MOST_LOWERING)

    def bears(self, address: str, lowering: float, now: float) -> bool:
        """Whether a ban may rest on hints that lowered the threshold by so much when it was judged. Ask right
        before the ban: of several that were judged at one time the first ones may have used up the cap."""
        return self.lowering(address, now) >= AGED * lowering

    def _forces(self, source: str, now: float) -> dict[bytes, float]:
        """The force of the strongest hint about a source, by authority."""
        forces = dict[bytes, float]()
        for origin in self._about.get(source, ()):
            held = self._held[origin]
            force = 0.0 if self._spent(origin, now) else self._force(held.hints[source], held, origin, now)
            if force > 0.0:
                forces[held.authority] = max(force, forces.get(held.authority, 0.0))
        return forces

    def _force(self, hint: Hint, held: _Held, origin: NodeId, now: float) -> float:
        if hint.until <= now or held.said.at + LIFE <= now:
            return 0.0
        age = exp2(-max(0.0, now - held.said.at) / HALF_LIFE)
        return hint.strength / 100 * self.reputations.weight(origin, now) * HOP**held.hops * age

    def banned(self, address: str, now: float, *, alone: bool) -> None:
        """This node has banned an address. ``alone``: also without `lowering` it would have. Else the ban
        rests on the hinters, and counts against their cap."""
        source = _block(address)
        for origin in self._about.get(source, set()):
            held = self._held[origin]
            if not alone:
                if self._force(held.hints[source], held, origin, now) > 0.0:
                    self._charged.setdefault(origin, deque(maxlen=CHARGES)).append(now)
            elif source not in held.confirmed:
                held.confirmed.add(source)
                self.reputations.confirm(origin, now)

    def refuted(self, address: str, now: float) -> None:
        """The ban of an address was a false alarm."""
        source = _block(address)
        for origin in list(self._about.get(source, ())):
            self._held[origin].refuted.add(source)
            self.reputations.refute(origin, now)
            self._unhint(source, origin)

    def sweep(self, never: Never, now: float) -> None:
        """Drop what has ended, and hints about addresses that may not be banned any more."""
        for origin, held in list(self._held.items()):
            if held.said.at + LIFE <= now or self._who(origin) is None:
                self._leave(origin)
                continue
            for source, hint in list(held.hints.items()):
                if hint.until <= now or never(source) is not None:
                    self._unhint(source, origin)
        for origin, times in list(self._charged.items()):
            if now - times[-1] >= HOUR:
                del self._charged[origin]

    def summary(self, now: float) -> Summary:
        """The hints for people."""
        known = {*self._held, *self.reputations}
        views = sorted(
            (self._view(hinter, now) for hinter in known), key=lambda view: (-view.hints, view.node)
        )
        dropped = {reason.removeprefix("hint-"): count for reason, count in self.dropped.items()}
        return Summary(len(self._about), MOST_HINTED, len(self.own), self.taken, dropped, tuple(views))

    def _view(self, hinter: NodeId, now: float) -> HinterView:
        reputation, held = self.reputations.of(hinter, now), self._held.get(hinter)
        return HinterView(
            format_node_id(hinter),
            0.0 if self._spent(hinter, now) else self.reputations.weight(hinter, now),
            reputation.confirmed, reputation.refuted,
            0 if held is None else len(held.hints), 0 if held is None else held.hops, reputation.liar_until,
        )  # fmt: skip

    def _spent(self, hinter: NodeId, now: float) -> bool:
        times = self._charged.get(hinter)
        return times is not None and len(times) == CHARGES and 0 <= now - times[0] < HOUR

    def _room_for(self, authority: bytes, origin: NodeId, now: float) -> bool:
        """Make room for one more hinter, where there is one that is believed less."""
        fellows = [other for other, held in self._held.items() if held.authority == authority]
        full = len(self._held) >= MOST_HINTERS
        if not full and len(fellows) < MOST_HINTERS // 2:
            return True
        crowd = fellows if len(fellows) >= MOST_HINTERS // 2 else list(self._held)
        least = min(crowd, key=lambda other: self.reputations.weight(other, now))
        if self.reputations.weight(least, now) >= self.reputations.weight(origin, now):
            return False
        self._leave(least)
        return True

    def _leave(self, origin: NodeId) -> None:
        """Hold no hints of this hinter any more."""
        for source in list(self._held[origin].hints):
            self._unhint(source, origin)
        del self._held[origin]

    def _unhint(self, source: str, origin: NodeId) -> None:
        del self._held[origin].hints[source]
        self._about[source].discard(origin)
        if not self._about[source]:
            del self._about[source]

    def _drop(self, reason: str) -> None:
        self.dropped[f"hint-{reason}"] += 1


def _block(address: str) -> str:
    """The block of an address; the text itself where it is none, about which there are no hints."""
    try:
        return source_block(address)
    except ValueError:
        return address
