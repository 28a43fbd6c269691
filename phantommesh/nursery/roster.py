# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's answers to members over a control channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time

import structlog
import trio

from phantommesh import antientropy, control
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId, format_node_id
from phantommesh.idtree import IdTreeError
from phantommesh.membership.messages import GossipError
from phantommesh.nodestate import NodeState
from phantommesh.nursery import streams
from phantommesh.nursery.authority import AuthorityDesk
from phantommesh.nursery.groupkeys import GroupKeys
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.nursery.proving import Proving
from phantommesh.rates import Rates
from phantommesh.records import Entry, SignedRecord
from phantommesh.trust import TrustError

# Tuning.
# Requests of one member, by kind: how many a second, and at once. More wait, and their channels with them.
# Announcements are not here: they cost what `RosterKeeper.verifications` has.
REQUESTS: Mapping[type[control.Request], tuple[float, float]] = {
    control.AskKeys: (2.0, 40),
    control.CompareRevocations: (20.0, 300),  # 64 a conversation
    control.FetchRevocations: (60.0, 600),  # 17 statements each, 61 a conversation
    control.Compare: (2.0, 40),
    control.Fetch: (10.0, 200),  # 256 records each at most
    control.SyncOpen: (2.0, 40),
    control.SyncClose: (2.0, 40),
    control.Turn: (2.0, 40),  # each has counters read
    control.Prove: (4.0, 100),
    control.Renew: (0.2, 20),  # how many are granted is less: see `authority`
    control.Replace: (0.2, 20),  # an invite on disk each, in place of the one before
    control.Enrol: (0.2, 20),
}
OTHERS = 10.0, 200  # of a kind that is not named above
REFUSALS = 4.0, 100  # of all kinds together: more is an attack, or an error that does not go away by asking
PATIENCE = 20.0  # s that a request waits at most; then it is refused

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
        self._rates = {kind: Rates[bytes](*pace) for kind, pace in REQUESTS.items()}
        self._rates[control.Announce] = keeper.verifications
        self._others, self._refusals = Rates[bytes](*OTHERS), Rates[bytes](*REFUSALS)

    async def serve(
        self, session: streams.Session, request: control.Request, source: Address
    ) -> control.Answer:
        """Answer one request. A mistake of an operator or a member is a `Refused` answer; a member that asks
        too much waits."""
        if not await self._pace(self._rates.get(type(request), self._others), session.peer):
            return control.Refused("too many requests of this kind", f"ask again in {PATIENCE:.0f} s")
        answer = await self._serve(session, request, source)
        if isinstance(answer, control.Refused):
            await self._pace(self._refusals, session.peer)
        return answer

    async def _serve(
        self, session: streams.Session, request: control.Request, source: Address
    ) -> control.Answer:
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
                    self._keeper.add(SignedRecord.decode_untrusted(record), entry.member.node_id)
                    return control.Done()
                case control.AskKeys():
                    return control.KeysAre(
                        self._node.revocations.digest(), self._keys.encode(), self._keys.active_id
                    )
                case control.CompareRevocations(prefix, parts):
                    return control.RevocationsDiffer(self._node.revocations.tree.differing(prefix, parts))
                case control.FetchRevocations(ids, certs):
                    return control.SomeRevocations(self._node.revocations.pack(ids, certs))
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
        except (antientropy.AntiEntropyError, IdTreeError) as error:
            return control.Refused(str(error))
        except GossipError as error:
            return control.Refused(f"not a message of a sync ({error})")
        except PhantomMeshError as error:
            log.warning(
                "request refused",
                peer=self._name(session),
                request=type(request).__name__,
                source=str(source),
                error=str(error),
            )
            return control.Refused(str(error), error.fix)

    async def _pace(self, rates: Rates[bytes], peer: bytes) -> bool:
        """Wait for as long as this peer has asked too fast; False where that would be too long."""
        now = trio.current_time()
        wait = rates.wait(peer, now)
        if wait > PATIENCE:
            await trio.sleep(PATIENCE)
            return False
        await trio.sleep(rates.owe(peer, now))
        return True

    def _name(self, session: streams.Session) -> str:
        entry = self._keeper.roster.get(NodeId(session.peer))
        return format_node_id(NodeId(session.peer)) if entry is None else entry.member.name

    def _member(self, session: streams.Session) -> Entry:
        entry = self._keeper.roster.get(NodeId(session.peer))
        if entry is None or session.invite:
            raise TrustError("only a member may ask this", fix="join the mesh first")
        if entry.member.not_after < time():
            raise TrustError(
                f"the certificate of {entry.member.name} has expired", fix="join again with a new invite"
            )
        return entry
