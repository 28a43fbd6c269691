# SPDX-License-Identifier: GPL-3.0-or-later
"""Which other members may pass on this node's packets. Pure.

A member's name is in its certificate, and the member may take another that is free. Its region is its own
word. So constraints on names and regions keep traffic from members as long as these go by what they are
called. A node id is a hash of the member's key: a constraint on ids holds against a member that renames
itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from phantommesh.config.sections import RelaySection
from phantommesh.faults import FaultKind

UNKNOWN_MEMBER = FaultKind("relay-unknown-member", "low")

_NODE_ID: Final = re.compile(r"[a-z2-7]{26}")  # as `trust.identity.format_node_id` writes one


@dataclass(frozen=True, slots=True)
class Constraints:
    """``direct_only``: nobody may. Else ``only`` and ``never`` are names and node ids of members, ``regions``
    and ``never_regions`` names of regions; an empty ``only`` or ``regions`` allows all. What forbids comes
    first."""

    direct_only: bool = False
    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    regions: frozenset[str] = frozenset()
    never_regions: frozenset[str] = frozenset()

    def refuses(self, name: str, region: str, node_id: str) -> str:
        """Return the key of the configuration that forbids this member, or nothing where it may pass on
        packets. ``node_id`` is its id as text. A member that names no region is in none that is allowed, and
        one whose name is written like an id is not taken for the member of that id."""
        called = {node_id} if _NODE_ID.fullmatch(name) else {node_id, name}
        if self.direct_only:
            return "relay.direct_only"
        if called & self.never:
            return "relay.never"
        if self.only and not called & self.only:
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


def unknown_members(section: RelaySection, known: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names in `[relay]` that are no member's, sorted, by the key that has them. ``known``: the members'
    names and node ids."""
    members, keys = frozenset(known), ("members", "only", "never")
    named = {f"relay.{key}": frozenset[str](getattr(section, key)) - members for key in keys}
    return {key: tuple(sorted(names)) for key, names in named.items() if names}
