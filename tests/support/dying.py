# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes to a state directory that go wrong: the process dies in between, or the first one takes its time."""

from collections.abc import Callable
from threading import Event

import pytest

from phantommesh.state.directory import StateDir
from phantommesh.state.files import Place


class Killed(BaseException):
    """The process died here: nothing after it ran."""


def die_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Let so many files be written, and no more."""
    write, append, left = StateDir.write, StateDir.append, writes

    def count() -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1

    def writing(self: StateDir, name: str, data: bytes) -> None:
        count()
        write(self, name, data)

    def appending(self: StateDir, name: str, place: Place, data: bytes) -> Place:
        count()
        return append(self, name, place, data)

    patch.setattr(StateDir, "write", writing)
    patch.setattr(StateDir, "append", appending)


def watch(patch: pytest.MonkeyPatch, before: Callable[[StateDir, str, bytes], None]) -> None:
    """Have ``before`` called before every write of a file and every addition to one, with the bytes."""
    write, append = StateDir.write, StateDir.append

    def writing(self: StateDir, name: str, data: bytes) -> None:
        before(self, name, data)
        write(self, name, data)

    def appending(self: StateDir, name: str, place: Place, data: bytes) -> Place:
        before(self, name, data)
        return append(self, name, place, data)

    patch.setattr(StateDir, "write", writing)
    patch.setattr(StateDir, "append", appending)


def hold_first(patch: pytest.MonkeyPatch, held: str) -> tuple[Event, Event]:
    """Hold the first write of a file back until the second event; the first event says that it has come."""
    write, come, go_on = StateDir.write, Event(), Event()

    def hold(self: StateDir, name: str, data: bytes) -> None:
        if name == held and not come.is_set():
            come.set()
            assert go_on.wait(10)
        write(self, name, data)

    patch.setattr(StateDir, "write", hold)
    return come, go_on
