# SPDX-License-Identifier: GPL-3.0-or-later
"""State that changes while the node runs and is on disk: written when it has changed. A full disk ends
nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from phantommesh.state.files import StateError

# Tuning.
SAVE_AGAIN = 5.0  # s after the disk refused


@asynccontextmanager
async def patiently(log: structlog.stdlib.BoundLogger, what: str) -> AsyncIterator[None]:
    """Within: write ``what``. If the disk refuses, say so and wait a while instead of raising."""
    try:
        yield
    except StateError as error:
        log.error(f"{what} not written", error=str(error), fix=error.fix)
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
