# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that members have lent: a member that cannot be called calls, and is asked over that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from phantommesh.nursery.sockets.channels import Client

# Tuning: s without a question after which a connection is given back. More than the longest epoch of the
# scatter: with each one there is something to ask.
UNUSED = 3 * 3600.0
MOST = 256  # connections that are lent to this node at once, of as many members


class _Loan:
    def __init__(self, client: Client) -> None:
        self.client, self.free = client, trio.Lock()
        self.life = trio.CancelScope(deadline=trio.current_time() + UNUSED)


class Lent:
    """The connections that are lent to this node, the newest of each member."""

    def __init__(self) -> None:
        self._loans: dict[bytes, _Loan] = {}

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._loans

    def has_room(self, peer: bytes) -> bool:
        """Whether a connection of this member would be held: see `MOST`."""
        return peer in self._loans or len(self._loans) < MOST

    async def keep(self, client: Client) -> None:
        """Hold a connection until it breaks, is unused for long, or its member lends another."""
        peer, loan = client.session.peer, _Loan(client)
        if (before := self._loans.get(peer)) is not None:
            before.life.cancel()
        self._loans[peer] = loan
        try:
            with loan.life:
                await trio.sleep_forever()
        finally:
            if self._loans.get(peer) is loan:
                del self._loans[peer]

    @asynccontextmanager
    async def use(self, peer: bytes) -> AsyncIterator[Client | None]:
        """Ask over a member's connection, one conversation at a time; None where it has lent none. A
        conversation that is broken off ends the loan: an answer may be under way still."""
        loan = self._loans.get(peer)
        if loan is not None:
            async with loan.free:
                if self._loans.get(peer) is loan:
                    loan.life.deadline = trio.current_time() + UNUSED
                    try:
                        yield loan.client
                    except BaseException:
                        loan.life.cancel()
                        if self._loans.get(peer) is loan:
                            del self._loans[peer]
                        raise
                    return
        yield None
