# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that dies between two writes to its state directory."""

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
