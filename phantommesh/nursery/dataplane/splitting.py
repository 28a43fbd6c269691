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
    """The flows of one node. ``asks``: whether a flow is split only after somebody has ruled so."""

    def __init__(
        self, watched: Watched, scatterer: Scatterer, *, asks: Callable[[], bool] = lambda: False
    ) -> None:
        self._watched, self._scatterer, self._asks = watched, scatterer, asks
        self._peers: dict[bytes, Splitting] = {}

    def of(self, node_id: bytes) -> Splitting | None:
        """The flows of one peer; None where no flow of its is ever split, or while it has had no traffic."""
        return self._peers.get(node_id)

    async def rule(self, node_id: bytes, bucket: int, split: bool | None) -> None:
        """Let a bucket of a peer's flows be split, or keep it in order; None: nobody says any more. Raises
        PhantomMeshError where the peer's flows have no buckets, or the kernel refuses."""
        found = self._found(node_id)
        found.rule(bucket, split, trio.current_time())
        await self._steer(node_id, found)

    async def pin(self, node_id: bytes, bucket: int, dimension: int | None) -> None:
        """Keep a bucket of a peer's flows on a dimension; None: no longer. Raises like `rule`."""
        found = self._found(node_id)
        found.pin(bucket, dimension)
        await self._steer(node_id, found)

    def _found(self, node_id: bytes) -> Splitting:
        if node_id not in self._peers and node_id in self._scatterer.splittable():
            self._peers[node_id] = Splitting(asks=self._asks())  # there has been no traffic so far
        found = self._peers.get(node_id)
        if found is None:
            raise PhantomMeshError(
                "flows to this peer are not steered", fix="set scatter.goal to auto, for the peer or for all"
            )
        return found

    async def _steer(self, node_id: bytes, found: Splitting) -> None:
        if (steering := found.steering) != self._scatterer.steered(node_id):
            peer = format_node_id(NodeId(node_id))
            log.info("flows steered", peer=peer, split=len(steering.split), moved=len(steering.moved))
            await self._scatterer.steer(node_id, steering)

    async def run(self) -> None:
        """Split and put back until cancelled. What the kernel refuses is tried again."""
        while True:
            await self._watched.wait(lambda: any(map(self._moves, self._scatterer.splittable())))
            listed = self._scatterer.splittable()
            self._peers = {
                node_id: self._peers.get(node_id) or Splitting(asks=self._asks()) for node_id in listed
            }
            for found in self._peers.values():
                found.asks = self._asks()
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
        if not found.wants(self.loads(node_id), self._rate(node_id), trio.current_time()) and not another:
            return False
        counted = await self._scatterer.count_flows(node_id)
        if counted is None:
            return False
        found.look(self.loads(node_id), *counted, trio.current_time())
        await self._steer(node_id, found)
        return True

    def loads(self, node_id: bytes) -> list[Load]:
        """A peer's paths as measured lately, by dimension."""
        now, paths = trio.current_time(), self._watched.paths
        weights = paths.scores(node_id)
        return [
            Load(path.quality.standing.queue(now), path.quality.standing.loss(now), weights[i] > 0.0)
            if (path := paths.path(node_id, i)) is not None
            else Load(used=False)
            for i in range(DIMENSIONS)
        ]
