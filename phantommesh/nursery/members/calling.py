# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels to other members, opened on the sessions that links left behind; and the questions asked over
them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from time import time
from typing import NamedTuple, TypeVar, cast

import structlog
import trio

from phantommesh.control import asking, messages, sessions
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.link.effects import Role as LinkRole
from phantommesh.node.news import STANDING_FIRST, Standing
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import returning
from phantommesh.nursery.sockets import channels, framing
from phantommesh.nursery.sockets.lent import Lent
from phantommesh.nursery.unexpected import left_out
from phantommesh.records.roster import Entry, name_of
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.identity import NodeId

# Tuning.
MAX_REASON = 512  # characters of a member's refusal that are kept, told and logged
PATIENCE = 25.0  # s that a renewal may take at one authority

T = TypeVar("T")
_Way = Callable[[NodeId], AbstractAsyncContextManager[channels.Client]]

_RNG = random.Random()  # noqa: S311  # orders members, keys nothing

log = structlog.get_logger("phantommesh.calling")


class Answered(NamedTuple):
    """``took``: seconds from the question to the answer, without the opening of a channel."""

    answer: messages.Answer
    took: float


class Caller:
    """Opens channels to members. A member can be called once a link with it has left a session. ``where``
    gives the addresses at which a member may be called, ``lent`` has the connections of those that cannot."""

    def __init__(
        self,
        node: NodeState,
        keeper: RosterKeeper,
        sessions: sessions.Sessions,
        where: Callable[[NodeId], Sequence[Address]],
        lent: Lent | None = None,
    ) -> None:
        self._node, self._keeper, self.sessions, self._where = node, keeper, sessions, where
        self._lent = Lent() if lent is None else lent
        self.by_way: _Way | None = None
        self._apart: set[NodeId] = set()  # members whose last handshake was carried by another
        self._direct: set[NodeId] = set()  # members that answered at an address of their record

    def callable(self, first: Iterable[bytes] = ()) -> list[NodeId]:
        """The members that can be called, in the order of `asking.whom`."""
        ordered = asking.whom(self._keeper.roster, self._node.identity.node_id, list(first), _RNG)
        return [member for member in ordered if self.sessions.newest(member) is not None]

    def name_of(self, member: NodeId) -> str:
        """A member as logs and errors name it: by its name, or by its node id where there is none."""
        return name_of(self._keeper.roster.get(member), member)

    def linked(self, member: NodeId, at: Address | None, role: LinkRole) -> None:
        """A handshake with a member finished: ``at`` an address, or (None) carried by another member."""
        self._apart.discard(member)
        if at is None:
            self._apart.add(member)
            self._direct.discard(member)
        elif role == "initiator" and at._replace(transport="udp") in self._where(member):
            self._direct.add(member)

    @asynccontextmanager
    async def call(self, member: NodeId) -> AsyncIterator[channels.Client]:
        """Open a channel to a member: one that can be called directly is, since all that is asked over a lent
        connection waits for each other; else over the connection that it has lent; else by way of a member
        that passes frames on. Raises `StreamError`, also inside the block where the channel breaks."""
        ways: list[_Way] = [self.dial_direct]
        if self.by_way is not None:
            ways.insert(0 if member in self._apart else 1, self.by_way)
        if member in self._lent:
            ways.insert(1 if member in self._direct else 0, self._over_lent)
        failures = list[str]()
        for way in ways:
            opened = False
            try:
                async with way(member) as client:
                    opened = True
                    yield client
                    return
            except framing.StreamError as error:
                if opened:
                    raise
                failures.append(str(error))
        raise framing.StreamError("; ".join(failures))

    async def ask(self, member: NodeId, request: messages.Request, patience: float) -> Answered:
        """Put one question to a member, over a channel of its own. Raises `StreamError`, also where no answer
        is there after ``patience`` seconds."""
        try:
            with trio.fail_after(patience):
                async with self.call(member) as client:
                    asked = trio.current_time()
                    return Answered(await client.ask(request), trio.current_time() - asked)
        except trio.TooSlowError:
            raise framing.StreamError("no answer in time") from None

    @asynccontextmanager
    async def _over_lent(self, member: NodeId) -> AsyncIterator[channels.Client]:
        async with self._lent.use(member) as client:
            if client is None:
                raise framing.StreamError("it has taken back the connection that it lent")
            yield client

    @asynccontextmanager
    async def dial_direct(
        self, member: NodeId, first: Address | None = None
    ) -> AsyncIterator[channels.Client]:
        """Open a channel to a member, at the first of its addresses that answers; ``first`` is tried before
        the others where it is one of them. Raises `StreamError`, also inside the block where the channel
        breaks."""
        session = self.sessions.newest(member)
        entry = self._keeper.roster.get(member)
        if session is None or entry is None:
            raise framing.StreamError("there is no link with this member")
        failure = framing.StreamError("its record names no address that may be used and is known")
        left = sorted(self._where(member), key=lambda address: address[:2] != (first or ())[:2])
        while left:
            at, opened = "", False
            try:
                async with framing.connect_first(left, entry.record.tcp_ports) as framed:
                    # Somebody else may be there, where an address is a private one.
                    at, reached = f"{framed.address}: ", framed.address[:2]
                    left = [address for address in left if address[:2] != reached]
                    client = await channels.Client.open(framed, session)
                    opened = True
                    yield client
                    return
            except framing.StreamError as error:
                if opened:
                    raise
                failure = framing.StreamError(f"{at}{error}")
                if not at:
                    break
        raise failure

    async def renew(self, csr: bytes, evidence: bytes = b"") -> messages.Renewed:
        """Ask the authorities for a new certificate, one after the other. Raises `TrustError`."""
        mine = self._keeper.roster.get(self._node.identity.node_id)
        first = [] if mine is None else [messages.Announce(mine.signed.encode())]
        return await self._ask_authorities(
            [*first, messages.Renew(csr, evidence)], messages.Renewed, "no authority renewed the certificate"
        )

    async def come_back(self, request: messages.Return) -> tuple[messages.Returned, NodeId]:
        """Ask the authorities to take this node back, one after the other. Raises `TrustError`."""
        return await returning.come_back(self._node, self._keeper, self._where, request)

    async def rename(self, csr: bytes) -> messages.Renewed:
        """Ask the authorities for a certificate under another name, one after the other. Raises
        `TrustError`."""
        return await self._ask_authorities(
            [messages.Rename(csr)], messages.Renewed, "no authority gives this node another name"
        )

    async def ask_routes(self, request: messages.Route) -> messages.Renewed | None:
        """Ask each authority for routes, until one gives a certificate; None where some have heard and none
        gives any. Raises `TrustError` where none has heard."""
        mine = self._keeper.roster.get(self._node.identity.node_id)
        first = [] if mine is None else [messages.Announce(mine.signed.encode())]
        failed = "no authority has heard which routes this node advertises"
        return await self._ask_each([*first, request], messages.Renewed, failed, hearing=True)

    async def replace(self) -> messages.Replacement:
        """Ask the authorities for an invite in place of this node's identity. Raises `TrustError`."""
        return await self._ask_authorities(
            [messages.Replace()], messages.Replacement, "no authority gives this node a new identity"
        )

    async def _ask_authorities(self, requests: Sequence[messages.Request], wanted: type[T], failed: str) -> T:
        """Put these requests to one authority after the other, until one answers the last request with a
        ``wanted``."""
        found = await self._ask_each(requests, wanted, failed)
        assert found is not None
        return found

    async def _ask_each(
        self, requests: Sequence[messages.Request], wanted: type[T], failed: str, *, hearing: bool = False
    ) -> T | None:
        """The same. Where ``hearing``, None is returned if some answered `Done` and none with a
        ``wanted``."""
        reasons, fix, heard = [], "", False
        for member in self.callable():
            entry = self._keeper.roster.get(member)
            if entry is None or entry.member.role is not Role.AUTHORITY:
                continue
            answer: messages.Answer | None = None
            try:
                with trio.fail_after(PATIENCE):
                    async with self.call(member) as client:
                        for request in requests:
                            answer = await client.ask(request)
            except (framing.StreamError, trio.TooSlowError) as error:
                reasons.append(f"{entry.member.name}: {str(error) or 'no answer'}")
                continue
            if isinstance(answer, wanted):
                return answer
            if isinstance(answer, messages.Refused):
                reasons.append(answer.message[:MAX_REASON])
                fix = fix or answer.fix[:MAX_REASON]
            elif hearing and isinstance(answer, messages.Done):
                heard = True
            else:
                reasons.append(f"{entry.member.name}: another answer")
        if heard:
            return None
        raise TrustError(
            f"{failed}: " + ("; ".join(reasons) or "there is no link to any yet"),
            fix=fix or "start an authority, and check that its control port is open for TCP from here",
        )


