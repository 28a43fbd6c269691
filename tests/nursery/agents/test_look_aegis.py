# SPDX-License-Identifier: GPL-3.0-or-later
"""AEGIS's look at a host, where what it reads does not answer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from phantommesh.hostcheck.seen import HostSeen
from phantommesh.nursery.agents import look_aegis
from phantommesh.nursery.host import scanning
from phantommesh.nursery.host.scanning import Where


async def test_a_look_that_hangs_can_be_given_up_and_no_second_one_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file system that does not answer must hold neither the agent nor the node's end, nor one thread more
    with each look."""
    began, runs, answers = list[Where](), threading.Event(), threading.Event()

    def hang(where: Where) -> HostSeen:
        began.append(where)
        runs.set()
        answers.wait(10.0)
        return HostSeen(now=0.0, uid=0)

    monkeypatch.setattr(scanning, "look", hang)
    where = Where(Path("state"), Path("pm.toml"))
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_aegis._scan, where)
            await trio.to_thread.run_sync(runs.wait, 10.0)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not answers.is_set() and len(began) == 1
    answers.set()
    assert await look_aegis._scan(where) == HostSeen(now=0.0, uid=0)
    assert len(began) == 2
