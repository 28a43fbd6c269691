# SPDX-License-Identifier: GPL-3.0-or-later
"""How verbs print: one JSON document, or tables for people."""

from collections.abc import Iterable, Sequence

import click


def one_line(text: str) -> str:
    """Text that may come from a peer or a file, without what could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def emit(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value, enc_hook=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(one_line("-" if cell is None else str(cell))) for cell in row))
    # Nothing is cut for the sake of a width: a narrow terminal wraps what it cannot show.
    Console(width=1000, highlight=False).print(table)


def age(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
