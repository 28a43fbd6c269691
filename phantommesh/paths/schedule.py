# SPDX-License-Identifier: GPL-3.0-or-later
"""When the next probe of each path leaves: how often, within what all paths together may have."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

from phantommesh.dimensions import DIMENSIONS, has
from phantommesh.paths.pace import CLOSER, SUSPECT
from phantommesh.paths.peer import Peer, is_new
from phantommesh.paths.state import MISSES, SILENT, Path, PathState

# Tuning.
SLOW: Final = 10.0  # s between probes of a path while there is no traffic to its peer
RETURN: Final = 1.0  # s between probes of a dark path of a peer that answers on others
# Fast probes a second at most, over all peers: each is answered by a node that is as busy. Two peers whose
# traffic takes the quickest path are watched as closely as that needs.
BUDGET: Final = 220.0
COUNT: Final = 0.25  # s between two counts of what probing fast would take
SLOW_BUDGET: Final = 20.0  # slow ones
SPREAD: Final = 0.15  # of the interval, either way: an observer should not find seven probes at one moment
SLOT: Final = 1.0  # s between the moments at which slow probes leave: a wake-up costs more than a probe


class Schedule:
    """For the paths of all ``peers``, which whoever made it may change. ``interval`` is the seconds between
    probes of a path under traffic, and ``now`` seconds on any clock that only goes forward."""

    def __init__(self, peers: Mapping[bytes, Peer], random: Random, interval: float) -> None:
        self._peers, self._random, self.interval = peers, random, interval
        self._thrift = (float("-inf"), 1.0)  # when it was counted, and by how much fast probes are too many

    def pause(self, peer: Peer, path: Path, now: float, leaving: int) -> float:
        """How long until the next probe. ``leaving``: the dimensions that are taken out of use, a bitmap."""
        if (watch := peer.watch(path, now)) is not None:
            suspects = path.quality.alarm.suspects
            return watch.pause(self.interval * self.too_many(now), now, suspects=suspects)
        unsure = 0 < path.misses < SILENT and path.state is not PathState.DARK
        going = path.aside or (has(leaving, path.dimension) and not path.peer_drained)
        if unsure or (is_new(path) and path.misses < MISSES):
            return self.interval * self.too_many(now)
        if path.state is PathState.UP and (going or path.peer_leaving):
            return self.interval * self.too_many(now)
        if path.state is PathState.UP and peer.pace.busy(now):
            usual = peer.busy_pause(self.interval) * self.too_many(now)
            if not path.quality.alarm.doubts(now):
                return usual
            soon = max(self.interval * self.too_many(now) / SUSPECT, peer.doubts.wait(now))
            return min(usual, soon)
        if now < peer.roused and (path.misses or path.state is not PathState.UP):
            return self.interval * self.too_many(now)
        slow = self.slow
        alive = any(other.state in (PathState.UP, PathState.PROVING) for other in peer.paths)
        return RETURN if path.state is PathState.DARK and alive else slow

    @property
    def slow(self) -> float:
        """The seconds between probes of a path while there is no traffic to its peer."""
        return max(SLOW, len(self._peers) * DIMENSIONS / SLOW_BUDGET)

    def too_many(self, now: float) -> float:
        """By how much pauses have to be longer so that all fast probes stay within `BUDGET`; 1 or more."""
        counted_at, factor = self._thrift
        if now >= counted_at + COUNT:
            eager = sum(self._eager(peer, now) for peer in self._peers.values())
            factor = max(1.0, eager / BUDGET)
            self._thrift = now, factor
        return factor

    def _eager(self, peer: Peer, now: float) -> float:
        """How many fast probes a second a peer is sent."""
        if any(map(is_new, peer.paths)) or now < peer.roused:
            return DIMENSIONS / self.interval
        if not peer.pace.busy(now):
            return 0.0
        others = DIMENSIONS / peer.busy_pause(self.interval)
        return others if peer.seek is None or peer.quickest is None else others + CLOSER / self.interval

    def next(self, peer: Peer, now: float, pause: float) -> float:
        """When to probe a path again after a pause. Slow probes of different peers leave in one wake-up, and
        those of one peer at different moments."""
        moment = now + self.spread(pause)
        if pause < SLOW:
            return moment
        slot = round(moment / SLOT)
        slots = [around * SLOT for around in (slot, slot - 1, slot + 1, slot + 2, slot - 2)]
        taken = {path.next_probe for path in peer.paths}
        return next((free for free in slots if free not in taken and free > now), moment)

    def spread(self, pause: float) -> float:
        """A pause that no observer can foresee: as long on the average."""
        return pause * self._random.uniform(1 - SPREAD, 1 + SPREAD)
