# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory of threat patterns while it changes: read at the start, and written when it has changed.

Changes are added to the file at most `PAUSE` apart, so a process that is killed loses the last second at
most. A full disk ends nothing: the changes wait, bounded, and the whole memory is written once it can be.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import perf_counter, time
from typing import Final

import structlog
import trio

from phantommesh.config.memory import MemorySection
from phantommesh.mnemonic import file
from phantommesh.mnemonic.canaries import Canaries
from phantommesh.mnemonic.file import Content
from phantommesh.mnemonic.hints import Hinter, Hints
from phantommesh.mnemonic.memory import Copy, Item, Key, Memory, Pattern, Summary
from phantommesh.mnemonic.reputation import Reputation
from phantommesh.nursery.keeping.saver import Patience
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import MAX_FILE_BYTES, Place, StateError
from phantommesh.trust.identity import NodeId

# Tuning.
PAUSE: Final = (
    0.5  # s between the beginnings of two writes; a write takes milliseconds, two disk syncs at worst
)

log = structlog.get_logger("phantommesh.memory")


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be written: changes, or (``whole``) everything."""

    items: list[Item] | Copy
    reputations: list[Reputation]

    @property
    def whole(self) -> bool:
        return isinstance(self.items, Copy)

    def encode(self) -> bytes:
        items = self.items.items() if isinstance(self.items, Copy) else self.items
        return file.encode(items, self.reputations) if self.whole else file.added(items, self.reputations)


class MemoryKeeper:
    """This node's memory and the hints that it holds. Call `changed` after a change of either. ``who`` finds
    a member that hints. ``shields`` says whether this node never bans a source block. ``recalled`` is told
    how many seconds a recall took."""

    def __init__(
        self,
        section: MemorySection,
        state: StateDir,
        me: NodeId,
        who: Callable[[NodeId], Hinter | None],
        recalled: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.memory = Memory(section.megabytes * 1024 * 1024, section.half_life_seconds, os.urandom(32))
        self.hints = Hints(me, who)
        self.canaries = Canaries()
        self.shields: Callable[[str], bool] = lambda source: False
        self.disk = Patience(log, "memory")
        self._state, self._recalled = state, recalled
        self._dirty = trio.Event()
        self._saving = trio.Lock()
        self._place: Place | None = None  # None: the file is to be written whole
        self._most: float = inf
        self._damage = ""
        self._read()

    @property
    def dropped(self) -> Counter[str]:
        """Lists of hints and single hints that were dropped, by reason."""
        return self.hints.dropped

    def never(self, source: str) -> float | None:
        """Since when a source block is never banned, as `hints.Never` has it."""
        since = self.canaries.since(source)
        return inf if since is None and self.shields(source) else since

    def recall(self, key: Key, now: float) -> Pattern | None:
        """`Memory.recall`, measured."""
        began = perf_counter()
        found = self.memory.recall(key, now)
        self._recalled(perf_counter() - began)
        return found

    def changed(self) -> None:
        """The memory or the hints have changed: they are written soon."""
        self._dirty.set()

    async def summary(self, count: int) -> Summary:
        """`Memory.summary`, made in a thread."""
        return await trio.to_thread.run_sync(self.memory.summary, time(), count, self.memory.copy())

    async def run(self) -> None:
        """Write what has changed, until cancelled."""
        if self._damage:
            log.warning(
                "a part of the memory's file cannot be read, and is forgotten",
                file=str(self._state.path / directory.MEMORY),
                reason=self._damage,
                fix="nothing, after a crash or a power cut; else check the disk",
            )
        began = -inf
        while True:
            await self._dirty.wait()
            await trio.sleep_until(began + PAUSE)
            began = trio.current_time()
            async with self.disk.patiently():
                await self.save()

    async def save(self) -> None:
        """Write what has changed; it is on disk when this returns. Raises StateError."""
        async with self._saving:
            self._dirty = trio.Event()
            if not (self.memory.unsaved or self.hints.reputations.unsaved):
                return
            try:
                await trio.to_thread.run_sync(self._write, self._take())
            except BaseException:
                self.memory.give_back()
                self._dirty.set()
                raise

    def _take(self) -> _Job:
        items, reputations = self.memory.take_changes(), self.hints.reputations.take_changes()
        if items is None or self._place is None or self._place.end > self._most:
            return _Job(self.memory.copy(), self.hints.reputations.all())
        return _Job(items, reputations)

    def _write(self, job: _Job) -> None:
        """Write a job. Blocks. Raises StateError: all is to be written then."""
        data = job.encode()
        if not job.whole:
            assert self._place is not None
            self._place = self._state.append(directory.MEMORY, self._place, data)
            return
        self._state.write(directory.MEMORY, data)
        self._place = self._state.place(directory.MEMORY)
        self._most = min(file.most_size(len(data)), MAX_FILE_BYTES)

    def _read(self) -> None:
        """Read the file, before the node runs. What cannot be read is forgotten."""
        if not self._state.has(directory.MEMORY):
            return
        try:
            data, place = self._state.read(directory.MEMORY), self._state.place(directory.MEMORY)
        except StateError as error:
            self._damage = str(error)
            return
        content, now = file.decode(data), time()
        refused = self.memory.restore(content.patterns, now)
        refused += self.hints.reputations.restore(content.hinters, now)
        self._damage = _told(content, refused)
        if not self._damage and place.end == len(data):
            self._place, self._most = place, file.most_size(len(data))


def _told(content: Content, refused: int) -> str:
    """What was lost, for people; empty where nothing was."""
    parts = [f"{content.torn} bytes at the end are no whole frame"] if content.torn else []
    if content.lost > content.torn:
        parts.append(f"{content.lost - content.torn} bytes before cannot be read")
    if refused:
        parts.append(f"{refused} items cannot be")
    return "; ".join(parts)
