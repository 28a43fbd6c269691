# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory of a node on disk: written soon, read again, and whole whenever the process dies."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from time import time

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from phantommesh.mnemonic import file
from phantommesh.mnemonic.memory import MOST_NOTED
from phantommesh.nursery.keeping.memory import PAUSE, MemoryKeeper
from phantommesh.nursery.keeping.saver import SAVE_AGAIN
from phantommesh.state import directory
from phantommesh.state.directory import StateDir
from phantommesh.state.files import Place, StateError
from phantommesh.trust.identity import NodeId
from tests.support.powerloss import PowerCuts
from tests.support.remembering import key, left, make_keeper

LIAR = NodeId(b"l" * 16)


def remembered(at: Path, upto: int = 50) -> list[int]:
    return list(left(at, upto))


def record(keeper: MemoryKeeper, *numbers: int) -> None:
    for number in numbers:
        keeper.memory.record(key(number), time())
    keeper.changed()


async def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    keeper = make_keeper(tmp_path)
    record(keeper, 1, 2)
    keeper.hints.reputations.expose(LIAR, time())
    await keeper.save()
    keeper.memory.forget(key(1))
    record(keeper, 3)
    await keeper.save()
    assert remembered(tmp_path) == [2, 3]
    assert make_keeper(tmp_path).hints.reputations.weight(LIAR, time()) == 0.0


async def test_a_change_is_added_and_now_and_then_all_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "SLACK", 2_000)
    path, keeper = tmp_path / directory.MEMORY, make_keeper(tmp_path)
    sizes = [0]
    for _ in range(60):
        record(keeper, 1, 2, 3)
        await keeper.save()
        sizes.append(path.stat().st_size)
    grown = [after - before for before, after in pairwise(sizes)]
    assert max(grown[1:]) < 300  # three patterns
    assert min(grown) < 0 and max(sizes) < 3_000
    assert remembered(tmp_path) == [1, 2, 3]


async def test_a_node_that_starts_again_adds_to_the_file_that_is_there(tmp_path: Path) -> None:
    keeper = make_keeper(tmp_path)
    record(keeper, 1)
    await keeper.save()
    inode = (tmp_path / directory.MEMORY).stat().st_ino
    keeper = make_keeper(tmp_path)
    record(keeper, 2)
    await keeper.save()
    assert (tmp_path / directory.MEMORY).stat().st_ino == inode and remembered(tmp_path) == [1, 2]


async def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    keeper = make_keeper(tmp_path)
    keeper.changed()
    await keeper.save()
    assert not (tmp_path / directory.MEMORY).exists()


