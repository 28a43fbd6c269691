# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node answers its members over a control channel."""

from __future__ import annotations

from collections.abc import Callable
from time import time

import structlog
import trio

from phantommesh import antientropy, control
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId
from phantommesh.membership.messages import GossipError
from phantommesh.nodestate import NodeState
from phantommesh.nursery import streams
from phantommesh.nursery.authority import AuthorityDesk
from phantommesh.nursery.groupkeys import GroupKeys
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.nursery.proving import Proving
from phantommesh.records import Entry, SignedRecord
from phantommesh.trust import TrustError
from phantommesh.wire import Address

# Tuning.
RECORDS_AT_ONCE = 2000.0  # records that a member may bring in a row, as after a cut
RECORDS_RATE = 20.0  # a second after that: each takes about a millisecond to verify, and one that is new more

log = structlog.get_logger("phantommesh.roster")


class ControlServer:
    """Answers what others ask. ``sync_answer`` and ``sync_finish`` are membership's part; they raise
    `GossipError` for what cannot be read."""

    def __init__(
        self,
        node: NodeState,
        keeper: RosterKeeper,
        keys: GroupKeys,
        desk: AuthorityDesk,
        *,
        sync_answer: Callable[[bytes, NodeId], bytes],
        sync_finish: Callable[[bytes, NodeId], None],
        proving: Proving | None = None,
    ) -> None:
        self._node, self._keeper, self._keys, self._desk = node, keeper, keys, desk
        self._sync_answer, self._sync_finish = sync_answer, sync_finish
        self._proving = proving
        self._allowance: dict[NodeId, tuple[float, float]] = {}

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
                case control.Replace():
                    return await self._desk.replace(entry)
                case control.Announce(record):
                    await self._pace(entry.member.node_id)
                    self._keeper.add(SignedRecord.decode_untrusted(record))
                    return control.Done()
                case control.AskKeys():
                    return control.KeysAre(
                        self._node.revocations.encode(), self._keys.encode(), self._keys.active_id
                    )
                case control.Compare(buckets):
                    return control.Differs(antientropy.differing(self._keeper.roster, buckets, time()))
                case control.Fetch(hashes):
                    found = antientropy.records(self._keeper.roster, hashes, time())
                    return control.Records(tuple(found))
                case control.SyncOpen(opening):
                    return control.SyncAnswer(self._sync_answer(opening, entry.member.node_id))
                case control.SyncClose(rest):
                    self._sync_finish(rest, entry.member.node_id)
                    return control.Done()
                case control.Turn() | control.Prove() if self._proving is None:
                    return control.Refused("this node keeps no scatter proofs")
                case control.Turn():
                    return await self._proving.turn(entry, request)
                case control.Prove():
                    return await self._proving.take(entry, request)
        except antientropy.AntiEntropyError as error:
            return control.Refused(str(error))
        except GossipError as error:
            return control.Refused(f"not a message of a sync ({error})")
        except PhantomMeshError as error:
            log.warning(
                "request refused", request=type(request).__name__, source=str(source), error=str(error)
            )
            return control.Refused(str(error), error.fix)

    async def _pace(self, peer: NodeId) -> None:
        """Wait for as long as this member has brought records too fast; its channel waits too."""
        now = trio.current_time()
        left, since = self._allowance.get(peer, (RECORDS_AT_ONCE, now))
        left = min(RECORDS_AT_ONCE, left + RECORDS_RATE * (now - since)) - 1.0
        self._allowance[peer] = left, now
        if left < 0.0:
            await trio.sleep(-left / RECORDS_RATE)

    def _member(self, session: streams.Session) -> Entry:
        entry = self._keeper.roster.get(NodeId(session.peer))
        if entry is None or session.invite:
            raise TrustError("only a member may ask this", fix="join the mesh first")
        if entry.member.not_after < time():
            raise TrustError(
                f"the certificate of {entry.member.name} has expired", fix="join again with a new invite"
            )
        return entry
