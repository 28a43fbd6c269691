# SPDX-License-Identifier: GPL-3.0-or-later
"""`decisions --verify` says whether the record on disk is as it was written."""

import json
from pathlib import Path

from click.testing import CliRunner

from phantommesh.agents.ledger import OutcomeLine
from phantommesh.cli import cli
from phantommesh.nursery.keeping.ledger import Ledger, files


def line(number: int) -> OutcomeLine:
    return OutcomeLine(
        prev="", at=1.0, trace=f"t{number}", agent="cipher", measured=None, met=None, error="none"
    )


def verify(path: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [*options, "decisions", "--verify", str(path)])
    return done.exit_code, done.output


def test_a_whole_record_a_changed_one_and_one_that_is_not_there(tmp_path: Path) -> None:
    directory = tmp_path / "decisions"
    ledger = Ledger(directory)
    ledger.begin(1.0, "run", "0.1.0")
    ledger.write([line(number) for number in range(5)])
    (file,) = files(directory)
    for path in (directory, file):
        status, text = verify(path)
        assert status == 0
        assert "6 lines in 1 files follow each other" in text
    status, text = verify(directory, "--json")
    assert (status, json.loads(text)["lines"]) == (0, 6)

    changed = file.read_bytes().replace(b'"t2"', b'"t9"')
    file.write_bytes(changed)
    status, text = verify(directory)
    assert status == 1
    assert "line 5: it does not follow the line before" in text

    (tmp_path / "empty").mkdir()
    status, text = verify(tmp_path / "empty")
    assert (status, "there is no record of decisions" in text) == (1, True)
