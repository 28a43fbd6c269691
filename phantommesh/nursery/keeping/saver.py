# SPDX-License-Identifier: GPL-3.0-or-later
"""State that changes while the node runs and is on disk: written when it has changed. A full disk ends
nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from phantommesh.faults import FaultKind
from phantommesh.state.files import StateError

NOT_WRITTEN = FaultKind("state-not-written", "high")

# Tuning.
SAVE_AGAIN = 5.0  # s after the disk refused


class Patience:
    """What to do while the disk refuses to take ``what``: say so, wait, try again. ``problem`` is why it
    refuses now, None where the last attempt went well."""

    def __init__(self, log: structlog.stdlib.BoundLogger, what: str) -> None:
        self.problem: StateError | None = None
        self._log, self._what = log, what

    @asynccontextmanager
    async def patiently(self) -> AsyncIterator[None]:
        """Within: write it. If the disk refuses, wait a while instead of raising."""
        try:
            yield
            self.problem = None
        except StateError as error:
            self.problem = error
            self._log.error(f"{self._what} not written", error=str(error), fix=error.fix)
            await trio.sleep(SAVE_AGAIN)


class Saver:
    """Knows whether something has changed since ``write()`` last began to write it. A value that changes
    while it is written is written again; so is one that could not be written."""

    def __init__(self, write: Callable[[], Awaitable[None]]) -> None:
        self.lock = trio.Lock()  # from what is written until it is: the last to write has the newest
        self._write = write
        self._marked = trio.Event()

    def mark(self) -> None:
        """Something has changed."""
        self._marked.set()

    async def marked(self) -> None:
        """Return once something has changed that is not written."""
        await self._marked.wait()

    async def save(self, *, always: bool = False) -> None:
        """Write it if it has changed, or ``always``. Raises what ``write`` does."""
        async with self.lock:
            if not (always or self._marked.is_set()):
                return
            self._marked = trio.Event()
            try:
                await self._write()
            except BaseException:
                self._marked.set()
                raise
