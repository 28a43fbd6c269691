# SPDX-License-Identifier: GPL-3.0-or-later
"""Are the parts of a file genuine: certificates, heads, signatures, and what each proof is made of?"""

from cryptography import x509

from phantommesh.errors import PhantomMeshError
from phantommesh.proofs.archive import Archive, Certificates
from phantommesh.proofs.chain import CLOCKS_MS, Checked
from phantommesh.proofs.merkle import leaf_hash
from phantommesh.proofs.statement import (
    FIRST,
    Head,
    Leaf,
    Proof,
    ProofError,
    Receipt,
    Signed,
    Statement,
    head_hash,
)
from phantommesh.trust.certificates import DAY, Member, validity, verify_chain
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
CERTIFICATE_SLACK = 7 * DAY  # s: proofs may be older than the certificate that the file has of their node


class Signatures:
    """The nodes' certificates, verified once each, and their heads."""

    def __init__(self, root: x509.Certificate, archive: Archive) -> None:
        self._root, self._certificates = root, archive.certificates
        self._members: dict[bytes, Member] = {}
        self._heads: dict[bytes, dict[int, tuple[Head, bytes]]] = {}
        self._seen: set[tuple[bytes, bytes]] = set()

    def name(self, node: bytes) -> str:
        """The name to call a node by: its certificate's, else its id."""
        member = self._members.get(node)
        return format_node_id(NodeId(node)) if member is None else member.name

    def open(self, signed: Signed) -> tuple[Head, Leaf]:
        """Return a leaf and its head, both genuine. Raises ProofError."""
        head = signed.open_head()
        member = self._member(head)
        if (signed.head, signed.signature) not in self._seen:
            try:
                signed.check_signature(member.public_key)
            except ProofError as error:
                raise ProofError(f"{member.name}, proof round {head.sequence}: {error}") from error
            self._seen.add((signed.head, signed.signature))
            known = self._heads.setdefault(head.node, {}).setdefault(head.sequence, (head, signed.head))
            if known[1] != signed.head:
                raise ProofError(f"{member.name} signed two different heads for round {head.sequence}")
        try:
            return signed.open()
        except ProofError as error:
            raise ProofError(f"{member.name}, proof round {head.sequence}: {error}") from error

    def check_heads(self) -> None:
        """Raise ProofError unless each node's heads follow each other where the file has both."""
        for node, heads in self._heads.items():
            for sequence, (head, _) in heads.items():
                before = heads.get(sequence - 1)
                follows = sequence == 0 and head.previous == FIRST
                follows |= sequence > 0 and (before is None or head.previous == head_hash(before[1]))
                if not follows:
                    raise ProofError(
                        f"{self.name(node)}: the head of round {sequence} does not follow the one before"
                    )
            latest = 0
            for sequence in sorted(heads):
                at_ms = heads[sequence][0].at_ms
                if at_ms + CLOCKS_MS < latest:
                    raise ProofError(
                        f"{self.name(node)}: the head of round {sequence} is dated before earlier rounds'"
                    )
                latest = max(latest, at_ms)

    def _member(self, head: Head) -> Member:
        member = self._members.get(head.node)
        if member is None:
            member = self._members[head.node] = self._certified(head)
        at = head.at_ms / 1000
        if not member.not_before - CERTIFICATE_SLACK <= at <= member.not_after:
            raise ProofError(f"{member.name} had no certificate when it signed round {head.sequence}")
        return member

    def _certified(self, head: Head) -> Member:
        """Verify a chain by a time it is good for, as close as can be to the head's: the certificate may have
        been renewed, on the same key, since."""
        known: Certificates | None = self._certificates.get(head.node)
        who = format_node_id(NodeId(head.node))
        if known is None:
            raise ProofError(f"the file has no certificate of node {who}")
        try:
            not_before, not_after = validity(known.node)
            at = max(not_before, min(head.at_ms / 1000, not_after))
            member = verify_chain(self._root, known.authority, known.node, at)
        except PhantomMeshError as error:
            raise ProofError(f"node {who}: {error}") from error
        if member.node_id != head.node:
            raise ProofError(f"the file has another node's certificate for node {who}")
        return member


def genuine(proof: Proof, signatures: Signatures) -> Checked:
    """One proof, whose parts are genuine and belong together. Raises ProofError."""
    head, statement = signatures.open(proof.statement)
    if not isinstance(statement, Statement):
        raise ProofError(f"{signatures.name(head.node)}, proof round {head.sequence}: not a statement")
    plan = statement.plan
    where = f"{signatures.name(plan.sender)} to {signatures.name(plan.receiver)}, {plan.name}"
    if plan.sender != head.node or plan.sender == plan.receiver:
        raise ProofError(f"{where}: signed by {signatures.name(head.node)}, which is not the sender")
    receipt, receipt_head = None, None
    if proof.receipt is not None:
        receipt_head, leaf = signatures.open(proof.receipt)
        where = f"{signatures.name(plan.sender)} to {signatures.name(plan.receiver)}, {plan.name}"
        receipt = _of_one_kind(leaf, receipt_head, proof.statement.leaf, statement, where)
    return Checked(statement, leaf_hash(proof.statement.leaf), head, receipt, receipt_head)


def _of_one_kind(leaf: Leaf, head: Head, of: bytes, statement: Statement, where: str) -> Receipt:
    """The receipt, if it is the receiver's and about this statement."""
    if not isinstance(leaf, Receipt):
        raise ProofError(f"{where}: the countersignature is no receipt")
    plan = statement.plan
    if (head.node, leaf.witness, leaf.sender) != (plan.receiver, plan.receiver, plan.sender):
        raise ProofError(f"{where}: the countersignature is not the receiver's")
    if leaf.statement != leaf_hash(of):
        raise ProofError(f"{where}: the countersignature is of another statement")
    if leaf.commitment != plan.commitment(statement.salt):
        raise ProofError(f"{where}: the plan is not what was committed to before the epoch")
    if min(leaf.before) < 0:
        raise ProofError(f"{where}: the receiver counted more in the epoch than in all")
    return leaf
