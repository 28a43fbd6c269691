# SPDX-License-Identifier: GPL-3.0-or-later
"""Which router carries each prefix that this node takes: the first in order that says, over the mesh, that
its own route to the prefix works. No I/O; ``now`` is the owner's clock in seconds.

Each router is asked again and again (`routing/asking.py`) by packets that go the way of the traffic. Silence
means that the router, or every way to it, is dead; an answer that leaves a prefix out means that the router
lives and its own link to the prefix does not. Both take the prefix from it. A prefix that nobody carries has
no router: the caller closes it.

A router that is better liked and that broke once takes a prefix back only after it was up without a break for
some time, which doubles with each break. So a link that comes and goes moves traffic seldom. Where nobody
else carries the prefix, a router takes it back at once after one break, and after a short while where breaks
follow each other: each change costs this node a change of its interfaces, rules and routes.

A router that is about to go (`Taken.leaving`) gives a prefix up at once to any other that works, however
short that one has been up: the router still carries while the prefix moves, and later it would not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from phantommesh.routing.prefixes import Taken
from phantommesh.wireguard.device import Network

# Tuning.
PACE: Final = 0.3  # s between two questions to a router that another one could stand in for
ALONE: Final = 3.0  # s between those to a router that nobody could
SILENCE: Final = 4.4  # paces without an answer until a router counts as dead: three may be lost
HOLD: Final = 10.0  # s that a better router is up before it takes a prefix back
MOST_HOLD: Final = 600.0  # s; a break doubles the time, up to this
MOST_ALONE: Final = 5.0  # s that a router is up before it takes back what nobody carries, after some breaks
CALM: Final = 4.0  # times the hold without a break: then the next break counts as the first


@dataclass(slots=True)
class _Router:
    """One router as last heard. ``up``: since when it says of each prefix that its route works."""

    pace: float
    ask_at: float
    heard: float = -math.inf
    up: dict[Network, float] = field(default_factory=dict)
    hold: dict[Network, float] = field(default_factory=dict)  # after its latest break
    broke: dict[Network, float] = field(default_factory=dict)

    @property
    def silent_at(self) -> float:
        """When the router counts as dead if nothing more is heard."""
        return self.heard + SILENCE * self.pace

    def lives(self, now: float) -> bool:
        return now < self.silent_at


@dataclass(frozen=True, slots=True)
class Standing:
    """One router of one prefix. ``lives``: it answers, whatever it says; ``works``: it lives and says that
    its route works. ``silence``: seconds without an answer after which it counts as dead; ``hold``: seconds
    for which its route has to work until it takes the prefix back from a router that is liked less.
    ``back_at``: when it does; infinity for one that carries the prefix, that does not work, or that is liked
    less than the one which carries it."""

    router: bytes
    lives: bool
    works: bool
    carries: bool
    silence: float
    hold: float = 0.0
    back_at: float = math.inf


class Failover:
    """The routers of one node. Call `take` with what is taken, `answered` for each answer, `due` when
    `deadline` has come; then look at `carried`."""

    def __init__(self) -> None:
        self.carried: Mapping[Network, bytes] = {}
        self._taken: dict[Network, tuple[bytes, ...]] = {}
        self._leaving: dict[Network, frozenset[bytes]] = {}
        self._routers: dict[bytes, _Router] = {}

    def take(self, taken: Iterable[Taken], now: float) -> bool:
        """Take these prefixes and no others; return whether `carried` has changed."""
        taken = [one for one in taken if one.routers]
        self._taken = {one.prefix: one.routers for one in taken}
        self._leaving = {one.prefix: one.leaving for one in taken if one.leaving}
        paces: dict[bytes, float] = {}
        for routers in self._taken.values():
            for router in routers:
                pace = PACE if len(routers) > 1 else ALONE
                paces[router] = min(pace, paces.get(router, pace))
        self._routers = {
            router: self._routers.get(router) or _Router(pace, now) for router, pace in paces.items()
        }
        for router, pace in paces.items():
            known = self._routers[router]
            if pace != known.pace:
                known.pace, known.ask_at = pace, min(known.ask_at, now + pace)
        return self._choose(now)

    def answered(self, router: bytes, works: Iterable[Network], now: float) -> bool:
        """A router has answered: its routes to these prefixes work. Return whether `carried` has changed. A
        node that is no router here is passed over."""
        known = self._routers.get(router)
        if known is None:
            return False
        self._bury(known, now)
        known.heard = now
        up = frozenset(works)
        for prefix in [prefix for prefix in known.up if prefix not in up]:
            self._break(known, prefix, now)
        for prefix in up:
            if router in self._taken.get(prefix, ()):
                known.up.setdefault(prefix, now)
        return self._choose(now)

    def gone(self, router: bytes, now: float) -> bool:
        """A member has said goodbye, and carries nothing until it answers again: its silence need not be
        waited for. Return whether `carried` has changed. A node that is no router here is passed over."""
        known = self._routers.get(router)
        if known is None:
            return False
        known.heard = -math.inf
        self._bury(known, now)
        return self._choose(now)

    @property
    def deadline(self) -> float:
        """When `due` is to be called next; infinity for never."""
        moments = [math.inf]
        for router in self._routers.values():
            moments.append(router.ask_at)
            if router.up:
                moments.append(router.silent_at)
        moments += [self._back_at(prefix) for prefix in self._taken]
        return min(moments)

    def due(self, now: float) -> tuple[list[bytes], bool]:
        """Return the routers to ask now, and whether `carried` has changed."""
        ask = list[bytes]()
        for node_id, router in self._routers.items():
            self._bury(router, now)
            if router.ask_at <= now:
                ask.append(node_id)
                router.ask_at = now + router.pace
        return ask, self._choose(now)

    def standing(self, prefix: Network, now: float) -> tuple[Standing, ...]:
        """How each router of a prefix stands, in order of preference; none of a prefix that is not taken."""
        routers, current = self._taken.get(prefix, ()), self.carried.get(prefix)
        found = list[Standing]()
        for rank, router in enumerate(routers):
            known, works = self._routers[router], self._works(router, prefix, now)
            better = current in routers and rank < routers.index(current)
            back_at = self._ready_at(router, prefix) if works and better else math.inf
            silence, hold = SILENCE * known.pace, known.hold.get(prefix, 0.0)
            carries = router == current
            found.append(Standing(router, known.lives(now), works, carries, silence, hold, back_at))
        return tuple(found)

    # ---- choosing ----

    def _choose(self, now: float) -> bool:
        """Have each prefix carried by the router that should; return whether any moved."""
        carried = dict[Network, bytes]()
        for prefix, routers in self._taken.items():
            working = [router for router in routers if self._works(router, prefix, now)]
            current, leaving = self.carried.get(prefix), self._leaving.get(prefix, frozenset())
            staying = [router for router in working if router not in leaving]
            if current in working and current in leaving and staying:
                carried[prefix] = staying[0]
            elif current in working:
                better = working[: working.index(current)]
                ready = (r for r in better if self._ready_at(r, prefix) <= now)
                carried[prefix] = next(ready, current)
            elif back := [router for router in working if self._again_at(router, prefix) <= now]:
                carried[prefix] = back[0]
        changed = carried != self.carried
        self.carried = carried
        return changed

    def _works(self, router: bytes, prefix: Network, now: float) -> bool:
        known = self._routers[router]
        return prefix in known.up and known.lives(now)

    def _ready_at(self, router: bytes, prefix: Network) -> float:
        """When a router has been up for long enough to take a prefix back."""
        known = self._routers[router]
        return known.up[prefix] + known.hold.get(prefix, 0.0)

    def _again_at(self, router: bytes, prefix: Network) -> float:
        """When a router has been up for long enough to take back a prefix that nobody carries."""
        known = self._routers[router]
        return known.up[prefix] + min(MOST_ALONE, known.hold.get(prefix, HOLD) - HOLD)

    def _back_at(self, prefix: Network) -> float:
        """When the next router is ready to take a prefix back from a lesser one, or from nobody."""
        current, routers = self.carried.get(prefix), self._taken[prefix]
        if current is None or current not in routers:
            up = [router for router in routers if prefix in self._routers[router].up]
            return min((self._again_at(router, prefix) for router in up), default=math.inf)
        better = [r for r in routers[: routers.index(current)] if prefix in self._routers[r].up]
        return min((self._ready_at(router, prefix) for router in better), default=math.inf)

    def _bury(self, router: _Router, now: float) -> None:
        """Note a silence that is long enough as a break of all that the router carried."""
        if router.up and not router.lives(now):
            for prefix in list(router.up):
                self._break(router, prefix, now)

    def _break(self, router: _Router, prefix: Network, now: float) -> None:
        del router.up[prefix]
        hold = router.hold.get(prefix, HOLD)
        again = prefix in router.broke and now < router.broke[prefix] + CALM * hold
        router.hold[prefix] = min(MOST_HOLD, 2 * hold) if again else HOLD
        router.broke[prefix] = now
