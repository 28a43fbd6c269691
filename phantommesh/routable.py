# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes a member may ever route for others: the one rule for certificates and configurations. Pure.

A prefix that others send to a member is a part of their traffic taken from wherever it went before. So some
are nobody's to route: those that mean each host itself, its own link, or a group; the overlay; and those that
are nearly a default route without being called so. A default route itself is an exit: it is granted like
other prefixes, and taken of a member that the configuration names alone. docs/decisions/0066-routes.md and
0072-exits.md have the rules and their reasons.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Final, Generic, TypeVar

Network = IPv4Network | IPv6Network
T = TypeVar("T")

MAX_ROUTES: Final = 16  # of one member
SHORTEST: Final = 8  # bits of a prefix: 16 of those are far from everything
EXITS: Final[tuple[Network, ...]] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""The default routes. A member that routes one is an exit."""
EXIT: Final = "exit"
"""The word for both of them, where an operator names prefixes."""

_MAX_TEXT: Final = 43  # characters of the longest: eight groups and /128

# The IANA registries of special-purpose addresses (RFC 6890).
_NEVER: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), why)
    for network, why in (
        ("0.0.0.0/8", "addresses of no host"),  # RFC 1122, section 3.2.1.3
        ("127.0.0.0/8", "loopback addresses"),  # RFC 1122, section 3.2.1.3
        ("169.254.0.0/16", "link-local addresses"),  # RFC 3927; clouds have their metadata services there
        ("224.0.0.0/4", "multicast addresses"),  # RFC 1112
        ("240.0.0.0/4", "reserved addresses"),  # RFC 1112; with 255.255.255.255, RFC 919
        ("::/96", "addresses of no host"),  # RFC 4291, section 2.5: unspecified, loopback, IPv4-compatible
        ("::ffff:0:0/96", "IPv4 addresses in another form"),  # RFC 4291, section 2.5.5.2
        ("fe80::/10", "link-local addresses"),  # RFC 4291, section 2.5.6
        ("ff00::/8", "multicast addresses"),  # RFC 4291, section 2.7
    )
)


def parse_prefix(text: str) -> Network:
    """Read a prefix in its only form: ``10.1.0.0/16``, ``2001:db8::/32``. Raises ValueError that says why
    not."""
    if len(text) > _MAX_TEXT or not text.isascii() or "%" in text:  # anything might come after a scope's sign
        raise ValueError("it is no prefix")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("it is no prefix") from None
    if str(network) != text:
        raise ValueError(f"write {network}")
    return network


def order(prefix: Network) -> tuple[int, int, int]:
    """The key by which prefixes are sorted: IPv4 first, then by address, then the shorter."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def in_order(prefixes: Iterable[Network]) -> tuple[Network, ...]:
    """Each prefix once, sorted."""
    return tuple(sorted(set(prefixes), key=order))


def unroutable(prefix: Network, overlay: Iterable[Network] = ()) -> str:
    """Say why no member may route a prefix, as in "10.0.0.0/7 is too short"; empty where one may. ``overlay``
    are the mesh's networks."""
    if is_exit(prefix):
        return ""
    if prefix.prefixlen < SHORTEST:
        return f"is too short: a prefix has {SHORTEST} bits at least"
    for network, why in _NEVER:
        if overlap(prefix, network):
            return f"has {why}"
    for network in overlay:
        if overlap(prefix, network):
            return f"overlaps the overlay {network}"
    return ""


def is_exit(prefix: Network) -> bool:
    """Whether a prefix is a default route."""
    return prefix.prefixlen == 0


def overlap(one: Network, other: Network) -> bool:
    """Whether two prefixes have an address in common."""
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.overlaps(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.overlaps(other)


def within(prefix: Network, network: Network) -> bool:
    """Whether a network holds all of a prefix."""
    return overlap(prefix, network) and prefix.prefixlen >= network.prefixlen


def collapse(networks: Iterable[Network]) -> list[Network]:
    """Merge networks, those of each version by themselves."""
    listed = list(networks)
    four = [network for network in listed if isinstance(network, IPv4Network)]
    six = [network for network in listed if isinstance(network, IPv6Network)]
    return [*collapse_addresses(four), *collapse_addresses(six)]


def less(network: Network, holes: Iterable[Network], most: float) -> list[Network] | None:
    """The network less the holes; None if that takes more than ``most`` pieces."""
    pieces: list[Network] = [network]
    for hole in collapse(holes):
        left: list[Network] = []
        for piece in pieces:
            if not overlap(piece, hole):
                left.append(piece)
            elif piece.prefixlen < hole.prefixlen:
                left += piece.address_exclude(hole)  # type: ignore[arg-type]  # both of one version
        pieces = left
        if len(pieces) > most:
            return None
    return pieces


class Places(Generic[T]):
    """Things by the networks that they are of, to be asked which have an address in common with a network: a
    router of the internet has a million routes, and each question costs the same beside what is found."""

    def __init__(self, things: Iterable[tuple[Network, T]]) -> None:
        self._at: dict[tuple[int, int, int], list[T]] = {}
        for network, thing in things:
            place = network.version, network.prefixlen, int(network.network_address)
            self._at.setdefault(place, []).append(thing)
        self._lengths = sorted({(version, length) for version, length, _ in self._at})

    @cached_property
    def _sorted(self) -> list[tuple[int, int, int]]:
        return sorted((version, first, length) for version, length, first in self._at)

    def holding(self, network: Network) -> list[T]:
        """All whose network holds all of this one, the widest first."""
        return [thing for place in self._wider(network, network.prefixlen) for thing in self._at[place]]

    def meeting(self, network: Network) -> list[T]:
        """All that have an address in common with the network: two networks do if one holds the other."""
        return [thing for place in self._places(network) for thing in self._at[place]]

    def meets(self, network: Network) -> bool:
        """Whether there is any such thing."""
        return next(iter(self._places(network)), None) is not None

    def _wider(self, network: Network, longest: int) -> Iterable[tuple[int, int, int]]:
        """The places of so many bits at most that hold a network."""
        version, first, bits = network.version, int(network.network_address), network.max_prefixlen
        for own, length in self._lengths:
            if own == version and length <= longest:
                place = version, length, first >> bits - length << bits - length
                if place in self._at:
                    yield place

    def _places(self, network: Network) -> Iterable[tuple[int, int, int]]:
        version, first, bits = network.version, int(network.network_address), network.max_prefixlen
        yield from self._wider(network, network.prefixlen - 1)
        last = first | (1 << bits - network.prefixlen) - 1
        begin = bisect_left(self._sorted, (version, first, network.prefixlen))
        for _, start, length in self._sorted[begin : bisect_right(self._sorted, (version, last, bits))]:
            yield version, length, start
