# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's WireGuard messages that change a device, built with wgnlpy's classes (linux/wireguard.h).

One message carries a device and all its peers, and no key passes through text. ``wireguard/netlink.py``
reads: see docs/decisions/0012-wgnlpy.md for the figures. wgnlpy's objects show keys when they are printed.
So neither they nor their exceptions leave this module. Nothing here does I/O; the module is in the nursery
because wgnlpy stands on pyroute2.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from wgnlpy.nlas import allowedip, device
from wgnlpy.nlas import peer as peer_class
from wgnlpy.sockaddr_in import sockaddr_in
from wgnlpy.sockaddr_in6 import sockaddr_in6

from phantommesh.nlattr import ACK, REQUEST, NetlinkFormatError
from phantommesh.secret import Secret
from phantommesh.wireguard.device import KEY_SIZE, Endpoint, Network
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff

MAX_PEERS_BYTES = 32768
"""Bytes of peers put in one message. An attribute's length is 16 bits wide and has to hold all of them."""

_NETWORKS_PER_ENTRY = 256
_PEER_BYTES = 4 + 36 + 36 + 8 + 32 + 8 + 4  # an entry: itself, two keys, flags, endpoint, keepalive, list
_NETWORK_BYTES = 4 + 8 + 20 + 8  # itself, family, IPv6 address, prefix length

_Attributes = list[tuple[str, object]]


def encode_set(family: int, sequence: int, change: DeviceDiff) -> list[bytes]:
    """Turn a change into as few messages as hold it: one, up to MAX_PEERS_BYTES of peers.

    ``family`` is the number of the ``wireguard`` family; the messages are numbered from ``sequence``. Raises
    NetlinkFormatError for a key that has not 32 bytes and for what no message can carry.
    """
    own: _Attributes = []
    if change.private_key is not None:
        own.append(("WGDEVICE_A_PRIVATE_KEY", _key(change.private_key)))
    if change.listen_port is not None:
        own.append(("WGDEVICE_A_LISTEN_PORT", change.listen_port))
    if change.fwmark is not None:
        own.append(("WGDEVICE_A_FWMARK", change.fwmark))
    messages = []
    for offset, entries in enumerate(_batches(change.peers)):
        attributes = own if offset == 0 else []
        if entries:
            attributes = [*attributes, ("WGDEVICE_A_PEERS", [{"attrs": entry} for entry in entries])]
        messages.append(_encode(family, sequence + offset, change.name, attributes))
    return messages


def _encode(family: int, sequence: int, name: str, attributes: _Attributes) -> bytes:
    try:
        message = device.set_device(name)
        message["header"].update(type=family, flags=REQUEST | ACK, sequence_number=sequence)
        message["attrs"] += attributes
        message.encode()
        return bytes(message.data)
    except Exception:  # whatever it is, its text may hold a key
        raise NetlinkFormatError(f"a change of {name} that wgnlpy cannot encode") from None


def _key(key: bytes | Secret) -> bytes:
    """Check a key's length here: wgnlpy does it by an assert, which ``python -O`` leaves out."""
    raw = key.reveal() if isinstance(key, Secret) else key
    if len(raw) != KEY_SIZE:
        raise NetlinkFormatError(f"a key of {len(raw)} bytes")
    return raw


def _batches(peers: tuple[PeerDiff, ...]) -> Iterator[list[_Attributes]]:
    """Yield the entries of each message; one message without any where no peer changes."""
    batch: list[_Attributes] = []
    size = 0
    for peer in peers:
        for entry, networks in _entries(peer):
            length = _PEER_BYTES + networks * _NETWORK_BYTES
            if batch and size + length > MAX_PEERS_BYTES:
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += length
    yield batch


def _entries(peer: PeerDiff) -> Iterator[tuple[_Attributes, int]]:
    """Yield a peer's entries, each with how many networks it has.

    A peer with very many networks takes several entries, each of which adds to the one before.
    """
    flag = peer_class.flag
    flags = 0 if peer.create else flag.UPDATE_ONLY.value
    if peer.remove:
        flags |= flag.REMOVE_ME.value
    if peer.replace_allowed_ips:
        flags |= flag.REPLACE_ALLOWEDIPS.value
    key = ("WGPEER_A_PUBLIC_KEY", _key(peer.public_key))
    entry: _Attributes = [key, ("WGPEER_A_FLAGS", flags)]
    if peer.psk is not None:
        entry.append(("WGPEER_A_PRESHARED_KEY", _key(peer.psk)))
    if peer.endpoint is not None:
        entry.append(("WGPEER_A_ENDPOINT", _sockaddr(peer.endpoint)))
    if peer.keepalive is not None:
        entry.append(("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive))
    networks = sorted(peer.allowed_ips or (), key=str)
    while True:
        now, networks = networks[:_NETWORKS_PER_ENTRY], networks[_NETWORKS_PER_ENTRY:]
        if now:
            entry.append(("WGPEER_A_ALLOWEDIPS", [_network(network) for network in now]))
        yield entry, len(now)
        if not networks:
            return
        entry = [key, ("WGPEER_A_FLAGS", flag.UPDATE_ONLY.value)]


def _network(network: Network) -> dict[str, object]:
    return {"attrs": allowedip.frob(network)["attrs"]}


def _sockaddr(endpoint: Endpoint) -> sockaddr_in | sockaddr_in6:
    address = ip_address(endpoint.host)
    if isinstance(address, IPv4Address):
        return sockaddr_in(addr=address, port=endpoint.port)
    scope = address.scope_id or ""
    index = int(scope) if scope.isdecimal() else 0
    return sockaddr_in6(addr=IPv6Address(address.packed), port=endpoint.port, scope_id=index)
