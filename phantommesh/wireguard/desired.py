# SPDX-License-Identifier: GPL-3.0-or-later
"""The seven WireGuard interfaces as they should be, from the roster and the links' PSKs; and what they
prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from math import inf

from phantommesh.config.sections import WireguardSection
from phantommesh.dimensions import DIMENSIONS, bits, has, interface_names
from phantommesh.routable import EXITS, less
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member
from phantommesh.wireguard.device import (
    OUTER_MARK,
    DeviceConfig,
    DeviceState,
    Endpoint,
    Interface,
    Network,
    PeerConfig,
    peers_by_key,
)
from phantommesh.wireguard.fits import Fitted, narrowest_routes

MASTER_METRIC = 50  # of the overlay routes over the interface that scatters
FIRST_METRIC = 100  # of those over dimension 0; each next one has one more. They are for sockets bound to a
# dimension, and dimension 0's carries the traffic where nothing can scatter it


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """A member as the data plane needs it. ``hosts`` are underlay addresses: dimension i goes to host i
    modulo their number, and nowhere if that is empty. ``dials`` is a bitmap of dimensions: on the others the
    peer gets no endpoint and no keepalive, so that nothing is sent to it, not even a WireGuard handshake: so
    it is while its PSK is random. ``wg_keys``: zeros where there is no key for it
    (`node.peers.usable_keys`); it has no part in that dimension then. A member of another mesh has no
    ``ip4``: both meshes may have one IPv4 range. ``keepalives`` are seconds by
    dimension; none: as configured. ``routes`` are prefixes beyond the mesh that the peer carries for this
    node: no other peer has one of them at the same time. ``keyed``: the dimensions whose PSK is not random,
    as a bitmap."""

    node_id: bytes
    ip4: IPv4Network | None
    ip6: IPv6Network
    wg_keys: tuple[bytes, ...]
    wg_ports: tuple[int, ...]
    hosts: tuple[str, ...]
    psks: tuple[Secret, ...]
    dials: int
    keepalives: tuple[int, ...] = ()
    routes: frozenset[Network] = frozenset()
    keyed: int = (1 << DIMENSIONS) - 1


@dataclass(frozen=True, slots=True)
class OwnSide:
    """This node's own end of the seven devices: private keys and UDP ports by dimension, its certificate's
    word, and the prefixes that lead into the overlay."""

    private_keys: tuple[Secret, ...]
    ports: tuple[int, ...]
    member: Member
    networks: tuple[IPv4Network | IPv6Network, ...]


class Desired:
    """The seven devices as they should be, kept up to date peer by peer: to change one peer costs the same in
    a mesh of ten and of a thousand."""

    def __init__(self, settings: WireguardSection) -> None:
        self._settings = settings
        self._names = interface_names(settings.prefix)
        self._own: OwnSide | None = None
        self._fits: frozenset[Fitted] = frozenset()
        self._held: dict[bytes, MeshPeer] = {}
        self._peers: list[dict[bytes, PeerConfig]] = [{} for _ in range(DIMENSIONS)]
        self._made: dict[str, DeviceConfig] | None = None  # of all that, until some of it changes

    def replace(self, own: OwnSide, peers: Iterable[MeshPeer]) -> None:
        """Make these all the peers, at our own end ``own``."""
        wanted = {peer.node_id: peer for peer in peers}
        if own != self._own:
            self._own, self._made = own, None
        for held in [held for held in self._held.values() if wanted.get(held.node_id) != held]:
            self._remove(held)  # all before any is added: a key may have passed from one peer to another
        for peer in wanted.values():
            self.change(peer)

    def change(self, peer: MeshPeer) -> None:
        """Make one peer like this. It may be a new one."""
        held = self._held.get(peer.node_id)
        if held == peer:
            return
        if held is not None and held.wg_keys != peer.wg_keys:
            self._remove(held)
        self._held[peer.node_id], self._made = peer, None
        for i, peers in enumerate(self._peers):
            if any(peer.wg_keys[i]):
                keepalive = peer.keepalives[i] if peer.keepalives else self._settings.keepalive
                peers[peer.wg_keys[i]] = _peer(peer, i, keepalive)

    def fit(self, fits: frozenset[Fitted]) -> bool:
        """Keep packets to what the peers' paths carry. Return whether that is another than before."""
        if fits == self._fits:
            return False
        self._fits, self._made = fits, None
        return True

    def _remove(self, held: MeshPeer) -> None:
        del self._held[held.node_id]
        self._made = None
        for key, peers in zip(held.wg_keys, self._peers, strict=True):
            if key in peers and held.ip6 in peers[key].allowed_ips:  # else it is another peer's by now
                del peers[key]

    def devices(self) -> dict[str, DeviceConfig]:
        """The seven devices, by name; none before the first `replace`. The value stays as it is when a peer
        changes later. Raises ValueError where two peers claim one address."""
        if self._own is None:
            return {}
        if self._made is None:
            pieces = self._outside(self._own)
            self._made = {
                name: self._device(name, i, self._own, pieces) for i, name in enumerate(self._names)
            }
        return self._made

    def _outside(self, own: OwnSide) -> Mapping[Network, frozenset[Network]]:
        """The default routes that peers carry, each as what is left of it without the overlay and without
        other peers' routes. WireGuard takes the longest match: an exit would get what is for an overlay
        address that no peer has now (a revoked member's), and could send in that address's name."""
        routes = {route for peer in self._held.values() for route in peer.routes}
        return {
            gate: frozenset(less(gate, own.networks, inf) or ()) - routes
            for gate in routes.intersection(EXITS)
        }

    def _device(
        self, name: str, dimension: int, own: OwnSide, pieces: Mapping[Network, frozenset[Network]]
    ) -> DeviceConfig:
        addresses: frozenset[Interface] = frozenset(
            {IPv4Interface(own.member.ip4), IPv6Interface(own.member.ip6)}
        )
        return DeviceConfig(
            name=name,
            private_key=own.private_keys[dimension],
            listen_port=own.ports[dimension],
            mtu=self._settings.mtu,
            addresses=addresses,
            # The routes of the others are for probes, whose sizes are their own. Dimension 0's carry the
            # traffic where nothing can scatter it.
            routes=narrowest_routes(
                own.networks,
                FIRST_METRIC + dimension,
                self._settings.mtu,
                self._fits if not dimension else (),
            ),
            peers=peers_by_key(_without_gates(peer, pieces) for peer in self._peers[dimension].values()),
            fwmark=OUTER_MARK,
        )


