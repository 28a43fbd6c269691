# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a configuration, and showing one without its tokens."""

import json
import re
import tomllib
from operator import attrgetter
from typing import Any, Final

import msgspec

from phantommesh.config.sections import SECTIONS, Config, is_section, is_tables
from phantommesh.secret import starred

_NAME_LINE: Final = re.compile(r"""(\s*(?:node\s*\.\s*)?name\s*=\s*)("[^"\n]*"|'[^'\n]*')""")


def render(config: Config) -> str:
    """Write a configuration that `parse` reads back equal; `init` and `join` write this."""
    lines = ["# PhantomMesh node. `phantommesh config check` says whether a change is good."]
    tables: list[tuple[str, msgspec.Struct]] = [
        (f"[{section}]", attrgetter(section)(config)) for section in SECTIONS
    ]
    lists: list[tuple[str, msgspec.Struct]] = [("[[acl.rule]]", rule) for rule in config.acl.rule]
    lists += [("[[intent]]", intent) for intent in config.intent]
    for title, settings in (*tables, *lists):
        lines.append(f"\n{title}")
        values = msgspec.to_builtins(settings)
        for field in msgspec.structs.fields(settings):
            if is_section(field.type) or is_tables(field.type):
                continue
            key, value = field.encode_name, values[field.encode_name]
            lines.append(f"# {key} = not set" if value is None else f"{key} = {toml(value)}")
    return "\n".join(lines) + "\n"


def renamed(text: str, old: str, new: str) -> str | None:
    """Return a configuration's text with ``node.name`` changed from ``old`` to ``new``, and not a byte else.
    The text itself if it says ``new`` already; None if it says neither, or in a way that no edit of one line
    changes."""
    held = _node_name(text)
    if held == new:
        return text
    if held != old:
        return None
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if found := _NAME_LINE.match(line):
            edited = "".join([*lines[:i], f'{found[1]}"{new}"{line[found.end() :]}', *lines[i + 1 :]])
            if _node_name(edited) == new:
                return edited
    return None


def _node_name(text: str) -> object:
    try:
        return tomllib.loads(text).get("node", {}).get("name")
    except (ValueError, RecursionError, AttributeError):
        return None


def _key(key: str) -> str:
    """A key of an inline table: bare where TOML allows it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml(key)


def toml(value: Any) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)  # TOML's basic strings are JSON's, but for DEL, which _check lets into no value


def redacted(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data to show. A token pasted into some value is starred out."""
    shown: dict[str, Any] = json.loads(starred(json.dumps(msgspec.to_builtins(config))))
    return shown
