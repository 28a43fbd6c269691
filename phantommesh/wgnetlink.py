# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's WireGuard protocol over generic netlink, as bytes: linux/wireguard.h, linux/genetlink.h.

Packed by hand: one message carries a device and all its peers, no key passes through text, and a peer that
the kernel splits over two messages of a dump is put together again. Nothing here does I/O.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

from phantommesh.nlattr import (
    ACK,
    DUMP,
    NESTED,
    REQUEST,
    NetlinkFormatError,
    attribute,
    attributes,
    number,
    pack_message,
)
from phantommesh.secret import Secret
from phantommesh.wireguard import NO_KEY, DeviceDiff, Endpoint, Network, PeerDiff, PeerState, Report

GENL_CONTROL = 16
"""The netlink type of the generic netlink controller (GENL_ID_CTRL)."""

MAX_PEERS_BYTES = 32768
"""Peers put in one message. An attribute's length is 16 bits wide and has to hold all of them."""

_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_GET_DEVICE, _SET_DEVICE = 0, 1
_D_NAME, _D_PRIVATE_KEY, _D_PUBLIC_KEY, _D_PORT, _D_FWMARK, _D_PEERS = 2, 3, 4, 6, 7, 8
_P_PUBLIC_KEY, _P_PSK, _P_FLAGS, _P_ENDPOINT, _P_KEEPALIVE = 1, 2, 3, 4, 5
_P_HANDSHAKE, _P_RX, _P_TX, _P_ALLOWED_IPS = 6, 7, 8, 9
_REMOVE_ME, _REPLACE_ALLOWED_IPS, _UPDATE_ONLY = 1, 2, 4
_A_FAMILY, _A_ADDRESS, _A_PREFIX = 1, 2, 3
_IPV4, _IPV6 = 2, 10  # AF_INET, AF_INET6 on Linux
_NETWORKS_PER_ENTRY = 256


def _message(kind: int, flags: int, sequence: int, command: int, body: bytes) -> bytes:
    return pack_message(kind, flags, sequence, struct.pack("=BBH", command, 1, 0) + body)


def encode_get_family(sequence: int) -> bytes:
    """Ask the controller for the number of the ``wireguard`` family; the kernel loads its module."""
    return _message(
        GENL_CONTROL, REQUEST | ACK, sequence, _GET_FAMILY, attribute(_FAMILY_NAME, b"wireguard\0")
    )


def encode_get(family: int, sequence: int, name: str) -> bytes:
    """Ask for a dump of one device."""
    return _message(family, REQUEST | DUMP, sequence, _GET_DEVICE, attribute(_D_NAME, name.encode() + b"\0"))


def encode_set(family: int, sequence: int, change: DeviceDiff) -> list[bytes]:
    """Turn a change into as few messages as hold it: one, up to MAX_PEERS_BYTES of peers."""
    head = attribute(_D_NAME, change.name.encode() + b"\0")
    body = head
    if change.private_key is not None:
        body += attribute(_D_PRIVATE_KEY, change.private_key.reveal())
    if change.listen_port is not None:
        body += attribute(_D_PORT, struct.pack("=H", change.listen_port))
    if change.fwmark is not None:
        body += attribute(_D_FWMARK, struct.pack("=I", change.fwmark))
    messages = []
    entries: list[bytes] = []
    for entry in (entry for peer in change.peers for entry in _peer_entries(peer)):
        if entries and sum(map(len, entries)) + len(entry) > MAX_PEERS_BYTES:
            messages.append(body + attribute(_D_PEERS | NESTED, b"".join(entries)))
            body, entries = head, []
        entries.append(entry)
    messages.append(body + (attribute(_D_PEERS | NESTED, b"".join(entries)) if entries else b""))
    return [
        _message(family, REQUEST | ACK, sequence + offset, _SET_DEVICE, body)
        for offset, body in enumerate(messages)
    ]


def _peer_entries(peer: PeerDiff) -> Iterator[bytes]:
    """Encode a peer; one with very many networks becomes several entries, each adding to the one before."""
    flags = 0 if peer.create else _UPDATE_ONLY
    if peer.remove:
        flags |= _REMOVE_ME
    if peer.replace_allowed_ips:
        flags |= _REPLACE_ALLOWED_IPS
    key = attribute(_P_PUBLIC_KEY, peer.public_key)
    body = key + attribute(_P_FLAGS, struct.pack("=I", flags))
    if peer.psk is not None:
        body += attribute(_P_PSK, peer.psk.reveal())
    if peer.endpoint is not None:
        body += attribute(_P_ENDPOINT, _encode_endpoint(peer.endpoint))
    if peer.keepalive is not None:
        body += attribute(_P_KEEPALIVE, struct.pack("=H", peer.keepalive))
    networks = sorted(peer.allowed_ips or (), key=str)
    while True:
        now, networks = networks[:_NETWORKS_PER_ENTRY], networks[_NETWORKS_PER_ENTRY:]
        if now:
            listed = b"".join(attribute(NESTED, _encode_network(network)) for network in now)
            body += attribute(_P_ALLOWED_IPS | NESTED, listed)
        yield attribute(NESTED, body)
        if not networks:
            return
        body = key + attribute(_P_FLAGS, struct.pack("=I", _UPDATE_ONLY))


