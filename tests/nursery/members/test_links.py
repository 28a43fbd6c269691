# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any, cast

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from phantommesh.link.effects import Effect
from phantommesh.link.machine import Links
from phantommesh.nursery.members.links import LinkDriver


class Scripted:
    """Links that have nothing to say, and are due when the test says."""

    def __init__(self) -> None:
        self.deadline = 100.0
        self.ticks: list[float] = []

    def receive(self, *_: object) -> list[Effect]:
        return []

    def tick(self, now: float) -> list[Effect]:
        self.ticks.append(now)
        self.deadline = float("inf")
        return []


async def test_sleeps_until_the_deadline_wherever_it_has_moved(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Scripted()
    driver = LinkDriver(
        cast("Links", links), cast("Any", None), cast("Any", None),
        install=lambda _: None, opened=lambda _: None, alarmed=lambda _: None,
    )  # fmt: skip
    start = trio.current_time()
    links.deadline = start + 100
    nursery.start_soon(driver.run)
    await wait_all_tasks_blocked()
    links.deadline = start + 5  # earlier: a datagram that started a timer
    driver.receive(b"", cast("Any", None))
    await trio.sleep_until(start + 6)
    assert links.ticks == [start + 5]
    links.deadline = start + 20
    driver.wake()
    await wait_all_tasks_blocked()
    links.deadline = start + 50  # later: an answer came in time
    driver.wake()
    await trio.sleep_until(start + 200)
    assert links.ticks == [start + 5, start + 50]
