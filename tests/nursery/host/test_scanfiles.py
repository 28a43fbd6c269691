# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

from phantommesh.nursery.host.scanfiles import read_file


def test_a_device_is_no_configuration_that_others_can_change(tmp_path: Path) -> None:
    written = tmp_path / "pm.toml"
    written.write_text("")
    assert read_file(written, "config")[0].path == str(written)
    assert read_file(Path("/dev/null"), "config") == []
