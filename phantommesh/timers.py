# SPDX-License-Identifier: GPL-3.0-or-later
"""The moments at which many things are due, with the earliest at hand."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

# Tuning.
SLACK = 64  # heap entries that no longer count, beside as many as count, before the heap is made anew

K = TypeVar("K", bound=Hashable)


class Timers(Generic[K]):
    """One moment a key. A binary heap in which a moment that was moved or taken back stays until it surfaces:
    `first` costs O(1), and a change O(log n), amortised."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._made = 0  # breaks ties: keys need no order

    def set(self, key: K, moment: float) -> None:
        """Let ``key`` be due at ``moment`` and at no other; infinity is never."""
        if moment == self._at.get(key):
            return
        if moment == float("inf"):
            self.cancel(key)
            return
        if len(self._heap) > 2 * len(self._at) + SLACK:
            self._heap = [entry for entry in self._heap if self._at.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        self._at[key] = moment
        self._made += 1
        heapq.heappush(self._heap, (moment, self._made, key))

    def cancel(self, key: K) -> None:
        """Let ``key`` never be due."""
        self._at.pop(key, None)

    @property
    def first(self) -> float:
        """The earliest moment; infinity where there is none."""
        heap = self._heap
        while heap and self._at.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else float("inf")

    def due(self, now: float) -> list[K]:
        """Take out the keys whose moment has come, earliest first."""
        keys = []
        while self._at and self.first <= now:
            keys.append(self.take())
        return keys

    def take(self) -> K:
        """Take out the key that is due first; of keys with one moment, the one that was set first. Raises
        IndexError where there is none."""
        _ = self.first  # nothing that no longer counts is on top any more
        key = heapq.heappop(self._heap)[2]
        del self._at[key]
        return key
