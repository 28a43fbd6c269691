# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells members of attackers, and passes on what they tell: `mnemonic.hints` weighs it.

A list goes from its node to `TOLD` members, and from each that had not heard it to `PASSED_TO` more, three
members on at most. A member that cannot be called hears of it from another, or when the list is signed anew.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from time import time
from typing import Final, NamedTuple

import structlog
import trio

from phantommesh.control import messages
from phantommesh.control.hinting import TellHints
from phantommesh.endpoint import parse_endpoint
from phantommesh.mnemonic.canaries import Named
from phantommesh.mnemonic.hints import Hinter
from phantommesh.mnemonic.saying import sign_hints
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.records.record import NodeRecord
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import Identity, NodeId

# Tuning.
LOOK: Final = 1.0  # s between looks at whether there is something to say: attackers come by the minute
SWEEP: Final = 30  # looks between sweeps of what has ended
TOLD, PASSED_TO = 8, 4  # members: nine in ten of 200 hear of a list, nearly half of 1,000 (test_spread.py)
QUEUE: Final = 64  # lists that wait to be passed on
AT_ONCE: Final = 4  # members that are told at once
PATIENCE: Final = 5.0  # s that each has

_RNG = random.Random()  # noqa: S311  # chooses members, keys nothing

log = structlog.get_logger("phantommesh.hints")


class _Passing(NamedTuple):
    request: TellHints
    to: int
    apart: tuple[NodeId, ...]


class Hinting:
    """The lists of hints that come and go. ``on``: the operator lets this node share hints. ``named`` gives
    what members' records name."""

    def __init__(
        self, identity: Identity, memory: MemoryKeeper, caller: Caller, *, on: bool,
        named: Callable[[], Iterable[Named]] = tuple,
    ) -> None:  # fmt: skip
        self._identity, self._memory, self._caller, self.on = identity, memory, caller, on
        self._named = named
        self._queue, self._to_pass = trio.open_memory_channel[_Passing](QUEUE)
        self.dropped = Counter[str]()

    def take(self, sender: NodeId, request: TellHints) -> messages.Answer:
        """Take a member's word."""
        if not self.on:
            return messages.Refused("this node shares no hints")
        keeper = self._memory
        hops = keeper.hints.take(request.hints, sender, request.hops, keeper.never, time())
        if keeper.hints.reputations.unsaved:
            keeper.changed()
        if hops is not None:
            self._pass(_Passing(TellHints(request.hints, hops), PASSED_TO, (sender,)))
        return messages.Done()

    async def run(self) -> None:
        """Say what this node has to say, and pass on what it heard, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._say)
            limit = trio.CapacityLimiter(AT_ONCE)
            async for request, to, apart in self._to_pass.clone():
                members = [member for member in self._caller.callable() if member not in apart]
                for member in _RNG.sample(members, min(to, len(members))):
                    await limit.acquire_on_behalf_of((request, member))
                    nursery.start_soon(self._tell, member, request, limit)

    def _pass(self, passing: _Passing) -> None:
        try:
            self._queue.send_nowait(passing)
        except trio.WouldBlock:
            self.dropped["hint-queue"] += 1

    async def _say(self) -> None:
        looks = 0
        while True:
            await trio.sleep(LOOK)
            hints, now = self._memory.hints, time()
            if looks % SWEEP == 0:
                self._memory.canaries.look(self._named(), now)
                hints.sweep(self._memory.never, now)
            looks += 1
            hints.own.withhold(self._memory.never)
            if self.on and hints.own.due(now):
                said = hints.own.take(self._identity.node_id, now)
                signed = await trio.to_thread.run_sync(sign_hints, self._identity, said)
                self._pass(_Passing(TellHints(signed, 0), TOLD, ()))

    async def _tell(self, member: NodeId, request: TellHints, limit: trio.CapacityLimiter) -> None:
        told = self._caller.name_of(member)
        try:
            with left_out(self.dropped, "hint-broken", "a member was not told of attackers", peer=told):
                try:
                    await self._caller.ask(member, request, PATIENCE)
                except StreamError as error:
                    log.debug("a member was not told of attackers", peer=told, error=str(error))
        finally:
            limit.release_on_behalf_of((request, member))


def hinter_of(keeper: RosterKeeper) -> Callable[[NodeId], Hinter | None]:
    """How members that hint are found: those of the roster in good standing."""

    def find(node: NodeId) -> Hinter | None:
        entry = keeper.roster.get(node)
        if entry is None or not entry.valid(time()):
            return None
        member = entry.member
        introduced = node if member.role is Role.AUTHORITY else entry.issuer or b""
        return Hinter(member.public_key, introduced)

    return find


def named_by(keeper: RosterKeeper) -> Callable[[], Iterable[Named]]:
    """How the hosts are found that the records of members in good standing name."""

    def find() -> Iterator[Named]:
        now = time()
        for entry in keeper.roster:
            if entry.valid(now):
                yield Named(entry.member.node_id, entry.record.seq, _hosts(entry.record))

    return find


def _hosts(record: NodeRecord) -> Iterator[str]:
    for endpoint in record.control:
        yield parse_endpoint(endpoint)[0]
    for candidate in record.candidates:
        yield candidate.host
