# SPDX-License-Identifier: GPL-3.0-or-later
"""The map of rooms in docs/architecture.md names all rooms that there are, and no others."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "phantommesh"
MAP = (ROOT / "docs" / "architecture.md").read_text()


def named(section: str) -> list[str]:
    """The first column of a section's table."""
    body = MAP.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \|", body, re.MULTILINE)


def there(folder: Path) -> tuple[set[str], set[str]]:
    """The packages and the modules in a folder."""
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    modules = {path.name for path in folder.glob("*.py") if not path.name.startswith("__")}
    return packages, modules


def test_each_room_is_on_the_map_once() -> None:
    packages, _ = there(PACKAGE)
    assert sorted(named("Rooms")) == sorted(packages)


def test_each_ground_tool_is_named() -> None:
    _, modules = there(PACKAGE)
    text = MAP.split("Ground tools")[1].split("\n## ")[0]
    assert sorted(re.findall(r"`(\w+\.py)`", text)) == sorted(modules)


def test_the_nursery_is_on_its_sheet_and_has_at_most_22_rooms_and_files() -> None:
    packages, modules = there(PACKAGE / "nursery")
    assert sorted(named("The nursery")) == sorted(packages | modules)
    assert len(packages | modules) <= 22


def test_each_room_says_its_subject() -> None:
    silent = [path for path in PACKAGE.glob("**/__init__.py") if '"""' not in path.read_text()]
    assert not silent
