# SPDX-License-Identifier: GPL-3.0-or-later
"""WireGuard as `full_sim` models it: a node's seven interfaces, their handshakes, and the data they carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from phantommesh.dimensions import DIMENSIONS
from phantommesh.node.news import DATA
from phantommesh.nursery.members.gossip import LOOK_AGAIN
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import DeviceConfig, DeviceState, PeerState
from tests.simulation.full_parts import owner

if TYPE_CHECKING:
    from tests.simulation.full_node import Process

# WireGuard's REKEY_AFTER_TIME, REKEY_TIMEOUT and REJECT_AFTER_TIME (s)
REKEY, RETRY, REJECT = 120.0, 5.0, 180.0


States = dict[str, DeviceState]


class Kernel:
    """One node's seven interfaces: per peer and dimension the PSK (empty where the interface has no such
    peer) and the last handshake's unix time. A handshake succeeds if and only if both ends hold the same PSK
    at that moment. ``dials`` are the dimensions on which the peer has an endpoint, as a bitmap."""

    def __init__(self) -> None:
        self.psks: dict[bytes, tuple[bytes, ...]] = {}
        self.dials: dict[bytes, int] = {}
        self.handshakes: dict[bytes, list[float | None]] = {}
        self.landed: dict[bytes, list[float]] = {}  # the same in the simulation's time
        self.attempts: dict[bytes, list[float]] = {}

    def keep(self, devices: Mapping[str, DeviceConfig]) -> None:
        """Remove the peers that no device is to have."""
        kept = {owner(key) for device in devices.values() for key in device.peers}
        for peer in [peer for peer in self.psks if peer not in kept]:
            for held in (self.psks, self.dials, self.handshakes, self.landed, self.attempts):
                del held[peer]

    def set(self, peer: bytes, keys: Sequence[bytes], devices: Mapping[str, DeviceConfig]) -> None:
        """Make one peer, of these public keys, as the devices are to have it."""
        wanted = [device.peers.get(key) for device, key in zip(devices.values(), keys, strict=True)]
        if not any(wanted):
            return
        self.psks[peer] = tuple(b"" if found is None else found.psk.reveal() for found in wanted)
        self.dials[peer] = sum(
            1 << i for i, found in enumerate(wanted) if found is not None and found.endpoint is not None
        )
        self.handshakes.setdefault(peer, [None] * DIMENSIONS)
        self.landed.setdefault(peer, [float("-inf")] * DIMENSIONS)
        self.attempts.setdefault(peer, [float("-inf")] * DIMENSIONS)

    def states(self, peer: bytes, keys: Sequence[bytes], devices: Mapping[str, DeviceConfig]) -> States:
        """The devices as they would be read, with this peer alone."""
        found, held = States(), self.psks.get(peer, (b"",) * DIMENSIONS)
        for i, (name, want) in enumerate(devices.items()):
            peers = {}
            if held[i]:
                seen, config = self.handshakes[peer][i], want.peers.get(keys[i])
                peers[keys[i]] = PeerState(
                    keys[i], Secret(held[i]), None if config is None else config.endpoint, frozenset(),
                    last_handshake=seen or 0.0,
                )  # fmt: skip
            found[name] = DeviceState(
                name, i + 1, True, None, want.listen_port, want.mtu, want.addresses, want.routes, peers
            )
        return found


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
        for i in range(DIMENSIONS):
            if not kernel.dials[peer] >> i & 1:
                continue
            if sim.now - kernel.landed[peer][i] < REKEY or sim.now - kernel.attempts[peer][i] < RETRY:
                continue
            kernel.attempts[peer][i] = sim.now
            if kernel.psks[peer][i] and kernel.psks[peer][i] == theirs[i]:
                for at, who, machine in ((kernel, peer, a.machine), (other, a.me, b)):
                    at.landed[who][i] = sim.now
                    at.handshakes[who][i] = sim.wall + machine.wall_offset


def read_interfaces(a: Process) -> None:
    """Have data flow over all that WireGuard keyed, and the interfaces read, every LOOK_AGAIN."""
    sim = a.sim
    for peer, landed in sorted(a.machine.kernel.landed.items()):
        machine = sim.by_id[NodeId(peer)]
        way = sim.network.open(machine.index, a.machine.index)
        if way and machine.process and max(landed) > sim.now - REJECT:
            a.received[NodeId(peer)] += DATA + 1
    received = {peer: [count] + [0] * (DIMENSIONS - 1) for peer, count in sorted(a.received.items())}
    a.news.read_interfaces(received, a.now)
    sim.at_process(a, LOOK_AGAIN, lambda: read_interfaces(a))
