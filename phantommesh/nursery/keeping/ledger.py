# SPDX-License-Identifier: GPL-3.0-or-later
"""A record on disk, of decisions or of what was asked of the API: files of bounded size, a bounded number of
them. All of it blocks: call it in a thread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from phantommesh.agents import ledger
from phantommesh.agents.ledger import Checked, Line, StartLine
from phantommesh.state.files import (
    Place,
    PlaceError,
    append_to,
    atomic_write,
    cannot,
    place_of,
    read_file,
)

# Tuning.
MOST_BYTES: Final = 2 * 1024 * 1024  # of one file: 3,000 decisions and what came of them
MOST_FILES: Final = 8  # the oldest goes

_NAME: Final = re.compile(r"(?:decisions|audit)-([0-9]{8})\.jsonl")


def files(directory: Path) -> list[Path]:
    """The record's files, oldest first."""
    return sorted(path for path in directory.glob("*.jsonl") if _NAME.fullmatch(path.name))


def check(directory: Path) -> Checked:
    """Check the record of a node, which may be running. Raises StateError where it cannot be read."""
    return ledger.check((path.name, read_file(path)) for path in files(directory))


def latest(directory: Path, count: int) -> list[Line]:
    """The latest so many lines, oldest first. Raises StateError."""
    found: list[Line] = []
    for path in reversed(files(directory)):
        found = [*ledger.read(read_file(path)), *found]
        if len(found) >= count:
            break
    return found[-count:]


class Ledger:
    """Writes a record, which has a directory of its own. Hold the state directory's lock: there is one
    writer. ``name`` begins the files' names."""

    def __init__(self, directory: Path, name: Literal["decisions", "audit"] = "decisions") -> None:
        self._directory, self._name = directory, name
        self._last: str | None = None  # None: not begun
        self._file: Path | None = None
        self._place: Place | None = None
        self._torn = 0

    def begin(self, at: float, run: str, version: str) -> int:
        """Go on after the last whole line, and write down that the node has started. Return how many bytes of
        a torn line were dropped. Raises StateError."""
        self._last, torn = self._find_end()
        self._torn += torn
        self.write([StartLine(prev="", at=at, run=run, version=version, torn=self._torn)])
        return self._torn

    def write(self, lines: Sequence[Line]) -> None:
        """Add lines, all or none; they are on disk then. Raises StateError: then the end is where it was, or
        a new file is begun next."""
        assert self._last is not None
        data, last = ledger.chain(lines, self._last)
        if self._file is not None and self._place is not None and self._place.end + len(data) <= MOST_BYTES:
            try:
                self._place = append_to(self._file, self._place, data)
                self._last = last
                return
            except PlaceError:
                # Nobody knows what of it is on disk: read the end anew.
                self._last, _ = self._find_end()
                data, last = ledger.chain(lines, self._last)
        self._begin_file(data)
        self._last = last

    def _begin_file(self, data: bytes) -> None:
        there = files(self._directory)
        number = int(_NAME.fullmatch(there[-1].name)[1]) + 1 if there else 1  # type: ignore[index]
        path = self._directory / f"{self._name}-{number:08}.jsonl"
        for old in there[: max(0, len(there) - MOST_FILES + 1)]:
            old.unlink(missing_ok=True)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise cannot(f"make {self._directory}", error) from error
        atomic_write(path, data)
        self._file, self._place = path, place_of(path)

    def _find_end(self) -> tuple[str, int]:
        """Find the last whole line, and cut off what is behind. Return its hash, and how many bytes were cut
        off. Files without any whole line are removed."""
        torn = 0
        self._file = self._place = None
        for path in reversed(files(self._directory)):
            data = read_file(path)
            end = ledger.tail(data)
            torn += end.torn
            if end.last is None:
                path.unlink(missing_ok=True)
                continue
            if end.torn:
                atomic_write(path, data[: end.kept])
            self._file, self._place = path, place_of(path)
            return end.last, torn
        return ledger.FIRST, torn
