# SPDX-License-Identifier: GPL-3.0-or-later
"""What keys that name members and regions may not say, in `[relay]` and in `[[intent]]`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from phantommesh.config.refusing import show
from phantommesh.config.sections import LABEL, MAX_REGION_CHARS, ConfigError, IntentSection, RelaySection


def check(
    where: str,
    section: RelaySection | IntentSection,
    *,
    members: Iterable[str],
    both: Iterable[tuple[str, str]],
) -> None:
    """Refuse names in a table, which errors call ``where``, that are none: in its keys ``members``, and in
    those of regions. ``both`` are pairs of keys of which one allows what the other may not forbid. Raises
    ConfigError."""
    for key in members:
        for member in _of(section, key):
            if not LABEL.fullmatch(member):
                raise ConfigError(f"{where}.{key}: {show(member)} is no name", fix="see `phantommesh peers`")
    for key in ("regions", "never_regions"):
        for region in _of(section, key):
            if not LABEL.fullmatch(region) or len(region) > MAX_REGION_CHARS:
                raise ConfigError(
                    f"{where}.{key}: {show(region)} is no region",
                    fix=f"give {where}.{key} names as in node.region: up to {MAX_REGION_CHARS} characters of "
                    "a-z, 0-9 and '-'",
                )
    for allowed, forbidden in (*both, ("regions", "never_regions")):
        if named := sorted(set(_of(section, allowed)) & set(_of(section, forbidden))):
            raise ConfigError(
                f"{where}.{allowed} allows {show(named[0])}, and {where}.{forbidden} forbids it",
                fix=f"take it out of {where}.{allowed}, or of {where}.{forbidden}",
            )


def _of(section: RelaySection | IntentSection, key: str) -> Sequence[str]:
    found: Sequence[str] = getattr(section, key)
    return found
