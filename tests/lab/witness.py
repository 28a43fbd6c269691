# SPDX-License-Identifier: GPL-3.0-or-later
"""A second reader of the kernel's WireGuard dumps, made of wgnlpy's classes, to check ours against.

For tests and benchmarks only: it takes many times as long as ours, and ends on a dump that is malformed in no
particular way, or not at all.
"""

import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from wgnlpy.nlas import device

from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, Endpoint, PeerState, Report


def decode_device(payloads: Iterable[bytes]) -> Report:
    """Read the payloads of one device's dump, as ``phantommesh.wireguard.netlink.decode_device`` does."""
    public_key: bytes | None = None
    port = mark = 0
    peers: dict[bytes, PeerState] = {}
    for payload in payloads:
        message = device(struct.pack("=IHHII", 16 + len(payload), 0, 0, 0, 0) + payload)
        message.decode()
        public_key = message.get_attr("WGDEVICE_A_PUBLIC_KEY") or public_key
        port = message.get_attr("WGDEVICE_A_LISTEN_PORT") or port
        mark = message.get_attr("WGDEVICE_A_FWMARK") or mark
        for entry in message.get_attr("WGDEVICE_A_PEERS") or ():
            peer = _peer(entry)
            before = peers.get(peer.public_key)
            if before is not None:  # the rest of a peer that the kernel split: key and networks only
                peer = replace(before, allowed_ips=before.allowed_ips | peer.allowed_ips)
            peers[peer.public_key] = peer
    return Report(public_key, port, mark, peers)


def _peer(entry: Any) -> PeerState:
    address = entry.get_attr("WGPEER_A_ENDPOINT")
    scope = getattr(address, "scope_id", 0)
    return PeerState(
        public_key=entry.get_attr("WGPEER_A_PUBLIC_KEY"),
        psk=Secret(entry.get_attr("WGPEER_A_PRESHARED_KEY") or NO_KEY),  # wgnlpy: None for all zero
        endpoint=Endpoint(f"{address.addr}{f'%{scope}' if scope else ''}", address.port)
        if address is not None and address.port
        else None,
        allowed_ips=frozenset(network.network() for network in entry.get_attr("WGPEER_A_ALLOWEDIPS") or ()),
        keepalive=entry.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
        last_handshake=entry.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") or 0.0,
        rx_bytes=entry.get_attr("WGPEER_A_RX_BYTES") or 0,
        tx_bytes=entry.get_attr("WGPEER_A_TX_BYTES") or 0,
    )
