# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that a datagram must pass before it costs anything: cookies, budgets, and its sender's standing.

No name is taken at its word. An INIT may use up what its `Standing` allows. Each standing has places and a
budget of its own, so a sender that has shown less cannot use up what is kept for one that has shown more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2s

from phantommesh.endpoint import Address
from phantommesh.link.handshake import Random
from phantommesh.link.wire import MAC_SIZE
from phantommesh.rates import source_block

# Specification (docs/protocol.md, "Limits").
INIT_RATE = 2.0  # a second, per IPv4 address or IPv6 /64
INIT_BURST = 5.0

# Tuning.
COOKIE_SECRET_LIFE = 240.0  # s; a cookie lives one to two of these, so the one in an ACK outlives a rekey
MAX_SOURCES = 4096  # source blocks, or names, that one table of rates holds


class Standing(Enum):
    """The evidence that the sender of an INIT has shown, beside a cookie and a first MAC."""

    PROVEN = "the proof of its node id"
    KNOWN = "an address of that member's, or a chain that this node has with it"
    NEWCOMER = "the secret of an invite"
    RETURNING_HOME = "a host of the record of a member whose certificate ran out, whose name it claims"
    RETURNING = "nothing: anybody who knows the mesh can claim to be a member whose certificate ran out"
    CARRIED = "nothing: the member that carries it can claim the name"
    STRANGER = "nothing: any member can claim the name"
    OUTDATED = "nothing, under an admission secret that was replaced: a revoked node can claim the name"


@dataclass(frozen=True, slots=True)
class Share:
    """Limits on what the INITs of one standing may use up: ``places`` of half-open handshakes in all,
    ``of_source`` for a source block, ``of_name`` for a claimed name; and ``rate`` a second, ``burst`` at
    once, of KEM operations and signatures, which cost 1.1 ms of CPU an INIT. The rate is one peer's where
    ``each`` is set, else that of all together. ``in_all`` is a limit on the rate of all together besides."""

    places: int
    of_source: int
    of_name: int
    rate: float
    burst: float
    each: bool = False
    in_all: float | None = None


# Tuning. A proven name has one attempt at a time; 1,024 is a large mesh that restarts at once. A member that
# is a stranger without ill will has moved, and no WireGuard key is known at both ends. 10 a second cost one
# per cent of a core. To use up what members have that come back from anywhere takes 40 names and 10 sources.
SHARES = {
    Standing.PROVEN: Share(1024, 1024, 1, INIT_RATE, INIT_BURST, each=True),
    Standing.KNOWN: Share(256, 4, 4, INIT_RATE, INIT_BURST, each=True),
    Standing.NEWCOMER: Share(32, 4, 4, 5.0, 20.0),
    Standing.RETURNING_HOME: Share(64, 4, 4, INIT_RATE, INIT_BURST, each=True),
    Standing.RETURNING: Share(64, 2, 4, 0.5, 4.0, each=True, in_all=20.0),
    Standing.CARRIED: Share(64, 8, 4, 5.0, 20.0),
    Standing.STRANGER: Share(64, 4, 64, 10.0, 20.0),
    Standing.OUTDATED: Share(16, 1, 16, 1.0, 5.0),
}
HALF_OPEN = sum(share.places for share in SHARES.values())


def source_of(source: Address) -> str:
    """The unit that the rate of INITs is kept for: a source block; of what a member carries, the two members.
    A cookie shows nothing there, so what a carrier can claim has limits in `node.carrying`, too."""
    return source.host if source.transport == "via" else source_block(source.host)


def block_of(source: Address) -> str:
    """The unit that half-open handshakes count for: a source block, or a member that carries."""
    return source.host.partition("/")[0] if source.transport == "via" else source_block(source.host)


class Cookies:
    """Stateless proof that a source can receive where it says it is: RFC 6347 section 4.2.1's idea, with
    WireGuard's use of the cookie as a MAC key instead of a field."""

    def __init__(self, random: Random, now: float) -> None:
        self._random = random
        self._secrets = [random(32), random(32)]
        self._rotated = now

    def _rotate(self, now: float) -> None:
        age = now - self._rotated
        if age >= COOKIE_SECRET_LIFE:
            newest = self._secrets[0] if age < 2 * COOKIE_SECRET_LIFE else self._random(32)
            self._secrets = [self._random(32), newest]
            self._rotated = now

    def current(self, source: Address, now: float) -> bytes:
        """The cookie to give to ``source``."""
        self._rotate(now)
        return _cookie(self._secrets[0], source)

    def accepted(self, source: Address, now: float) -> Iterator[bytes]:
        """The cookies that ``source`` may key its fragments with, newest first."""
        self._rotate(now)
        return (_cookie(secret, source) for secret in self._secrets)


def _cookie(secret: bytes, source: Address) -> bytes:
    text = f"{source.transport} {source.host} {source.port}".encode()
    return blake2s(text, key=secret, digest_size=MAC_SIZE).digest()
