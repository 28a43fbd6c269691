# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses that all members know to be members': those that signed records name, and since when.

What this node alone knows (where it hears a member, its seeds, its gateway) is no canary: another node cannot
know of it, and hints it honestly. Nor is a private address, which means another machine in each site.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from phantommesh.rates import source_block
from phantommesh.reachable import of_a_site, special


def everybodys(source: str) -> bool:
    """Whether a source means the same machine wherever one asks. Raises ValueError for what is no address."""
    address = ip_address(source)
    return special(address) is None and not of_a_site(address)


class Named(NamedTuple):
    """The hosts that a member's record names. ``hosts`` is read only where ``seq`` is news."""

    member: bytes
    seq: int
    hosts: Iterable[str]


class Canaries:
    """Source blocks (`rates.source_block`) that records name now, and since when. Bounded by the records."""

    def __init__(self) -> None:
        self._of = dict[bytes, tuple[int, frozenset[str]]]()
        self._since = dict[str, float]()

    def look(self, records: Iterable[Named], now: float) -> None:
        """Take in the records of all members, as they are now (Unix seconds). Names of hosts are left out:
        they mean what each node's resolver says."""
        found = dict[bytes, tuple[int, frozenset[str]]]()
        for record in records:
            held = self._of.get(record.member)
            if held is None or held[0] != record.seq:
                held = record.seq, frozenset(_blocks(record.hosts))
            found[record.member] = held
        if found == self._of:
            return
        self._of = found
        named = frozenset[str]().union(*(blocks for _, blocks in found.values()))
        self._since = {block: self._since.get(block, now) for block in named}

    def since(self, source: str) -> float | None:
        """Since when records that this node has name a source block; None where none does."""
        return self._since.get(source)


def _blocks(hosts: Iterable[str]) -> Iterable[str]:
    for host in hosts:
        try:
            if everybodys(block := source_block(host)):
                yield block
        except ValueError:
            continue
