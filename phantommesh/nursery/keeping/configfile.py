# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the configuration's file says something else than the node runs with, though nobody had it
reload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from phantommesh.config.changes import change
from phantommesh.config.sections import Config
from phantommesh.errors import PhantomMeshError
from phantommesh.state.agreement import load_config


class ConfigFile:
    """Looks at the file; it is read again only when its time, size or inode has changed."""

    def __init__(self, state_dir: Path) -> None:
        self.path: Path | None = None
        """None: the node was not started from a file."""
        self.drift: tuple[str, ...] = ()
        """The keys in which the file differs, and which no reload has met. No values."""
        self.unusable = False
        """The file was changed, and does not hold."""
        self._state_dir = state_dir
        self._seen: tuple[int, int, int] | None = None
        self._read: Config | None = None

    async def look(self, running: Config, waiting: Sequence[str]) -> None:
        """Compare the file with what runs now; ``waiting`` are keys that a reload has met already."""
        if self.path is None:
            return
        await trio.to_thread.run_sync(self._look, self.path)
        if self._read is None:
            self.drift = ()
            return
        found = change(running, self._read)
        self.drift = tuple(key for key in (*found.taken, *found.waiting) if key not in waiting)

    def _look(self, path: Path) -> None:
        try:
            stat = path.stat()
        except OSError:
            self._seen, self._read, self.unusable = None, None, True
            return
        seen = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._read, self.unusable = load_config(path, self._state_dir), False
        except PhantomMeshError:
            self._read, self.unusable = None, True
