# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes to a state directory that go wrong: the process dies in between, or the first one takes its time."""

from threading import Event

import pytest

from phantommesh.statedir import StateDir


class Killed(BaseException):
    """The process died here: nothing after it ran."""


def die_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Let so many files be written, and no more."""
    write, left = StateDir.write, writes

    def count(self: StateDir, name: str, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(self, name, data)

    patch.setattr(StateDir, "write", count)


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
