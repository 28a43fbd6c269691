# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's latest events, numbered, for readers that ask or listen. `views.Event` is one event.

A reader has a place (the number of the last event it saw) and comes for what is newer. Nothing is kept here
for a reader, so a slow reader costs nothing: where events that it comes for are no longer kept, it gets a
``gap`` instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

from phantommesh.errors import PhantomMeshError
from phantommesh.management.scopes import Scope, allows
from phantommesh.management.views import Event
from phantommesh.moments import rfc3339

FAMILIES = (
    "peer", "link", "path", "nat", "scatter", "route", "pact", "topology", "agent", "threat", "config",
    "health", "audit",
)  # fmt: skip
GAP = "gap"
NEEDED = {"audit": Scope.ADMIN}
"""The scopes of families that not every reader is told: that of the endpoint that has the same."""

# Tuning.
KEPT = 4096
MAX_PATTERNS = 32

Wake: TypeAlias = Callable[[], None]


class FilterError(PhantomMeshError):
    """A choice of event types that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Filter:
    """The types that a reader wants. The empty filter wants all. ``withheld``: families that the reader is
    not told, whatever it wants."""

    types: frozenset[str] = frozenset()
    families: frozenset[str] = frozenset()
    withheld: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """Read types and families (``peer.*``) that stand between commas; ``*`` or nothing at all means every
        type. Raises FilterError, also for a family that does not exist: it would stay silent for ever."""
        types: set[str] = set()
        families: set[str] = set()
        patterns = [pattern.strip() for pattern in text.split(",")] if text.strip() else []
        if len(patterns) > MAX_PATTERNS:
            raise FilterError("too many event types", fix=f"give at most {MAX_PATTERNS}, or a family's `*`")
        for pattern in patterns:
            family, dot, name = pattern.partition(".")
            if pattern == "*":
                families.update(FAMILIES)
            elif family not in FAMILIES or not dot or not _is_name(name):
                raise FilterError(
                    f"{pattern[:40]!r} is no type of event",
                    fix=f"give FAMILY.NAME or FAMILY.*, where FAMILY is one of {', '.join(FAMILIES)}",
                )
            elif name == "*":
                families.add(family)
            else:
                types.add(pattern)
        return cls(frozenset(types), frozenset(families))

    def told(self, granted: Scope | None) -> "Filter":
        """The same for a reader with this scope: it is not told what it may not ask for."""
        withheld = frozenset(family for family, needed in NEEDED.items() if not allows(granted, needed))
        return replace(self, withheld=withheld)

    def wants(self, kind: str) -> bool:
        """Whether events of this type are wanted, and not withheld."""
        family = kind.partition(".")[0]
        if family in self.withheld:
            return False
        everything = not self.types and not self.families
        return everything or kind in self.types or family in self.families


def _is_name(name: str) -> bool:
    return name == "*" or (name.isascii() and name.replace("-", "").replace("_", "").isalnum())


@dataclass(frozen=True, slots=True)
class Batch:
    """The events that a reader came for, oldest first. ``place`` is its new place; ``more``: there is
    more right now."""

    events: list[Event]
    place: int
    more: bool


class EventLog:
    """The latest ``kept`` events of one run of the node. Not for use from several threads.

    ``run`` is another one each time the node starts, so that a reader that comes back can tell that the
    numbers began anew. ``clock`` gives Unix seconds.
    """

    def __init__(self, *, run: str, clock: Callable[[], float], kept: int = KEPT) -> None:
        self.run = run
        self.last = 0
        self.wakes: set[Wake] = set()
        """Called after each event: a reader that waits puts in what wakes it, and takes it out again."""
        self._clock = clock
        self._kept = kept
        self._events: dict[int, Event] = {}

    @property
    def oldest(self) -> int:
        """The number of the oldest event kept; one more than ``last`` when there is none."""
        return max(1, self.last - self._kept + 1)

    def publish(self, type: str, node: str | None, data: Mapping[str, object]) -> None:  # noqa: A002
        """Add an event. Never raises and never waits, so it may be called from anywhere in the node.

        ``type`` is ``FAMILY.name``; ``node`` is the name of the member it is about, None for this node.
        ``data`` is copied, and a value that is no JSON (a `Secret` is none) gives way to the reason. Keep it
        small and of bounded size: it stays until ``kept`` later events have come.
        """
        copied: dict[str, object]
        try:
            copied = msgspec.json.decode(msgspec.json.encode(data), type=dict[str, object])
        except Exception as error:  # a bug in the caller: it has to show, and must not stop the caller
            copied = {"unpublishable": f"{error.__class__.__name__}: {error}"}
        self.last += 1
        self._events[self.last] = self._event(self.last, type, node, copied)
        self._events.pop(self.last - self._kept, None)
        for wake in list(self.wakes):
            wake()

    def read(self, place: int, wanted: Filter, limit: int) -> Batch:
        """Return at most ``limit`` events newer than ``place`` that are wanted, and a ``gap`` besides where
        events after ``place`` are no longer kept. A place that no event has yet comes from another run, and
        counts as 0."""
        place = 0 if place > self.last else place
        events = []
        if (missed := self.oldest - 1 - place) > 0:
            place += missed
            events.append(self._event(place, GAP, None, {"missed": missed}))
        found = 0
        while found < limit and place < self.last:
            place += 1
            if wanted.wants(self._events[place].type):
                events.append(self._events[place])
                found += 1
        return Batch(events, place, place < self.last)

    def _event(self, seq: int, kind: str, node: str | None, data: dict[str, object]) -> Event:
        time = rfc3339(self._clock(), milliseconds=True)
        return Event(seq=seq, time=time, type=kind, node=node, data=data, run=self.run)
