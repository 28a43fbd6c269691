# SPDX-License-Identifier: GPL-3.0-or-later
"""What applying a diff does to WireGuard devices, as a model that needs no kernel."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from phantommesh.secret import Secret
from phantommesh.wireguard import (
    NO_KEY,
    DeviceDiff,
    DeviceState,
    Interface,
    PeerDiff,
    PeerState,
    public_key_of,
)


def apply_peer(peers: dict[bytes, PeerState], change: PeerDiff) -> None:
    """Do to a model what WireGuard does with one peer of a set message."""
    if change.remove:
        peers.pop(change.public_key, None)
        return
    assert change.create != (change.public_key in peers), (
        "a partial message could create a peer without a PSK"
    )
    peer = peers.get(change.public_key) or PeerState(change.public_key, Secret(NO_KEY), None, frozenset())
    if change.psk is not None:
        peer = replace(peer, psk=change.psk)
    if change.endpoint is not None:
        peer = replace(peer, endpoint=change.endpoint)
    if change.keepalive is not None:
        peer = replace(peer, keepalive=change.keepalive)
    if change.replace_allowed_ips:
        peer = replace(peer, allowed_ips=frozenset())
    gained = change.allowed_ips or frozenset()
    for key, other in peers.items():
        peers[key] = replace(other, allowed_ips=other.allowed_ips - gained)  # a network has one owner
    peers[change.public_key] = replace(peer, allowed_ips=peer.allowed_ips | gained)


def apply(actual: Mapping[str, DeviceState], changes: Iterable[DeviceDiff]) -> dict[str, DeviceState]:
    """Do to a model of the kernel what a backend does with a diff."""
    actual = dict(actual)
    for change in changes:
        if change.remove:
            del actual[change.name]
            continue
        if change.create:
            assert change.name not in actual
            nothing: frozenset[Interface] = frozenset()
            actual[change.name] = DeviceState(
                change.name, 9, False, None, 40000, 1500, nothing, frozenset(), {}, loose_rp=False
            )
        device = actual[change.name]
        peers = dict(device.peers)
        for peer in change.peers:
            apply_peer(peers, peer)
        key = change.private_key
        actual[change.name] = replace(
            device,
            up=device.up or change.up,
            loose_rp=device.loose_rp or change.loose_rp,
            public_key=device.public_key if key is None else public_key_of(key),
            listen_port=device.listen_port if change.listen_port is None else change.listen_port,
            fwmark=device.fwmark if change.fwmark is None else change.fwmark,
            mtu=device.mtu if change.mtu is None else change.mtu,
            addresses=(device.addresses - change.remove_addresses) | change.add_addresses,
            routes=(device.routes - change.remove_routes) | change.add_routes,
            peers=peers,
        )
    return actual
