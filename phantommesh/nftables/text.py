# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a ruleset as text for ``nft -f -``. nft 1.0.6 wants a line break before a closing brace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def add_elements(table: str, name: str, elements: Sequence[str]) -> str:
    """The command that adds elements to a set or a map of a table (``FAMILY NAME``)."""
    return f"add element {table} {name} {{ {', '.join(elements)} }}"


def map_block(name: str, *lines: str) -> list[str]:
    """A map inside a table's block."""
    return _block("map", name, lines)


def set_block(name: str, *lines: str) -> list[str]:
    """A set inside a table's block."""
    return _block("set", name, lines)


def chain_block(name: str, *lines: str) -> list[str]:
    """A chain inside a table's block."""
    return _block("chain", name, lines)


def anonymous(members: Iterable[object]) -> str:
    """An anonymous set of these members, in a rule. It may hold intervals: its rule is replaced with it."""
    return f"{{ {', '.join(map(str, members))} }}"


def _block(kind: str, name: str, lines: Iterable[str]) -> list[str]:
    return [f"  {kind} {name} {{", *(f"    {line}" for line in lines), "  }"]
