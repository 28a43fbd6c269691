# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines on their way to a record on disk: written soon, in bundles, and a full disk stops nothing."""

from __future__ import annotations

from collections import Counter, deque
from contextlib import suppress
from typing import Final

import structlog
import trio

from phantommesh import __version__
from phantommesh.agents.ledger import Line, MissedLine
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.ledger import Ledger
from phantommesh.nursery.keeping.saver import Patience
from phantommesh.state.files import StateError

# Tuning.
BUNDLE: Final = 256  # lines that one write has
MOST_LINES: Final = 4096  # that wait for the disk
LAST: Final = 2.0  # s for the last write when the node stops


class Journal:
    """The lines of one record. ``gather``: seconds that lines wait for others; ``run`` names this run of the
    node in the record's line of the start; ``dropped`` counts, as ``reason``, the lines that were lost."""

    def __init__(
        self, log: structlog.stdlib.BoundLogger, what: str, ledger: Ledger, *, run: str, gather: float,
        reason: str,
    ) -> None:  # fmt: skip
        self.disk = Patience(log, what)
        self.dropped = Counter[str]()
        self._log, self._what, self._ledger = log, what, ledger
        self._run, self._gather, self._reason = run, gather, reason
        self._begun = False
        self._lines = deque[Line]()
        self._missed = 0
        self._added = Bell()
        self._saved = Bell()
        self._count = 0
        self._lock = trio.Lock()

    def add(self, line: Line) -> None:
        """Have a line written. The oldest one is lost where too many wait for the disk."""
        if len(self._lines) >= MOST_LINES:
            self._lines.popleft()
            self.lost()
        self._lines.append(line)
        self._count += 1
        self._added.ring()

    def lost(self, lines: int = 1) -> None:
        """So many lines are not written: the record says that they are missing."""
        self._missed += lines
        self.dropped[self._reason] += lines

    async def written(self) -> None:
        """Return once all lines that were added so far are on disk, or lost."""
        count = self._count
        while self._count - len(self._lines) < count or self._lock.locked():
            await self._saved.wait()

    async def keep(self) -> None:
        """Write what is added, until cancelled; then once more."""
        try:
            while True:
                async with self.disk.patiently():
                    await self.save()
                if self.disk.problem is None and not self._lines:
                    await self._added.wait()
                    await trio.sleep(self._gather)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + LAST, shield=True), suppress(StateError):
                await self.save()

    async def save(self) -> None:
        """Write what has not been written. It is on disk then. Raises StateError."""
        async with self._lock:
            if not self._begun:
                torn = await trio.to_thread.run_sync(
                    self._ledger.begin, moment().wall, self._run, __version__
                )
                self._begun = True
                if torn:
                    self._log.warning(f"the end of {self._what} was torn and is dropped", bytes=torn)
            while self._lines:
                missed = self._missed
                lines = [self._lines.popleft() for _ in range(min(len(self._lines), BUNDLE))]
                if missed:
                    lines.insert(0, MissedLine(prev="", at=moment().wall, lines=missed))
                try:
                    await trio.to_thread.run_sync(self._ledger.write, lines)
                    self._missed -= missed
                except StateError:
                    self._lines.extendleft(reversed(lines[bool(missed) :]))
                    raise
        self._saved.ring()
