# SPDX-License-Identifier: GPL-3.0-or-later
"""Which members are in this node's region, by their own words."""

from __future__ import annotations

from collections.abc import Callable

from phantommesh.records.roster import Entry
from phantommesh.trust.identity import NodeId


def nearness(region: str, get: Callable[[NodeId], Entry | None]) -> Callable[[bytes], bool] | None:
    """Return what says whether a member is in a region. A member that names none counts as near, and so does
    one whose record has not come yet. None where this node itself is in no region."""
    if not region:
        return None

    def near(node: bytes) -> bool:
        entry = get(NodeId(node))
        return entry is None or entry.record.region in ("", region)

    return near