def _without_gates(peer: PeerConfig, pieces: Mapping[Network, frozenset[Network]]) -> PeerConfig:
    """A peer with the pieces of the default routes that it carries in their place."""
    gates = peer.allowed_ips & pieces.keys()
    if not gates:
        return peer
    return replace(peer, allowed_ips=(peer.allowed_ips - gates).union(*(pieces[gate] for gate in gates)))


def _peer(peer: MeshPeer, dimension: int, keepalive: int) -> PeerConfig:
    endpoint, dials = None, has(peer.dials, dimension)
    host = peer.hosts[dimension % len(peer.hosts)] if peer.hosts else ""
    if dials and host:
        endpoint = Endpoint(host, peer.wg_ports[dimension])
    return PeerConfig(
        peer.wg_keys[dimension],
        peer.psks[dimension],
        endpoint,
        frozenset({*(() if peer.ip4 is None else (peer.ip4,)), peer.ip6, *peer.routes}),
        keepalive if dials else 0,
        has(peer.keyed, dimension),
    )


@dataclass(frozen=True, slots=True)
class PeerReading:
    """A reading of what the devices hold of one peer. ``bitmap``: the dimensions on which they hold what they
    should, the wanted PSK, or nothing where there is no key for the peer; ``located``: those on which
    WireGuard knows where the peer is; ``handshakes``: the Unix times of the last on each (None: never);
    ``counters``: the bytes sent and received on each (None where the peer is not there); ``endpoints``: where
    WireGuard sends to on each."""

    bitmap: int
    handshakes: tuple[float | None, ...]
    counters: tuple[tuple[int, int] | None, ...]
    located: int
    endpoints: tuple[Endpoint | None, ...] = (None,) * DIMENSIONS


def read_peer(
    actual: Mapping[str, DeviceState], names: Sequence[str], wg_keys: Sequence[bytes], psks: Sequence[Secret]
) -> PeerReading:
    """Compare the devices with the PSKs that one peer should have."""
    devices = (actual.get(name) for name in names)
    states = [None if d is None else d.peers.get(key) for d, key in zip(devices, wg_keys, strict=True)]
    return PeerReading(
        bitmap=bits(
            not any(key) or (state is not None and state.psk == psk)
            for state, key, psk in zip(states, wg_keys, psks, strict=True)
        ),
        handshakes=tuple(None if state is None else state.last_handshake or None for state in states),
        counters=tuple(None if state is None else (state.tx_bytes, state.rx_bytes) for state in states),
        located=bits(state is not None and state.endpoint is not None for state in states),
        endpoints=tuple(None if state is None else state.endpoint for state in states),
    )
