# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed has all that the sources have, also what is no Python."""

import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent.parent


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    (made,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(made) as wheel:
        packed = set(wheel.namelist())
    there = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "phantommesh").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert not there - packed
    assert "phantommesh/nursery/api/dashboard/index.html" in packed
