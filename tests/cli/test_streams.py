# SPDX-License-Identifier: GPL-3.0-or-later
"""The command as a process, where its output goes to no terminal: to a reader that is gone, to nowhere, to a
full disk, and to what cannot take every character."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from phantommesh.nursery.api.server import serve_api
from tests.support.longnames import LongNames

UNTOLD = {"PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE", "LC_ALL", "LC_CTYPE", "LANG", "COLUMNS"}


def process(
    *words: str, shell: str = "", environment: dict[str, str] | None = None, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    """Run the command; ``shell`` does something to its streams before."""
    variables = {name: value for name, value in os.environ.items() if name not in UNTOLD}
    return subprocess.run(
        ["sh", "-c", f'{shell}exec "$@"', "sh", sys.executable, "-m", "phantommesh", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**variables, "LC_ALL": "C.UTF-8", **(environment or {})},
        timeout=60,
        check=False,
    )


def gone() -> int:
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


async def test_a_reader_that_is_gone_or_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    """As in ``phantommesh peers | head -1``."""
    path = tmp_path / "api.sock"
    at = ["--socket", str(path)]

    def check() -> None:
        for words in (
            ["peers"],
            ["--json", "peers"],
            ["status"],
            ["events"],
            ["peers", "--help"],
            ["--version"],
        ):
            pipe = gone()
            done = process(*at, *words, stdout=pipe)
            os.close(pipe)
            assert (done.stderr, done.returncode) == (b"", 1), words
        for words in (["peers"], ["--json", "peers"], ["peers", "--help"]):
            done = process(*at, *words, shell="exec >&-;")
            assert (done.stderr, done.returncode) == (b"", 0), words
            full = process(*at, *words, shell="exec >/dev/full;")
            assert full.returncode == 1, words
            assert full.stderr.startswith(b"error: [Errno 28] No space left on device\nfix: make room"), words
            assert len(full.stderr.splitlines()) == 2, words
        refused = process(*at, "rotate", "nobody-of-that-name", shell="exec 2>&-;")
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, b"", b"")

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_api, LongNames(), socket_path=path, group="no-such-group-here"))
        await trio.to_thread.run_sync(check)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({}, "é名".encode()),
        ({"LC_ALL": "C"}, rb"\xe9\u540d"),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b""),
        ({"PYTHONIOENCODING": "latin-1"}, b"\xe9\\u540d"),
        ({"PYTHONIOENCODING": "ascii"}, rb"\xe9\u540d"),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, "é名".encode()),
    ],
    ids=["utf-8", "C", "posix", "latin-1", "ascii", "C-but-told"],
)
def test_what_the_locale_cannot_show_is_escaped(
    tmp_path: Path, environment: dict[str, str], shown: bytes
) -> None:
    file = tmp_path / "é名.toml"
    file.write_text('[node]\nname = "x"\nmesh = "y"\n')
    done = process("config", "check", str(file), environment=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout
    if shown != "é名".encode() and environment != {"PYTHONIOENCODING": "latin-1"}:
        assert done.stdout.isascii()
    file.unlink()
    refused = process("config", "check", str(file), environment=environment)
    assert refused.returncode == 1
    assert shown in refused.stderr and b"Traceback" not in refused.stderr


def test_a_file_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.toml")
    file.write_text('[node]\nname = "x"\nmesh = "y"\n')
    done = process("--json", "config", "check", str(file))
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["file"] == f"{tmp_path}/\\udcff.toml"
    assert process("config", "check", str(file)).returncode == 0


def test_nothing_is_coloured_even_on_a_terminal_that_could(tmp_path: Path) -> None:
    done = process(
        "--socket", f"{tmp_path}/none", "status", environment={"FORCE_COLOR": "1", "TERM": "xterm"}
    )
    assert done.returncode == 3
    assert b"\x1b" not in done.stderr
