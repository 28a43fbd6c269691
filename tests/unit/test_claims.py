# SPDX-License-Identifier: GPL-3.0-or-later
"""Each claim of README and the threat model names what checks it: whatever is named has to be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = (
    "README.md",
    "docs/threat-model.md",
    "docs/traffic-analysis.md",
    "docs/decisions/0008-stolen-identity.md",
)

_PATH = re.compile(r"`((?:tests|fuzz|benchmarks|docs|scripts|phantommesh)/[\w./-]+)(?:::(\w+))?`")
_MODULE = re.compile(r"python -m ((?:benchmarks|fuzz|tests)(?:\.[a-z_]+)+)\b")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def named(text: str) -> set[tuple[str, str]]:
    """Paths and the tests in them that a document names; a module is named as a path."""
    found = {(path.rstrip("/"), test) for path, test in _PATH.findall(text)}
    return found | {(f"{module.replace('.', '/')}.py", "") for module in _MODULE.findall(text)}


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    claimed = named(text)
    missing = [
        f"{path}::{test}" if test else path
        for path, test in sorted(claimed)
        if (not (ROOT / path).exists() or (test and test not in functions_in(ROOT / path)))
    ]
    missing += [link for link in _LINK.findall(text) if not ((ROOT / document).parent / link).exists()]
    assert not missing


def test_every_row_of_the_claims_table_names_a_check() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| claim | check |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 15
    for row in table:
        claim, check = row.strip("|").split(" | ", 1)
        assert named(check) or "tests/lab" in check, claim


def test_every_paragraph_that_says_what_holds_names_a_check() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    for title in ("## What holds", "## The host"):
        section = text[text.index(f"{title}\n") :].split("\n## ")[0]
        paragraphs = re.split(r"\n- ", section)[1:]
        assert len(paragraphs) > 3
        for paragraph in paragraphs:
            assert "Checked by" in paragraph and named(paragraph), paragraph[:80]


def test_no_share_of_pages_without_its_number_of_uplinks() -> None:
    """ "9 to 10 %" was true of seven uplinks and one attacker only."""
    for document in ("README.md", "docs/threat-model.md", "docs/scatter.md"):
        for paragraph in re.split(r"\n\n|\n- |\n\|", (ROOT / document).read_text()):
            if re.search(r"\b(9 to 10|13 to 16|26 to 32) %", paragraph):
                assert "seven" in paragraph and "three" in paragraph and "stronger" in paragraph, paragraph
