# SPDX-License-Identifier: GPL-3.0-or-later
"""The sessions that handshakes leave behind for request channels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from phantommesh.control import channel
from phantommesh.control.seats import Holder
from phantommesh.link.effects import Opened
from phantommesh.link.keys import RETURNING
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
        """The one that its channels count for. Those that come back bring no invite of their own, but they
        are members, with one node id each."""
        if self.invite == RETURNING:
            return Holder(self.peer, newcomer=True)
        return Holder(self.invite, newcomer=True) if self.invite else Holder(self.peer)


class Sessions:
    """The sessions that a channel may be opened on: the newest few of each peer. Newcomers, who can have as
    many node ids as they like, have room of their own."""

    def __init__(self) -> None:
        self._by_name = dict[bytes, Session]()
        # By peer, and whether it was a newcomer then, the names, oldest first: no question about one peer
        # costs more in a larger mesh, since members can have this node ask about all of them again and again.
        self._of = dict[tuple[bytes, bool], list[bytes]]()
        self._newcomers = dict[bytes, None]()

    def add(self, session: Session) -> None:
        """Keep a session, and drop the oldest of its peer. If two sessions had one name, the first would be
        kept; the name comes from the keys, so there are none."""
        if session.name in self._by_name:
            return
        self._by_name[session.name] = session
        mine = self._of.setdefault(_whose(session), [])
        mine.append(session.name)
        for name in mine[:-SESSIONS_PER_PEER]:
            self._drop(name)
        if session.invite:
            self._newcomers[session.name] = None
            for name in list(self._newcomers)[:-NEWCOMERS_KEPT]:
                self._drop(name)

    def get(self, name: bytes) -> Session | None:
        """The session of that name."""
        return self._by_name.get(name)

    def newest(self, peer: bytes) -> Session | None:
        """The session that a channel to this member should use."""
        mine = self._of.get((peer, False))
        return self._by_name[mine[-1]] if mine else None

    def retain(self, peers: Collection[bytes]) -> None:
        """Drop the sessions of members that are not among ``peers``; newcomers keep theirs."""
        gone = [names for (peer, newcomer), names in self._of.items() if not newcomer and peer not in peers]
        for name in [name for names in gone for name in names]:
            self._drop(name)

    def _drop(self, name: bytes) -> None:
        session = self._by_name.pop(name)
        self._newcomers.pop(name, None)
        mine = self._of[_whose(session)]
        mine.remove(name)
        if not mine:
            del self._of[_whose(session)]


def _whose(session: Session) -> tuple[bytes, bool]:
    return session.peer, bool(session.invite)
