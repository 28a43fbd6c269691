# SPDX-License-Identifier: GPL-3.0-or-later
"""What others ask of a simulated node, as `ControlServer` and `AuthorityDesk` of nursery/ answer it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh import antientropy, asking, control
from phantommesh.envelope import EnvelopeError
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId, node_id_of
from phantommesh.issuing import choose_ip4, parse_csr_untrusted
from phantommesh.nursery.streams import Session
from phantommesh.records import HASH_BYTES, Entry, SignedRecord, settle
from phantommesh.secret import Secret
from phantommesh.trust import Role, TrustError

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class Desk:
    """Answers members, newcomers, and the operator of an authority."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._enrolled: dict[bytes, NodeId] = {}  # by invite, who used it

    def serve(self, session: Session, request: control.Request) -> control.Answer:
        """Answer one request."""
        process = self.process
        try:
            if isinstance(request, control.Enrol):
                return self.enrol(session, request)
            entry = process.roster.get(NodeId(session.peer))
            if entry is None or session.invite or entry.member.not_after < process.wall:
                raise TrustError("only a member may ask this")
            match request:
                case control.Renew():
                    return self.renew(entry, request)
                case control.Announce(record):
                    process.add(SignedRecord.decode_untrusted(record))
                    return control.Done()
                case control.AskKeys():
                    keys = process.keys
                    return control.KeysAre(process.revocations.digest(), keys.encode(), keys.active_id)
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
                case control.Replace():
                    return control.Refused("no new identities are simulated")
                case control.Turn() | control.Prove():
                    return control.Refused("no traffic is simulated, so there is nothing to prove")
        except PhantomMeshError as error:
            return control.Refused(str(error), error.fix)

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
        """The secret of an invite; it is good for one node."""
        if self._enrolled.get(invite, node_id) != node_id:
            return None
        return self.process.sim.invites.get(invite)

    def enrol(self, session: Session, request: control.Enrol) -> control.Answer:
        """`AuthorityDesk.enrol`, without its locks and threads."""
        process = self.process
        mesh, wall = process.sim.mesh, process.wall
        authority, (spki, name) = process.machine.authority, parse_csr_untrusted(request.csr)
        if authority is None or process.revoked or not session.invite or spki != session.spki:
            raise TrustError("not an enrolment")
        node_id = NodeId(session.peer)
        taken = {e.member.ip4 for e in process.roster if e.member.node_id != node_id}
        ip4 = choose_ip4(mesh.described, node_id, taken)
        node_cert = authority.issue(spki, name, Role.NODE, ip4, wall)
        process.add(SignedRecord(request.record, request.signature, node_cert, authority.der))
        process.write("roster", "revocations")
        self._enrolled[session.invite] = node_id
        process.make_key()
        return control.Enrolled(
            node_cert, authority.der, mesh.root.public_bytes(Encoding.DER), process.secrets.newest.reveal(),
            process.roster.encode(), process.revocations.encode(), process.keys.encode(),
            process.keys.active_id,
        )  # fmt: skip

    def renew(self, entry: Entry, request: control.Renew) -> control.Renewed:
        """`AuthorityDesk.renew`."""
        process = self.process
        authority, member = process.machine.authority, entry.member
        spki, _ = parse_csr_untrusted(request.csr)
        if authority is None or process.revoked or node_id_of(spki) != member.node_id:
            raise TrustError("not an authority, or another's key")
        if request.evidence:
            process.add(SignedRecord.decode_untrusted(request.evidence))
        name, ip4 = settle(process.roster, process.sim.mesh.described, member, process.wall)
        return control.Renewed(authority.issue(spki, name, member.role, ip4, process.wall), authority.der)

    def revoke(self, node_id: NodeId) -> None:
        """`AuthorityDesk.revoke`."""
        process = self.process
        assert process.machine.authority is not None
        made = process.revocations.sign(process.machine.authority, node_id, process.wall)
        if process.revocations.take(made, process.wall):
            process.note_change()
        process.write("revocations", "roster")
        process.make_key()
