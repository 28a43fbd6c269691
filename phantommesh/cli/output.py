# SPDX-License-Identifier: GPL-3.0-or-later
"""How verbs print: one JSON document, or text for people that fits their terminal.

A line for a terminal is at most as wide as the terminal. Text is folded between words, and nothing is left
out. A single word that is wider than the terminal, such as a hash or an invite, stays whole, so that it can
be copied. Where output goes to a file or a pipe, lines are as long as they are.
"""

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

SOON_S = 1.0  # a wait that is shorter needs no word
KEY = 12  # cells of a key before its value
# ANSI X3.4: the encoding of the locales C and POSIX, which say nothing of what the terminal can show.
_ASCII = "ascii"


class _Escaping(io.TextIOWrapper):
    """Writes ASCII, and what is not as an escape.

    It does not call itself ASCII: click takes an ASCII stream for a mistake and writes UTF-8 to it.
    """

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "ascii-escaped"


def prepare_streams() -> None:
    """Let nothing that is printed fail for its characters: those that the stream cannot take are escaped.

    In the locales C and POSIX Python takes UTF-8 for granted; a terminal there need not show it.
    """
    guessed = bool(sys.flags.utf8_mode) and not {"PYTHONUTF8", "PYTHONIOENCODING"} & os.environ.keys()
    sys.stdout = _prepared(sys.stdout, guessed)
    sys.stderr = _prepared(sys.stderr, guessed)


def _prepared(stream: Any, guessed: bool) -> Any:
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # None: it was closed before the start
    stream.reconfigure(errors="backslashreplace")
    if not guessed and stream.encoding.lower() not in {_ASCII, "us-ascii", "ansi_x3.4-1968"}:
        return stream
    buffered = stream.line_buffering
    return _Escaping(stream.detach(), _ASCII, "backslashreplace", line_buffering=buffered)


def flush_streams() -> None:
    """Write out what is left. A reader that is gone (``| head``) is no error, and nothing is said of it."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            # The interpreter flushes once more as it ends, and would complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), descriptor)


def columns_of(stream: TextIO | None) -> int | None:
    """The width of the terminal that ``stream`` is, in cells; None where it is none, or is closed."""
    try:
        if stream is None or not stream.isatty():
            return None
    except ValueError:  # closed
        return None
    if (told := os.environ.get("COLUMNS", "")).isascii() and told.isdigit() and len(told) < 6 and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def one_line(text: str) -> str:
    """Text that may come from a peer or a file, without what could steer a terminal, and with escapes for
    what the terminal cannot show: a line is folded as long as it will be."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    encoding = _ASCII if isinstance(sys.stdout, _Escaping) else getattr(sys.stdout, "encoding", None)
    return shown.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")


def emit(value: object) -> None:
    """Print a JSON document, which is UTF-8 in every locale (RFC 8259 section 8.1)."""
    import msgspec

    try:
        document = msgspec.json.encode(value, enc_hook=str)
    except UnicodeEncodeError:  # the name of a file may be no text
        document = msgspec.json.encode(_text_only(msgspec.to_builtins(value, enc_hook=str)))
    click.echo(document)


def _text_only(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_text_only(key): _text_only(each) for key, each in value.items()}
        case list():
            return [_text_only(each) for each in value]
        case _:
            return value


def say(text: str, *, err: bool = False, indent: int = 0) -> None:
    """Print a line, folded if it is too long for the terminal: then all but its first are indented."""
    width = columns_of(sys.stderr if err else sys.stdout)
    click.echo("\n".join(folded(one_line(text), width, indent)), err=err)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Say on a terminal what takes longer than a second, and take it away again when that is done."""
    if columns_of(sys.stderr) is None or os.environ.get("TERM", "dumb") == "dumb":
        yield
        return
    stream, shown = sys.stderr, threading.Event()

    def show() -> None:
        shown.set()
        stream.write(f"{one_line(text)} ...")
        stream.flush()

    timer = threading.Timer(SOON_S, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if shown.is_set():
            stream.write("\r\x1b[K")  # ECMA-48: erase in line
            stream.flush()


def field(key: str, value: object, width: int = KEY) -> None:
    """Print a key, in ``width`` cells, and its value."""
    say(f"{key:{width}} {value}", indent=width + 1)


def folded(text: str, width: int | None, indent: int = 0) -> list[str]:
    """A text as lines of at most ``width`` cells, all but the first indented. A wider word has a line of its
    own."""
    if width is None:
        return [text]
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return [text]
    longest = max(map(cell_len, text.split(" ")))  # an address stays whole where it can
    indent = max(0, min(indent, width // 2, width - longest if longest <= width else 2))
    margin = " " * (len(text) - len(text.lstrip(" ")))
    first = margin + fold(text[len(margin) :], width - len(margin), chop=False)[0]
    rest = text[len(first) :].lstrip(" ")
    more = fold(rest, width - indent, chop=False) if rest else []
    return [first, *(" " * indent + part for part in more)]


def fold(text: str, width: int, *, chop: bool = True) -> list[str]:
    """Lines of at most ``width`` cells: between words, and within one only if it is wider than that and
    ``chop`` is set."""
    from rich.cells import cell_len, chop_cells

    lines = [""]
    for word in text.split(" "):
        if cell_len(joined := f"{lines[-1]} {word}" if lines[-1] else word) <= width:
            lines[-1] = joined
        else:
            lines += chop_cells(word, width) if chop else [word]
    lines = [line.rstrip(" ") for line in lines]
    return lines if lines[0] else lines[1:] or [""]


def age(seconds: float | None) -> str | None:
    """A span of time in one unit: ``12s``, ``90m``, ``47h``, ``3d``."""
    if seconds is None:
        return None
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def ago(seconds: float | None) -> str | None:
    """When something was: ``12s ago``."""
    return None if seconds is None else f"{age(seconds)} ago"


def moment(rfc3339: str) -> str:
    """A moment in UTC to the second, as one word."""
    return f"{rfc3339[:19]}Z"


def size(count: int) -> str:
    """An amount of bytes."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
