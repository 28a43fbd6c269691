# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents, docstrings and comments point only at files that are in the repository."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("phantommesh", "tests", "benchmarks", "fuzz", "scripts", "examples", "changes", "docs")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changes").glob("*.md"))
)

_LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)")
_FILE = re.compile(r"(?<![\w*/.{<~-])((?:[\w-]+/)*[\w-]+\.(?:py|md))\b(?!\.\w)")
_FOLDER = re.compile(r"`((?:tests|fuzz|benchmarks|docs|scripts|phantommesh|examples|changes)/[\w./-]*)`")
_MODULE = re.compile(r"python -m ((?:benchmarks|fuzz|tests)(?:\.[a-z_]+)+)\b")
_METHOD = re.compile(r"`(?:[a-z_]+\.)*([A-Z]\w+)\.(\w+)")
_DECISION = re.compile(r"\bdecisions? (\d+)\b")

# Plans and tickets that the authors had: a reader of the repository has none of them.
_ABSENT = re.compile(
    r"\b(?:DESIGN|LAYOUT|INTERFACE\.md|KERNEL-LAB)\b(?!\w)"
    r"|§"
    r"|\b[Ii]ssues? #?\d"
    r"|\bthe issue (?:asks|says|has|wants)\b"
    r"|\b[Tt]he design(?:'s)? (?:asks|says|has|wants|\d)"
)
# A file that Python looks for in a path of its own; the benchmark makes it up.
_ELSEWHERE = {"sitecustomize.py"}


@cache
def files() -> list[Path]:
    """Every file of ours that has prose in it."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for name in SOURCES:
        found += [
            path for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
    return sorted(path for path in found if path.suffix in {".md", ".py", ".toml"} and path != Path(__file__))


@cache
def tails() -> frozenset[str]:
    """Each file of the repository under every name that a reader can find it by: with all or some folders."""
    found = set()
    for path in (*files(), Path(__file__)):
        parts = path.relative_to(ROOT).parts
        found |= {"/".join(parts[at:]) for at in range(len(parts))}
    return frozenset(found)


@cache
def prose(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def heading_anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as Markdown renderers make them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(document: str) -> None:
    wrong = []
    for target, anchor in _LINK.findall(prose(ROOT / document)):
        path = (ROOT / document).parent / target if target else ROOT / document
        if not path.exists() or (anchor and anchor not in heading_anchors(path)):
            wrong.append(f"{target}#{anchor}")
    assert not wrong


def test_files_that_prose_names_are_there() -> None:
    wrong = []
    for path in files():
        text = prose(path)
        named = {
            name for name in _FILE.findall(text) if "NAME" not in name and name not in tails() | _ELSEWHERE
        }
        named |= {name for name in _FOLDER.findall(text) if not (ROOT / name).exists()}
        modules = {name.replace(".", "/") for name in _MODULE.findall(text)}
        named |= {
            name for name in modules if not (ROOT / f"{name}.py").exists() and not (ROOT / name).is_dir()
        }
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(named)]
    assert not wrong


def test_decisions_that_prose_names_are_there() -> None:
    numbers = [int(path.name[:4]) for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md")]
    assert len(numbers) == len(set(numbers)), "two decisions have one number"
    design = prose(ROOT / "docs" / "design.md")
    unlinked = [n for n in numbers if f"](decisions/{n:04}-" not in design]
    assert not unlinked, "docs/design.md links to every decision"
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files()
        for name in _DECISION.findall(prose(path))
        if int(name) not in numbers
    ]
    assert not wrong


def test_nothing_cites_a_plan_or_a_ticket_that_is_not_in_the_repository() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found.group()}"
        for path in files()
        for number, line in enumerate(prose(path).splitlines(), 1)
        for found in _ABSENT.finditer(line)
    ]
    assert not wrong


def test_methods_that_a_document_names_are_there() -> None:
    """A document's `Class.method`: the file that defines the class has the word too."""
    sources = [prose(path) for path in files() if path.suffix == ".py"]
    wrong = []
    for document in DOCUMENTS:
        for owner, name in _METHOD.findall(prose(ROOT / document)):
            homes = [text for text in sources if re.search(rf"^class {owner}\b", text, re.MULTILINE)]
            if homes and not any(re.search(rf"\b{name}\b", text) for text in homes):
                wrong.append(f"{document}: {owner}.{name}")
    assert not wrong


def test_classes_in_the_glossary_are_there() -> None:
    """The table of kinds of peer: each row's class is defined in the file that the row names."""
    rows = re.findall(r"^\| `(\w+)` \| `([\w./]+)` \|", prose(ROOT / "docs" / "glossary.md"), re.MULTILINE)
    assert len(rows) >= 14
    wrong = [
        name
        for name, file in rows
        if not any(
            str(path).endswith(f"/{file}") and re.search(rf"^class {name}\b", prose(path), re.MULTILINE)
            for path in files()
        )
    ]
    assert not wrong
