# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess

import pytest

from phantommesh.nursery.host import scanprocess


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a process of another user")
def test_the_arguments_of_another_users_process_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in its memory, and a page there that a file system of its own backs never comes."""
    read, text = list[str](), scanprocess._text

    def recording(path: str) -> str:
        read.append(path)
        return text(path)

    monkeypatch.setattr(scanprocess, "_text", recording)

    own = subprocess.Popen(["sleep", "60"])
    other = subprocess.Popen(["sleep", "60"], user=65534, group=65534)
    try:
        list(scanprocess._serving(os.getpid(), {"pm0"}))
    finally:
        for one in (own, other):
            one.kill()
            one.wait()
    assert f"/proc/{own.pid}/cmdline" in read and f"/proc/{other.pid}/status" in read
    assert f"/proc/{other.pid}/cmdline" not in read
