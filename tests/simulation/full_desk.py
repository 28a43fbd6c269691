# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node's answers to others: `node.serving` and `node.desk`, driven as nursery/ drives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phantommesh.control import asking, messages
from phantommesh.control.sessions import Session
from phantommesh.errors import PhantomMeshError
from phantommesh.gossip.envelope import EnvelopeError
from phantommesh.link.keys import RETURNING
from phantommesh.node import desk
from phantommesh.node.serving import Serving
from phantommesh.records import antientropy
from phantommesh.records.record import HASH_BYTES
from phantommesh.secret import Secret
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NodeId, format_node_id
from tests.simulation.full_working import Done, Has, Worker

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class Desk:
    """Answers members, newcomers, and the operator of an authority."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.worker = Worker(process)
        has, verifications = Has.of(process), process.keeper.verifications
        self.desk = desk.Desk(has, process.ring, process.machine.approvals)
        self.serving = Serving(has, process.ring, self.desk, verifications, proofs=False)

    def serve(self, session: Session, request: messages.Request, done: Done) -> None:
        """Answer one request: call ``done`` with the answer."""
        self.worker.do(self.serving.serve(session, request, self.worker.moment()), done)

    def answer_records(self, sealed: bytes) -> bytes:
        """`GossipDriver.answer_records`."""
        process = self.process
        try:
            asked = process.requests.open(sealed).payload
        except EnvelopeError:
            return b""
        hashes = [asked[i : i + HASH_BYTES] for i in range(0, len(asked), HASH_BYTES)][: asking.MAX_UNLINKED]
        found = antientropy.records(process.roster, hashes, process.wall)
        return process.requests.seal_answer(sealed, messages.encode(messages.Records(tuple(found))))

    def find_invite(self, invite: bytes, node_id: bytes) -> Secret | None:
        """`linking._find_invite`: the secret of an invite that this node may use."""
        if invite == RETURNING:
            return self.desk.returning.secret_of(node_id)
        found = self.process.machine.invites.get(invite)
        try:
            if found is not None:
                found.check(NodeId(node_id), self.process.wall)
        except TrustError:
            return None
        return None if found is None else found.secret

    def revoke(self, node_id: NodeId) -> None:
        """Have this authority revoke a node."""
        target = self.desk.revoking.find(format_node_id(node_id))
        self.worker.do(self.desk.revoking.revoke(target, self.worker.moment(), force=True), self._revoked)

    def _revoked(self, outcome: object) -> None:
        self.process.sim.tally["not-revoked"] += isinstance(outcome, PhantomMeshError)