def _encode_network(network: Network) -> bytes:
    family = _IPV6 if network.version == 6 else _IPV4
    return (
        attribute(_A_FAMILY, struct.pack("=H", family))
        + attribute(_A_ADDRESS, network.network_address.packed)
        + attribute(_A_PREFIX, struct.pack("=B", network.prefixlen))
    )


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    host, _, scope = endpoint.host.partition("%")
    address = ip_address(host)
    if address.version == 4:
        return struct.pack("=H", _IPV4) + struct.pack(">H", endpoint.port) + address.packed + bytes(8)
    index = int(scope) if scope.isdecimal() else 0
    flow = bytes(4)
    return (
        struct.pack("=H", _IPV6)
        + struct.pack(">H", endpoint.port)
        + flow
        + address.packed
        + struct.pack("=I", index)
    )


def decode_family(payload: bytes) -> int:
    """Read the family's number from the controller's answer."""
    for kind, value in attributes(payload[4:]):
        if kind == _FAMILY_ID:
            return number(value)
    raise NetlinkFormatError("no family number")


def decode_device(payloads: Iterable[bytes]) -> Report:
    """Read the messages of one device's dump. Raises NetlinkFormatError for anything malformed."""
    public_key: bytes | None = None
    port = mark = 0
    peers: dict[bytes, PeerState] = {}
    for payload in payloads:
        for kind, value in attributes(payload[4:]):
            if kind == _D_PUBLIC_KEY:
                public_key = value
            elif kind == _D_PORT:
                port = number(value)
            elif kind == _D_FWMARK:
                mark = number(value)
            elif kind == _D_PEERS:
                for _, entry in attributes(value):
                    _merge_peer(peers, _decode_peer(entry))
    return Report(public_key, port, mark, peers)


def _merge_peer(peers: dict[bytes, PeerState], peer: PeerState) -> None:
    """Add a peer, or the rest of one that the kernel split: that part has its key and networks only."""
    before = peers.get(peer.public_key)
    peers[peer.public_key] = (
        peer if before is None else replace(before, allowed_ips=before.allowed_ips | peer.allowed_ips)
    )


def _decode_peer(data: bytes) -> PeerState:
    fields = dict(attributes(data))
    handshake = fields.get(_P_HANDSHAKE, bytes(16))
    if len(fields.get(_P_PUBLIC_KEY, b"")) != len(NO_KEY) or len(handshake) != 16:
        raise NetlinkFormatError("a peer without its key, or with a short time")
    seconds, nanoseconds = struct.unpack("=qq", handshake)
    return PeerState(
        public_key=fields[_P_PUBLIC_KEY],
        psk=Secret(fields.get(_P_PSK, NO_KEY)),
        endpoint=_decode_endpoint(fields[_P_ENDPOINT]) if _P_ENDPOINT in fields else None,
        allowed_ips=frozenset(
            _decode_network(value) for _, value in attributes(fields.get(_P_ALLOWED_IPS, b""))
        ),
        keepalive=number(fields.get(_P_KEEPALIVE, b"")),
        last_handshake=seconds + nanoseconds / 1e9,
        rx_bytes=number(fields.get(_P_RX, b"")),
        tx_bytes=number(fields.get(_P_TX, b"")),
    )


def _decode_endpoint(value: bytes) -> Endpoint | None:
    family = number(value[:2])
    size = {_IPV4: 16, _IPV6: 28}.get(family)
    if size is None or len(value) < size:
        raise NetlinkFormatError("an endpoint of an unknown family")
    port = int.from_bytes(value[2:4], "big")
    if port == 0:
        return None
    if family == _IPV4:
        return Endpoint(str(ip_address(value[4:8])), port)
    scope = number(value[24:28])
    return Endpoint(str(ip_address(value[8:24])) + (f"%{scope}" if scope else ""), port)


def _decode_network(data: bytes) -> Network:
    fields = dict(attributes(data))
    try:
        return ip_network((fields[_A_ADDRESS], number(fields[_A_PREFIX])))
    except (KeyError, ValueError) as error:
        raise NetlinkFormatError("an allowed network that is none") from error
