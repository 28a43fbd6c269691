# SPDX-License-Identifier: GPL-3.0-or-later
"""The sessions that handshakes leave behind for request channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from phantommesh.control import channel
from phantommesh.control.seats import Holder
from phantommesh.link.effects import Opened
from phantommesh.nursery.bell import Bell
from phantommesh.secret import Secret

SESSIONS_PER_PEER = 3
NEWCOMERS_KEPT = 256  # sessions of those that are no members yet


@dataclass(frozen=True, slots=True)
class Session:
    """The keys that a finished handshake left for request channels. ``invite`` and ``spki`` are a
    newcomer's."""

    peer: bytes
    name: bytes
    key_out: Secret
    key_in: Secret
    invite: bytes = b""
    spki: bytes = b""

    @classmethod
    def of(cls, opened: Opened) -> Session:
        """Take it from a link's effect."""
        name = channel.session_name(opened.key_out, opened.key_in)
        return cls(opened.peer, name, opened.key_out, opened.key_in, opened.invite, opened.spki)

    @property
    def holder(self) -> Holder:
        """The one that its channels count for."""
        return Holder(self.invite, newcomer=True) if self.invite else Holder(self.peer)


class Sessions:
    """The sessions that a channel may be opened on: the newest few of each peer. Newcomers, who can have as
    many node ids as they like, have room of their own."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[bytes, Session] = OrderedDict()
        self._added = Bell()

    async def added(self) -> None:
        """Return when the next session comes."""
        await self._added.wait()

    def add(self, session: Session) -> None:
        """Keep a session, and drop the oldest of its peer. If two peers' sessions had one name, the first
        would be kept; the name comes from the keys, so there are none."""
        known = self._by_name.get(session.name)
        if known is not None and known.peer != session.peer:
            return
        self._by_name[session.name] = session
        self._added.ring()
        mine = [name for name, known in self._by_name.items() if known.peer == session.peer]
        for name in mine[:-SESSIONS_PER_PEER]:
            del self._by_name[name]
        if session.invite:
            newcomers = [name for name, known in self._by_name.items() if known.invite]
            for name in newcomers[:-NEWCOMERS_KEPT]:
                del self._by_name[name]

    def get(self, name: bytes) -> Session | None:
        """The session of that name."""
        return self._by_name.get(name)

    def newest(self, peer: bytes) -> Session | None:
        """The session that a channel to this member should use."""
        return next((s for s in reversed(self._by_name.values()) if s.peer == peer and not s.invite), None)

    def retain(self, peers: Collection[bytes]) -> None:
        """Drop the sessions of members that are not among ``peers``; newcomers keep theirs."""
        for name in [n for n, s in self._by_name.items() if not s.invite and s.peer not in peers]:
            del self._by_name[name]