@pytest.mark.usefixtures("at_once")
async def test_a_change_is_written_at_once_or_at_most_a_pause_later(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    keeper = make_keeper(tmp_path)
    nursery.start_soon(keeper.run)
    record(keeper, 1)
    await trio.sleep(1e-3)
    assert remembered(tmp_path) == [1]
    for number in range(2, 40):
        record(keeper, number)
        await trio.sleep(PAUSE / 10)
        assert number - len(remembered(tmp_path)) <= 10
    await trio.sleep(PAUSE)
    assert len(remembered(tmp_path)) == 39
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("at_once")
async def test_a_full_disk_ends_nothing_and_what_waits_is_bounded(
    tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = make_keeper(tmp_path)
    record(keeper, 1)
    await keeper.save()

    def full(state: StateDir, name: str, *given: object) -> Place:
        raise StateError("no space", fix="free some")

    with monkeypatch.context() as patch, capture_logs():
        patch.setattr(StateDir, "append", full)
        patch.setattr(StateDir, "write", full)
        nursery.start_soon(keeper.run)
        for number in range(2 * MOST_NOTED):
            record(keeper, number)
        await trio.sleep(SAVE_AGAIN / 2)
        problem = keeper.disk.problem
        assert problem is not None and remembered(tmp_path) == [1]
        record(keeper, 50)
        assert len(keeper.memory._changed) <= MOST_NOTED
    await trio.sleep(2 * SAVE_AGAIN)
    assert keeper.disk.problem is None and remembered(tmp_path) == list(range(51))
    nursery.cancel_scope.cancel()


async def test_a_torn_end_is_told_and_the_file_is_written_anew(tmp_path: Path) -> None:
    keeper = make_keeper(tmp_path)
    record(keeper, 1)
    await keeper.save()
    record(keeper, 2)
    await keeper.save()
    path = tmp_path / directory.MEMORY
    path.write_bytes(path.read_bytes()[:-1])
    keeper = make_keeper(tmp_path)
    with capture_logs() as logs, trio.move_on_after(0):
        await keeper.run()
    assert "bytes at the end are no whole frame" in logs[0]["reason"]
    record(keeper, 3)
    await keeper.save()
    assert not file.decode(path.read_bytes()).lost and remembered(tmp_path) == [1, 3]


@pytest.mark.parametrize("content", [b"", b"something else", b"\xff" * 5000])
async def test_a_file_that_cannot_be_read_costs_the_memory_only(tmp_path: Path, content: bytes) -> None:
    (tmp_path / directory.MEMORY).write_bytes(content)
    keeper = make_keeper(tmp_path)
    assert len(keeper.memory) == 0
    record(keeper, 1)
    await keeper.save()
    assert remembered(tmp_path) == [1]


async def test_a_place_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / directory.MEMORY).write_bytes(b"")
    (tmp_path / directory.MEMORY).unlink()
    (tmp_path / directory.MEMORY).symlink_to("elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"x")
    keeper = make_keeper(tmp_path)
    with capture_logs() as logs, trio.move_on_after(0):
        await keeper.run()
    assert logs[0]["log_level"] == "warning"


async def test_another_hand_at_the_file_makes_it_be_written_anew(tmp_path: Path) -> None:
    keeper = make_keeper(tmp_path)
    record(keeper, 1)
    await keeper.save()
    (tmp_path / directory.MEMORY).write_bytes(b"something else")
    record(keeper, 2)
    with pytest.raises(StateError):
        await keeper.save()
    await keeper.save()
    assert remembered(tmp_path) == [1, 2]


@pytest.mark.usefixtures("at_once")
async def test_no_power_cut_takes_what_was_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each system call, whatever the disk has made of those before."""
    keeper = make_keeper(tmp_path)
    record(keeper, 1)
    await keeper.save()
    safe, coming = {1}, {1}

    def check(content: bytes) -> None:
        memory = make_keeper(tmp_path / "none").memory
        assert memory.restore(file.decode(content).patterns, time()) == 0
        found = {number for number in range(8) if memory.recall(key(number), time()) is not None}
        assert safe <= found <= coming

    cuts = PowerCuts(tmp_path / directory.MEMORY, check, every=7)
    with monkeypatch.context() as patch:
        cuts.install(patch)
        for number in range(2, 6):
            if number == 4:
                keeper.memory.give_back()  # the whole file by a rename
            record(keeper, number)
            coming.add(number)
            await keeper.save()
            safe.add(number)
    assert {"pwrite", "fsync", "replace"} <= set(cuts.calls)


async def test_the_summary_is_made_in_a_thread(tmp_path: Path) -> None:
    keeper = make_keeper(tmp_path)
    record(keeper, 1, 2)
    summary = await keeper.summary(1)
    assert summary.patterns == 2 and len(summary.strongest) == 1


async def test_recalls_are_measured(tmp_path: Path) -> None:
    took = list[float]()
    keeper = make_keeper(tmp_path)
    keeper._recalled = took.append
    record(keeper, 1)
    assert keeper.recall(key(1), time()) is not None and len(took) == 1


@pytest.mark.parametrize("lines", [1, 40, 3000])
def test_a_process_that_is_killed_has_all_on_disk_that_was_written(tmp_path: Path, lines: int) -> None:
    """kill -9, at a moment in which it records and writes."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.remembering", str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        while not any(line.startswith("w") for line in said):
            said.append(process.stdout.readline())
        process.kill()
        said += process.stdout.readlines()
    written = max(int(line.split()[1]) for line in said if line.startswith("w "))
    recorded = max(int(line.split()[1]) for line in said if line.startswith("r "))
    found = remembered(tmp_path, recorded + 100)
    assert found[:written] == list(range(1, written + 1))
