# SPDX-License-Identifier: GPL-3.0-or-later
"""Cables with a rate, a delay and losses, as netem makes them, for a kernel that has none: a program.

    ip netns exec SPACE python -m benchmarks.cables NEAR:FAR...

NEAR and FAR are TAP interfaces that the program makes in its namespace; whoever started it may move them to
others. Each line of its standard input is a JSON list with the shape of each cable, in both directions:
[delay in ms, Mbit/s or 0, loss in percent, bytes of its queue], and the percentage of frames that take 20 to
300 ms longer, and that later ones overtake, if there are any. The program answers each with a line, and
ends with its input. All in one thread: some thousand frames a second.
"""

from __future__ import annotations

import heapq
import json
import os
import select
import sys
import time
from collections.abc import Sequence
from math import inf
from random import Random
from typing import Final

from phantommesh.nursery.lab.delay import BATCH, MAX_FRAME, Line, attach

SPIKE: Final = 0.02, 0.3  # s that a slow frame takes longer
PLENTY: Final = 10_000_000  # bytes, of a cable without a rate


class Cable(Line):
    """One direction. ``delay`` in seconds, ``rate`` in bytes a second (0: none), ``loss`` a ratio, ``room``
    the bytes that may wait."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.delay = self.rate = self.loss = self.spikes = 0.0
        self.room = PLENTY
        self._random = Random()  # no secret
        self._free = 0.0  # when the frames before will have been sent
        self._slow = list[tuple[float, bytes]]()  # a heap

    @property
    def due(self) -> float:
        """When the next frame comes out; inf: there is none."""
        return min(super().due, self._slow[0][0] if self._slow else inf)

    def out(self, now: float) -> list[bytes]:
        """The frames whose time has come."""
        found = []
        while self._slow and self._slow[0][0] <= now:
            found.append(heapq.heappop(self._slow)[1])
        while self._frames and self._frames[0][0] <= now:
            found.append(self._frames.popleft()[1])
        return found

    def put(self, frame: bytes, now: float) -> None:
        """Take a frame, if there is room; some are lost."""
        waits = max(0.0, self._free - now)
        full = bool(self.rate) and waits * self.rate + len(frame) > self.room
        if full or self._random.random() < self.loss:
            self.lost += 1
            return
        self._free = now + waits + (len(frame) / self.rate if self.rate else 0.0)
        if self._random.random() < self.spikes:
            late = self._free + self.delay + self._random.uniform(*SPIKE)
            heapq.heappush(self._slow, (late, frame))
            return
        # A delay that was made shorter lets no frame overtake another.
        last = self._frames[-1][0] if self._frames else 0.0
        self._frames.append((max(last, self._free + self.delay), frame))

    def shape(self, delay_ms: float, mbit: float, percent: float, room: int, spikes: float = 0.0) -> None:
        """Be like this for all that comes from now on."""
        self.spikes = spikes / 100
        self.delay, self.rate, self.loss, self.room = delay_ms / 1e3, mbit * 125e3, percent / 100, room


def _carry(pairs: Sequence[tuple[int, int]]) -> None:
    ways: dict[int, tuple[int, Cable]] = {}
    for near, far in pairs:
        ways[near], ways[far] = (far, Cable()), (near, Cable())
    print("ready", flush=True)
    while True:
        due = min(cable.due for _, cable in ways.values())
        wait = None if due == inf else max(0.0, due - time.monotonic())
        for source in select.select([0, *ways], (), (), wait)[0]:
            if source == 0:
                line = sys.stdin.readline()
                if not line:
                    return
                for (near, far), shape in zip(pairs, json.loads(line), strict=True):
                    ways[near][1].shape(*shape)
                    ways[far][1].shape(*shape)
                print("shaped", flush=True)
                continue
            for _ in range(BATCH):
                try:
                    frame = os.read(source, MAX_FRAME)
                except OSError:  # no more for now, or the interface is down
                    break
                ways[source][1].put(frame, time.monotonic())
        now = time.monotonic()
        for target, cable in ways.values():
            for frame in cable.out(now):
                try:
                    os.write(target, frame)
                except OSError:  # the interface is down, or has no room
                    cable.lost += 1


if __name__ == "__main__":
    names = [pair.split(":") for pair in sys.argv[1:]]
    _carry([(attach(near), attach(far)) for near, far in names])
