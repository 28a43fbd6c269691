# SPDX-License-Identifier: GPL-3.0-or-later
"""Power cuts between any two system calls, and in the middle of each: what one file may hold afterwards.

Until a file is synced, any of the changes to it may be on the disk or not, in any order. Any number of the
last bytes that were written may be there, and the rest be missing, be zeros, or be the bytes of before. They
may also be there page by page: of the pages that they touch any may be missing, and the others there. Until
the directory is synced, a rename may be undone.
"""

import os
import stat
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path

import pytest

Change = tuple[int, bytes | None]  # an offset and what was written there; None: cut off there
PAGE = 4096
ALL_SUBSETS = 6  # pages, of which any may be lost; of more one or two, or all but one or two


class PowerCuts:
    """Calls ``check`` with every content that the file ``path`` may have after a power cut, at each step.

    Each ``every``th length of a torn write is looked at. ``refuse`` is called before each system call with
    its name, and may raise what the call is to raise.
    """

    def __init__(self, path: Path, check: Callable[[bytes], None], every: int = 1) -> None:
        self.path, self._check, self._every = path, check, every
        self._entry = path.stat().st_ino
        self._renamed: int | None = None
        self._durable = {self._entry: path.read_bytes()}
        self._changes = dict[int, list[Change]]()
        self.refuse: Callable[[str], None] = lambda _: None
        self.calls = list[str]()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watch the system calls until the patch is undone."""
        ftruncate, pwrite, fsync, replace = os.ftruncate, os.pwrite, os.fsync, os.replace

        def truncating(descriptor: int, length: int) -> None:
            self._before("ftruncate")
            ftruncate(descriptor, length)
            self._after(descriptor, (length, None))

        def writing(descriptor: int, data: bytes, at: int) -> int:
            self._before("pwrite")
            count = pwrite(descriptor, data, at)
            self._after(descriptor, (at, bytes(data[:count])))
            return count

        def syncing(descriptor: int) -> None:
            self._before("fsync")
            fsync(descriptor)
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                if self._renamed is not None:
                    self._entry, self._renamed = self._renamed, None
            else:
                self._durable[os.fstat(descriptor).st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
                self._changes.pop(os.fstat(descriptor).st_ino, None)
            self.look()

        def renaming(source: Path, target: Path) -> None:
            self._before("replace")
            inode = Path(source).stat().st_ino
            replace(source, target)
            if Path(target) == self.path:
                self._renamed = inode
            self.look()

        patch.setattr(os, "ftruncate", truncating)
        patch.setattr(os, "pwrite", writing)
        patch.setattr(os, "fsync", syncing)
        patch.setattr(os, "replace", renaming)

    def _before(self, name: str) -> None:
        self.calls.append(name)
        self.refuse(name)

    def _after(self, descriptor: int, change: Change) -> None:
        self._changes.setdefault(os.fstat(descriptor).st_ino, []).append(change)
        self.look()

    def look(self) -> None:
        """Check what a power cut at this moment would leave."""
        for inode in {self._entry, self._renamed} - {None}:
            assert inode is not None
            for content in self._contents(self._durable.get(inode, b""), self._changes.get(inode, [])):
                self._check(content)

    def _contents(self, durable: bytes, changes: list[Change]) -> Iterator[bytes]:
        for there in product((False, True), repeat=len(changes)):
            kept = [change for change, is_there in zip(changes, there, strict=True) if is_there]
            yield _apply(durable, kept)
            if kept and (data := kept[-1][1]) is not None:
                before, at = _apply(durable, kept[:-1]), kept[-1][0]
                for length in {*range(0, len(data), self._every), len(data) - 1}:
                    head = before[:at].ljust(at, b"\0") + data[:length]
                    yield head
                    yield head + bytes(len(data) - length)
                    yield head + before[len(head) :]
                    yield before[:at].ljust(at, b"\0") + bytes(length) + data[length:]
                yield from _with_pages_lost(before, at, data)


def _with_pages_lost(before: bytes, at: int, data: bytes) -> Iterator[bytes]:
    """Yield the contents after a write of which some pages are on disk, and the others are as ``before``."""
    after = _apply(before, [(at, data)])
    starts = range(at // PAGE * PAGE, at + len(data), PAGE)
    few = (1, 2, len(starts) - 2, len(starts) - 1)
    for number in range(1, len(starts)) if len(starts) <= ALL_SUBSETS else few:
        for lost in combinations(starts, number):
            content, old = bytearray(after), before.ljust(len(after), b"\0")
            for start in lost:
                content[start : start + PAGE] = old[start : start + PAGE]
            yield bytes(content)
            ends = max(start + PAGE for start in starts if start not in lost)
            if ends < len(after):
                yield bytes(content[: max(ends, len(before))])


def _apply(content: bytes, changes: list[Change]) -> bytes:
    for at, data in changes:
        rest = b"" if data is None else data + content[at + len(data) :]
        content = content[:at].ljust(at, b"\0") + rest
    return content
