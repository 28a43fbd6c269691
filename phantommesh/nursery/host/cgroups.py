# SPDX-License-Identifier: GPL-3.0-or-later
"""The cgroups of this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
"""Where nft looks for cgroups."""


def mount() -> str | None:
    """Where the hierarchy of cgroups of version 2 begins below `ROOT`: there itself, or in ``unified/`` where
    version 1 is there too. None where it is at neither place."""
    for place in ("", "unified/"):
        if (ROOT / place / "cgroup.procs").exists() and (ROOT / place / "cgroup.subtree_control").exists():
            return place
    return None


def numbers_of(mounted: str, paths: Iterable[str]) -> dict[str, int]:
    """Return the kernel's numbers of these cgroups, without those that are not there."""
    found = dict[str, int]()
    for path in paths:
        try:
            found[path] = (ROOT / f"{mounted}{path}").stat().st_ino
        except OSError:
            continue
    return found
