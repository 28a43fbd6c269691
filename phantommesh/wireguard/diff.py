# SPDX-License-Identifier: GPL-3.0-or-later
"""The smallest change from one WireGuard device to another.

``diff(actual, desired)`` names only what differs: a peer that is already right is never mentioned, because a
message about it could reset its sessions. Nothing here does I/O.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from phantommesh.secret import Secret
from phantommesh.wireguard.device import (
    DeviceConfig,
    DeviceState,
    Endpoint,
    Interface,
    Network,
    PeerConfig,
    PeerState,
    Route,
    public_key_of,
)

LAPSED_SECONDS = 180.0
"""A session whose handshake is older than this is over (REJECT_AFTER_TIME, WireGuard paper, section 6.1)."""
ROAM_SECONDS = 135.0
"""A last handshake older than this no longer proves where the peer is. A live session is rekeyed at 120 s
(REKEY_AFTER_TIME, WireGuard paper, section 6.1); the rest allows three 5 s retransmissions."""


@dataclass(frozen=True, slots=True)
class PeerDiff:
    """A change of one peer; None means "leave as it is".

    Unless ``create`` is set, the peer must be updated only if it still exists: a partial message that creates
    one would leave it without a PSK. ``allowed_ips`` are added, or take the place of all the peer has when
    ``replace_allowed_ips`` is set. ``config`` is the whole peer as desired (None when it is removed), for
    a WireGuard that cannot change a peer in place.
    """

    public_key: bytes
    create: bool = False
    remove: bool = False
    psk: Secret | None = None
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    allowed_ips: frozenset[Network] | None = None
    replace_allowed_ips: bool = False
    config: PeerConfig | None = None


@dataclass(frozen=True, slots=True)
class DeviceDiff:
    """A change of one device; None and empty sets mean "leave as it is". Removed peers come first."""

    name: str
    create: bool = False
    remove: bool = False
    private_key: Secret | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    mtu: int | None = None
    up: bool = False
    loose_rp: bool = False
    add_addresses: frozenset[Interface] = frozenset()
    remove_addresses: frozenset[Interface] = frozenset()
    add_routes: frozenset[Route] = frozenset()
    remove_routes: frozenset[Route] = frozenset()
    peers: tuple[PeerDiff, ...] = field(default=())

    @property
    def changes_wireguard(self) -> bool:
        """Whether anything here is for WireGuard itself."""
        own = (self.private_key, self.listen_port, self.fwmark)
        return bool(self.peers) or any(value is not None for value in own)

    @property
    def changes_link(self) -> bool:
        """Whether anything here is for the link: MTU, state, addresses, routes."""
        sets = self.add_addresses or self.remove_addresses or self.add_routes or self.remove_routes
        return self.mtu is not None or self.up or self.loose_rp or bool(sets)


def diff(
    actual: Mapping[str, DeviceState],
    desired: Mapping[str, DeviceConfig],
    *,
    now: float,
    applied: Mapping[str, DeviceConfig] | None = None,
    forbids: Callable[[Endpoint], bool] = lambda endpoint: False,
    insists: Callable[[str, bytes, Endpoint, Endpoint], bool] = lambda device, peer, endpoint, have: False,
    renews: Callable[[str, bytes], bool] = lambda device, peer: False,
) -> list[DeviceDiff]:
    """Return what makes ``actual`` become ``desired``: one entry a device, none where nothing differs.

    ``actual`` holds our devices only; one that is no longer desired is removed. ``applied`` is what was last
    applied with success, ``now`` the time in Unix seconds: both decide whether an endpoint that differs is
    WireGuard's own roaming, which is left alone, or out of date. WireGuard follows a peer to wherever its
    packets come from, so also into the overlay: what roamed to an endpoint that ``forbids`` is put back, and
    where there is nothing to put it back to the peer is removed, to be made anew by the next pass: WireGuard
    has no other way to forget an endpoint. Where ``insists`` says so of a device, a peer, the endpoint that
    is desired and the one that WireGuard has roamed to, the former is set again.

    WireGuard repeats a handshake that failed after 5 s only (REKEY_TIMEOUT), and begins one with a new peer
    at once. So a peer is removed and made anew when it gets a PSK that it can shake hands with, if WireGuard
    may have tried in vain before: it knew where the peer is, has no session with it, and the PSK was random,
    or ``renews`` says so of the device and the peer.
    """
    applied = applied or {}
    changes = [DeviceDiff(name, remove=True) for name in sorted(actual.keys() - desired.keys())]
    for name, want in desired.items():
        change = _diff_device(actual.get(name), want, applied.get(name), now, forbids, insists, renews)
        if change != DeviceDiff(name):
            changes.append(change)
    return changes


def _diff_device(
    have: DeviceState | None,
    want: DeviceConfig,
    applied: DeviceConfig | None,
    now: float,
    forbids: Callable[[Endpoint], bool],
    insists: Callable[[str, bytes, Endpoint, Endpoint], bool],
    renews: Callable[[str, bytes], bool],
) -> DeviceDiff:
    if have is None:
        return DeviceDiff(
            want.name,
            create=True,
            private_key=want.private_key,
            listen_port=want.listen_port,
            fwmark=want.fwmark or None,
            mtu=want.mtu,
            up=True,
            loose_rp=True,
            add_addresses=want.addresses,
            add_routes=want.routes,
            peers=tuple(_new_peer(peer) for peer in want.peers.values()),
        )
    return DeviceDiff(
        want.name,
        private_key=want.private_key if have.public_key != public_key_of(want.private_key) else None,
        listen_port=want.listen_port if have.listen_port != want.listen_port else None,
        fwmark=want.fwmark if have.fwmark != want.fwmark else None,
        mtu=want.mtu if have.mtu != want.mtu else None,
        up=not have.up,
        loose_rp=not have.loose_rp,
        add_addresses=want.addresses - have.addresses,
        remove_addresses=have.addresses - want.addresses,
        add_routes=want.routes - have.routes,
        remove_routes=have.routes - want.routes,
        peers=tuple(
            _diff_peers(
                have.peers,
                want.peers,
                applied.peers if applied else {},
                now,
                forbids,
                partial(insists, want.name),
                partial(renews, want.name),
            )
        ),
    )


def _diff_peers(
    have: Mapping[bytes, PeerState],
    want: Mapping[bytes, PeerConfig],
    applied: Mapping[bytes, PeerConfig],
    now: float,
    forbids: Callable[[Endpoint], bool],
    insists: Callable[[bytes, Endpoint, Endpoint], bool],
    renews: Callable[[bytes], bool],
) -> Iterator[PeerDiff]:
    for key in sorted(have.keys() - want.keys()):
        yield PeerDiff(key, remove=True)
    # A network that passes from one peer to another leaves the first before it comes to the second: WireGuard
    # would move it silently, and the order of messages would say who has it.
    for key, peer in sorted(want.items(), key=lambda item: not _loses(have.get(item[0]), item[1])):
        before = have.get(key)
        if before is None:
            yield _new_peer(peer)
            continue
        astray = before.endpoint is not None and forbids(before.endpoint)
        if not astray and _same(before, peer):  # as nearly all are, hundreds of times at each pass
            continue
        if astray and peer.endpoint is None:
            yield PeerDiff(key, remove=True)
            continue
        if _keyed_anew(before, peer, now) and (renews(key) or _was_random(applied.get(key))):
            yield PeerDiff(key, remove=True)
            yield _new_peer(peer)  # not where it was: the other end may have to call first
            continue
        added, removed = peer.allowed_ips - before.allowed_ips, before.allowed_ips - peer.allowed_ips
        # Replacing leaves the peer without networks for a moment, so it is done only when one has to go.
        networks = peer.allowed_ips if removed else added
        change = PeerDiff(
            key,
            psk=peer.psk if before.psk != peer.psk else None,
            endpoint=peer.endpoint if astray else _new_endpoint(before, peer, applied.get(key), now, insists),
            keepalive=peer.keepalive if before.keepalive != peer.keepalive else None,
            allowed_ips=networks if added or removed else None,
            replace_allowed_ips=bool(removed),
        )
        if change != PeerDiff(key):
            yield replace(change, config=peer)


def _same(have: PeerState, want: PeerConfig) -> bool:
    """Whether a peer is as it should be, and where."""
    return (
        have.endpoint == want.endpoint
        and have.allowed_ips == want.allowed_ips
        and have.keepalive == want.keepalive
        and have.psk == want.psk
    )


def _keyed_anew(have: PeerState, want: PeerConfig, now: float) -> bool:
    """Whether a peer that WireGuard could call, and has no session with, gets a PSK to shake hands with."""
    age = have.age(now)
    lapsed = age is None or age > LAPSED_SECONDS
    return want.keyed and have.psk != want.psk and have.endpoint is not None and lapsed


def _was_random(applied: PeerConfig | None) -> bool:
    return applied is not None and not applied.keyed


def _loses(have: PeerState | None, want: PeerConfig) -> bool:
    """Whether a peer has a network that it should not have."""
    return have is not None and bool(have.allowed_ips - want.allowed_ips)


def _new_peer(peer: PeerConfig) -> PeerDiff:
    return PeerDiff(
        peer.public_key,
        create=True,
        psk=peer.psk,
        endpoint=peer.endpoint,
        keepalive=peer.keepalive,
        allowed_ips=peer.allowed_ips,
        replace_allowed_ips=True,
        config=peer,
    )


def _new_endpoint(
    have: PeerState,
    want: PeerConfig,
    applied: PeerConfig | None,
    now: float,
    insists: Callable[[bytes, Endpoint, Endpoint], bool],
) -> Endpoint | None:
    if want.endpoint is None or want.endpoint == have.endpoint:
        return None
    chosen_anew = applied is not None and applied.endpoint != want.endpoint
    chosen_anew |= have.endpoint is not None and insists(want.public_key, want.endpoint, have.endpoint)
    age = have.age(now)
    if have.endpoint is None or chosen_anew or age is None or age > ROAM_SECONDS:
        return want.endpoint
    return None
