# SPDX-License-Identifier: GPL-3.0-or-later
"""News to piggyback: one event a node, each sent a number of times that grows with the log of the members."""

from __future__ import annotations

import math


class Broadcasts:
    """A queue by how often each event was sent: the least sent go first.

    A quarter of a full packet is kept for the most sent instead, so that a flood of new events can slow
    the older ones down but never starve them.
    """

    __slots__ = ("_buckets", "_count", "_sent")

    def __init__(self) -> None:
        self._buckets: list[dict[bytes, bytes]] = [{}]
        self._sent: dict[bytes, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, event: bytes) -> None:
        """Queue an event; it takes the place of an older one about the same node."""
        node = event[:16]
        self.drop(node)
        self._buckets[0][node] = event
        self._sent[node] = 0
        self._count += 1

    def drop(self, node: bytes) -> None:
        """Stop spreading news of this node."""
        sent = self._sent.pop(node, None)
        if sent is not None:
            del self._buckets[sent][node]
            self._count -= 1

    def take(self, room: int, copies: int, limit: int) -> list[bytes]:
        """Return up to ``room`` events for a packet that goes out ``copies`` times.

        An event that has then gone out ``limit`` times is dropped.
        """
        count = self._count
        if not count or room <= 0:
            return []
        if count <= room:
            chosen = [(s, e) for s, bucket in enumerate(self._buckets) if bucket for e in bucket.values()]
        else:
            chosen = self._pick(room - room // 4, reverse=False)
            taken = {event[:16] for _, event in chosen}
            oldest = (item for item in self._pick(room, reverse=True) if item[1][:16] not in taken)
            chosen += [item for item, _ in zip(oldest, range(room // 4), strict=False)]
        buckets, sent = self._buckets, self._sent
        while len(buckets) < limit:
            buckets.append({})
        for times, event in chosen:
            node = event[:16]
            del buckets[times][node]
            times += copies
            if times >= limit:
                del sent[node]
                self._count -= 1
            else:
                buckets[times][node] = event
                sent[node] = times
        return [event for _, event in chosen]

    def _pick(self, room: int, *, reverse: bool) -> list[tuple[int, bytes]]:
        numbered = list(enumerate(self._buckets))
        chosen: list[tuple[int, bytes]] = []
        for times, bucket in reversed(numbered) if reverse else numbered:
            for event in bucket.values():
                if len(chosen) == room:
                    return chosen
                chosen.append((times, event))
        return chosen


def retransmit_limit(mult: int, members: int) -> int:
    """How often one node sends one event: memberlist's rule, ``mult`` times ceil(log10(members + 1))."""
    return mult * math.ceil(math.log10(members + 1)) if members > 0 else mult
