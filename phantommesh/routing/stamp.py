# SPDX-License-Identifier: GPL-3.0-or-later
"""What the datagrams at WireGuard's ports have in common, those of relays (`binding`), knocks (`knocks`) and
echoes (`echoes`): a MAC at the end, and an address in 16 bytes. Pure."""

from __future__ import annotations

import hmac
from ipaddress import IPv6Address, ip_address
from typing import Final

from phantommesh.secret import Secret

MAC_SIZE: Final = 16

_MAPPED: Final = bytes(10) + b"\xff\xff"


def pack_host(host: str) -> bytes:
    """Return the 16 bytes of an IPv6 address, or of an IPv4 address mapped to IPv6 (RFC 4291, section
    2.5.5.2)."""
    address = ip_address(host)
    return address.packed if isinstance(address, IPv6Address) else _MAPPED + address.packed


def unpack_host(packed: bytes) -> str:
    """Return the address as text. Takes any 16 bytes."""
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)


def mac(key: Secret, body: bytes) -> bytes:
    """Return the MAC of a datagram without its MAC: HMAC-SHA-256 (RFC 2104), cut to 16 bytes."""
    return hmac.digest(key.reveal(), body, "sha256")[:MAC_SIZE]


def stamped(data: bytes, key: Secret) -> bool:
    """Whether a datagram ends in its MAC under this key."""
    return hmac.compare_digest(data[-MAC_SIZE:], mac(key, data[:-MAC_SIZE]))
