# SPDX-License-Identifier: GPL-3.0-or-later
"""Splits flows over several dimensions while their paths limit them: measurements and counters go to
`scatter/splitting.py`, and the buckets that it names to the kernel. Nothing runs while there is no traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.paths.machine import Paths
from phantommesh.scatter.splitting import Load, Splitting
from phantommesh.scatter.steering import Steering
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
LOOK = 0.25  # s between looks at peers with traffic
READS = 4  # peers at most whose counters are read in one look: some 3 ms of CPU each

log = structlog.get_logger("phantommesh.scatter")


class Scatterer(Protocol):
    """The part of `Scattering` that is needed here."""

    def splittable(self) -> Sequence[bytes]: ...

    def steered(self, node_id: bytes) -> Steering: ...

    async def count_flows(
        self, node_id: bytes
    ) -> tuple[Mapping[int, tuple[int, int]], Sequence[int | None]] | None: ...

    async def steer(self, node_id: bytes, steering: Steering) -> None: ...


class Watched(Protocol):
    """The part of the paths' driver that is needed here."""

    paths: Paths

    async def wait(self, wanted: Callable[[], bool]) -> None: ...


class Splitter:
    """The flows of one node."""

    def __init__(self, watched: Watched, scatterer: Scatterer) -> None:
        self._watched, self._scatterer = watched, scatterer
        self._peers: dict[bytes, Splitting] = {}

    async def run(self) -> None:
        """Split and put back until cancelled. What the kernel refuses is tried again."""
        while True:
            await self._watched.wait(lambda: any(map(self._moves, self._scatterer.splittable())))
            listed = self._scatterer.splittable()
            self._peers = {node_id: self._peers.get(node_id) or Splitting() for node_id in listed}
            moving = sorted(filter(self._moves, listed), key=lambda node_id: self._peers[node_id].looked)
            reads = 0
            for node_id in moving:
                try:
                    reads += await self._look(node_id, self._peers[node_id])
                except PhantomMeshError as error:  # most likely the table is gone; its loop sees to it
                    log.debug("flows could not be looked at", error=str(error))
                if reads == READS:
                    break
            await trio.sleep(LOOK)

    def _moves(self, node_id: bytes) -> bool:
        """Whether a peer has traffic, or flows that are to be put back."""
        return self._rate(node_id) > 0.0 or bool(self._scatterer.steered(node_id).split)

    def _rate(self, node_id: bytes) -> float:
        return self._watched.paths.rate(node_id, trio.current_time())

    async def _look(self, node_id: bytes, found: Splitting) -> bool:
        """Say whether counters were read for it."""
        # The table may be another one than before, or of another epoch, and so have other buckets steered.
        another = found.steering != self._scatterer.steered(node_id)
        if not found.wants(self._loads(node_id), self._rate(node_id), trio.current_time()) and not another:
            return False
        counted = await self._scatterer.count_flows(node_id)
        if counted is None:
            return False
        found.look(self._loads(node_id), *counted, trio.current_time())
        if (steering := found.steering) != self._scatterer.steered(node_id):
            peer = format_node_id(NodeId(node_id))
            log.info("flows steered", peer=peer, split=len(steering.split), moved=len(steering.moved))
            await self._scatterer.steer(node_id, steering)
        return True

    def _loads(self, node_id: bytes) -> list[Load]:
        now, paths = trio.current_time(), self._watched.paths
        weights = paths.scores(node_id)
        return [
            Load(path.quality.standing.queue(now), path.quality.standing.loss(now), weights[i] > 0.0)
            if (path := paths.path(node_id, i)) is not None
            else Load(used=False)
            for i in range(DIMENSIONS)
        ]
