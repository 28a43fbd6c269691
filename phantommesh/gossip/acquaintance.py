# SPDX-License-Identifier: GPL-3.0-or-later
"""Acquaintances: what membership is told of the roster, and where the mesh is looked for again. Sans-I/O.

The roster holds verified records for as long as their certificates last. Membership forgets a member that has
been down for 72 hours. So the two differ about who there is, and here is what brings them together again:
a word of a member that membership does not know is answered from the roster.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple

import msgspec

from phantommesh.control.asking import Fetching, missing
from phantommesh.endpoint import Address
from phantommesh.membership.effects import Changed, Effect, FetchRecord
from phantommesh.membership.machine import Membership
from phantommesh.records.roster import Entry, Roster
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId
from phantommesh.trust.revocations import Revocations

MAX_LOST: Final = 16  # members that were forgotten and whose last addresses are kept
MAX_ADDRESSES: Final = 4  # of each


class Wished(NamedTuple):
    """Effects of telling membership what the roster holds; and whether the record that it wished for is still
    to be fetched."""

    effects: list[Effect]
    fetch: bool


class Acquaintance:
    """Tells one membership of one roster. ``learned`` hears how many seconds passed from first word of a
    record to its being verified here. ``told`` are members that membership was told of before, with the hash
    of the record."""

    def __init__(
        self,
        mine: NodeId,
        roster: Roster,
        revocations: Revocations,
        membership: Membership,
        fetching: Fetching,
        *,
        told: dict[NodeId, bytes],
        learned: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._mine, self._roster, self._revocations = mine, roster, revocations
        self._membership, self._fetching, self._learned = membership, fetching, learned
        self.told = told
        self._spread_new = False

    def roster_changed(self, now: float, wall: float) -> Iterator[list[Effect]]:
        """Tell membership of records that are new here, and of members that were revoked. ``now`` is its
        clock, ``wall`` unix time. Yields what it wants done."""
        self._membership.readmit(self._revocations)
        for entry in self._roster:
            node_id = entry.member.node_id
            if self.told.get(node_id) == entry.hash or not entry.valid(wall):
                continue
            heard = self._fetching.came(entry.hash)
            if heard is not None:
                self._learned(now - heard)
            yield self._tell(entry, now, spread=self._spread_new)
        for node_id in [n for n in self.told if n != self._mine and n in self._revocations]:
            del self.told[node_id]
            yield self._membership.expel(node_id, now)
        # Peers already have the records that this node starts with. Announce later ones at once, while it is
        # up to serve them: a newcomer that it enrolled may be known to nobody else.
        self._spread_new = True

    def _tell(self, entry: Entry, now: float, *, spread: bool) -> list[Effect]:
        node_id, seq = entry.member.node_id, entry.record.seq
        self.told[node_id] = entry.hash
        if node_id == self._mine:
            return self._membership.publish(seq, entry.hash, now)
        return self._membership.verified(node_id, seq, entry.hash, now, spread=spread)

    def wished(self, wanted: FetchRecord, now: float, wall: float) -> Wished:
        """Membership wishes for a record. Tell it of the one that the roster holds, if it is that, or if its
        node is none that membership knows: then it was forgotten, and is back."""
        entry, effects = self._roster.get(NodeId(wanted.node)), list[Effect]()
        if entry is not None and entry.valid(wall):
            known = self._membership.member(wanted.node) is not None
            if entry.hash == wanted.record_hash or not known:
                effects = self._tell(entry, now, spread=False)
        return Wished(effects, bool(missing([wanted], self._roster)))


class _Lost(msgspec.Struct, frozen=True, array_like=True):
    node_id: bytes
    addresses: list[tuple[str, int]]


class LastAddresses:
    """The last addresses of a few members that were forgotten, to be tried for ever.

    Two halves of a mesh that were cut off from each other for more than 72 hours have forgotten each other's
    members, and their certificates may run out besides. If no authority is on the other side, and the
    operator named no seed there, nothing else would lead the two together again.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._lost: dict[NodeId, tuple[Address, ...]] = {}

    def __len__(self) -> int:
        return len(self._lost)

    def heard(self, changed: Changed, where: Callable[[NodeId], Sequence[Address]]) -> bool:
        """Membership's view of a member has changed. ``where`` gives a member's addresses. Return whether
        there are now other addresses to try. If many members are forgotten, some are kept at random."""
        node_id = NodeId(changed.node)
        if changed.event != "purged":
            there = changed.old is None or changed.new is None
            return there and self._lost.pop(node_id, None) is not None
        addresses = tuple(where(node_id)[:MAX_ADDRESSES])
        if not addresses:
            return False
        if node_id not in self._lost and len(self._lost) >= MAX_LOST:
            if self._rng.random() < 0.5:
                return False
            del self._lost[self._rng.choice(sorted(self._lost))]
        self._lost[node_id] = addresses
        return True

    def addresses(self) -> list[Address]:
        """The addresses to look at."""
        return [address for found in self._lost.values() for address in found]

    def encode(self) -> bytes:
        """Return them for the state directory."""
        lost = [_Lost(n, [(a.host, a.port) for a in where]) for n, where in sorted(self._lost.items())]
        return msgspec.msgpack.encode(lost)

    def restore(self, data: bytes) -> None:
        """Read what `encode` gave. Raises ValueError."""
        try:
            lost = msgspec.msgpack.decode(data, type=list[_Lost])
        except (msgspec.DecodeError, RecursionError):
            raise ValueError("it does not hold last addresses") from None
        for one in lost[:MAX_LOST]:
            where = [Address(host, port) for host, port in one.addresses[:MAX_ADDRESSES]]
            if len(one.node_id) != NODE_ID_BYTES or not all(0 < a.port < 2**16 for a in where):
                raise ValueError("it does not hold last addresses")
            for address in where:
                ip_address(address.host)
            self._lost[NodeId(one.node_id)] = tuple(where)
