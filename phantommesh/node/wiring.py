# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node's links, sessions and signs of copies follow its peers, and each other. Sans-I/O.

A reaction returns the effects that its links want carried out. ``now`` is the links' clock, seconds; ``wall``
is unix time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

from phantommesh.control.sessions import Session, Sessions
from phantommesh.link.copies import Copies
from phantommesh.link.effects import Alarm, Effect, Opened, PeerAuth
from phantommesh.link.machine import Links
from phantommesh.node.intake import Intake
from phantommesh.node.peers import Peers, Seen
from phantommesh.records.roster import Entry
from phantommesh.wireguard.device import DeviceState


class Linked(NamedTuple):
    """The peers that links are kept with, by node id, and what the links want done for that."""

    auths: Mapping[bytes, PeerAuth]
    effects: list[Effect]


class Wiring:
    """The reactions of one node. ``generation_of`` says how often a member has started, as far as known."""

    def __init__(
        self,
        intake: Intake,
        peers: Peers,
        links: Links,
        copies: Copies,
        sessions: Sessions,
        generation_of: Callable[[bytes], int | None],
    ) -> None:
        self._intake, self._peers, self._links = intake, peers, links
        self._copies, self._sessions, self._generation_of = copies, sessions, generation_of

    def look(self, wall: float, linked: Container[bytes] | None = None) -> None:
        """Find out anew who the peers are: the roster, a revocation or the time may have changed it. `link`
        is to follow. ``linked`` are the only members to keep links with; None: all."""
        revoked = self._intake.is_revoked()
        self._peers.look(self._intake.roster, wall, revoked=revoked, linked=linked)
        if not revoked:  # a revoked node still passes the news of its revocation on
            self._sessions.retain(self._peers.standing)

    def link(self, now: float, wall: float) -> Linked:
        """Keep links with the peers that `look` found, at the addresses where they are now."""
        auths = self._peers.auths(now, wall)
        self._copies.retain(auths)
        return Linked(auths, self._links.set_peers(auths, now))

    def read_back(
        self, entry: Entry, actual: Mapping[str, DeviceState], now: float, wall: float
    ) -> tuple[Seen, list[Effect]]:
        """Take what the interfaces hold of one peer: which PSKs, and when its last handshakes were."""
        seen = self._peers.read(entry, actual, now, wall)
        return seen, self._links.read_back(seen.peer, seen.reading.bitmap, seen.handshakes, now)

    def opened(self, opened: Opened, now: float) -> bool:
        """Take a finished handshake; say whether it was with a member, and not with a newcomer."""
        self._sessions.add(Session.of(opened))
        if opened.invite:
            return False
        self._copies.chained(opened.peer, self._generation_of(opened.peer), now)
        return True

    def alarmed(self, alarm: Alarm, now: float) -> None:
        """Take an alarm of a link's: a chain that broke may be the sign of a copied identity."""
        if alarm.kind in ("chain-reset", "chain-forked"):
            self._copies.reset(alarm.peer, alarm.sign, self._generation_of(alarm.peer), now)
