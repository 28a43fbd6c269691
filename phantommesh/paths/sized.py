# SPDX-License-Identifier: GPL-3.0-or-later
"""The sized probe: a ping that is as long as a packet of the size in question, and a short answer to it.

A sized probe goes inside the dimension that it measures, to the port of the other probes. All numbers are in
network byte order.

| offset | bytes | field |
|---|---|---|
| 0 | 1 | version, 1 |
| 1 | 1 | kind: 3 sized ping, 4 sized pong |
| 2 | 1 | dimension, 0 to 6 |
| 3 | 1 | 0; ignored |
| 4 | 4 | number of the ping; a pong repeats it |
| 8 | 2 | size of the ping in bytes, with its IPv4 and UDP headers; a pong repeats it |
| 10 | 2 | ceiling: the largest overlay packet that the sender's own uplink takes whole; 0: not known |
| 12 | size - 40 | of a ping: zeros, which WireGuard encrypts |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import DecodeError

VERSION: Final = 1
PING, PONG = 3, 4  # the kinds; 1 and 2 are those of `paths.probe`
HEADERS: Final = 28  # bytes of IPv4 (RFC 791) and UDP (RFC 768)
LEAST: Final = 40  # bytes, the shortest sized ping with its headers
LARGEST: Final = 9000  # bytes, the largest MTU that `wireguard.mtu` can be
MAX_DATAGRAM: Final = LARGEST - HEADERS

_LAYOUT = struct.Struct("!BBBBIHH")


@dataclass(frozen=True, slots=True)
class SizedProbe:
    """One sized probe. ``size`` and ``ceiling`` are overlay packets' lengths in bytes; a ``ceiling`` of 0 is
    not known."""

    pong: bool
    dimension: int
    number: int
    size: int
    ceiling: int = 0

    def encode(self) -> bytes:
        """Return ``size`` - 28 bytes for a ping, 12 for a pong."""
        kind = PONG if self.pong else PING
        head = _LAYOUT.pack(VERSION, kind, self.dimension, 0, self.number, self.size, self.ceiling)
        return head if self.pong else head.ljust(self.size - HEADERS, b"\0")


def is_sized(datagram: bytes) -> bool:
    """Whether this is for `decode_sized_untrusted` and not for `paths.probe.decode_probe_untrusted`."""
    return len(datagram) > 1 and datagram[1] in (PING, PONG)


def decode_sized_untrusted(datagram: bytes) -> SizedProbe:
    """Read what `SizedProbe.encode` wrote. Raises DecodeError only."""
    if len(datagram) < _LAYOUT.size:
        raise DecodeError("length")
    version, kind, dimension, _, number, size, ceiling = _LAYOUT.unpack_from(datagram)
    if version != VERSION or kind not in (PING, PONG) or dimension >= DIMENSIONS:
        raise DecodeError("header")
    if not LEAST <= size <= LARGEST:
        raise DecodeError("size")
    if len(datagram) != (_LAYOUT.size if kind == PONG else size - HEADERS):
        raise DecodeError("length")
    return SizedProbe(kind == PONG, dimension, number, size, ceiling)
