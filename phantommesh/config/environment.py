# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration's variables: ``PHANTOMMESH_SECTION_KEY`` sets ``KEY`` of ``[SECTION]``, in place of the
file; ``PHANTOMMESH_OUTER_INNER_KEY`` that of ``[OUTER.INNER]``.

So a container needs no file. A variable that is empty counts as not set. A list has commas between its
values, a table ``NAME=VALUE`` with commas between; both may also be written as in the file.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import msgspec

from phantommesh.config.sections import RENAMED, SECTIONS, ConfigError, is_section, is_tables
from phantommesh.errors import PhantomMeshError

PREFIX: Final = "PHANTOMMESH_"

Settings = Mapping[str, Mapping[str, Any]]
"""Values by section and key, as a file would have them."""

Error = TypeVar("Error", bound=PhantomMeshError)


def variable(section: str, key: str) -> str:
    """Return the name of a key's variable."""
    return f"{PREFIX}{section}_{key}".replace(".", "_").upper()


def variables() -> Iterator[tuple[str, str, str, Any]]:
    """Yield every key of the configuration that is no list of tables: its variable, its section, itself and
    its type."""
    for section, settings in SECTIONS.items():
        for field in msgspec.structs.fields(settings):
            if not is_section(field.type) and not is_tables(field.type):
                yield variable(section, field.name), section, field.name, field.type


def read(environment: Mapping[str, str]) -> Settings:
    """Return what the environment sets. The values are not checked yet. Raises ConfigError for a variable
    that is named like a section's and is none of its keys."""
    known = {name: (section, key, kind) for name, section, key, kind in variables()}
    sections = tuple(variable(section, "") for section in SECTIONS)
    renamed = {variable(*old.split(".")): variable(*new.split(".")) for old, new in RENAMED.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, text in environment.items():
        if name not in known:
            if name in renamed:
                raise ConfigError(
                    f"the variable {name} is called {renamed[name]} now", fix=f"rename it to {renamed[name]}"
                )
            if name.startswith((f"{PREFIX}INTENT_", f"{PREFIX}INTENTS")) or name == f"{PREFIX}INTENT":
                raise ConfigError(
                    f"the variable {name[:64]} sets nothing: intents have no variables",
                    fix=f"unset {name[:64]}, and write each [[intent]] into the file",
                )
            if name.startswith(variable("acl", "rule")):
                raise ConfigError(
                    f"the variable {name[:64]} sets nothing: access rules have no variables",
                    fix=f"unset {name[:64]}, and write each [[acl.rule]] into the file",
                )
            if name.startswith(sections):
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else "see `phantommesh config show` for the keys"
                raise ConfigError(
                    f"the variable {name[:64]} is no key of the configuration",
                    fix=f"unset {name[:64]}; {hint}",
                )
        elif text:
            section, key, kind = known[name]
            found.setdefault(section, {})[key] = value_of(text, kind)
    return found


def explain(error: Error, settings: Settings) -> Error:
    """Return the error as it is to be told where the environment sets a key that the error is about: the fix
    is to change the variable, not the file."""
    message, fix = str(error), error.fix
    elsewhere = any(_names(fix, f"{section}.{key}") for _, section, key, _ in variables())
    for section, values in settings.items():
        for key in values:
            named, name = f"{section}.{key}", variable(section, key)
            if _names(message, named):
                message += f" ({named} is from {name})"
                # A fix that names keys says where; this one is in the file, or has its turn.
                fix = re.sub(_whole(named), name, fix) if elsewhere else f"{fix} (in {name})"
    return error if message == str(error) else type(error)(message, fix=fix)


def _whole(key: str) -> str:
    return rf"\b{re.escape(key)}\b"  # not `control.tcp` in `control.tcp_ports`


def _names(text: str, key: str) -> bool:
    return re.search(_whole(key), text) is not None


def shape_of(kind: Any) -> Any:
    """Return the type of a key's values without its bounds: ``tuple``, ``dict``, ``str`` and so on."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return get_origin(bare) or bare


def value_of(text: str, kind: Any) -> Any:
    """Return a variable's value as the file would have it. Text that is no value of the kind stays text."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    origin = get_origin(kind)
    switch = text in ("true", "false") and bool in get_args(kind)  # or a word, as `relay.offer` has one
    if switch or text[0] in '["{' or kind in (int, float, bool):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            return text
    if origin is tuple:
        parts, of = [part.strip() for part in text.split(",") if part.strip()], get_args(kind)[0]
        numbers = get_origin(of) is Annotated and get_args(of)[0] is int
        return [value_of(part, of) for part in parts] if numbers else parts
    if origin is dict:
        pairs = (part.partition("=") for part in text.split(",") if part.strip())
        return {name.strip(): value.strip() for name, _, value in pairs}
    assert kind is str or origin is not None or isinstance(kind, UnionType)
    return text
