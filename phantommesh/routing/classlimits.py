# SPDX-License-Identifier: GPL-3.0-or-later
"""Which dimensions the classes of traffic (`[[intent]]`) may take, by the members that pass on their packets
there. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from phantommesh.config.sections import IntentSection
from phantommesh.dimensions import ALL, DIMENSIONS, bits
from phantommesh.routing.choice import Need
from phantommesh.routing.constraints import FREE as ANYBODY
from phantommesh.routing.constraints import Constraints, Rule, constraints_for, intent_key
from phantommesh.routing.ways import Kind, Way
from phantommesh.scatter.intents import TrafficClass
from phantommesh.scatter.limits import DIRECT, FREE, Limits
from phantommesh.trust.identity import NodeId


@dataclass(frozen=True, slots=True)
class Hand:
    """A member that passes packets on: its name, its region, and its node id, also as text."""

    node_id: bytes
    name: str
    region: str
    text: str


DIRECTLY: Final = Hand(DIRECT, "", "", "")
"""Nobody: the direct way, where it has to be named beside members."""


def passing(ways: Collection[Way | None]) -> set[bytes]:
    """The node ids of the members that pass on what goes by these ways; an address of the peer's own record
    (None) and a direct way have none."""
    return {way.relay for way in ways if way is not None and way.kind is not Kind.DIRECT} - {DIRECT}


class ClassLimits:
    """The constraints of a node's intents: ``sections`` are those that have any, by name."""

    def __init__(self, sections: Mapping[str, IntentSection]) -> None:
        self._constraints = {name: constraints_for(intent) for name, intent in sections.items()}

    def concern(self, classes: Sequence[TrafficClass]) -> bool:
        """Whether any of the classes is not to go by whatever way there is."""
        return any(one.name in self._constraints for one in classes)

    def of(self, name: str) -> Constraints:
        """The constraints of an intent."""
        return self._constraints.get(name, ANYBODY)

    def limits(self, classes: Sequence[TrafficClass], hands: Sequence[Sequence[Hand | None]]) -> Limits:
        """Return which dimensions each of the classes of a peer may take. ``hands`` are, by dimension, the
        members that packets may go by now, the one that passes them on first: none where they go directly,
        several while the dimension moves from one to another, None for one that nothing is known of, which
        no class with constraints takes."""
        if not self.concern(classes):
            return FREE
        allowed = tuple(
            bits(all(self._may(one.name, hand) for hand in hands[i]) for i in range(DIMENSIONS))
            if one.name in self._constraints
            else ALL
            for one in classes
        )
        if all(one.hands == 1 for one in classes):
            return Limits(allowed)
        return Limits(allowed, tuple(_whose(hands[i]) for i in range(DIMENSIONS)))

    def needs(self, classes: Sequence[TrafficClass], hand: Callable[[NodeId], Hand | None]) -> list[Need]:
        """Return what the classes of a peer need of relays; ``hand`` says who a relay is."""
        return [
            Need(partial(self._serves, one.name, hand), one.hands)
            for one in classes
            if one.name in self._constraints and not self._constraints[one.name].direct_only
        ]

    def _serves(self, name: str, hand: Callable[[NodeId], Hand | None], relay: NodeId) -> bool:
        return self._may(name, hand(relay))

    def _may(self, name: str, hand: Hand | None) -> bool:
        if hand is None:
            return False
        return hand is DIRECTLY or self._constraints[name].refuses(hand.name, hand.region, hand.text) is None

    def keys(self, name: str, hands: Sequence[Sequence[Hand | None]]) -> list[str]:
        """The keys of the configuration by which a class may not take dimensions with these ``hands``, as of
        `limits`; that for the number of hands where nothing else keeps it from any."""
        there = {hand for some in hands for hand in some if hand is not None} - {DIRECTLY}
        rules = {rule for _, rule in self.refused(name, there)}
        return sorted(intent_key(name, rule) for rule in rules) or [f"intent.{name}.hands"]

    def refused(self, name: str, members: Collection[Hand]) -> Iterator[tuple[str, Rule]]:
        """The names of those ``members`` that may not pass on an intent's packets, each with the rule."""
        for hand in members:
            if (rule := self.of(name).refuses(hand.name, hand.region, hand.text)) is not None:
                yield hand.name, rule


def _whose(hands: Sequence[Hand | None]) -> bytes:
    """Who passes on a dimension's packets. Of several each sees a part, so that they count as the first."""
    return next((hand.node_id for hand in hands if hand is not None), DIRECT)
