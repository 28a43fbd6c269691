# SPDX-License-Identifier: GPL-3.0-or-later
"""How far each hinter is believed: its weight, which is confirmed / (confirmed + refuted).

`PRIOR` is added to both, so that a stranger is believed by half. Both decay, so that an old hinter that is
taken over cannot live on what it was. A liar's weight is 0 for `LIAR_FOR`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import exp2, isfinite
from typing import Annotated, Final

import msgspec

from phantommesh.trust.identity import NODE_ID_BYTES, NodeId

# Tuning.
PRIOR: Final = 1.0  # hints that each hinter is thought to have had confirmed, and refuted, before
HALF_LIFE: Final = 7 * 86_400.0  # s
LIAR_FOR: Final = 7 * 86_400.0  # s
MOST: Final = 1_024  # hinters whose weight is remembered


class Reputation(msgspec.Struct, frozen=True, array_like=True):
    """What is held of one hinter: its hints that proved right and wrong, both decayed to ``at``, and until
    when it is a liar. Moments are Unix seconds."""

    hinter: Annotated[bytes, msgspec.Meta(min_length=NODE_ID_BYTES, max_length=NODE_ID_BYTES)]
    confirmed: float
    refuted: float
    at: float
    liar_until: float = 0.0


class Reputations:
    """The reputation of each hinter that was judged, of so many at most: then the one that changed least
    lately and is no liar goes."""

    def __init__(self) -> None:
        self._all = dict[NodeId, Reputation]()
        self._changed = set[NodeId]()

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._all)

    def weight(self, hinter: NodeId, now: float) -> float:
        """How far a hinter is believed, 0 to 1."""
        reputation = self.of(hinter, now)
        if reputation.liar_until > now:
            return 0.0
        return (PRIOR + reputation.confirmed) / (2 * PRIOR + reputation.confirmed + reputation.refuted)

    def of(self, hinter: NodeId, now: float) -> Reputation:
        """What is held of a hinter, decayed to ``now``."""
        known = self._all.get(hinter)
        if known is None:
            return Reputation(hinter, 0.0, 0.0, now)
        left = exp2(-max(0.0, now - known.at) / HALF_LIFE)
        return Reputation(hinter, known.confirmed * left, known.refuted * left, now, known.liar_until)

    def confirm(self, hinter: NodeId, now: float) -> None:
        """A hint of this hinter proved right."""
        old = self.of(hinter, now)
        self._keep(Reputation(hinter, old.confirmed + 1.0, old.refuted, now, old.liar_until))

    def refute(self, hinter: NodeId, now: float) -> None:
        """A hint of this hinter proved wrong."""
        old = self.of(hinter, now)
        self._keep(Reputation(hinter, old.confirmed, old.refuted + 1.0, now, old.liar_until))

    def expose(self, hinter: NodeId, now: float) -> None:
        """This hinter lied."""
        self._keep(Reputation(hinter, 0.0, self.of(hinter, now).refuted + 1.0, now, now + LIAR_FOR))

    @property
    def unsaved(self) -> bool:
        """Whether anything changed since `take_changes`."""
        return bool(self._changed)

    def take_changes(self) -> list[Reputation]:
        """The reputations that changed since the last time."""
        changed, self._changed = self._changed, set()
        return [self._all[hinter] for hinter in changed]

    def all(self) -> list[Reputation]:
        """All reputations, as they are written."""
        return list(self._all.values())

    def restore(self, reputations: Iterable[Reputation], now: float) -> int:
        """Take in reputations as they were written, in their order; return how many cannot be. A moment that
        is still to come is taken for ``now``: the clock was wrong then."""
        refused = 0
        for one in reputations:
            numbers = (one.confirmed, one.refuted, one.at, one.liar_until)
            if not all(isfinite(number) and number >= 0 for number in numbers):
                refused += 1
                continue
            at, until = min(one.at, now), min(one.liar_until, now + LIAR_FOR)
            self._keep(Reputation(one.hinter, one.confirmed, one.refuted, at, until))
        self._changed.clear()
        return refused

    def _keep(self, reputation: Reputation) -> None:
        hinter = NodeId(reputation.hinter)
        self._all[hinter] = reputation
        self._changed.add(hinter)
        if len(self._all) > MOST:
            least = NodeId(min(self._all.values(), key=lambda one: (one.liar_until, one.at)).hinter)
            del self._all[least]
            self._changed.discard(least)
