# SPDX-License-Identifier: GPL-3.0-or-later
"""One end of the rig with what splits flows in a node: probes inside each dimension, and the splitter.

    ip netns exec SPACE python -m benchmarks.splitter < PICKLED_ENDING

The rig starts it for the goal `auto`. It runs until it is killed, and prints a line for each change.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from socket import if_nametoindex

import trio

from phantommesh.dimensions import ALL
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.dataplane.splitting import Splitter
from phantommesh.nursery.host.nft import Table
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.scatter.peermap import PeerMap
from phantommesh.scatter.steering import Steering
from phantommesh.scatter.transactions import Snapshot
from phantommesh.wireguard.device import DeviceState, Interface, PeerState, Route

PORT = 51801
PEER = b"peer" * 4
READ = 1.0  # s between readings of the interfaces' counters


@dataclass(frozen=True, slots=True)
class Ending:
    """One end: its table (family, name) and its peer's part of it, its interfaces and the two addresses."""

    table: tuple[str, str]
    peer: PeerMap
    names: tuple[str, ...]
    own: IPv4Address
    other: IPv4Address
    mtu: int


class _Table:
    """The rig's table in the place of a node's scatterer."""

    def __init__(self, ending: Ending) -> None:
        self._table, self._peer = Table(*ending.table), ending.peer
        self._steering = Steering()

    def splittable(self) -> list[bytes]:
        return [PEER]

    def steered(self, node_id: bytes) -> Steering:
        return self._steering

    async def count_flows(self, node_id: bytes) -> tuple[Mapping[int, tuple[int, int]], Sequence[int | None]]:
        return await self._table.counters(self._peer.flows), self._peer.homes

    async def steer(self, node_id: bytes, steering: Steering) -> None:
        split, moved = sorted(steering.split), sorted(steering.moved)
        print(f"{trio.current_time():.2f} split {split} moved {moved}", flush=True)
        self._steering, changed = steering, replace(self._peer, steering=steering)
        await self._table.replace({changed.name: changed.elements})

    async def set_scores(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None]
    ) -> None:
        """The rig's weights are fixed."""

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        return None


async def _run(ending: Ending) -> None:
    measured = Paths(random=Random(), interval=0.1)  # spreads timers
    table = _Table(ending)
    driver = PathDriver(
        measured, table, port=PORT, names=ending.names, address=lambda: ending.own,
        fitting=Fitting(measured, random=Random(), largest=ending.mtu),
    )  # fmt: skip
    driver.devices({name: _device(name) for name in ending.names})
    driver.set_peers([(PEER, ending.other, ALL)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.run)
        nursery.start_soon(Splitter(driver, table).run)
        while True:
            counters = [(_count(name, "tx_bytes"), _count(name, "rx_bytes")) for name in ending.names]
            driver.read(PEER, counters)
            await trio.sleep(READ)


def _device(name: str) -> DeviceState:
    nothing = frozenset[Interface](), frozenset[Route](), dict[bytes, PeerState]()
    return DeviceState(name, if_nametoindex(name), True, None, 0, 0, *nothing)


def _count(name: str, kind: str) -> int:
    return int(Path(f"/sys/class/net/{name}/statistics/{kind}").read_text())


if __name__ == "__main__":
    trio.run(_run, pickle.load(sys.stdin.buffer))  # from the rig that started this
