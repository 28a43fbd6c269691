# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings that members of a mesh should agree on, and how a record says what a node has. Pure.

A record has 16 bits of a hash of each: enough to see that two nodes differ, and in which setting. What the
other node has is not said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from phantommesh.config.sections import Config

AGREED: Final = (
    "paths.port",  # members probe each other there
    "routes.port",  # and ask routers there
    "wireguard.mtu",  # what one sends, the other's interfaces have to take
    "gossip.preset",  # how soon a silent member counts as dead
    "link.provider",  # which KEM
    "scatter.epoch_seconds",  # the two ends of a proof count by epochs
)
"""In the order of `Condition.policy`. Add at the end only."""


def policy(config: Config) -> tuple[int, ...]:
    """Return what a record says of a configuration."""
    return tuple(_short(key, config) for key in AGREED)


def _short(key: str, config: Config) -> int:
    section, _, name = key.partition(".")
    value = getattr(getattr(config, section), name)
    return int.from_bytes(hashlib.sha3_256(f"{key}={value}".encode()).digest()[:2])


def differing(ours: Sequence[int], theirs: Sequence[int]) -> tuple[str, ...]:
    """Return the keys in which two nodes differ, as far as both say something."""
    return tuple(key for key, one, other in zip(AGREED, ours, theirs, strict=False) if one != other)
