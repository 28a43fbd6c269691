# SPDX-License-Identifier: GPL-3.0-or-later
"""Setting keys in a configuration's text: comments, order and all other values stay as they are.

No library for this is among the requirements. The edit is found by lines and then checked: read by `tomllib`,
the new text has to say what the old one said, but for the keys that were set. So an edit that this page gets
wrong is refused, and never written.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from phantommesh.config import environment
from phantommesh.config.sections import RENAMED, ConfigError
from phantommesh.config.writing import toml

UNSET: Final = object()
"""In place of a value: the key's line is taken out, and its default counts."""

_HEADER: Final = re.compile(r"\s*\[(?!\[)\s*([^\]#\n]+?)\s*\]\s*(?:#.*)?$")
_ANY_HEADER: Final = re.compile(r"\s*\[")


def assignment(text: str) -> tuple[str, str, Any]:
    """Read ``SECTION.KEY=VALUE`` as the section, the key and the value as a file would have it.

    A list has commas between its values, a table ``NAME=VALUE`` with commas between; both may be written as
    in the file. An empty value is the empty list, table or text, and otherwise `UNSET`. Raises ConfigError.
    """
    named, equals, value = text.partition("=")
    named, value = named.strip(), value.strip()
    known = {f"{section}.{key}": (section, key, kind) for _, section, key, kind in environment.variables()}
    if not equals:
        raise ConfigError(f"{named[:64]!r} sets nothing", fix="write it as SECTION.KEY=VALUE")
    if new := RENAMED.get(named):
        raise ConfigError(f"{named} is called {new} now", fix=f"set {new}")
    if named not in known:
        near = difflib.get_close_matches(named, known, 1)
        hint = f"did you mean {near[0]}?" if near else "see `phantommesh config show` for the keys"
        raise ConfigError(f"{named[:64]!r} is no key of the configuration", fix=hint)
    section, key, kind = known[named]
    if value:
        return section, key, environment.value_of(value, kind)
    return section, key, _EMPTY.get(environment.shape_of(kind), UNSET)


_EMPTY: Final[Mapping[type, Any]] = {tuple: [], dict: {}, str: ""}


def edited(text: str, changes: Mapping[tuple[str, str], Any]) -> str:
    """Return a configuration's text with each ``(section, key)`` set to its value, or to `UNSET`. Raises
    ConfigError where the text is no TOML, or is written in a way that this cannot edit."""
    try:
        wanted = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration is no TOML: {error}"[:200], fix="correct that line") from None
    for (section, key), value in changes.items():
        text = _set(text, section, key, value)
        _put(wanted, section, key, value)
    try:
        done = tomllib.loads(text) == wanted
    except (ValueError, RecursionError):
        done = False
    if not done:
        named = ", ".join(f"{section}.{key}" for section, key in changes)
        raise ConfigError(
            f"the configuration is written in a way in which {named} cannot be set by a command",
            fix="edit the file by hand, then run `phantommesh config check`",
        )
    return text


def _put(document: dict[str, Any], section: str, key: str, value: Any) -> None:
    within: Any = document
    for name in section.split("."):
        if not isinstance(within, dict) or (value is UNSET and name not in within):
            return
        within = within.setdefault(name, {})
    if not isinstance(within, dict):
        return
    if value is UNSET:
        within.pop(key, None)
    else:
        within[key] = value


def _set(text: str, section: str, key: str, value: Any) -> str:
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    start, end = _section(lines, section)
    if start is None:
        if value is UNSET:
            return text
        return "".join([*lines, *(["\n"] if lines else []), f"[{section}]\n", f"{key} = {toml(value)}\n"])
    for at in range(start, end):
        if found := re.match(rf"(\s*(?:{key}|\"{key}\"|'{key}')\s*=\s*)(.*)", lines[at], re.DOTALL):
            last, comment = _extent(lines, at, found[2], end)
            new = [] if value is UNSET else [f"{found[1]}{toml(value)}{comment}\n"]
            return "".join([*lines[:at], *new, *lines[last + 1 :]])
    if value is UNSET:
        return text
    at = _place(lines, start, end, key)
    keep = lines[at + 1 :] if at < end and _says_unset(lines[at], key) else lines[at:]
    return "".join([*lines[:at], f"{key} = {toml(value)}\n", *keep])


def _section(lines: list[str], section: str) -> tuple[int | None, int]:
    """The lines of a section, without its header; None where it has none of its own."""
    start = None
    for at, line in enumerate(lines):
        if start is not None and _ANY_HEADER.match(line) and _outside(lines, start, at):
            return start, at
        if start is None and (found := _HEADER.match(line)):
            names = [name.strip().strip("\"'") for name in found[1].split(".")]
            if names == section.split("."):
                start = at + 1
    return start, len(lines)


def _outside(lines: list[str], start: int, at: int) -> bool:
    """Whether a line that begins with a bracket is no part of a value over several lines."""
    try:
        tomllib.loads("".join(lines[start:at]))
    except ValueError:
        return False
    return True


def _place(lines: list[str], start: int, end: int, key: str) -> int:
    """Where a key that is not there goes: where `render` says that it is not set, else behind the
    last one."""
    for at in range(start, end):
        if _says_unset(lines[at], key):
            return at
    while end > start and (not (line := lines[end - 1].strip()) or line.startswith("#")):
        end -= 1  # the comment above the next section, and what is empty
    return end


def _says_unset(line: str, key: str) -> bool:
    return line.strip() == f"# {key} = not set"


def _extent(lines: list[str], at: int, rest: str, end: int) -> tuple[int, str]:
    """The last line of the value that begins with ``rest`` in line ``at``, and the comment behind it."""
    value = ""
    for last in range(at, end):
        value += rest if last == at else lines[last]
        for cut in [found.start() for found in re.finditer("#", value)] + [len(value)]:
            try:
                tomllib.loads(f"x = {value[:cut].strip()}\n")
            except (ValueError, RecursionError):
                continue
            body, comment = value[:cut], value[cut:].rstrip("\n")
            spaces = body[len(body.rstrip()) :] if comment else ""
            return last, spaces + comment
    return at, ""
