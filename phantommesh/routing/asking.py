# SPDX-License-Identifier: GPL-3.0-or-later
"""A router's word on its own routes, asked for over the mesh: the question and the answer as bytes.

Both go by the overlay, where WireGuard authenticates the sender, over the very interfaces that the traffic
takes. So an answer shows that the way to the router works, and says which of its routes do.

| offset | bytes | field |
|---|---|---|
| 0 | 1 | version, 1 |
| 1 | 1 | kind: 1 question, 2 answer |
| 2 | 8 | nonce; an answer repeats the question's |

An answer goes on with the prefixes whose routes work, at most 16, none twice:

| bytes | field |
|---|---|
| 1 | family, 4 or 6 |
| 1 | length of the prefix in bits |
| 4 or 16 | its address, with no bit set beyond the length |
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from phantommesh.errors import DecodeError
from phantommesh.wireguard.device import Network

VERSION: Final = 1
NONCE_BYTES: Final = 8
MAX_PREFIXES: Final = 16  # as many as a certificate holds
MAX_BYTES: Final = 2 + NONCE_BYTES + MAX_PREFIXES * (2 + 16)

_QUESTION, _ANSWER = 1, 2
_HEAD: Final = struct.Struct(f"!BB{NONCE_BYTES}s")


@dataclass(frozen=True, slots=True)
class Question:
    """Which of your routes work? ``nonce``: 8 bytes that nobody else can guess."""

    nonce: bytes

    def encode(self) -> bytes:
        """Return the ten bytes."""
        return _HEAD.pack(VERSION, _QUESTION, self.nonce)


@dataclass(frozen=True, slots=True)
class Answer:
    """The routes to these prefixes work."""

    nonce: bytes
    works: frozenset[Network]

    def encode(self) -> bytes:
        """Return the bytes, at most `MAX_BYTES`; of more prefixes than `MAX_PREFIXES` the first are told."""
        told = sorted(self.works, key=lambda prefix: (prefix.version, prefix))[:MAX_PREFIXES]
        return _HEAD.pack(VERSION, _ANSWER, self.nonce) + b"".join(map(_pack, told))


def decode_untrusted(datagram: bytes) -> Question | Answer:
    """Read what `Question.encode` or `Answer.encode` wrote. Raises DecodeError only."""
    if not _HEAD.size <= len(datagram) <= MAX_BYTES:
        raise DecodeError("length")
    version, kind, nonce = _HEAD.unpack_from(datagram)
    rest = datagram[_HEAD.size :]
    if version == VERSION and kind == _QUESTION and not rest:
        return Question(nonce)
    if version == VERSION and kind == _ANSWER:
        return Answer(nonce, _prefixes(rest))
    raise DecodeError("header")


def _pack(prefix: Network) -> bytes:
    return bytes([prefix.version, prefix.prefixlen]) + prefix.network_address.packed


def _prefixes(rest: bytes) -> frozenset[Network]:
    found = set[Network]()
    for prefix in _each(rest):
        if prefix in found or len(found) == MAX_PREFIXES:
            raise DecodeError("prefixes")
        found.add(prefix)
    return frozenset(found)


def _each(rest: bytes) -> Iterable[Network]:
    while rest:
        size = {4: 4, 6: 16}.get(rest[0], 0)
        if not size or len(rest) < 2 + size:
            raise DecodeError("prefix")
        length, address, rest = rest[1], rest[2 : 2 + size], rest[2 + size :]
        try:
            yield IPv4Network((address, length)) if size == 4 else IPv6Network((address, length))
        except ValueError:
            raise DecodeError("prefix") from None
