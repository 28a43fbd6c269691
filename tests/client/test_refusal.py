# SPDX-License-Identifier: GPL-3.0-or-later
"""The error for a socket that a user may not use; `tests/cli/test_transcripts.py` has it as users meet it."""

import grp
import os
import pwd
from pathlib import Path
from typing import Final

import pytest

from phantommesh.client.http import refusal

MINE: Final = pwd.struct_passwd(("ann", "x", 1000, 1000, "", "/", "/bin/sh"))


@pytest.mark.parametrize(
    ("mode", "members", "error", "fix"),
    [
        (0o660, [], "root and the group phantommesh", "sudo usermod -aG phantommesh ann"),
        (0o660, ["bob", "ann"], "which this session does not have yet", "newgrp phantommesh"),
        (0o600, [], "there was no group phantommesh when the node started", "groupadd --system phantommesh"),
    ],
    ids=["another", "later", "no-group"],
)
def test_the_group_and_the_fix_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, members: list[str], error: str, fix: str
) -> None:
    path = tmp_path / "api.sock"
    path.touch()
    path.chmod(mode)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: MINE)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("phantommesh", "x", gid, members)))
    refused = refusal(path)
    assert error in str(refused) and str(path) in str(refused)
    assert fix in refused.fix


def test_a_user_and_a_group_without_a_name_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    path = tmp_path / "api.sock"
    path.touch()
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(grp, "getgrgid", unknown)
    assert "usermod -aG phantommesh USER" in refusal(path).fix


def test_a_directory_that_is_closed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    assert f"chmod a+x {tmp_path}" in refusal(tmp_path / "api.sock").fix
