# SPDX-License-Identifier: GPL-3.0-or-later
"""Which members a node talks to where the mesh has regions: most of the time those of its own.

A member of another region is probed and told news in one of `BEYOND` turns. That is enough: the members of
its own region watch it, and news needs to cross once. Where this node is alone in its region, or where there
is one region only, nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from phantommesh.membership.table import Table

# Tuning.
BEYOND: Final = 20  # turns, of which one leads out of the region
LOOK: Final = 10.0  # s between two looks at who is in the region
LEAST: Final = 3  # members of the region, below which a node talks to all alike
DRAWS: Final = 8  # for one that is not down


class Vicinity:
    """``near`` says whether a member is in this node's region, or in none. None: there are no regions."""

    def __init__(self, near: Callable[[bytes], bool] | None) -> None:
        self._near = near
        self._at = float("-inf")
        self._count = 0
        self._sides: tuple[list[bytes], list[bytes]] = ([], [])  # those of the region, those of others
        self._rounds: tuple[list[bytes], list[bytes]] = ([], [])  # what is left of each one's round of probes
        self._turn = 0

    def beyond(self, node: bytes) -> bool:
        """Whether a member is in another region."""
        return self._near is not None and not self._near(node)

    def split(self, table: Table, own: bytes, clock: float) -> bool:
        """Whether the mesh is in several regions, as seen from this node, so that `draw` and `next` are to be
        asked."""
        if self._near is None:
            return False
        if clock - self._at >= LOOK or len(table) != self._count:
            self._at, self._count = clock, len(table)
            self._sides = ([], [])
            for node in table:
                if node != own:
                    self._sides[not self._near(node)].append(node)
        return len(self._sides[0]) >= LEAST and bool(self._sides[1])

    def draw(self, table: Table, rng: Random) -> bytes | None:
        """Return some member to tell something, of another region in one of so many draws; None if those
        drawn are down."""
        side = self._sides[rng.random() * BEYOND < 1]
        for _ in range(DRAWS):
            node = rng.choice(side)
            if node not in table.down and table.get(node):
                return node
        return None

    def next(self, table: Table, rng: Random) -> bytes | None:
        """Return the next member to probe: each of the region once a round, and those of other regions in
        rounds of their own, in one of so many turns."""
        self._turn = (self._turn + 1) % BEYOND
        far = self._turn == 0
        rest = self._rounds[far]
        for _ in range(DRAWS + len(rest)):
            if not rest:
                rest += self._sides[far]
                rng.shuffle(rest)
            node = rest.pop()
            if node not in table.down and table.get(node):
                return node
        return None
