# SPDX-License-Identifier: GPL-3.0-or-later
"""How verbs print: one JSON document, or tables for people."""

import shutil
import sys
from collections.abc import Iterable, Sequence

import click

GAP = 2  # cells between columns
MIN_FOLDED = 24  # cells below which a column of text is not worth folding


def one_line(text: str) -> str:
    """Text that may come from a peer or a file, without what could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def emit(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value, enc_hook=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, fit for the terminal if there is one; see `lay_out`. Elsewhere a row is one line."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    click.echo("\n".join(lay_out(columns, rows, width)))


def lay_out(columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None) -> list[str]:
    """Return a table's lines, of at most ``width`` cells; None: as wide as it is. Nothing is cut.

    If it does not fit, the last column is folded where that leaves it enough room. Else each row becomes a
    block of lines, one a column, as in psql.
    """
    from rich.cells import cell_len

    shown = [[one_line("-" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *shown, strict=True)]
    before = sum(widths[:-1]) + GAP * (len(widths) - 1)
    if width is None or before + widths[-1] <= width:
        room = widths[-1]
    elif before + MIN_FOLDED <= width:
        room = width - before
    else:
        return _blocks(columns, shown, width)
    lines = []
    for row in (columns, *shown):
        head = "".join(_pad(text, wide + GAP) for text, wide in zip(row[:-1], widths, strict=False))
        for part in _fold(row[-1], room):
            lines.append((head + part).rstrip())
            head = " " * before
    return lines


def _blocks(columns: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    titles = max(map(len, columns)) + GAP
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        for column, text in zip(columns, row, strict=True):
            first, *more = _fold(text, max(1, width - titles))
            lines += [_pad(column, titles) + first, *(" " * titles + part for part in more)]
    return lines


def _pad(text: str, width: int) -> str:
    from rich.cells import cell_len

    return text + " " * (width - cell_len(text))


def _fold(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` cells: between words, and within one only if it is wider than that."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for word in text.split(" "):
        if cell_len(joined := f"{lines[-1]} {word}" if lines[-1] else word) <= width:
            lines[-1] = joined
        else:
            lines += chop_cells(word, width)
    return lines if lines[0] else lines[1:] or [""]


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
