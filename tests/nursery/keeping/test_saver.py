# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
import structlog
import trio
import trio.testing
from structlog.testing import capture_logs

from phantommesh.nursery.keeping.saver import SAVE_AGAIN, Patience, Saver
from phantommesh.state.files import StateError


class Disk:
    def __init__(self) -> None:
        self.saver = Saver(self._write)
        self.writes, self.full, self.changes_meanwhile = 0, False, False

    async def _write(self) -> None:
        self.writes += 1
        if self.changes_meanwhile:
            self.changes_meanwhile = False
            self.saver.mark()
        await trio.lowlevel.checkpoint()
        if self.full:
            raise StateError("cannot write it", fix="free some space")


async def test_it_writes_what_has_changed_and_nothing_else() -> None:
    disk = Disk()
    await disk.saver.save()
    assert disk.writes == 0
    await disk.saver.save(always=True)
    disk.saver.mark()
    await disk.saver.save()
    await disk.saver.save()
    assert disk.writes == 2


async def test_what_changes_while_it_is_written_is_written_again() -> None:
    disk = Disk()
    disk.changes_meanwhile = True
    disk.saver.mark()
    await disk.saver.save()
    await disk.saver.marked()
    await disk.saver.save()
    await disk.saver.save()
    assert disk.writes == 2


async def test_what_could_not_be_written_is_written_later() -> None:
    disk = Disk()
    disk.full = True
    disk.saver.mark()
    with pytest.raises(StateError):
        await disk.saver.save()
    disk.full = False
    await disk.saver.save()
    assert disk.writes == 2


async def test_a_full_disk_is_said_and_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    disk = Disk()
    disk.full = True
    disk.saver.mark()
    began, patience = trio.current_time(), Patience(structlog.get_logger(), "it")
    with capture_logs() as logs:
        async with patience.patiently():
            await disk.saver.save()
    assert trio.current_time() == began + SAVE_AGAIN
    assert str(patience.problem) == "cannot write it"
    disk.full = False
    async with patience.patiently():
        await disk.saver.save()
    assert patience.problem is None
    assert logs == [
        {
            "event": "it not written",
            "error": "cannot write it",
            "fix": "free some space",
            "log_level": "error",
        }
    ]
