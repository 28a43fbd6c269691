# SPDX-License-Identifier: GPL-3.0-or-later
"""Delays packets between a lab's regions where the kernel has no netem: a program of its own.

    python -m phantommesh.nursery.lab.delay SECONDS NEAR:FAR...

NEAR and FAR are TAP interfaces of this namespace, one in a region's bridge and one in a segment's. A frame
that leaves a region by NEAR comes out at FAR after so many seconds; one that comes to FAR comes out at NEAR
at once. The kernel gives a TAP whole frames with whole checksums, so nothing in them is to be mended. The
program runs until it is ended.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Final

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_REQUEST: Final = struct.Struct("16sH22x")  # struct ifreq

# Tuning.
LIMIT: Final = 10_000  # frames on their way by one line, as netem has it here: more are lost
BATCH: Final = 64  # frames that are read of one interface before the others have their turn
MAX_FRAME: Final = 65_550  # bytes, with the header of Ethernet


class Line:
    """Frames on their way in one direction, oldest first. All take as long. ``lost``: those without room."""

    def __init__(self, seconds: float) -> None:
        self.lost = 0
        self._seconds = seconds
        self._frames: deque[tuple[float, bytes]] = deque()

    @property
    def due(self) -> float:
        """When the next frame comes out; inf: there is none."""
        return self._frames[0][0] if self._frames else inf

    def put(self, frame: bytes, now: float) -> None:
        """Take a frame, if there is room."""
        if len(self._frames) >= LIMIT:
            self.lost += 1
        else:
            self._frames.append((now + self._seconds, frame))

    def out(self, now: float) -> list[bytes]:
        """The frames whose time has come."""
        found = []
        while self.due <= now:
            found.append(self._frames.popleft()[1])
        return found


def carry(seconds: float, pairs: Sequence[tuple[int, int]]) -> None:
    """Carry frames between pairs of descriptors until the process ends."""
    ways = {near: (far, Line(seconds)) for near, far in pairs} | {
        far: (near, Line(0.0)) for near, far in pairs
    }
    while True:
        due = min(line.due for _, line in ways.values())
        wait = None if due == inf else max(0.0, due - time.monotonic())
        for source in select.select(list(ways), (), (), wait)[0]:
            line = ways[source][1]
            for _ in range(BATCH):
                try:
                    frame = os.read(source, MAX_FRAME)
                except BlockingIOError:
                    break
                line.put(frame, time.monotonic())
        now = time.monotonic()
        for target, line in ways.values():
            for frame in line.out(now):
                try:
                    os.write(target, frame)
                except OSError:  # the interface is down, or has no room
                    line.lost += 1


def attach(interface: str) -> int:
    """Return a descriptor for the frames of a TAP interface. Raises OSError."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, _REQUEST.pack(interface.encode("ascii"), _IFF_TAP | _IFF_NO_PI))
    return tap


def main(arguments: Sequence[str]) -> None:
    seconds, *pairs = arguments
    names = [pair.split(":") for pair in pairs]
    carry(float(seconds), [(attach(near), attach(far)) for near, far in names])


if __name__ == "__main__":
    main(sys.argv[1:])
