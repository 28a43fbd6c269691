# SPDX-License-Identifier: GPL-3.0-or-later
"""The vital signs of this process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from phantommesh.nursery.host import vitals
from phantommesh.nursery.host.vitals import VitalSigns, descriptors, memory


async def test_a_loop_that_is_held_up_lags_and_a_clock_that_jumps_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "LAG_PROBE", 0.05)
    ahead, told = [0.0], list[float]()
    monkeypatch.setattr(vitals, "time", lambda: time.time() + ahead[0])
    signs = VitalSigns(tmp_path, told.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signs.run)
        with trio.fail_after(30):
            while len(told) < 2 or signs.free is None:
                await trio.sleep(0.01)
            signs.lag(), signs.jump()
            time.sleep(0.4)  # noqa: ASYNC251  # the loop itself is to be held up
            ahead[0] = -100.0
            count = len(told)
            while len(told) < count + 2:
                await trio.sleep(0.01)
        assert signs.lag() > 0.2 and signs.lag() < 0.2
        assert signs.jump() == pytest.approx(-100.0, abs=1.0) and abs(signs.jump()) < 1.0
        assert signs.free > 0
        nursery.cancel_scope.cancel()


async def test_a_disk_that_does_not_answer_is_not_known_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "DISK_ANSWER", 0.05)
    monkeypatch.setattr(vitals, "DISK_LOOK", 0.01)
    signs = VitalSigns(tmp_path, lambda lag: None)
    hangs = [False]

    def free() -> int:
        if hangs[0]:
            time.sleep(0.3)
        return 5

    monkeypatch.setattr(signs, "_free", free)

    def room() -> int | None:
        return signs.free

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signs.run)
        with trio.fail_after(30):
            while room() != 5:
                await trio.sleep(0.01)
            hangs[0] = True
            while room() is not None:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def test_memory_and_descriptors_are_of_this_process(tmp_path: Path) -> None:
    found = memory()
    assert found is not None and 10 * 2**20 < found < 2**40
    before = descriptors()
    assert before is not None
    with (tmp_path / "one").open("wb"):
        after = descriptors()
    assert after is not None and after[0] == before[0] + 1 and after[1] == before[1]
