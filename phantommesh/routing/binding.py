# SPDX-License-Identifier: GPL-3.0-or-later
"""The datagrams by which a leg of a lease is bound to an address. Pure.

A relay that forwarded to any address it is told would be a reflector. So a member sends ASK from its own
WireGuard port to the relay's port; the relay sends CHALLENGE to where ASK came from; the member sends RETURN
with the challenge; the relay binds the leg to where RETURN came from, if that is the address the challenge is
for, and says so in BOUND. Each datagram has `SIZE` bytes, so an answer is no longer than what it answers, and
the relay keeps nothing about a challenge.

::

    0       4     5         13            29           45         48       64
    | magic | kind | ticket  | challenge   | place      | zero     | MAC    |

The MAC is HMAC-SHA256 under the leg's key, cut to 16 bytes. ``place`` is the address that the relay saw in
BOUND: 16 bytes of IPv6, or of IPv4 mapped to IPv6 (RFC 4291, section 2.5.5.2). The port and whether the relay
forwards already stand in the three bytes that are zero elsewhere.

The magic is no WireGuard message: those begin with 1 to 4. So the kernel's rules leave these datagrams to the
node's own socket, and WireGuard drops them should one get there.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2s
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.routing.leases import TICKET_SIZE, Leases
from phantommesh.routing.stamp import MAC_SIZE, mac, pack_host, stamped, unpack_host
from phantommesh.secret import Secret

# Specification (docs/decisions/0052-relays.md).
MAGIC: Final = 0x504D5231  # "PMR1"
CHALLENGE_SIZE: Final = 16
SIZE: Final = 64
PERIOD: Final = 10.0  # s; a challenge is good for one to two of these

_BODY: Final = SIZE - MAC_SIZE
_NO_CHALLENGE: Final = bytes(CHALLENGE_SIZE)


class Kind(IntEnum):
    """What a datagram is."""

    ASK = 1
    CHALLENGE = 2
    RETURN = 3
    BOUND = 4


_FROM_MEMBERS: Final = (Kind.ASK, Kind.RETURN)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One of them. ``seen`` is the member's address in the relay's sight, ``forwarding``: the lease's other
    leg is bound too; both in BOUND only."""

    kind: Kind
    ticket: bytes
    challenge: bytes = _NO_CHALLENGE
    seen: Address | None = None
    forwarding: bool = False


def encode(datagram: Datagram, key: Secret) -> bytes:
    """Return the datagram's `SIZE` bytes with its MAC."""
    place, port = bytes(16), 0
    if datagram.seen is not None:
        place, port = pack_host(datagram.seen.host), datagram.seen.port
    body = b"".join(
        (
            MAGIC.to_bytes(4, "big"),
            bytes((datagram.kind,)),
            datagram.ticket,
            datagram.challenge,
            place,
            port.to_bytes(2, "big"),
            bytes((datagram.forwarding,)),
        )
    )
    return body + mac(key, body)


def decode_untrusted(data: bytes) -> Datagram:
    """Read a datagram, and verify nothing. Raises `DecodeError`."""
    if len(data) != SIZE or int.from_bytes(data[:4], "big") != MAGIC:
        raise DecodeError("not a datagram of a relay")
    try:
        kind = Kind(data[4])
    except ValueError:
        raise DecodeError("a relay's datagram of an unknown kind") from None
    ticket, challenge = data[5 : 5 + TICKET_SIZE], data[13 : 13 + CHALLENGE_SIZE]
    place, port, forwarding = data[29:45], int.from_bytes(data[45:47], "big"), data[47]
    if kind is not Kind.BOUND:
        if any(data[29:_BODY]):
            raise DecodeError("a relay's datagram with a place that it should not have")
        return Datagram(kind, ticket, challenge)
    if forwarding > 1 or port == 0:
        raise DecodeError("a relay's datagram with a place that is none")
    return Datagram(kind, ticket, challenge, Address(unpack_host(place), port), bool(forwarding))


def genuine(data: bytes, key: Secret) -> bool:
    """Whether a datagram's MAC is one under this key."""
    return stamped(data, key)


@dataclass(frozen=True, slots=True)
class Heard:
    """The result of a datagram at the relay: the ``answer`` to send to its source, None for none; ``bound``:
    a leg was bound, so what is forwarded may have changed; ``dropped``: why nothing came of it."""

    answer: bytes | None = None
    bound: bool = False
    dropped: str = ""


class Challenger:
    """The relay's half. What it needs to know of a challenge that it gave, it makes again when it comes
    back."""

    def __init__(self, leases: Leases, random: Callable[[int], bytes]) -> None:
        self._leases, self._secret = leases, Secret(random(32))

    def receive(self, data: bytes, source: Address, now: float) -> Heard:
        """Take in a datagram from the network."""
        try:
            datagram = decode_untrusted(data)
        except DecodeError:
            return Heard(dropped="relay-malformed")
        if datagram.kind not in _FROM_MEMBERS:
            return Heard(dropped="relay-malformed")
        key = self._leases.key(datagram.ticket, now)
        if key is None:
            return Heard(dropped="relay-ticket")
        if not genuine(data, key):
            return Heard(dropped="relay-mac")
        period, ticket = int(now // PERIOD), datagram.ticket
        if datagram.kind is Kind.ASK:
            challenge = self._challenge(ticket, source, period)
            return Heard(encode(Datagram(Kind.CHALLENGE, ticket, challenge), key))
        good = (self._challenge(ticket, source, each) for each in (period, period - 1))
        if not any(hmac.compare_digest(datagram.challenge, each) for each in good):
            return Heard(dropped="relay-challenge")
        forwarding = self._leases.bind(ticket, source, now)
        if forwarding is None:
            return Heard(dropped="relay-address")
        answer = Datagram(Kind.BOUND, ticket, datagram.challenge, source, forwarding)
        return Heard(encode(answer, key), bound=True)

    def _challenge(self, ticket: bytes, source: Address, period: int) -> bytes:
        place = pack_host(source.host) + source.port.to_bytes(2, "big")
        about = ticket + place + period.to_bytes(8, "big", signed=True)
        return blake2s(about, key=self._secret.reveal(), digest_size=CHALLENGE_SIZE).digest()


def answer(data: bytes, ticket: bytes, key: Secret) -> bytes | Datagram | None:
    """The member's half, for a datagram that came to its WireGuard port from the relay: the RETURN to send
    there, or the BOUND that it brings; None where it is neither."""
    try:
        datagram = decode_untrusted(data)
    except DecodeError:
        return None
    if datagram.ticket != ticket or not genuine(data, key):
        return None
    if datagram.kind is Kind.CHALLENGE:
        return encode(Datagram(Kind.RETURN, ticket, datagram.challenge), key)
    return datagram if datagram.kind is Kind.BOUND else None


def ask(ticket: bytes, key: Secret) -> bytes:
    """The datagram with which a member begins, and begins again before the leg is unbound."""
    return encode(Datagram(Kind.ASK, ticket), key)
