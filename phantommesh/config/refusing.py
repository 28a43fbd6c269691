# SPDX-License-Identifier: GPL-3.0-or-later
"""How an error names a value that cannot be, and what the value has to be instead."""

import json
from typing import Annotated, Any, get_args, get_origin

import msgspec
from msgspec import Meta

from phantommesh.config.sections import ConfigError
from phantommesh.errors import shortened
from phantommesh.secret import starred


def bad(key: str, given: Any, kind: Any) -> ConfigError:
    """The error for a value that is not of its key's type, ``kind``."""
    what = wanted(kind)
    return ConfigError(f"{key} = {show(given)} is not {what}", fix=f"set {key} to {what}")


def kind_of(section: type[msgspec.Struct], key: str) -> Any:
    """The type of a section's key."""
    return next(field.type for field in msgspec.structs.fields(section) if field.name == key)


def wanted(kind: Any) -> str:
    """What a type's description says a value has to be. Raises TypeError for a type without one."""
    if get_origin(kind) is Annotated:
        for note in get_args(kind)[1:]:
            if isinstance(note, Meta) and note.description:
                return note.description
    raise TypeError(f"{kind} has no description")


def show(value: Any) -> str:
    """A value for an error message: short, on one line, no tokens."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):
        text = "a value that is too deep"
    text = starred(text)
    return shortened(text, 80)
