# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers members over control channels: `node.serving` decides, on this node's clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, assert_never

import trio

from phantommesh.acl.signedpolicy import Policies
from phantommesh.control import hinting, messages, sessions
from phantommesh.endpoint import Address
from phantommesh.node import serving, steps
from phantommesh.node.relaying import Relay
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.authority import AuthorityDesk
from phantommesh.nursery.members.proving import Proving
from phantommesh.nursery.members.working import do
from phantommesh.records.roster import Entry
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId


async def _unchecked(_entry: Entry) -> messages.TcpChecked:
    return messages.TcpChecked(False, why="this node makes no such checks")


class ControlServer:
    """Answers the requests of others. ``sync_answer`` and ``sync_finish`` are membership's part; they raise
    `GossipError` for bytes that cannot be read. ``sight`` says where a member is seen from here; ``check``
    connects to it there. ``federal`` answers questions about pacts with other meshes. For ``relay``,
    ``offered``, ``bridged``, ``neighbours``, ``approved``, ``hinted``, ``pacts`` and ``policies`` see
    `serving.Serving`."""

    def __init__(
        self,
        node: NodeState,
        keeper: RosterKeeper,
        keys: GroupKeys,
        desk: AuthorityDesk,
        *,
        sync_answer: Callable[[bytes, NodeId], bytes],
        sync_finish: Callable[[bytes, NodeId], None],
        sight: Callable[[NodeId], messages.Sighting] = lambda peer: messages.Sighting(),
        check: Callable[[Entry], Awaitable[messages.TcpChecked]] = _unchecked,
        proving: Proving | None = None,
        relay: Relay | None = None,
        offered: Callable[[NodeId, messages.OfferRelay], None] | None = None,
        carry: Callable[[Entry, messages.Request], Awaitable[messages.Answer]] | None = None,
        meet: Callable[[NodeId, messages.Meet], messages.Answer] | None = None,
        echo: Callable[[Entry, messages.Echo], messages.Answer] | None = None,
        bridged: Callable[[NodeId, messages.Bridged], None] | None = None,
        neighbours: Callable[[messages.AskNeighbours], messages.NeighboursAre] | None = None,
        approved: Callable[[], None] | None = None,
        hinted: Callable[[NodeId, hinting.TellHints], messages.Answer] | None = None,
        federal: Callable[[steps.Party, messages.Request], Awaitable[messages.Answer]] | None = None,
        pacts: Callable[[], bytes] = lambda: b"",
        policies: Policies | None = None,
    ) -> None:
        self._federal = federal
        self._worker = desk.worker
        self._sync_answer, self._sync_finish = sync_answer, sync_finish
        self._proving, self._sight, self._carry, self._meet = proving, sight, carry, meet
        self._check, self._echo = check, echo
        self.serving = serving.Serving(
            node, keys.ring, desk.desk, keeper.verifications,
            proofs=proving is not None, relay=relay, offered=offered, bridged=bridged,
            neighbours=neighbours, approved=approved, hinted=hinted, pacts=pacts, policies=policies,
        )  # fmt: skip

    async def serve(
        self, session: sessions.Session, request: messages.Request, source: Address
    ) -> messages.Answer:
        """Answer one request. A mistake of an operator or a member is a `Refused` answer; a member that asks
        too much waits."""
        work = self.serving.serve(session, request, moment())
        return await do(work, partial(self._carry_out, source))

    async def _carry_out(self, source: Address, step: serving.ServingStep) -> Any:
        match step:
            case serving.Wait(seconds):
                await trio.sleep(seconds)
                return moment()
            case serving.AnswerSync(opening, peer):
                return self._sync_answer(opening, peer)
            case serving.FinishSync(rest, peer):
                return self._sync_finish(rest, peer)
            case serving.Account(entry, request):
                return await self._account(entry, request)
            case serving.Sight(peer):
                return self._sight(peer)
            case serving.CheckTcp(entry):
                return await self._check(entry)
            case serving.Carrying(entry, request):
                if self._carry is None:
                    return messages.Refused("this node carries nothing")
                return await self._carry(entry, request)
            case serving.Meeting(peer, request):
                if self._meet is None:
                    return messages.Refused("this node knocks at nobody's ports")
                return self._meet(peer, request)
            case serving.Federal(party, request):
                if self._federal is None:
                    return messages.Refused("this node keeps no pacts")
                return await self._federal(party, request)
            case serving.Echoing(entry, request):
                if self._echo is None:
                    return messages.Refused("this node answers no echoes")
                return self._echo(entry, request)
            case steps.Told(part="roster", fields=fields):
                return await self._worker.carry_out(replace(step, fields={**fields, "source": str(source)}))
            case _:
                return await self._worker.carry_out(step)

    async def _account(self, entry: Entry, request: messages.Turn | messages.Prove) -> messages.Answer:
        assert self._proving is not None
        match request:
            case messages.Turn():
                return await self._proving.turn(entry, request)
            case messages.Prove():
                return await self._proving.take(entry, request)
            case _:
                assert_never(request)
