# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables for people, which lose nothing on a narrow terminal."""

import sys
from collections.abc import Iterable, Sequence

import click

from phantommesh.cli.output import columns_of, fold, one_line

GAP = 2  # cells between columns
INDENT = 4  # of what stands below its row
MIN_FOLDED = 24  # cells below which a column of text is not worth folding
RECORDS = 60  # cells below which what does not fit is shown as a record an item
MIN_BESIDE = 2  # columns that a row has to have room for, to be one

Row = Sequence[str]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], first: Sequence[str] = ()) -> None:
    """Print a table, fit for the terminal if there is one; see `lay_out`. Elsewhere a row is one line."""
    click.echo("\n".join(lay_out(columns, rows, columns_of(sys.stdout), first)))


def lay_out(
    columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None, first: Sequence[str] = ()
) -> list[str]:
    """Return a table's lines, of at most ``width`` cells; None: as wide as it is. Nothing is cut.

    If it does not fit, the last column is folded where that leaves it enough room. Else the columns that
    matter least stand below their row, each with its title. ``first`` names those that matter most, the most
    important first; the others follow in their order. A first cell that is much longer than the others has a
    line of its own above its row. On less than `RECORDS` cells, and where not even two columns fit, each row
    becomes a block of lines, one a column, as in psql; what an item does not have is left out.
    """
    from rich.cells import cell_len

    shown = [[one_line("-" if cell is None else str(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *shown, strict=True)]
    if width is None or sum(widths) + GAP * (len(widths) - 1) <= width:
        return _lines(columns, shown, widths, widths[-1])
    if width < RECORDS and len(columns) > MIN_BESIDE:
        return _blocks(columns, shown, width)
    widths[0] = _usual(columns[0], [row[0] for row in shown], width)
    before = sum(widths[:-1]) + GAP * (len(widths) - 1)
    longest = max(cell_len(word) for row in (columns, *shown) for word in row[-1].split(" "))
    if before + MIN_FOLDED <= width and not width - before < longest <= width - INDENT:
        return _lines(columns, shown, widths, min(widths[-1], width - before))
    beside = _that_fit(columns, widths, width, first)
    if len(beside) < MIN_BESIDE:
        return _blocks(columns, shown, width)
    return _stacked(columns, shown, widths, beside, width)


def _usual(title: str, cells: Sequence[str], width: int) -> int:
    """The room for the first column that leaves the others enough: two fifths of the line, if it needs it."""
    from rich.cells import cell_len

    return max(len(title), *(long for cell in cells if (long := cell_len(cell)) <= width * 2 // 5), 0)


def _lines(columns: Row, rows: Iterable[Row], widths: Sequence[int], room: int) -> list[str]:
    """Each row on a line, its last cell folded to ``room``."""
    before = sum(widths[:-1]) + GAP * (len(widths) - 1)
    lines = []
    for row in (columns, *rows):
        *above, head = _beside(row, widths, range(len(row) - 1))
        lines += [part for long in above for part in fold(long, before + room)]
        for part in fold(row[-1], room):
            lines.append((_pad(head, before) + part).rstrip())
            head = ""
    return lines


def _beside(row: Row, widths: Sequence[int], chosen: Sequence[int]) -> list[str]:
    """Cells beside each other; the first one above them where it is too long for its column."""
    from rich.cells import cell_len

    cells = [_pad(row[at], widths[at]) for at in chosen]
    above: list[str] = []
    if chosen and cell_len(cells[0]) > widths[chosen[0]]:
        above, cells[0] = [cells[0]], " " * widths[chosen[0]]
    return [*above, (" " * GAP).join(cells).rstrip()]


def _that_fit(columns: Row, widths: Sequence[int], width: int, first: Sequence[str]) -> list[int]:
    """Which columns fit beside each other, in their order; those that matter more come before."""
    order = [columns.index(name) for name in first]
    order += [at for at in range(len(columns)) if at not in order]
    chosen: list[int] = []
    used = -GAP
    for at in order:
        if used + GAP + widths[at] <= width:
            chosen.append(at)
            used += GAP + widths[at]
    return sorted(chosen)


def _stacked(
    columns: Row, rows: Iterable[Row], widths: Sequence[int], beside: Sequence[int], width: int
) -> list[str]:
    below = [at for at in range(len(columns)) if at not in beside]
    lines = []
    for row in (columns, *rows):
        *above, line = _beside(row, widths, beside)
        lines += [part for long in above for part in fold(long, width)] + [line]
        if row is not columns:
            lines += _flowing([f"{columns[at]} {row[at]}" for at in below if row[at] != "-"], width)
    return lines


def _flowing(items: Iterable[str], width: int) -> list[str]:
    """Items one after the other, and each whole on one line unless it is too long for any."""
    from rich.cells import cell_len

    lines: list[str] = []
    for item in items:
        joined = f"{lines[-1]}  {item}" if lines else ""
        if lines and cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines += [" " * INDENT + part for part in fold(item, max(1, width - INDENT))]
    return lines


def _blocks(columns: Row, rows: Iterable[Row], width: int) -> list[str]:
    """Each row as lines of a title and a cell. A cell with a word that has no room beside the title stands
    below it, so that endpoints can be copied."""
    from rich.cells import cell_len

    titles = max(map(len, columns)) + GAP
    lines: list[str] = []
    for row in rows:
        lines += [""] if lines else []
        for column, text in zip(columns, row, strict=True):
            if text == "-":
                continue
            if width - titles < max(map(cell_len, text.split(" "))) <= width - INDENT:  # it would be broken
                lines += [column, *(" " * INDENT + part for part in fold(text, width - INDENT))]
                continue
            first, *more = fold(text, max(1, width - titles))
            lines += [_pad(column, titles) + first, *(" " * titles + part for part in more)]
    return lines


def _pad(text: str, width: int) -> str:
    from rich.cells import cell_len

    return text + " " * (width - cell_len(text))
