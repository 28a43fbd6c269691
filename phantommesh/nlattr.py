# SPDX-License-Identifier: GPL-3.0-or-later
"""Netlink's message headers and attributes as bytes: linux/netlink.h.

Numbers are in the machine's byte order.
"""

import errno
import struct
from collections.abc import Iterator

ERROR, DONE = 2, 3
"""Netlink message types NLMSG_ERROR and NLMSG_DONE (linux/netlink.h)."""

DUMP_INTERRUPTED = 0x10
"""Netlink flag NLM_F_DUMP_INTR: the device changed while it was dumped; dump it again."""

REQUEST, ACK, DUMP = 1, 4, 0x300
"""Netlink flags NLM_F_REQUEST, NLM_F_ACK and NLM_F_DUMP (linux/netlink.h)."""

NESTED = 0x8000
"""The bit NLA_F_NESTED of an attribute's type: its payload is attributes (linux/netlink.h)."""


class NetlinkFormatError(OSError):
    """Bytes that are not the message they should be; an OSError, for only a broken kernel sends them."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EBADMSG, message)


def pack_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Put a message's header (struct nlmsghdr, 16 bytes) before its body."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def split_messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence, payload) for each message in what one read returned."""
    while data:
        if len(data) < 16:
            raise NetlinkFormatError("a truncated header")
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
        if not 16 <= length <= len(data):
            raise NetlinkFormatError("a length beyond the data")
        yield kind, flags, sequence, data[16:length]
        data = data[(length + 3) & ~3 :]


def decode_errno(payload: bytes) -> int:
    """Read the positive errno of an NLMSG_ERROR or NLMSG_DONE payload; 0 is an acknowledgement."""
    if len(payload) < 4:
        return 0  # old kernels send NLMSG_DONE without one
    return -int(struct.unpack_from("=i", payload)[0])


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the type and payload of each attribute, without the flag bits. Raises NetlinkFormatError."""
    while data:
        if len(data) < 4:
            raise NetlinkFormatError("a truncated attribute")
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            raise NetlinkFormatError("an attribute beyond its parent")
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


def number(value: bytes) -> int:
    """Read an integer of any width in the machine's byte order."""
    return int.from_bytes(value, "little" if struct.pack("=H", 1) == b"\1\0" else "big")
