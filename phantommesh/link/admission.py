# SPDX-License-Identifier: GPL-3.0-or-later
"""What a datagram must pass before it costs anything: cookies, and a budget of handshakes per source."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from hashlib import blake2s
from ipaddress import IPv6Address, ip_address

from phantommesh.link.handshake import Random
from phantommesh.wire import MAC_SIZE, Address

# Specification (DESIGN section 4).
INIT_RATE = 2.0  # a second, per IPv4 address or IPv6 /64
INIT_BURST = 5.0

# Tuning.
COOKIE_SECRET_LIFE = 240.0  # s; a cookie lives one to two of these, so the one in an ACK outlives a rekey
MAX_SOURCES = 4096


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


def source_block(host: str) -> str:
    """The unit that rates are kept for: an IPv4 address, or an IPv6 /64, since a host owns its whole /64."""
    address = ip_address(host)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)


class Rates:
    """A token bucket per source block, in a table of bounded size."""

    def __init__(self, rate: float = INIT_RATE, burst: float = INIT_BURST) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, host: str, now: float) -> bool:
        """Take one token from the source's bucket; False where it is empty."""
        block = source_block(host)
        tokens, then = self._buckets.pop(block, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1.0
        self._buckets[block] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed
