# SPDX-License-Identifier: GPL-3.0-or-later
"""Echoes: the datagrams by which a node finds out how long a NAT keeps a mapping that nobody uses, whether
strangers' datagrams come in, and whether its own public address leads back to it. Sans-I/O.

A member that agreed over a channel (the *witness*) answers each ASK at once with a NOW, and with two LATERs
when the mapping was idle for as long as was agreed. What comes in shows how long the mapping lived. Each idle
time has a socket of its own, so no path that carries traffic is put at risk. ASKs go to the witness's
WireGuard port of dimension 0, which is open if any is. An UNASKED comes to a WireGuard port of the asker from
a port that it never sent to. A LOOP goes from one such socket to the public place of another one, and from
that one back: the hairpin.

::

    0       4      5        6       14              30                 46     48    64
    | magic | kind | number | name  | zeros         | address seen     | port | MAC |

All have `SIZE` bytes, so nobody gets more than he sent but for the LATERs. The keys come from a token that
the asker gave the witness. ``name`` is another one for each number: an observer cannot tell by it which
WireGuard ports belong together. The place is where an ASK came from, in a NOW.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.kdf import expand
from phantommesh.rates import Rates
from phantommesh.routing.knocks import SIZE
from phantommesh.routing.stamp import MAC_SIZE, mac, pack_host, stamped, unpack_host
from phantommesh.secret import Secret
from phantommesh.timers import Timers

# Specification (docs/decisions/0058-idle-mappings.md).
MAGIC: Final = 0x504D4531  # "PME1"
TRIALS: Final = 8  # numbers below are sockets of the asker's; those from here on are dimensions
NAME_SIZE: Final = 8

_BODY: Final = SIZE - MAC_SIZE
_NOWHERE: Final = bytes(18)
_ZEROS: Final = bytes(16)

# Tuning.
GRANTS: Final = 1 / 30, 4.0  # measurements for one member, a second and at once
MAX_GRANTS: Final = 32  # measurements at one time
MAX_ANSWERS: Final = 6  # NOWs to one socket
SPARE: Final = 30.0  # s longer than its longest idle time that a measurement may take
AGAIN: Final = 0.3  # s after which a LATER and an UNASKED are sent once more: one may be lost


class Kind(IntEnum):
    """What a datagram is."""

    ASK = 1
    NOW = 2
    LATER = 3
    UNASKED = 4
    LOOP = 5


@dataclass(frozen=True, slots=True)
class Keys:
    """What both ends make of the token: the key, and the names by number."""

    key: Secret
    names: tuple[bytes, ...]

    @classmethod
    def of(cls, token: bytes) -> Keys:
        """From 16 bytes that nobody else knows."""
        names = expand(token, b"echo names", (TRIALS + DIMENSIONS) * NAME_SIZE)
        return cls(
            Secret(expand(token, b"echo key", 32)),
            tuple(names[i : i + NAME_SIZE] for i in range(0, len(names), NAME_SIZE)),
        )


@dataclass(frozen=True, slots=True)
class Echo:
    """One datagram. ``seen``: where an ASK came from, in a NOW."""

    kind: Kind
    number: int
    name: bytes
    seen: Address | None = None


def encode(kind: Kind, number: int, keys: Keys, seen: Address | None = None) -> bytes:
    """Return the datagram's `SIZE` bytes."""
    place = _NOWHERE if seen is None else pack_host(seen.host) + seen.port.to_bytes(2, "big")
    body = MAGIC.to_bytes(4, "big") + bytes((kind, number)) + keys.names[number] + _ZEROS + place
    return body + mac(keys.key, body)


def decode_untrusted(data: bytes) -> Echo:
    """Read a datagram, and verify nothing. Raises `DecodeError`."""
    if len(data) != SIZE or int.from_bytes(data[:4], "big") != MAGIC:
        raise DecodeError("not an echo")
    try:
        kind = Kind(data[4])
    except ValueError:
        raise DecodeError("an echo of an unknown kind") from None
    number, name, place = data[5], data[6:14], data[30:_BODY]
    if number >= TRIALS + DIMENSIONS or (kind is Kind.UNASKED) != (number >= TRIALS):
        raise DecodeError("an echo with a number that its kind has not")
    if data[14:30] != _ZEROS or (place == _NOWHERE) != (kind is not Kind.NOW):
        raise DecodeError("an echo with bytes that it should not have")
    if kind is not Kind.NOW:
        return Echo(kind, number, name)
    port = int.from_bytes(place[16:], "big")
    if port == 0:
        raise DecodeError("an echo with a place that is none")
    return Echo(kind, number, name, Address(unpack_host(place[:16]), port))


def genuine(data: bytes, keys: Keys) -> bool:
    """Whether a datagram is one under these keys, by its name and its MAC."""
    return data[6:14] == keys.names[data[5]] and stamped(data, keys.key)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a datagram from WireGuard's port of dimension 0."""

    destination: Address
    datagram: bytes


@dataclass(slots=True)
class _Socket:
    source: Address
    answers: int = 0
    left: int = 0  # LATERs that are still to be sent


@dataclass(slots=True)
class _Grant:
    peer: bytes
    keys: Keys
    after: tuple[float, ...]
    until: float
    sockets: dict[int, _Socket] = field(default_factory=dict)


class Witness:
    """The side that answers. ``may`` says whether something may be sent to an address of a member.

    A member has as many measurements as `GRANTS`. Each has at most `TRIALS` addresses sent to, those that
    ASKs with its token came from, `MAX_ANSWERS` + 2 datagrams to each.
    """

    def __init__(self, may: Callable[[bytes, str], bool], now: float) -> None:
        self.dropped: Counter[str] = Counter()
        self._may = may
        self._rates = Rates[bytes](*GRANTS)
        self._grants: dict[int, _Grant] = {}
        self._names: dict[bytes, tuple[int, int]] = {}
        self._timers = Timers[tuple[int, int]]()
        self._made = 0

    @property
    def deadline(self) -> float:
        """When to call `tick` next; infinity is never."""
        return min(self._timers.first, min((g.until for g in self._grants.values()), default=inf))

    @property
    def busy(self) -> bool:
        """Whether datagrams are of use now."""
        return bool(self._grants)

    def grant(self, peer: bytes, token: bytes, after: Sequence[float], now: float) -> str:
        """Let a member measure these idle times, in seconds. Return why not; empty: it may."""
        if len(self._grants) >= MAX_GRANTS:
            return "too many members measure at once"
        if not self._rates.allow(peer, now):
            return "this was measured a moment ago"
        keys = Keys.of(token)
        if keys.names[0] in self._names:
            return "this token is in use"
        self._made += 1
        self._grants[self._made] = _Grant(peer, keys, tuple(after), now + max(after, default=0.0) + SPARE)
        for number in range(len(after)):
            self._names[keys.names[number]] = self._made, number
        return ""

    def receive(self, source: Address, data: bytes, now: float) -> list[Send]:
        """Take in a datagram at WireGuard's port of dimension 0 that is an ASK."""
        turn, number = self._names.get(data[6:14], (0, 0))
        grant = self._grants.get(turn)
        if grant is None or not genuine(data, grant.keys) or data[5] != number:
            return self._drop("echo-stranger")
        if not self._may(grant.peer, source.host):
            return self._drop("echo-address")
        known = grant.sockets.setdefault(number, _Socket(source))
        if known.source != source or known.answers >= MAX_ANSWERS:
            return self._drop("echo-rate")
        known.answers += 1
        if grant.after[number]:
            known.left = 2
            self._timers.set((turn, number), now + grant.after[number])
        return [Send(source, encode(Kind.NOW, number, grant.keys, source))]

    def tick(self, now: float) -> list[Send]:
        """Do what is due."""
        found = []
        for turn, number in self._timers.due(now):
            grant = self._grants[turn]
            known = grant.sockets[number]
            found.append(Send(known.source, encode(Kind.LATER, number, grant.keys)))
            known.left -= 1
            if known.left:
                self._timers.set((turn, number), now + AGAIN)
        for turn in [turn for turn, grant in self._grants.items() if now >= grant.until]:
            grant = self._grants.pop(turn)
            for number in range(len(grant.after)):
                self._names.pop(grant.keys.names[number], None)
                self._timers.cancel((turn, number))
        return found

    def _drop(self, reason: str) -> list[Send]:
        self.dropped[reason] += 1
        return []
