# SPDX-License-Identifier: GPL-3.0-or-later
"""What others ask of a simulated node, as `ControlServer` of nursery/ answers it. Its desk is `node.desk`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phantommesh import antientropy, asking, control
from phantommesh.envelope import EnvelopeError
from phantommesh.errors import PhantomMeshError
from phantommesh.groupkey import NO_KEY, encode_keys
from phantommesh.identity import NodeId, format_node_id
from phantommesh.node import desk
from phantommesh.nursery.streams import Session
from phantommesh.records import HASH_BYTES, SignedRecord
from phantommesh.secret import Secret
from phantommesh.trust import TrustError
from tests.simulation.full_working import Done, Has, Worker

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class Desk:
    """Answers members, newcomers, and the operator of an authority."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.worker = Worker(process)
        self.desk = desk.Desk(Has.of(process), process.ring)

    def serve(self, session: Session, request: control.Request, done: Done) -> None:
        """Answer one request: call ``done`` with the answer."""

        def over(outcome: object) -> None:
            refused = isinstance(outcome, PhantomMeshError)
            done(control.Refused(str(outcome), outcome.fix) if refused else outcome)  # type: ignore[attr-defined]

        at = self.worker.moment()
        try:
            if isinstance(request, control.Enrol):
                self.worker.do(self.desk.enrol(session, request, at), over)
                return
            entry = self.process.roster.get(NodeId(session.peer))
            if entry is None or session.invite or entry.member.not_after < self.process.wall:
                raise TrustError("only a member may ask this")
            if isinstance(request, control.Renew):
                self.worker.do(self.desk.renew(entry, request, at), over)
            elif isinstance(request, control.Replace):
                self.worker.do(self.desk.replace(entry, at), over)
            else:
                done(self._serve(session, request))
        except PhantomMeshError as error:
            over(error)

    def _serve(self, session: Session, request: control.Request) -> control.Answer:
        process = self.process
        match request:
            case control.Announce(record):
                process.add(SignedRecord.decode_untrusted(record))
                return control.Done()
            case control.AskKeys():
                keys = encode_keys(process.ring.keys)
                active = NO_KEY if process.ring.active is None else process.ring.active.id
                return control.KeysAre(process.revocations.digest(), keys, active)
            case control.CompareRevocations(prefix, parts):
                return control.RevocationsDiffer(process.revocations.tree.differing(prefix, parts))
            case control.FetchRevocations(ids, certs):
                return control.SomeRevocations(process.revocations.pack(ids, certs))
            case control.Compare(buckets):
                return control.Differs(antientropy.differing(process.roster, buckets, process.wall))
            case control.Fetch(hashes):
                found = antientropy.records(process.roster, hashes, process.wall)
                return control.Records(tuple(found))
            case control.SyncOpen(opening):
                answer, effects = process.membership.sync_answer(opening, session.peer, process.now)
                process.carry_gossip(process.gossip.seal(effects, process.now))
                return control.SyncAnswer(answer)
            case control.SyncClose(rest):
                effects = process.membership.sync_finish(rest, session.peer, process.now)
                process.carry_gossip(process.gossip.seal(effects, process.now))
                return control.Done()
            case control.Turn() | control.Prove():
                return control.Refused("no traffic is simulated, so there is nothing to prove")
            case _:
                raise AssertionError(type(request).__name__)

    def answer_records(self, sealed: bytes) -> bytes:
        """`GossipDriver.answer_records`."""
        process = self.process
        try:
            asked = process.requests.open(sealed).payload
        except EnvelopeError:
            return b""
        hashes = [asked[i : i + HASH_BYTES] for i in range(0, len(asked), HASH_BYTES)][: asking.MAX_UNLINKED]
        found = antientropy.records(process.roster, hashes, process.wall)
        return process.requests.seal_answer(sealed, control.encode(control.Records(tuple(found))))

    def find_invite(self, invite: bytes, node_id: bytes) -> Secret | None:
        """`Node._find_invite`: the secret of an invite that this node may use."""
        found = self.process.machine.invites.get(invite)
        try:
            if found is not None:
                found.check(NodeId(node_id), self.process.wall)
        except TrustError:
            return None
        return None if found is None else found.secret

    def revoke(self, node_id: NodeId) -> None:
        """Have this authority revoke a node."""
        target = self.desk.find(format_node_id(node_id))
        self.worker.do(self.desk.revoke(target, self.worker.moment(), force=True), self._revoked)

    def _revoked(self, outcome: object) -> None:
        self.process.sim.tally["not-revoked"] += isinstance(outcome, PhantomMeshError)
