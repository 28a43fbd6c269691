# SPDX-License-Identifier: GPL-3.0-or-later
"""Damping of verdicts that flap, after RFC 2439 (BGP route flap damping). Pure.

Each flap of a member adds to its penalty, which decays exponentially. At the cut-off threshold (section 4.2
of the RFC) its verdicts are held back, until the penalty is down to the reuse threshold. A ceiling bounds how
long that takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FLAP: Final = 1000.0  # the penalty of one flap, the unit of the thresholds

MAX_NODES: Final = 4096  # members with a penalty; the smallest makes room


ROUNDING: Final = 0.001
"""Seconds that count as none: whoever has waited as long as it was told must not be told to wait again, for
ever, for what is left by rounding."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``half_life`` in seconds; the others are penalties. A flap that reaches ``cut`` holds the next verdict
    back for ``half_life`` x log2(FLAP / ``reuse``) s; ``ceiling`` says for how long at most: ``longest``."""

    half_life: float = 60.0
    cut: float = FLAP
    reuse: float = FLAP / 2
    ceiling: float = 4 * FLAP

    @property
    def longest(self) -> float:
        """How many seconds verdicts are held back at most after the last flap."""
        return self.half_life * math.log2(self.ceiling / self.reuse)


#: One false verdict of death holds the next one back for a minute, more of them for up to three.
DEATHS: Final = Limits()


class Damping:
    """The penalties of members, by node id."""

    def __init__(self, limits: Limits = DEATHS) -> None:
        self._limits = limits
        self._penalties: dict[bytes, tuple[float, float]] = {}  # and of which time each is
        self._held: set[bytes] = set()

    def flap(self, node: bytes, now: float, penalty: float = FLAP) -> None:
        """A verdict about this member has turned out wrong."""
        worse = min(self._limits.ceiling, self.penalty(node, now) + penalty)
        self._penalties[node] = worse, now
        if worse >= self._limits.cut:
            self._held.add(node)
        if len(self._penalties) > MAX_NODES:
            self.forget(min(self._penalties, key=lambda other: self.penalty(other, now)))

    def penalty(self, node: bytes, now: float) -> float:
        """The penalty of this member by now."""
        penalty, then = self._penalties.get(node, (0.0, now))
        return penalty * math.exp2(-max(0.0, now - then) / self._limits.half_life)

    def holds(self, node: bytes, now: float) -> float:
        """For how many seconds more verdicts about this member are held back; 0 if they are not."""
        if node not in self._held:
            return 0.0
        over = self.penalty(node, now) / self._limits.reuse
        left = self._limits.half_life * math.log2(over) if over > 1 else 0.0
        if left > ROUNDING:
            return left
        self.forget(node)
        return 0.0

    def forget(self, node: bytes) -> None:
        """This member starts anew."""
        self._penalties.pop(node, None)
        self._held.discard(node)
