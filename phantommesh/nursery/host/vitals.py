# SPDX-License-Identifier: GPL-3.0-or-later
"""The vital signs of this process: the lag of its loop, its memory, descriptors and tasks, the clock, the
disk."""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Final

import trio

from phantommesh.nursery.due import REMEMBERED, alive

# Tuning.
LAG_PROBE: Final = 1.0  # s between two measures of the loop's lag
HELD: Final = 1.0  # s of lag, from which all services are late, and OMNISCIENT judges none
MOST_HELD: Final = 128  # times that are remembered
DISK_LOOK: Final = 10.0  # s between looks at the disk's free space
DISK_ANSWER: Final = 5.0  # s that the disk has to answer; a network file system may hang

_PAGE: Final = resource.getpagesize()


class VitalSigns:
    """The signs of one process. ``lagged`` is called with each measure of the lag, in seconds; ``path`` is
    the state directory."""

    def __init__(self, path: Path, lagged: Callable[[float], None]) -> None:
        self.free: int | None = None
        """Bytes that are free where the state directory is; None: not known, or the disk does not answer."""
        self._path, self._lagged = path, lagged
        self._lag, self._jump = 0.0, 0.0
        self._offset: float | None = None
        self._held = deque[tuple[float, float]](maxlen=MOST_HELD)

    def lag(self) -> float:
        """The longest delay of the loop in seconds since the last call."""
        lag, self._lag = self._lag, 0.0
        return lag

    def held(self) -> tuple[tuple[float, float], ...]:
        """From when until when the whole process was held up (stopped, frozen, or its loop blocked), within
        the time for which late turns are remembered. The time since the probe before counts whole, for
        nobody knows when in it the process stopped."""
        since = trio.current_time() - REMEMBERED
        return tuple(one for one in self._held if one[1] > since)

    def jump(self) -> float:
        """The seconds by which the wall clock went another way than the monotonic one since the last call."""
        jump, self._jump = self._jump, 0.0
        return jump

    async def run(self) -> None:
        """Measure until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_disk)
            while True:
                due = trio.current_time() + LAG_PROBE
                alive(LAG_PROBE)
                await trio.sleep_until(due)
                now = trio.current_time()
                self._lag = max(self._lag, now - due)
                self._lagged(now - due)
                if now - due > HELD:
                    self._held.append((due - LAG_PROBE, now))
                offset = time() - now
                if self._offset is not None:
                    self._jump += offset - self._offset
                self._offset = offset

    async def _watch_disk(self) -> None:
        while True:
            with trio.move_on_after(DISK_ANSWER) as asking:
                self.free = await trio.to_thread.run_sync(self._free, abandon_on_cancel=True)
            if asking.cancelled_caught:
                self.free = None
            await trio.sleep(DISK_LOOK)

    def _free(self) -> int | None:
        try:
            found = os.statvfs(self._path)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize


def memory() -> int | None:
    """The resident memory of this process in bytes; None where the kernel does not say."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def descriptors() -> tuple[int, int] | None:
    """The number of open file descriptors, and the limit; None where the kernel does not say."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except OSError:
        return None
