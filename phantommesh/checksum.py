# SPDX-License-Identifier: GPL-3.0-or-later
"""The Internet checksum (RFC 1071), as ICMP and UDP have it."""

from __future__ import annotations

import struct


def checksum(data: bytes) -> int:
    """Return the checksum of bytes that have zeros in its place, 16 bits."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
