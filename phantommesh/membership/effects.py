# SPDX-License-Identifier: GPL-3.0-or-later
"""Effects of membership, as values."""

from __future__ import annotations

from typing import NamedTuple

from phantommesh.endpoint import Address
from phantommesh.membership.messages import State


class Send(NamedTuple):
    """Seal and send one datagram: to a member at the address in its signed record, or to an address."""

    datagram: bytes
    to: bytes | Address


class Changed(NamedTuple):
    """A member's state as this node sees it. ``new`` is None once it is forgotten.

    ``event``: joined, updated, restarted, suspected, refuted, vetoed, dead, left, returned, purged, expelled,
    partly (it is reached only by way of others), direct (it is not any more).
    """

    node: bytes
    old: State | None
    new: State | None
    event: str


class FetchRecord(NamedTuple):
    """A record is said to exist that nobody has verified here: get it by hash from ``source`` (or anyone),
    verify it, and call ``Membership.verified``. It may be a lie: bound what one source may ask for."""

    node: bytes
    record_seq: int
    record_hash: bytes
    source: bytes | Address


class Sync(NamedTuple):
    """Compare tables with this member, or with whoever is at the address, over an authenticated stream."""

    peer: bytes | Address


class Persist(NamedTuple):
    """Keep this generation: the mesh has seen it, or a later one than was kept, under our name."""

    generation: int


Effect = Send | Changed | FetchRecord | Sync | Persist
