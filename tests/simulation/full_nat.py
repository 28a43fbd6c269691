# SPDX-License-Identifier: GPL-3.0-or-later
"""A NAT in front of some machines of `full_sim` (RFC 4787): endpoint-independent mapping, and filtering by
address and port. So what comes from outside gets in only where the inside sent something to that very address
and port within ``lasts`` seconds. A stream can only be begun from inside."""

from __future__ import annotations

from itertools import count

from phantommesh.endpoint import Address


class Nat:
    """``outside`` is the address that the machines of ``inside`` (by index) have for all others."""

    def __init__(self, outside: str, inside: set[int], *, lasts: float = 30.0) -> None:
        self.outside, self.inside, self._lasts = outside, inside, lasts
        self._ports = count(40_000)
        self._mapped: dict[Address, Address] = {}
        self._owners: dict[Address, Address] = {}
        self._let_in: dict[tuple[Address, Address], float] = {}

    def out(self, source: Address, to: Address, now: float) -> Address:
        """A datagram leaves; return the address that it seems to come from."""
        mapped = self._mapped.get(source)
        if mapped is None:
            mapped = self._mapped[source] = Address(self.outside, next(self._ports), source.transport)
            self._owners[mapped] = source
        self._let_in[mapped, to] = now
        return mapped

    def into(self, at: Address, source: Address, now: float) -> Address | None:
        """A datagram comes; return the inside address that it is for, None where it is dropped."""
        if now - self._let_in.get((at, source), float("-inf")) > self._lasts:
            return None
        return self._owners.get(at)

    def reboot(self) -> None:
        """Forget all mappings: the next ones have other ports."""
        for held in (self._mapped, self._owners, self._let_in):
            held.clear()
