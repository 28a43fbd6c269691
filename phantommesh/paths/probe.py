# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe datagram, sent inside the dimension that it measures, where WireGuard authenticates its sender.

| offset | bytes | field |
|---|---|---|
| 0 | 1 | version, 1 |
| 1 | 1 | kind: 1 ping, 2 pong |
| 2 | 1 | dimension, 0 to 6 |
| 3 | 1 | flags: 1 leaving, 2 drained, 4 its sender answers sized probes; the others are ignored |
| 4 | 4 | number of the ping; a pong repeats it |
| 8 | 8 | bytes received of the other end on this dimension, as WireGuard counts them |
| 16 | 2 | age of that count in ms; 65535: there is none |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import DecodeError

VERSION: Final = 1
SIZE: Final = 18
ON_WIRE: Final = 80
"""Bytes that WireGuard counts for a probe over IPv4: 18 + 28 padded to 48, and 32 of its own."""
OVER: Final = 32
"""Bytes that WireGuard counts for a packet beside the packet itself."""
INSIDE: Final = 46
"""Bytes of a probe before WireGuard: 18, and 28 of IPv4 and UDP."""

_PING, _PONG = 1, 2
_LEAVING, _DRAINED, _SIZES = 1, 2, 4
_NO_COUNT = 0xFFFF
_LAYOUT = struct.Struct("!BBBBIQH")


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe. ``leaving``: its sender is about to take this dimension out, so nothing more should be sent
    on it; ``drained``: its sender sends the receiver nothing on it but probes; ``sizes``: it answers sized
    probes. ``received`` is in bytes, ``age`` in whole seconds and milliseconds, or None where there is no
    count."""

    pong: bool
    dimension: int
    number: int
    leaving: bool = False
    drained: bool = False
    received: int = 0
    age: float | None = None
    sizes: bool = True

    def encode(self) -> bytes:
        """Return the 18 bytes. A count that is older than 65.534 s is left out."""
        age = _NO_COUNT if self.age is None else min(max(0, round(self.age * 1000)), _NO_COUNT)
        flags = (_LEAVING if self.leaving else 0) | (_DRAINED if self.drained else 0)
        flags |= _SIZES if self.sizes else 0
        received = 0 if age == _NO_COUNT else self.received
        kind = _PONG if self.pong else _PING
        return _LAYOUT.pack(VERSION, kind, self.dimension, flags, self.number, received, age)


def decode_probe_untrusted(datagram: bytes) -> Probe:
    """Read what `Probe.encode` wrote. Raises DecodeError only."""
    if len(datagram) != SIZE:
        raise DecodeError("length")
    version, kind, dimension, flags, number, received, age = _LAYOUT.unpack(datagram)
    if version != VERSION or kind not in (_PING, _PONG) or dimension >= DIMENSIONS:
        raise DecodeError("header")
    return Probe(
        kind == _PONG,
        dimension,
        number,
        bool(flags & _LEAVING),
        bool(flags & _DRAINED),
        0 if age == _NO_COUNT else received,
        None if age == _NO_COUNT else age / 1000,
        bool(flags & _SIZES),
    )
