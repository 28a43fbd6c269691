# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of decisions on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phantommesh.agents.ledger import Line, MissedLine, StartLine
from phantommesh.nursery.keeping import ledger
from phantommesh.nursery.keeping.ledger import Ledger
from phantommesh.state.files import StateError


def lines(count: int, first: int = 0) -> list[Line]:
    return [MissedLine(prev="", at=1.0, lines=first + number) for number in range(count)]


def begun(at: Path, run: str = "one") -> Ledger:
    made = Ledger(at)
    made.begin(1.0, run, "1")
    return made


def test_starts_follow_each_other_in_one_chain(tmp_path: Path) -> None:
    for run in ("one", "two", "three"):
        begun(tmp_path, run).write(lines(3))
    checked = ledger.check(tmp_path)
    assert (checked.files, checked.lines, checked.problem) == (1, 12, "")
    assert [one.run for one in ledger.latest(tmp_path, 100) if isinstance(one, StartLine)] == [
        "one",
        "two",
        "three",
    ]
    assert ledger.latest(tmp_path, 2) == ledger.latest(tmp_path, 100)[-2:]
    assert oct(ledger.files(tmp_path)[0].stat().st_mode & 0o777) == "0o600"


def test_files_are_bounded_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_BYTES", 1000)
    made = begun(tmp_path)
    for number in range(100):
        made.write(lines(3, number))
    there = ledger.files(tmp_path)
    assert len(there) == ledger.MOST_FILES and all(path.stat().st_size <= 1000 for path in there)
    assert not ledger.check(tmp_path).problem
    begun(tmp_path, "two").write(lines(1))
    assert not ledger.check(tmp_path).problem


@pytest.mark.parametrize("rest", [b'{"kind":"mis', b"\0" * 100, b"nonsense\n"])
def test_a_torn_end_is_dropped_and_counted(tmp_path: Path, rest: bytes) -> None:
    begun(tmp_path).write(lines(3))
    (path,) = ledger.files(tmp_path)
    with path.open("ab") as file:
        file.write(rest)
    assert Ledger(tmp_path).begin(2.0, "two", "1") == len(rest)
    found = ledger.latest(tmp_path, 100)
    assert len(found) == 5 and isinstance(found[-1], StartLine) and found[-1].torn == len(rest)
    assert not ledger.check(tmp_path).problem


def test_a_change_in_the_middle_stays_to_be_seen(tmp_path: Path) -> None:
    begun(tmp_path).write(lines(3))
    (path,) = ledger.files(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"lines":1', b'"lines":7'))
    begun(tmp_path, "two").write(lines(1))
    assert "line 4" in ledger.check(tmp_path).problem


def test_a_write_that_is_refused_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun(tmp_path)
    before = ledger.files(tmp_path)[0].read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("phantommesh.state.files._write_at", full)
        with pytest.raises(StateError, match="No space"):
            made.write(lines(3))
    assert ledger.files(tmp_path)[0].read_bytes() == before
    made.write(lines(2))
    assert ledger.check(tmp_path).lines == 3 and not ledger.check(tmp_path).problem


def test_a_file_that_somebody_else_has_written_to_is_gone_on_with(tmp_path: Path) -> None:
    made = begun(tmp_path)
    (path,) = ledger.files(tmp_path)
    with path.open("ab") as file:
        file.write(b"torn")
    made.write(lines(2))
    assert not ledger.check(tmp_path).problem and ledger.check(tmp_path).lines == 3


WRITER = """
import sys
from pathlib import Path
from phantommesh.agents.ledger import MissedLine
from phantommesh.nursery.keeping.ledger import Ledger
made = Ledger(Path(sys.argv[1]))
made.begin(1.0, "run", "1")
number = 0
while True:
    number += 1
    made.write([MissedLine(prev="", at=1.0, lines=number)])
    print(number, flush=True)
"""


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    """Killed at any moment, the record has each line that the writer was told is on disk, and holds."""
    last = 0
    for round_ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            said = [writer.stdout.readline()]
            time.sleep(0.02 + 0.03 * round_)
            os.kill(writer.pid, signal.SIGKILL)
            said += writer.stdout.readlines()
        last = max(int(line) for line in said if line.endswith(b"\n"))
        begun(tmp_path)
        assert not ledger.check(tmp_path).problem
        counts = [one.lines for one in ledger.latest(tmp_path, 1_000_000) if isinstance(one, MissedLine)]
        start = len(counts) - counts[::-1].index(1) - 1
        assert counts[start:][:last] == list(range(1, last + 1))
