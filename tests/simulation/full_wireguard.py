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
    from tests.simulation.full_machines import Machine
    from tests.simulation.full_node import Process

# WireGuard's REKEY_AFTER_TIME, REKEY_TIMEOUT and REJECT_AFTER_TIME (s)
REKEY, RETRY, REJECT = 120.0, 5.0, 180.0
SILENCE = 15.0  # KEEPALIVE_TIMEOUT and REKEY_TIMEOUT: what is sent and not answered for so long is begun anew
NEVER = float("inf")


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
        self.called: dict[bytes, float] = {}  # when each peer last began: so it is known where
        self.broken: dict[bytes, list[float]] = {}  # since when the other end has no such session

    def keep(self, devices: Mapping[str, DeviceConfig]) -> None:
        """Remove the peers that no device is to have."""
        kept = {owner(key) for device in devices.values() for key in device.peers}
        for peer in [peer for peer in self.psks if peer not in kept]:
            for held in (self.psks, self.dials, self.handshakes, self.landed, self.attempts):
                del held[peer]
            self.called.pop(peer, None)
            self.broken.pop(peer, None)

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
        begins = sim.network.begins(a.machine.index, b.index)
        if not begins and peer not in kernel.called:
            continue  # behind a NAT, and not heard from
        broken = kernel.broken.setdefault(peer, [NEVER] * DIMENSIONS)
        for i in range(DIMENSIONS):
            if not kernel.dials[peer] >> i & 1:
                continue
            in_vain = kernel.landed[peer][i] != other.landed[a.me][i]
            broken[i] = min(broken[i], sim.now) if in_vain else NEVER
            young = sim.now - kernel.landed[peer][i] < REKEY and sim.now - broken[i] < SILENCE
            if young or sim.now - kernel.attempts[peer][i] < RETRY:
                continue
            kernel.attempts[peer][i] = sim.now
            if kernel.psks[peer][i] and kernel.psks[peer][i] == theirs[i]:
                for at, who, machine in ((kernel, peer, a.machine), (other, a.me, b)):
                    at.landed[who][i] = sim.now
                    at.handshakes[who][i] = sim.wall + machine.wall_offset
                other.called[a.me] = sim.now


def carries(a: Machine, b: Machine, now: float) -> bool:
    """Whether some WireGuard session of two machines carries data from b to a."""
    mine = a.kernel.landed.get(b.identity.node_id, ())
    theirs = b.kernel.landed.get(a.identity.node_id, ())
    return any(one == other > now - REJECT for one, other in zip(mine, theirs, strict=False))


def read_interfaces(a: Process) -> None:
    """Have data flow over all that WireGuard keyed, and the interfaces read, every LOOK_AGAIN. With
    ``probes`` each process also has its probes answered inside."""
    sim = a.sim
    for peer in sorted(a.machine.kernel.landed):
        machine = sim.by_id[NodeId(peer)]
        way = sim.network.open(machine.index, a.machine.index)
        if way and machine.process and carries(a.machine, machine, sim.now):
            a.received[NodeId(peer)] += DATA + 1 if sim.data else 0
            if sim.probes and not machine.stalled and sim.rng.random() < LOOK_AGAIN:
                a.news.lives(NodeId(peer), a.now, a.now)
    received = {peer: [count] + [0] * (DIMENSIONS - 1) for peer, count in sorted(a.received.items())}
    a.news.read_interfaces(received, a.now)
    sim.at_process(a, LOOK_AGAIN, lambda: read_interfaces(a))
