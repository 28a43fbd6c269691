# SPDX-License-Identifier: GPL-3.0-or-later
"""What a running node takes over from a configuration that was edited, and what waits for its next start."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from msgspec import structs

from phantommesh.config.sections import SECTIONS, Config, keys
from phantommesh.faults import FaultKind

NOT_RELOADED = FaultKind("config-not-reloaded", "high")
NEEDS_RESTART = FaultKind("config-needs-restart", "low")

AT_ONCE: Final = frozenset(
    {"log.level", "log.format", "gossip.seeds", "scatter.goal", "scatter.peers", "scatter.scheduler"}
    | {"acl.default", "acl.rule"}
    | {f"dns.{key}" for key in ("serve", "port", "mode", "hosts")}
    | {f"routes.{key}" for key in ("advertise", "accept", "sites", "masquerade", "probe")}
    | {f"{section}.{key}" for section in SECTIONS if section.startswith("agents") for key in keys(section)}
)
"""The keys that a running node follows, besides the tables `[[intent]]`."""


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between the configuration that a node runs with and the file. ``config`` is what it
    runs with from now on; ``taken`` are the keys that differ from before, ``waiting`` those that the node
    goes on without. Keys are written ``section.key``, the tables `[[intent]]` are one key, ``intent``."""

    config: Config
    taken: tuple[str, ...]
    waiting: tuple[str, ...]


def change(running: Config, wanted: Config) -> Change:
    """Say what becomes of ``wanted`` on a node that runs with ``running``."""
    config, taken, waiting = running, list[str](), list[str]()
    for section in SECTIONS:
        before, after = attrgetter(section)(running), attrgetter(section)(wanted)
        now = attrgetter(section)(config)
        for key in keys(section):
            value = getattr(after, key)
            if value == getattr(before, key):
                continue
            if f"{section}.{key}" in AT_ONCE:
                now = structs.replace(now, **{key: value})
                taken.append(f"{section}.{key}")
            else:
                waiting.append(f"{section}.{key}")
        config = with_section(config, section, now)
    if wanted.intent != running.intent:
        # The file has another `scatter.hook` then, which waits: until it is there, nothing holds constraints.
        if config.scatter.hook == "off" and any(intent.constrained for intent in wanted.intent):
            waiting.append("intent")
        else:
            config = structs.replace(config, intent=wanted.intent)
            taken.append("intent")
    return Change(config, tuple(taken), tuple(waiting))


def with_section(config: Config, section: str, value: object) -> Config:
    """Put a section, which may be within another, in the place of its former self."""
    outer, dot, inner = section.rpartition(".")
    if dot:
        return with_section(config, outer, structs.replace(attrgetter(outer)(config), **{inner: value}))
    return structs.replace(config, **{section: value})
