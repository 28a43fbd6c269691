# SPDX-License-Identifier: GPL-3.0-or-later
"""NAT-PMP's requests and answers as bytes (RFC 6886, section 3). Sans-I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from phantommesh.portmap.values import PortMapError, Protocol

VERSION: Final = 0
SUCCESS, NETWORK_FAILURE = 0, 3  # result codes (section 3.5)
ASK_ADDRESS: Final = bytes([VERSION, 0])  # section 3.2

_OPCODES: Final = {Protocol.UDP: 1, Protocol.TCP: 2}  # section 3.3
_PROTOCOLS: Final = {code: protocol for protocol, code in _OPCODES.items()}
_ANSWER: Final = 128
_REQUEST: Final = struct.Struct(
    "!BBHHHI"
)  # version, opcode, reserved, internal port, external port, lifetime
_ADDRESS: Final = struct.Struct("!BBHI4s")  # version, opcode, result, epoch, address
_MAPPING: Final = struct.Struct("!BBHIHHI")  # version, opcode, result, epoch, both ports, lifetime
_HEAD: Final = struct.Struct("!BBHI")


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """The gateway's external address, and its clock."""

    result: int
    epoch: int
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class MapAnswer:
    """The gateway has mapped a port, or why not (section 3.5)."""

    result: int
    epoch: int
    protocol: Protocol
    internal: int
    external: int
    lifetime: int


def ask(protocol: Protocol, internal: int, external: int, lifetime: int) -> bytes:
    """Return the request to map a port; ``external`` is a wish. A lifetime of 0 ends the mapping."""
    return _REQUEST.pack(VERSION, _OPCODES[protocol], 0, internal, external, lifetime)


def announcement(datagram: bytes) -> bool:
    """Whether a gateway says that it was started anew, or has another address (section 3.2.1)."""
    return len(datagram) == _ADDRESS.size and datagram.startswith(bytes([VERSION, _ANSWER]))


def decode_untrusted(datagram: bytes) -> AddressAnswer | MapAnswer:
    """Read an answer. Raises PortMapError. An error may be shorter than an answer: then the rest is 0."""
    if len(datagram) < _HEAD.size:
        raise PortMapError("an answer that is too short")
    version, opcode, result, _ = _HEAD.unpack_from(datagram)
    if version != VERSION:
        raise PortMapError("an answer of another version")
    if result != SUCCESS:
        datagram = datagram.ljust(_MAPPING.size, b"\0")
    if opcode == _ANSWER and len(datagram) >= _ADDRESS.size:
        _, _, result, epoch, packed = _ADDRESS.unpack_from(datagram)
        return AddressAnswer(result, epoch, IPv4Address(packed))
    protocol = _PROTOCOLS.get(opcode - _ANSWER)
    if protocol is None or len(datagram) < _MAPPING.size:
        raise PortMapError("not an answer that was asked for")
    _, _, result, epoch, internal, external, lifetime = _MAPPING.unpack_from(datagram)
    return MapAnswer(result, epoch, protocol, internal, external, lifetime)
