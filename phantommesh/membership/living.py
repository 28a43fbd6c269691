# SPDX-License-Identifier: GPL-3.0-or-later
"""An order of those who are alive: any of them is drawn in one step, and each comes once a round of probes.

Everybody has a slot, a number that does not change. The order is a permutation of the slots that is never
written out: only the slots that are not at their own place are kept, so ten thousand orders of ten thousand
members that nobody has touched cost nothing. The living come first, and of them those that this round has
already probed::

    | probed in this round | still to be probed | not alive |
    0                     round                living      slots
"""

from __future__ import annotations

from random import Random


class Living:
    """The slots of the living, in the order in which they are probed. Each method costs the same however many
    slots there are."""

    __slots__ = ("_at", "_place", "_round", "_slots", "count")

    def __init__(self, slots: int) -> None:
        """Begin with the slots below this number, all of them alive."""
        self._slots = self.count = slots
        self._round = 0
        self._at: dict[int, int] = {}  # by place, the slot there, if it is another than its own
        self._place: dict[int, int] = {}  # and the other way round

    def add(self) -> None:
        """Take in one more slot, the next number, alive: it is still to be probed in this round."""
        self._slots += 1
        self.rise(self._slots - 1)

    def fall(self, slot: int) -> None:
        """A slot is not alive any more. It must have been until now."""
        place = self._place.get(slot, slot)
        if place < self._round:
            self._round -= 1
            self._swap(place, self._round)
            place = self._round
        self.count -= 1
        self._swap(place, self.count)

    def rise(self, slot: int) -> None:
        """A slot is alive again, and still to be probed in this round. It must not have been alive."""
        self._swap(self._place.get(slot, slot), self.count)
        self.count += 1

    def draw(self, rng: Random) -> int | None:
        """Return a slot of the living, each as likely as the next; None if there is none."""
        if not self.count:
            return None
        place = int(rng.random() * self.count)
        return self._at.get(place, place)

    def next(self, rng: Random) -> int | None:
        """Return the next of a shuffled round, shuffled anew after each (SWIM, section 4.3; Fisher and Yates,
        one step a call); None if there is none. Whoever rises during a round lands at a random place in the
        rest of it."""
        if self._round >= self.count:
            self._round = 0
            if not self.count:
                return None
        place = self._round + int(rng.random() * (self.count - self._round))
        self._swap(place, self._round)
        self._round += 1
        return self._at.get(self._round - 1, self._round - 1)

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        there, here = self._at.get(one, one), self._at.get(other, other)
        for place, slot in ((one, here), (other, there)):
            if place == slot:
                self._at.pop(place, None)
                self._place.pop(slot, None)
            else:
                self._at[place] = slot
                self._place[slot] = place
