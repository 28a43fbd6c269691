# SPDX-License-Identifier: GPL-3.0-or-later
"""A WireGuard backend without a WireGuard: devices as values, for tests and for trying a node without root.

``tests/lab/backend_scenarios.py`` runs one suite over it, a userspace WireGuard and the kernel's. The fake
carries no packets and makes no handshakes. It lets two devices have one port.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import trio

from phantommesh.nursery.host.errors import ApplyError, BackendError, taken
from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, DeviceState, PeerState, public_key_of
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff

_PORT = 40000  # where no port is set, WireGuard takes any free one, and the fake this one


def blank(name: str, mtu: int, index: int) -> DeviceState:
    """Return a device that was made and not configured; ``mtu`` in bytes."""
    return DeviceState(name, index, False, None, _PORT, mtu, frozenset(), frozenset(), {}, loose_rp=False)


def apply_peer(peers: dict[bytes, PeerState], change: PeerDiff) -> None:
    """Do to ``peers`` what WireGuard does with one peer of a set message."""
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
    """Return the devices as a diff leaves them. A device that the diff creates must not be there yet."""
    actual = dict(actual)
    for change in changes:
        if change.remove:
            del actual[change.name]
            continue
        if change.create:
            assert change.name not in actual
            actual[change.name] = blank(change.name, 1500, 9)
        actual[change.name] = _configured(actual[change.name], change)
    return actual


def _configured(device: DeviceState, change: DeviceDiff) -> DeviceState:
    peers = dict(device.peers)
    for peer in change.peers:
        apply_peer(peers, peer)
    key = change.private_key
    return replace(
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


@dataclass
class FakeHost:
    """All that outlives a backend: our devices by name, and the names that someone else's interfaces have."""

    devices: dict[str, DeviceState] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    indexes: Iterator[int] = field(default_factory=lambda: count(9))


class FakeBackend:
    """A Backend over a FakeHost. Names in ``broken`` cannot be changed; ``unreadable`` stops reads."""

    name = "fake"

    def __init__(self, host: FakeHost | None = None, *, ipv6: bool = True) -> None:
        self.host = FakeHost() if host is None else host
        self.ipv6 = ipv6
        self.broken: set[str] = set()
        self.unreadable = False
        self.reads = 0
        self.resent: list[Mapping[str, DeviceState]] = []
        self.applied: list[DeviceDiff] = []

    @property
    def state(self) -> dict[str, DeviceState]:
        """The host's devices, to be looked at and changed."""
        return self.host.devices

    @property
    def batches(self) -> Mapping[str, int]:
        """How many changes of WireGuard each interface has taken from this backend."""
        return Counter(change.name for change in self.applied if change.changes_wireguard)

    async def devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        """Read the named interfaces that exist and are ours."""
        await trio.lowlevel.checkpoint()
        self.reads += 1
        if self.unreadable:
            raise BackendError("nothing can be read", fix="mend it")
        return {name: state for name, state in self.state.items() if name in names}

    async def create(self, name: str, mtu: int) -> None:
        """Make an interface, without keys or peers."""
        await trio.lowlevel.checkpoint()
        if name in self.broken:
            raise BackendError(f"interface {name} is broken", fix="mend it")
        if name in self.host.others:
            raise taken(name)
        if name not in self.state:
            self.state[name] = blank(name, mtu, next(self.host.indexes))

    async def resend(self, devices: Mapping[str, DeviceState]) -> None:
        """Note it; raise ApplyError for those of them that are broken."""
        await trio.lowlevel.checkpoint()
        self.resent.append(devices)
        if bad := self.broken & devices.keys():
            raise ApplyError(
                {name: BackendError(f"interface {name} is broken", fix="mend it") for name in bad}
            )

    async def apply(self, changes: Sequence[DeviceDiff]) -> None:
        """Apply each change but those of broken interfaces, and raise ApplyError for these."""
        await trio.lowlevel.checkpoint()
        failures: dict[str, BackendError] = {}
        for change in changes:
            if change.name in self.broken:
                failures[change.name] = BackendError(f"interface {change.name} is broken", fix="mend it")
                continue
            if change.remove:
                self.state.pop(change.name, None)
            else:
                assert change.name in self.state, f"{change.name} was not created"
                self.state[change.name] = _configured(self.state[change.name], change)
            self.applied.append(change)
        if failures:
            raise ApplyError(failures)

    async def close(self, *, remove: Collection[str]) -> None:
        """Remove the named interfaces; leave the others."""
        await trio.lowlevel.checkpoint()
        for name in remove:
            self.state.pop(name, None)
