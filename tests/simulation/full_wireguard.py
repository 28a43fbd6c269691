# SPDX-License-Identifier: GPL-3.0-or-later
"""WireGuard as `full_sim` models it: a node's seven interfaces, their handshakes, and the data they carry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from phantommesh.dimensions import DIMENSIONS
from phantommesh.identity import NodeId
from phantommesh.nursery.gossip import LOOK_AGAIN

if TYPE_CHECKING:
    from tests.simulation.full_node import Process

# WireGuard's REKEY_AFTER_TIME, REKEY_TIMEOUT and REJECT_AFTER_TIME (s)
REKEY, RETRY, REJECT = 120.0, 5.0, 180.0


class Kernel:
    """One node's seven interfaces: per peer and dimension the PSK and the last handshake's unix time. A
    handshake succeeds if and only if both ends hold the same PSK at that moment."""

    def __init__(self) -> None:
        self.psks: dict[bytes, tuple[bytes, ...]] = {}
        self.dials: set[bytes] = set()
        self.handshakes: dict[bytes, list[float | None]] = {}
        self.landed: dict[bytes, list[float]] = {}  # the same in the simulation's time
        self.attempts: dict[bytes, list[float]] = {}

    def keep(self, peers: Iterable[bytes]) -> None:
        """Remove all other peers."""
        kept = set(peers)
        for peer in [peer for peer in self.psks if peer not in kept]:
            for held in (self.psks, self.handshakes, self.landed, self.attempts):
                del held[peer]
            self.dials.discard(peer)

    def set(self, peer: bytes, psks: tuple[bytes, ...], dials: bool) -> None:
        """Make one peer as desired."""
        self.psks[peer] = psks
        self.handshakes.setdefault(peer, [None] * DIMENSIONS)
        self.landed.setdefault(peer, [float("-inf")] * DIMENSIONS)
        self.attempts.setdefault(peer, [float("-inf")] * DIMENSIONS)
        if dials:
            self.dials.add(peer)
        else:
            self.dials.discard(peer)


def shake_hands(a: Process) -> None:
    """The handshakes that this node's interfaces start; and data over those that landed."""
    sim, kernel = a.sim, a.machine.kernel
    for peer in sorted(kernel.psks):
        b = sim.by_id[NodeId(peer)]
        if not sim.network.both(a.machine.index, b.index):
            continue
        other = b.kernel
        theirs = other.psks.get(a.me)
        if theirs is None:
            continue
        if peer in kernel.dials:
            for i in range(DIMENSIONS):
                if sim.now - kernel.landed[peer][i] < REKEY or sim.now - kernel.attempts[peer][i] < RETRY:
                    continue
                kernel.attempts[peer][i] = sim.now
                if kernel.psks[peer][i] == theirs[i]:
                    for at, who, machine in ((kernel, peer, a.machine), (other, a.me, b)):
                        at.landed[who][i] = sim.now
                        at.handshakes[who][i] = sim.wall + machine.wall_offset


def read_interfaces(a: Process) -> None:
    """`GossipDriver.read_interfaces`, every LOOK_AGAIN. Data flow over all that WireGuard keyed."""
    sim = a.sim
    for peer, landed in sorted(a.machine.kernel.landed.items()):
        machine = sim.by_id[NodeId(peer)]
        way = sim.network.open(machine.index, a.machine.index)
        if way and machine.process and max(landed) > sim.now - REJECT:
            a.carry_gossip(a.gossip.seal(a.membership.traffic_seen(peer, a.now, age=LOOK_AGAIN), a.now))
    sim.at_process(a, LOOK_AGAIN, lambda: read_interfaces(a))
