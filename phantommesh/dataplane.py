# SPDX-License-Identifier: GPL-3.0-or-later
"""The seven WireGuard interfaces as they should be, from the roster and the links' PSKs; and what they
prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from phantommesh.config import WireguardSection
from phantommesh.guard import OUTER_MARK
from phantommesh.secret import Secret
from phantommesh.sizes import DIMENSIONS
from phantommesh.trust import Member
from phantommesh.wireguard import (
    DeviceConfig,
    DeviceState,
    Endpoint,
    Interface,
    PeerConfig,
    Route,
    peers_by_key,
)

MASTER_METRIC = 50  # of the overlay routes over the interface that scatters
FIRST_METRIC = 100  # of those over dimension 0; each next one has one more. They are for sockets bound to a
# dimension, and dimension 0's carries the traffic where nothing can scatter it


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """A member as the data plane needs it. ``hosts`` are its underlay addresses, one per uplink: dimension i
    goes to host i modulo their number. ``dials`` is a bitmap of dimensions: on the others the peer gets no
    endpoint and no keepalive, so that nothing is sent to it, not even a WireGuard handshake: so it is while
    its PSK is random. ``wg_keys``: zeros where there is no key for it (`records.usable_keys`); it has no part
    in that dimension then."""

    node_id: bytes
    ip4: IPv4Network
    ip6: IPv6Network
    wg_keys: tuple[bytes, ...]
    wg_ports: tuple[int, ...]
    hosts: tuple[str, ...]
    psks: tuple[Secret, ...]
    dials: int


def interface_names(prefix: str) -> tuple[str, ...]:
    """The names of the seven dimensions."""
    return tuple(f"{prefix}{i}" for i in range(DIMENSIONS))


def master_name(prefix: str) -> str:
    """The name of the interface that the overlay's routes point at, from which packets are scattered."""
    return prefix.rstrip("0123456789") or prefix


def all_names(prefix: str) -> tuple[str, ...]:
    """The names of all interfaces that a node makes."""
    return master_name(prefix), *interface_names(prefix)


def desired_devices(
    settings: WireguardSection,
    private_keys: Sequence[Secret],
    ports: Sequence[int],
    me: Member,
    networks: Iterable[IPv4Network | IPv6Network],
    peers: Iterable[MeshPeer],
) -> dict[str, DeviceConfig]:
    """Return the seven devices, by name. ``private_keys`` and UDP ``ports`` are by dimension."""
    everyone, routed = tuple(peers), tuple(networks)
    addresses: frozenset[Interface] = frozenset({IPv4Interface(me.ip4), IPv6Interface(me.ip6)})
    return {
        name: DeviceConfig(
            name=name,
            private_key=private_keys[i],
            listen_port=ports[i],
            mtu=settings.mtu,
            addresses=addresses,
            routes=frozenset(Route(network, FIRST_METRIC + i) for network in routed),
            peers=peers_by_key(
                _peer(peer, i, settings.keepalive) for peer in everyone if any(peer.wg_keys[i])
            ),
            fwmark=OUTER_MARK,
        )
        for i, name in enumerate(interface_names(settings.prefix))
    }


def _peer(peer: MeshPeer, dimension: int, keepalive: int) -> PeerConfig:
    endpoint, dials = None, peer.dials >> dimension & 1
    if dials and peer.hosts:
        endpoint = Endpoint(peer.hosts[dimension % len(peer.hosts)], peer.wg_ports[dimension])
    return PeerConfig(
        peer.wg_keys[dimension],
        peer.psks[dimension],
        endpoint,
        frozenset({peer.ip4, peer.ip6}),
        keepalive if dials else 0,
    )


@dataclass(frozen=True, slots=True)
class PeerReading:
    """A reading of what the devices hold of one peer. ``bitmap``: the dimensions on which they hold what they
    should, the wanted PSK, or nothing where there is no key for the peer; ``located``: those on which
    WireGuard knows where the peer is; ``handshakes``: the Unix times of the last on each (None: never);
    ``counters``: the bytes sent and received on each (None where the peer is not there)."""

    bitmap: int
    handshakes: tuple[float | None, ...]
    counters: tuple[tuple[int, int] | None, ...]
    located: int


def read_peer(
    actual: Mapping[str, DeviceState], names: Sequence[str], wg_keys: Sequence[bytes], psks: Sequence[Secret]
) -> PeerReading:
    """Compare the devices with the PSKs that one peer should have."""
    bitmap, located, handshakes, counters = 0, 0, list[float | None](), list[tuple[int, int] | None]()
    for i, name in enumerate(names):
        device = actual.get(name)
        state = None if device is None else device.peers.get(wg_keys[i])
        if not any(wg_keys[i]) or (state is not None and state.psk == psks[i]):
            bitmap |= 1 << i
        handshakes.append(state.last_handshake if state is not None and state.last_handshake else None)
        counters.append(None if state is None else (state.tx_bytes, state.rx_bytes))
        if state is not None and state.endpoint is not None:
            located |= 1 << i
    return PeerReading(bitmap, tuple(handshakes), tuple(counters), located)
