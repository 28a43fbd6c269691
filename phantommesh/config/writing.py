# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a configuration, and showing one without its tokens."""

import json
import re
from typing import Any, Final

import msgspec

from phantommesh.config.sections import Config

_TOKEN: Final = re.compile(r"pm[t1]_[A-Za-z0-9_-]*")


def render(config: Config) -> str:
    """Write a configuration that `parse` reads back equal; `init` and `join` write this."""
    lines = ["# PhantomMesh node. `phantommesh config check` says whether a change is good."]
    for section in msgspec.structs.fields(Config):
        lines.append(f"\n[{section.name}]")
        for key, value in msgspec.to_builtins(getattr(config, section.name)).items():
            lines.append(f"# {key} = not set" if value is None else f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)  # TOML's basic strings are JSON's, but for DEL, which _check lets into no value


def redacted(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data to show. A token pasted into some value is starred out."""
    shown: dict[str, Any] = json.loads(redact(json.dumps(msgspec.to_builtins(config))))
    return shown


def redact(text: str) -> str:
    """Star out what follows pm1_ (an invite) and pmt_ (an API token)."""
    return _TOKEN.sub(lambda token: token[0][:4] + "***", text)
