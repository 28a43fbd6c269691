# SPDX-License-Identifier: GPL-3.0-or-later
"""Knocks: the datagrams by which two nodes find out whether WireGuard's packets get from one WireGuard port
to the other, past NATs and firewalls, before WireGuard sends any. Pure.

A KNOCK goes from WireGuard's port of a dimension to an address where the peer may be. The peer returns an
ANSWER with the same nonce to where the KNOCK came from. All datagrams have `SIZE` bytes, so nobody can make a
node send more than he sent himself.

::

    0       4      5           6       14        30                 46     48    64
    | magic | kind | dimension | name  | nonce   | address seen     | port | MAC |

The MAC is HMAC-SHA256, cut to 16 bytes, under a key of the pair and the direction: from the keys that the
pair's last handshake left. ``name`` says which key; each dimension has another one, so that an observer
cannot tell by it which dimensions belong together. The address and port in an ANSWER are where the KNOCK came
from: 16 bytes of IPv6, or of IPv4 mapped to IPv6 (RFC 4291, section 2.5.5.2); all zero in a KNOCK.

The magic is no WireGuard message: those begin with 1 to 4. WireGuard drops what begins otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.kdf import expand
from phantommesh.routing.stamp import MAC_SIZE, mac, pack_host, stamped, unpack_host
from phantommesh.secret import Secret

# Specification (docs/decisions/0054-ways-through-nats.md).
MAGIC: Final = 0x504D4B31  # "PMK1"
SIZE: Final = 64
NAME_SIZE: Final = 8
NONCE_SIZE: Final = 16

_BODY: Final = SIZE - MAC_SIZE
_NOWHERE: Final = bytes(18)


class Kind(IntEnum):
    """What a datagram is."""

    KNOCK = 1
    ANSWER = 2


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a pair, as one end has them: to send with and to hear with; and their names, by
    dimension."""

    out: Secret
    inward: Secret
    names_out: tuple[bytes, ...]
    names_in: tuple[bytes, ...]

    @classmethod
    def of(cls, key_out: Secret, key_in: Secret) -> Self:
        """From a session's keys (`control.sessions`): one end's outward key is the other's inward one."""
        return cls(_key(key_out), _key(key_in), _names(key_out), _names(key_in))


@dataclass(frozen=True, slots=True)
class Knock:
    """One datagram. ``seen``: where the KNOCK came from, in an ANSWER."""

    kind: Kind
    dimension: int
    name: bytes
    nonce: bytes
    seen: Address | None = None


def encode(kind: Kind, dimension: int, nonce: bytes, keys: Keys, seen: Address | None = None) -> bytes:
    """Return the datagram's `SIZE` bytes with its MAC."""
    place = _NOWHERE if seen is None else pack_host(seen.host) + seen.port.to_bytes(2, "big")
    head = MAGIC.to_bytes(4, "big") + bytes((kind, dimension)) + keys.names_out[dimension]
    body = head + nonce + place
    return body + mac(keys.out, body)


def decode_untrusted(data: bytes) -> Knock:
    """Read a datagram, and verify nothing. Raises `DecodeError`."""
    if len(data) != SIZE or int.from_bytes(data[:4], "big") != MAGIC:
        raise DecodeError("not a knock")
    try:
        kind = Kind(data[4])
    except ValueError:
        raise DecodeError("a knock of an unknown kind") from None
    dimension, name, nonce, place = data[5], data[6:14], data[14:30], data[30:_BODY]
    if dimension >= DIMENSIONS:
        raise DecodeError("a knock for a dimension that is none")
    if (place == _NOWHERE) != (kind is Kind.KNOCK):
        raise DecodeError("a knock with a place that it should not have")
    if kind is Kind.KNOCK:
        return Knock(kind, dimension, name, nonce)
    port = int.from_bytes(place[16:], "big")
    if port == 0:
        raise DecodeError("a knock with a place that is none")
    return Knock(kind, dimension, name, nonce, Address(unpack_host(place[:16]), port))


def genuine(data: bytes, keys: Keys) -> bool:
    """Whether a datagram's MAC is the other end's."""
    return stamped(data, keys.inward)


def _key(session: Secret) -> Secret:
    return Secret(expand(session.reveal(), b"knock key", 32))


def _names(session: Secret) -> tuple[bytes, ...]:
    names = expand(session.reveal(), b"knock names", DIMENSIONS * NAME_SIZE)
    return tuple(names[i : i + NAME_SIZE] for i in range(0, len(names), NAME_SIZE))
