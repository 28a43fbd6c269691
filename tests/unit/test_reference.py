# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/reference/ is as the code says, and the code says what each thing is for."""

import ast
import re
import runpy
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from phantommesh.config.environment import variables
from phantommesh.config.meanings import MEANINGS, meaning
from phantommesh.management.eventkinds import EVENT_KINDS
from phantommesh.management.events import FAMILIES

ROOT = Path(__file__).parent.parent.parent
PAGES = runpy.run_path(str(ROOT / "scripts" / "reference.py"))["PAGES"]
KEYS = {f"{section}.{key}" for _, section, key, _ in variables()}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_code_says(name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert written == PAGES[name](), "run `python scripts/reference.py`"


def test_there_is_no_page_of_what_is_gone() -> None:
    assert {path.name for path in (ROOT / "docs" / "reference").iterdir()} == set(PAGES)


def test_each_key_has_a_meaning() -> None:
    silent = [key for key in sorted(KEYS) if not meaning(*key.rsplit(".", 1))]
    assert silent == [], "say in the section's docstring what it is for, or in config/meanings.py"
    assert set(MEANINGS) <= KEYS


def test_a_meaning_is_of_its_key_alone() -> None:
    """Words that stand behind a key by chance are no meaning, nor are those of another key."""
    said = {key: meaning(*key.rsplit(".", 1)) for key in sorted(KEYS)}
    assert [key for key, text in said.items() if text.startswith(("is ", "are ", "and ", "or "))] == []
    assert "certificate" in said["api.certificate"] and "key" in said["api.key"]


def published() -> set[str]:
    """Every type of event that the nursery's source names; a star for what it puts in."""
    pattern = re.compile(rf"(?:{'|'.join(FAMILIES)})\.[a-z*-]+")
    found = set()
    for path in (ROOT / "phantommesh" / "nursery").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
                text = "".join(map(str, parts))
            else:
                continue
            if pattern.fullmatch(text) and text not in KEYS:
                found.add(text.removesuffix("*") + "*" if text.endswith(("*", "-")) else text)
    return found


def test_each_event_is_told() -> None:
    found = published()
    assert {"peer.*", "config.taken", "agent.decided"} <= found
    untold = [kind for kind in sorted(found) if not any(fnmatchcase(kind, told) for told in EVENT_KINDS)]
    assert untold == []


def test_each_fault_of_the_page_says_what_to_do() -> None:
    rows = re.findall(r"^\| `[\w-]+` \| \w+ \| (.*) \|$", PAGES["faults.md"](), re.MULTILINE)
    assert len(rows) > 40 and all(rows)
