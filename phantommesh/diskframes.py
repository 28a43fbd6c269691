# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames of a file that grows at its end: whatever of it a crash or a power cut takes, the others are found.

A frame is a mark (4 bytes), the payload's length (4 bytes, big-endian), the CRC-32 over that length and the
payload (4 bytes), and the payload.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

_HEAD: Final = struct.Struct(">4sII")
_LENGTH: Final = struct.Struct(">I")
OVERHEAD: Final = _HEAD.size
"""Bytes of a frame beside its payload."""


@dataclass(frozen=True, slots=True)
class Framing:
    """The frames of one kind of file. ``mark``: 4 bytes that no payload is likely to have; ``most``: bytes of
    a payload."""

    mark: bytes
    most: int

    def frame(self, payload: bytes) -> bytes:
        """A payload's frame."""
        return _HEAD.pack(self.mark, len(payload), _checksum(payload)) + payload

    def payload_at(self, data: memoryview, at: int) -> memoryview | None:
        """The payload of the frame that begins at ``at``, or None where there is no whole one."""
        if len(data) - at < OVERHEAD:
            return None
        mark, length, checksum = _HEAD.unpack_from(data, at)
        payload = data[at + OVERHEAD : at + OVERHEAD + length]
        if mark != self.mark or not 0 < length <= self.most or len(payload) != length:
            return None
        return payload if _checksum(payload) == checksum else None


def _checksum(payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))
