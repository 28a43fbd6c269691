# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of all pairs that `benchmarks.reachability` fills."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import describe


@dataclass(slots=True)
class Pair:
    """All rounds of pairs of two kinds. Times are in seconds to the pair's first answer: ``started`` from the
    start of its nodes, ``keyed`` from the end of its first handshake at both ends. ``ways`` counts
    dimensions; ``partly`` counts the times when not all dimensions were up at the end of a round."""

    started: list[float] = field(default_factory=list)
    keyed: list[float] = field(default_factory=list)
    apart: int = 0
    partly: int = 0
    ways: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Table:
    """The pairs of all rounds by the kinds of their two nodes, once for new labs and once for nodes that were
    started anew."""

    fresh: dict[tuple[str, str], Pair] = field(default_factory=dict)
    anew: dict[tuple[str, str], Pair] = field(default_factory=dict)
    called_dead: list[str] = field(default_factory=list)
    labs: int = 0
    restarts: int = 0

    @property
    def apart(self) -> int:
        """How many pairs did not answer at all."""
        return sum(pair.apart for pairs in (self.fresh, self.anew) for pair in pairs.values())


def markdown(table: Table, patience: float, arguments: list[str]) -> str:
    """The tables, as text."""
    lines = []
    for title, pairs in (("New labs", table.fresh), ("One node started anew", table.anew)):
        if pairs:
            lines += [f"{title}:", "", *_rows(pairs), ""]
    machine = describe()
    lines += [
        f"{table.labs} labs, {table.restarts} nodes started anew.",
        f"{table.apart} pairs apart for {patience:g} s.",
        f"{len(table.called_dead)} called dead who ran.",
        *(f"- {line}" for line in table.called_dead),
        f"`python -m benchmarks.reachability {' '.join(arguments)}`",
        f"{machine['cores']} cores ({machine['cpu']}), {machine['kernel']}",
    ]
    return "\n".join(lines)


def _rows(pairs: dict[tuple[str, str], Pair]) -> list[str]:
    head = ["pair", "first answer, s, after the start: median (worst)", "after both were keyed", "apart"]
    head += ["not all dimensions up", "ways of the dimensions that are up"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (a, b), pair in sorted(pairs.items()):
        total = len(pair.started) + pair.apart
        ways = ", ".join(f"{way} {count}" for way, count in pair.ways.most_common()) or "none"
        lines.append(
            f"| {a} - {b} | {_times(pair.started)} | {_times(pair.keyed)} | {pair.apart} of {total} "
            f"| {pair.partly} | {ways} |"
        )
    return lines


def _times(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({max(times):.1f})" if times else "none"


def plain(table: Table) -> dict[str, Any]:
    """The tables as JSON has them."""
    return {
        "labs": table.labs,
        "restarts": table.restarts,
        "called_dead": table.called_dead,
        **{
            name: [
                {
                    "a": a,
                    "b": b,
                    "started_s": pair.started,
                    "keyed_s": pair.keyed,
                    "apart": pair.apart,
                    "partly": pair.partly,
                    "ways": dict(pair.ways),
                }
                for (a, b), pair in sorted(pairs.items())
            ]
            for name, pairs in (("fresh", table.fresh), ("anew", table.anew))
        },
    }
