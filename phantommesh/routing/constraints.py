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
from typing import Final, Literal

from phantommesh.config.sections import IntentSection, RelaySection
from phantommesh.faults import FaultKind

UNKNOWN_MEMBER = FaultKind("relay-unknown-member", "low")

_NODE_ID: Final = re.compile(r"[a-z2-7]{26}")  # as `trust.identity.format_node_id` writes one


def called(name: str, node_id: str) -> set[str]:
    """What an operator may call a member in the configuration: its name, and its node id as text. A member
    whose name is written like an id is not taken for the member of that id."""
    return {node_id} if _NODE_ID.fullmatch(name) else {node_id, name}


Rule = Literal["direct_only", "only", "never", "regions", "never_regions"]


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

    def refuses(self, name: str, region: str, node_id: str) -> Rule | None:
        """Return the rule that forbids this member, None where it may pass on packets. ``node_id`` is its id
        as text. A member that names no region is in none that is allowed."""
        by = called(name, node_id)
        if self.direct_only:
            return "direct_only"
        if by & self.never:
            return "never"
        if self.only and not by & self.only:
            return "only"
        if region in self.never_regions:
            return "never_regions"
        return "regions" if self.regions and region not in self.regions else None


FREE: Final = Constraints()
_OF_INTENT: Final[dict[Rule, str]] = {"only": "relays", "never": "never_relays"}


def relay_key(rule: Rule) -> str:
    """The key of the configuration that has a rule for all traffic."""
    return f"relay.{rule}"


def intent_key(intent: str, rule: Rule) -> str:
    """The key of the configuration that has a rule for the traffic of an intent, by its name."""
    return f"intent.{intent}.{_OF_INTENT.get(rule, rule)}"


def constraints_for(intent: IntentSection) -> Constraints:
    """Return what the configuration asks for the traffic of one intent."""
    return Constraints(
        intent.direct_only,
        frozenset(intent.relays),
        frozenset(intent.never_relays),
        frozenset(intent.regions),
        frozenset(intent.never_regions),
    )


def constraints_of(section: RelaySection) -> Constraints:
    """Return what the configuration asks for all traffic."""
    return Constraints(
        section.direct_only,
        frozenset(section.only),
        frozenset(section.never),
        frozenset(section.regions),
        frozenset(section.never_regions),
    )


def unknown_members(
    section: RelaySection, intents: Iterable[IntentSection], known: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """The names that are no member's, sorted, in the keys of `[relay]` and `[[intent]]` that say who may pass
    on packets or have them passed on, by key. ``known``: the members' names and node ids."""
    members = frozenset(known)
    named = {f"relay.{key}": getattr(section, key) for key in ("members", "only", "never")}
    for intent in intents:
        named |= {
            intent_key(intent.name, "only"): intent.relays,
            intent_key(intent.name, "never"): intent.never_relays,
        }
    unknown = {key: frozenset(names) - members for key, names in named.items()}
    return {key: tuple(sorted(names)) for key, names in unknown.items() if names}
