# SPDX-License-Identifier: GPL-3.0-or-later
"""Which other members may pass on this node's packets. Pure.

A member's name is in its certificate. Its region is its own word: a constraint on regions keeps traffic out
of a region as long as the members there say so, and a constraint on names holds against a member that lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from phantommesh.config.sections import RelaySection


@dataclass(frozen=True, slots=True)
class Constraints:
    """``direct_only``: nobody may. Else ``only`` and ``never`` are names of members, ``regions`` and
    ``never_regions`` names of regions; an empty ``only`` or ``regions`` allows all. What forbids comes
    first."""

    direct_only: bool = False
    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    never_regions: frozenset[str] = frozenset()

    def refuses(self, name: str, region: str) -> str:
        """Return the key of the configuration that forbids this member, or nothing where it may pass on
        packets. A member that names no region is in none that is allowed."""
        if self.direct_only:
            return "relay.direct_only"
        if name in self.never:
            return "relay.never"
        if self.only and name not in self.only:
            return "relay.only"
        if region in self.never_regions:
            return "relay.never_regions"
        return "relay.regions" if self.regions and region not in self.regions else ""


FREE: Final = Constraints()


def constraints_of(section: RelaySection) -> Constraints:
    """Return what the configuration asks for all traffic."""
    return Constraints(
        section.direct_only,
        frozenset(section.only),
        frozenset(section.never),
        frozenset(section.regions),
        frozenset(section.never_regions),
    )
