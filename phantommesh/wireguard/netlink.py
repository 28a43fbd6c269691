# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's WireGuard protocol over generic netlink, as bytes: linux/wireguard.h, linux/genetlink.h.

Read by hand, because the devices are read every two seconds and wgnlpy takes many times as long. wgnlpy
builds the messages that change a device, in ``nursery/host/wgmessages.py``. No key passes through text, and a
peer that the kernel splits over two messages of a dump is put together again. Nothing here does I/O.
"""

import struct
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

from phantommesh.nlattr import (
    ACK,
    DUMP,
    REQUEST,
    NetlinkFormatError,
    attribute,
    attributes,
    number,
    pack_message,
)
from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, Endpoint, Network, PeerState, Report

GENL_CONTROL = 16
"""The netlink type of the generic netlink controller (GENL_ID_CTRL)."""

_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 3, 1, 2
_GET_DEVICE = 0
_D_NAME, _D_PUBLIC_KEY, _D_PORT, _D_FWMARK, _D_PEERS = 2, 4, 6, 7, 8
_P_PUBLIC_KEY, _P_PSK, _P_ENDPOINT, _P_KEEPALIVE = 1, 2, 4, 5
_P_HANDSHAKE, _P_RX, _P_TX, _P_ALLOWED_IPS = 6, 7, 8, 9
_A_ADDRESS, _A_PREFIX = 2, 3
_IPV4, _IPV6 = 2, 10  # AF_INET, AF_INET6 on Linux


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
