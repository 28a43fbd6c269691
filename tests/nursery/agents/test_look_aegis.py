# SPDX-License-Identifier: GPL-3.0-or-later
"""AEGIS's look at a host, where what it reads does not answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from phantommesh.hostcheck.seen import HostSeen
from phantommesh.nursery.agents import look_aegis
from phantommesh.nursery.host import scanning
from phantommesh.nursery.host.scanning import Where


async def test_a_look_that_hangs_can_be_given_up_and_no_second_one_begins(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that does not answer must hold neither the agent nor the node's end, nor one thread more
    with each look."""
    began, answers = list[Where](), threading.Event()

    def hang(where: Where) -> HostSeen:
        began.append(where)
        answers.wait(10.0)
        return HostSeen(now=0.0, uid=0)

    monkeypatch.setattr(scanning, "look", hang)
    where = Where(Path("state"), Path("pm.toml"))
    for _ in range(3):
        with trio.move_on_after(5.0) as scope:
            await look_aegis._scan(where)
        assert scope.cancelled_caught
    assert len(began) == 1
    answers.set()
    assert await look_aegis._scan(where) == HostSeen(now=0.0, uid=0)
    assert len(began) == 2
