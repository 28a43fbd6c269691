# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks for the roster and who gives it out.

A node asks each authority it knows for the roster and waits there for the next change; so authorities hear
of each other's newcomers too. Gossip takes the place of the asking later.
"""

from __future__ import annotations

import random
from contextlib import suppress
from time import time

import structlog
import trio

from phantommesh import antientropy, control
from phantommesh.endpoint import parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId
from phantommesh.nodestate import NodeState
from phantommesh.nursery import streams
from phantommesh.nursery.authority import AuthorityDesk
from phantommesh.nursery.groupkeys import GroupKeys
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.records import Entry, SignedRecord
from phantommesh.revocation import decode_revocation_untrusted
from phantommesh.trust import Role, TrustError
from phantommesh.wire import Address

# Tuning.
ASK_WAIT = 25.0  # s an unchanged roster is waited for; below control.MAX_WAIT and streams.IDLE
RETRY_FIRST, RETRY_MAX = 0.2, 10.0  # s
ASK_STANDING = 1.0  # s of pause between attempts from which on a node asks whether it is a member still
WATCH = 1.0  # s between looks at who the authorities are

log = structlog.get_logger("phantommesh.roster")


class ControlServer:
    """Answers what others ask over a channel."""

    def __init__(self, node: NodeState, keeper: RosterKeeper, keys: GroupKeys, desk: AuthorityDesk) -> None:
        self._node, self._keeper, self._keys, self._desk = node, keeper, keys, desk

    async def serve(
        self, session: streams.Session, request: control.Request, source: Address
    ) -> control.Answer:
        """Answer one request. What an operator or a member did wrong is a `Refused` answer."""
        try:
            if isinstance(request, control.Enrol):
                return await self._desk.enrol(session, request)
            entry = self._member(session)
            match request:
                case control.Renew():
                    return await self._desk.renew(entry, request)
                case control.Announce(record):
                    self._keeper.add(SignedRecord.decode_untrusted(record))
                    return control.Done()
                case control.AskRoster(digest, wait):
                    return await self._roster(session, digest, wait)
                case control.AskKeys():
                    return control.KeysAre(
                        self._node.revocations.encode(), self._keys.encode(), self._keys.active_id
                    )
                case control.Compare(buckets):
                    return control.Differs(antientropy.differing(self._keeper.roster, buckets, time()))
                case control.Fetch(hashes):
                    found = antientropy.records(self._keeper.roster, hashes, time())
                    return control.Records(tuple(found))
        except antientropy.AntiEntropyError as error:
            return control.Refused(str(error))
        except PhantomMeshError as error:
            log.warning(
                "request refused", request=type(request).__name__, source=str(source), error=str(error)
            )
            return control.Refused(str(error), error.fix)

    async def _roster(self, session: streams.Session, digest: bytes, wait: float) -> control.RosterIs:
        now = await self._keeper.wait_for_other(digest, wait)
        self._member(session)  # it may have been revoked meanwhile
        if now == digest:
            return control.RosterIs(now, b"", b"")
        return control.RosterIs(
            now,
            self._keeper.roster.encode(),
            self._node.revocations.encode(),
            self._keys.encode(),
            self._keys.active_id,
        )

    def _member(self, session: streams.Session) -> Entry:
        entry = self._keeper.roster.get(NodeId(session.peer))
        if entry is None or session.invite:
            raise TrustError("only a member may ask this", fix="join the mesh first")
        if entry.member.not_after < time():
            raise TrustError(
                f"the certificate of {entry.member.name} has expired", fix="join again with a new invite"
            )
        return entry


async def reconcile(client: streams.Client, keeper: RosterKeeper) -> int:
    """Exchange with one member the records that either lacks; return how many came. Raises `StreamError`.

    What is not acceptable here or there is left out: nothing that a member sends ends this.
    """
    asked = antientropy.buckets(keeper.roster, time())
    answer = await client.ask(control.Compare(asked))
    if not isinstance(answer, control.Differs):
        raise streams.StreamError("not an answer to a comparison")
    try:
        difference = antientropy.parse_difference_untrusted(answer.difference)
    except antientropy.AntiEntropyError as error:
        raise streams.StreamError(str(error)) from error
    came, wanted = 0, antientropy.wanted(keeper.roster, difference)
    for start in range(0, len(wanted), antientropy.MAX_WANTED):
        hashes = tuple(wanted[start : start + antientropy.MAX_WANTED])
        fetched = await client.ask(control.Fetch(hashes))
        if not isinstance(fetched, control.Records):
            raise streams.StreamError("not an answer to a request for records")
        came += await keeper.take(fetched.records)
    for entry in antientropy.surplus(keeper.roster, difference, time()):
        await client.ask(control.Announce(entry.signed.encode()))
    return came


class RosterClient:
    """Keeps one channel to each authority, announces this node's record there and follows the roster."""

    def __init__(
        self, node: NodeState, keeper: RosterKeeper, keys: GroupKeys, sessions: streams.Sessions
    ) -> None:
        self._node, self._keeper, self._keys, self._sessions = node, keeper, keys, sessions
        self._mine = node.identity.node_id

    async def run(self) -> None:
        """Follow every authority in the roster, until cancelled."""
        followed: set[NodeId] = set()
        async with trio.open_nursery() as nursery:
            while True:
                for entry in self._keeper.roster:
                    member = entry.member
                    if member.role is Role.AUTHORITY and member.node_id not in followed | {self._mine}:
                        followed.add(member.node_id)
                        nursery.start_soon(self._follow, member.node_id)
                await trio.sleep(WATCH)

    async def _follow(self, authority: NodeId) -> None:
        pause = RETRY_FIRST
        while True:
            session = self._sessions.newest(authority)
            entry = self._keeper.roster.get(authority)
            endpoints = () if entry is None else entry.record.control
            for endpoint in endpoints:
                try:
                    async with streams.connect(*parse_endpoint(endpoint)) as framed:
                        if session is None or pause > ASK_STANDING:
                            await self._ask_standing(framed)
                        if session is not None:
                            client = await streams.Client.open(framed, session)
                            pause = RETRY_FIRST
                            await self._converse(client, authority)
                except streams.StreamError as error:
                    log.debug("authority unreachable", endpoint=endpoint, error=str(error))
            pause = min(RETRY_MAX, pause * 2)
            await trio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311  # spreads retries, keys nothing

    async def _ask_standing(self, framed: streams.FramedStream) -> None:
        """There is no link: it may be that this node was revoked, which it hears from nobody else."""
        answer = await streams.ask_revoked(framed, self._mine)
        if answer:
            with suppress(PhantomMeshError):
                self._keeper.revoke(decode_revocation_untrusted(answer))

    async def _converse(self, client: streams.Client, authority: NodeId) -> None:
        announced, digest = b"", bytes(32)
        while self._keeper.roster.get(authority) is not None:
            mine = self._keeper.roster.get(self._mine)
            if mine is not None and mine.signed.signature != announced:
                told = await client.ask(control.Announce(mine.signed.encode()))
                announced = mine.signed.signature
                if isinstance(told, control.Refused):
                    log.warning("an authority refused our record", error=told.message, fix=told.fix)
            answer = await client.ask(control.AskRoster(digest, 0.0 if digest == bytes(32) else ASK_WAIT))
            match answer:
                case control.RosterIs(theirs, records, revoked, keys, active):
                    digest = theirs
                    if records:
                        try:
                            await self._keeper.merge(records, revoked)
                            self._keys.merge(keys, active)
                        except PhantomMeshError as error:
                            raise streams.StreamError(f"the roster is not usable: {error}") from error
                case control.Refused(message):
                    raise streams.StreamError(message)
                case _:
                    raise streams.StreamError("not an answer to a roster request")

    async def renew(self, csr: bytes, evidence: bytes = b"") -> control.Renewed:
        """Ask the authorities for a new certificate, one after the other. Raises `TrustError`."""
        reasons = []
        for entry in self._keeper.roster:
            session = self._sessions.newest(entry.member.node_id)
            if entry.member.role is not Role.AUTHORITY or session is None:
                continue
            for endpoint in entry.record.control:
                try:
                    with trio.fail_after(ASK_WAIT):
                        async with streams.connect(*parse_endpoint(endpoint)) as framed:
                            client = await streams.Client.open(framed, session)
                            if (mine := self._keeper.roster.get(self._mine)) is not None:
                                await client.ask(control.Announce(mine.signed.encode()))
                            answer = await client.ask(control.Renew(csr, evidence))
                except (streams.StreamError, trio.TooSlowError) as error:
                    reasons.append(f"{endpoint}: {error}")
                    continue
                if isinstance(answer, control.Renewed):
                    return answer
                reasons.append(
                    answer.message if isinstance(answer, control.Refused) else "no certificate in the answer"
                )
        raise TrustError(
            "no authority renewed the certificate: " + ("; ".join(reasons) or "there is no link to any yet"),
            fix="start an authority, and check that its control port is open for TCP from here",
        )
