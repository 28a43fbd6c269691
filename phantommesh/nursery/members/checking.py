# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a node's control port is reached by TCP: members try, and say so.

A member is checked only at addresses where it was seen itself, at ports that its record names there, and by
opening a channel, which nobody else could answer. So it cannot have others connected to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import trio

from phantommesh.control import messages
from phantommesh.control.sessions import Sessions
from phantommesh.endpoint import Address, format_endpoint, parse_endpoint
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets import channels, framing
from phantommesh.records.record import NodeRecord
from phantommesh.records.roster import Entry
from phantommesh.trust.identity import NodeId

# Tuning.
AT_ONCE: Final = 4  # members that are checked at once
TRIED: Final = 3  # endpoints of one member
LONGEST: Final = 5.0  # s for all of them
ASKED: Final = 3  # members that this node asks about itself
ANSWER: Final = 8.0  # s that each has


class TcpChecks:
    """Checks members that ask for it. ``seen`` gives where a member was seen itself, ``may`` whether
    something may be sent to a member's address."""

    def __init__(
        self,
        sessions: Sessions,
        seen: Callable[[NodeId], Iterable[Address]],
        may: Callable[[bytes, str], bool],
    ) -> None:
        self._sessions, self._seen, self._may = sessions, seen, may
        self._under_way: set[NodeId] = set()

    async def check(self, entry: Entry) -> messages.TcpChecked:
        """Connect to a member."""
        member = entry.member.node_id
        if member in self._under_way or len(self._under_way) >= AT_ONCE:
            return messages.TcpChecked(False, why="other checks are under way")
        self._under_way.add(member)
        try:
            with trio.move_on_after(LONGEST):
                return await self._check(entry)
            return messages.TcpChecked(False, why="no answer")
        finally:
            self._under_way.remove(member)

    async def _check(self, entry: Entry) -> messages.TcpChecked:
        member = entry.member.node_id
        session, why = self._sessions.newest(member), "it was not seen itself at an address of its record"
        for host, port in list(places(entry.record, self._seen(member)))[:TRIED]:
            if session is None or not self._may(member, host):
                continue
            try:
                async with framing.connect(host, port) as framed:
                    await channels.Client.open(framed, session)
                    return messages.TcpChecked(True, format_endpoint(host, port))
            except framing.StreamError as error:
                why = str(error)[:200]
        return messages.TcpChecked(False, why=why)


def places(record: NodeRecord, seen: Iterable[Address]) -> Iterator[tuple[str, int]]:
    """Yield the endpoints of a record whose address is one at which the node was seen."""
    hosts = {address.host for address in seen}
    named = [parse_endpoint(endpoint) for endpoint in record.control]
    named += [(one.host, one.port) for one in record.candidates]
    yield from dict.fromkeys((host, port) for host, port in named if host in hosts)


async def ask_others(caller: Caller, first: Sequence[NodeId]) -> dict[NodeId, messages.TcpChecked]:
    """Have some members check this node, ``first`` before others; return what they say. A member whose
    version makes no such checks says nothing."""
    there = caller.callable()
    chosen = list(dict.fromkeys([*(one for one in first if one in there), *there]))[:ASKED]
    answers: dict[NodeId, messages.TcpChecked] = {}

    async def ask(member: NodeId) -> None:
        with suppress(framing.StreamError):
            answer = (await caller.ask(member, messages.CheckTcp(), ANSWER)).answer
            if isinstance(answer, messages.TcpChecked):
                answers[member] = answer

    async with trio.open_nursery() as nursery:
        for member in chosen:
            nursery.start_soon(ask, member)
    return answers