async def converse(client: channels.Client, keeper: RosterKeeper, member: NodeId, talk: asking.Talk[T]) -> T:
    """Hold one of `asking`'s conversations over a channel to a member. Raises `StreamError`."""
    try:
        step = next(talk)
        while True:
            if isinstance(step, asking.Keep):
                step = talk.send(await keeper.take(step.records, member, unasked=step.unasked))
            else:
                step = talk.send(await client.ask(step))
    except asking.AskingError as error:
        raise framing.StreamError(str(error)) from error
    except StopIteration as end:
        return cast("T", end.value)


async def reconcile(client: channels.Client, keeper: RosterKeeper, member: NodeId) -> int:
    """Exchange with one member the records that either lacks; return how many came. Raises `StreamError`."""
    return await converse(client, keeper, member, asking.reconcile(keeper.roster, time))


async def ask_standing(
    node: NodeState,
    keeper: RosterKeeper,
    quiet: Callable[[], bool],
    where: Callable[[Entry], Sequence[Address]],
) -> None:
    """While nobody talks to us (``quiet``), or this node is revoked, ask members whether it is revoked.
    Members stop linking with a revoked node and gossiping to it, so the node hears of its revocation, and of
    its pardon, no other way. The members hear of a pardon that they do not know."""
    now, pause = trio.current_time(), STANDING_FIRST
    standing = Standing(node.identity.node_id, _RNG, now + pause)
    while True:
        await trio.sleep(pause)
        now, revoked = trio.current_time(), keeper.revoked is not None
        asked = standing.look(keeper.roster, now, quiet=quiet(), revoked=revoked)
        pause = standing.due - now  # counted from the last answer
        for entry in asked:
            for address in where(entry):
                with left_out(
                    keeper.dropped, "standing-broken", "an answer on this node's standing was left out",
                    source=str(address),
                ):  # fmt: skip
                    await _ask_standing_at(node, keeper, address, entry.record.tcp_ports)


async def _ask_standing_at(
    node: NodeState, keeper: RosterKeeper, address: Address, further: Sequence[int]
) -> None:
    answer = b""
    with suppress(framing.StreamError):
        async with framing.connect(address.host, address.port, further) as framed:
            answer = await channels.ask_standing(framed, node.identity.node_id, node.revocations.plea())
    if answer:
        with suppress(PhantomMeshError):
            keeper.take_standing(answer)
