# SPDX-License-Identifier: GPL-3.0-or-later
"""Claims of members about themselves, and which of them are backed by a record that was verified here."""

from __future__ import annotations

from typing import Final

from phantommesh.endpoint import Address
from phantommesh.membership.core import Core
from phantommesh.membership.effects import Changed, FetchRecord
from phantommesh.membership.messages import ALIVE, GENERATION, KEY, RECORD, State

MAX_UNKNOWN: Final = 4096  # nodes heard of whose record is not verified yet; the oldest makes room
MAX_NAMED: Final = 8  # records that are said to be one such node's


class Claims:
    """Adopts claims, and asks for the records that they name."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.unknown: dict[bytes, dict[bytes, tuple[bytes, bytes | Address]]] = {}  # by node, then record
        self.records: dict[bytes, bytes] = {}  # newest verified sequence number and hash, if not the claim's
        self.expelled: set[bytes] = set()

    def hear_of_unknown(self, raw: bytes, source: bytes | Address) -> None:
        """Remember a claim of a node that is no member yet, and have the record that it names fetched.

        Claims that name different records stand side by side, so that a made-up one hides no true one.
        """
        node, record = raw[:16], raw[RECORD]
        named = self.unknown.pop(node, None) or {}
        self.unknown[node] = named
        if len(self.unknown) > MAX_UNKNOWN:
            del self.unknown[next(iter(self.unknown))]
        known = named.pop(record, None)
        if known is None:
            self._fetch(raw, source)
        if known is None or raw[KEY] > known[0][KEY]:
            known = raw, source
        named[record] = known
        if len(named) > MAX_NAMED:
            del named[next(iter(named))]

    def adopt(self, raw: bytes, source: bytes | Address) -> None:
        """Take a newer claim of a member that is not down, and pass it on."""
        core, node = self._core, raw[:16]
        claim = core.table.get(node)
        core.table.put(raw)
        core.spread(raw)
        if claim is None:
            return
        if raw[GENERATION] != claim[GENERATION]:
            core.out.append(Changed(node, State.ALIVE, State.ALIVE, "restarted"))
        if raw[RECORD] != claim[RECORD]:
            verified = self.records.setdefault(node, claim[RECORD])
            core.out.append(Changed(node, State.ALIVE, State.ALIVE, "updated"))
            if raw[26:32] > verified[:6]:
                self._fetch(raw, source)

    def _fetch(self, raw: bytes, source: bytes | Address) -> None:
        self._core.out.append(FetchRecord(raw[:16], int.from_bytes(raw[26:32]), raw[32:], source))

    def verified(self, node: bytes, record: bytes, spread: bool) -> None:
        """The owner holds this verified record now: its node is a member. Nobody asks it whether it is there
        before its turn comes: after a mass restart everybody would ask everybody."""
        core = self._core
        if node == core.node or node in self.expelled:
            return
        if record > self.records.get(node, b""):
            self.records[node] = record
        heard = self.unknown.pop(node, {}).get(record)
        if core.table.get(node) is not None:
            return
        raw = node + bytes(9) + bytes((ALIVE,)) + record if heard is None else heard[0]
        core.table.put(raw)
        core.out.append(Changed(node, None, State.ALIVE, "joined"))
        if heard is not None or spread:
            core.spread(raw)

    def forget(self, node: bytes) -> None:
        """Forget what was verified of a node, and what was heard."""
        self.records.pop(node, None)
        self.unknown.pop(node, None)

    def missing(self) -> list[tuple[bytes, bytes | Address]]:
        """Claims whose records nobody has verified here yet."""
        table = self._core.table
        claims = [(node, table.get(node), record) for node, record in self.records.items()]
        unknown = [claim for named in self.unknown.values() for claim in named.values()]
        return unknown + [
            (claim, node) for node, claim, record in claims if claim and claim[26:32] > record[:6]
        ]
