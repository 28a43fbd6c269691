# SPDX-License-Identifier: GPL-3.0-or-later
"""The users of this machine by name."""

from __future__ import annotations

import pwd
from collections.abc import Iterable


def numbers_of(names: Iterable[str]) -> dict[str, int]:
    """Return the numbers of the users of these names, without those whom this machine does not have. Blocks,
    where the users are in a directory service."""
    found = dict[str, int]()
    for name in names:
        try:
            found[name] = pwd.getpwnam(name).pw_uid
        except (KeyError, OSError):
            continue
    return found
