# SPDX-License-Identifier: GPL-3.0-or-later
"""PCP's MAP requests and answers as bytes, for IPv4 (RFC 6887, sections 7 and 11). Sans-I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from phantommesh.portmap.values import PortMapError

VERSION: Final = 2
MAX_DATAGRAM: Final = 1100  # bytes of a message at most (section 7)
NONCE_BYTES: Final = 12
SUCCESS, UNSUPPORTED_VERSION, NETWORK_FAILURE, NO_RESOURCES = 0, 1, 7, 8  # result codes (section 7.4)

_ANNOUNCE, _MAP, _ANSWER = 0, 1, 0x80
_REQUEST: Final = struct.Struct("!BBHI16s")  # version, opcode, reserved, lifetime, the client's address
_REPLY: Final = struct.Struct("!BBBBII12s")  # version, opcode, reserved, result, lifetime, epoch, reserved
_BODY: Final = struct.Struct("!12sB3xHH16s")  # nonce, protocol, internal port, external port and address


@dataclass(frozen=True, slots=True)
class MapRequest:
    """Have a port mapped; a lifetime of 0 ends a mapping. ``port`` of the gateway is a wish, 0 for none."""

    nonce: bytes
    client: IPv4Address
    protocol: int
    internal: int
    external: int
    lifetime: int

    def encode(self) -> bytes:
        """The datagram, 60 bytes."""
        head = _REQUEST.pack(VERSION, _MAP, 0, self.lifetime, _mapped(self.client))
        wish = _mapped(IPv4Address(0))
        return head + _BODY.pack(self.nonce, self.protocol, self.internal, self.external, wish)


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """The gateway's answer. ``result`` is a code of section 7.4; ``lifetime`` in seconds, of an error too;
    ``epoch`` the gateway's clock. Of an error the rest is what was asked."""

    result: int
    lifetime: int
    epoch: int
    nonce: bytes
    protocol: int
    internal: int
    external: int
    address: IPv4Address


def other_version(datagram: bytes) -> bool:
    """Whether a gateway says that it does not speak PCP, or not this version: NAT-PMP's gateways answer in
    their own form (RFC 6887, section 9, and appendix A)."""
    if len(datagram) >= 4 and datagram[0] != VERSION and datagram[1] & _ANSWER:
        return True
    return len(datagram) >= 4 and datagram[1] & _ANSWER != 0 and datagram[3] == UNSUPPORTED_VERSION


def announcement(datagram: bytes) -> bool:
    """Whether a gateway says that it was started anew (section 14.1)."""
    head = bytes([VERSION, _ANNOUNCE | _ANSWER])
    return _REPLY.size <= len(datagram) <= MAX_DATAGRAM and datagram.startswith(head)


def decode_untrusted(datagram: bytes) -> MapAnswer:
    """Read an answer. Options behind it are left alone. Raises PortMapError."""
    if not _REPLY.size + _BODY.size <= len(datagram) <= MAX_DATAGRAM:
        raise PortMapError("an answer of another size")
    version, opcode, _, result, lifetime, epoch, _ = _REPLY.unpack_from(datagram)
    if version != VERSION or opcode != _MAP | _ANSWER:
        raise PortMapError("not an answer to MAP")
    nonce, protocol, internal, external, packed = _BODY.unpack_from(datagram, _REPLY.size)
    address = IPv6Address(packed).ipv4_mapped
    if address is None:
        raise PortMapError("an external address of another family")
    return MapAnswer(result, lifetime, epoch, nonce, protocol, internal, external, address)


def _mapped(address: IPv4Address) -> bytes:
    return bytes(10) + b"\xff\xff" + address.packed
