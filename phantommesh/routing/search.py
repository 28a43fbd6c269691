# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of the search for direct ways to peers: where to try, what is to be done, what the search is at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from phantommesh.dimensions import without
from phantommesh.endpoint import Address

OTHER: Final = 10  # what is added to the rank of an address of another uplink than the dimension's own


class Target(NamedTuple):
    """An address at which a peer may be in one dimension. ``rank``: the lower, the better the way; from
    `OTHER` on it is one of another uplink of the peer than the dimension's own.
    ``opening``: it may be behind a NAT that remembers early packets."""

    address: Address
    rank: int
    opening: bool = False


class Standing(Enum):
    """What the search for direct ways to a peer is at."""

    IDLE = "nothing to find"
    AGREEING = "asking the peer to begin"
    TRYING = "trying"
    FOUND = "direct"
    SILENT = "no answer: a NAT or a firewall lets nothing in"
    APART = "the peer cannot be asked to begin"
    NOWHERE = "no address to try"


@dataclass(frozen=True, slots=True)
class State:
    """The search for direct ways to a peer: the dimensions that have one, those for which one is wanted, both
    as bitmaps; ``why`` the peer could not be asked, and how many rounds have failed in a row."""

    standing: Standing
    direct: int = 0
    wanted: int = 0
    why: str = ""
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Send:
    """Send a datagram from WireGuard's port of the dimension. ``hops``: let no more than so many routers pass
    it on; None: as many as usual."""

    dimension: int
    destination: Address
    datagram: bytes
    hops: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the peer to begin a round in these dimensions, a bitmap; then call `agreed` or `apart`. The lower
    node id is first in the even dimensions where ``turn`` is 0, and in the odd ones where it is 1."""

    peer: bytes
    dimensions: int
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Won:
    """This is the best direct way to the peer in this dimension."""

    peer: bytes
    dimension: int
    address: Address


@dataclass(frozen=True, slots=True)
class Lost:
    """There is no direct way to the peer in this dimension any more."""

    peer: bytes
    dimension: int


Effect = Send | Ask | Won | Lost


def missing(keyed: int, *, up: int, dark: int, direct: int, detour: int) -> int:
    """The dimensions for which a direct way to a peer is wanted. All are bitmaps: where there are keys, where
    probes come back, where they do no more, which have a direct way, and which a way by others."""
    return without(keyed, without(up, detour) | without(direct, dark))
