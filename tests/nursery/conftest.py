# SPDX-License-Identifier: GPL-3.0-or-later
"""Hypothesis without deadlines here too, and threads for the clock that jumps."""

import pytest
import trio

import tests.unit.conftest  # noqa: F401


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that jumps does not wait for threads."""

    async def run_sync(work: object, *given: object) -> object:
        await trio.lowlevel.checkpoint()
        assert callable(work)
        return work(*given)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
