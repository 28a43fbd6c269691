# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a file of proofs, offline: pure, and from nothing but the file and the mesh's root.

In this order: the certificate chains up to the root; each head's signature, and that a node's heads do not
contradict each other; each leaf's way up to its head; that statement, commitment and receipt are of one link
and epoch; the chain of a link's statements; entropies, recomputed; the fit of counts and plan; both ends'
counters. What this proves and what it does not is in docs/proofs.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cryptography import x509

from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId, format_node_id
from phantommesh.proofs import fit
from phantommesh.proofs.archive import Archive, Certificates
from phantommesh.proofs.merkle import leaf_hash
from phantommesh.proofs.reconcile import MAX_LOSS, unreceived, unreceived_together, unsent, unsent_together
from phantommesh.proofs.statement import (
    FIRST,
    ZEROS,
    Head,
    Leaf,
    Proof,
    ProofError,
    Receipt,
    Signed,
    Statement,
    head_hash,
)
from phantommesh.trust import DAY, Member, describe_mesh, load_root, validity, verify_chain

# Tuning.
CERTIFICATE_SLACK = 7 * DAY  # s: proofs may be older than the certificate that the file has of their node
ROUNDING = 1  # millionths of a bit
OVERLAP_MS = 1_000  # ms: a clock may be set back a little between two epochs


@dataclass(frozen=True, slots=True)
class Checked:
    """One proof that holds in itself."""

    statement: Statement
    hash: bytes
    receipt: Receipt | None
    receipt_head: Head | None


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What holds of one direction of one link: from ``sender`` to ``receiver``."""

    sender: str
    receiver: str
    proofs: int
    countersigned: int
    """Those that the receiver has signed too; the others are the sender's word alone."""
    tested: int
    """Those whose packets were tested against the plan: not those of `flow` and `flowlet`."""
    packets: int
    octets: int
    shannon_bits: float
    """Of all packets; the schedulers' best is log2 of seven, 2.807."""
    minimum_bits: float
    least_p_value: float | None
    since_ms: int
    until_ms: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that holds. ``pinned``: the root is the one that the caller expected."""

    mesh: str
    root_hash: bytes
    pinned: bool
    links: tuple[LinkReport, ...]

    @property
    def proofs(self) -> int:
        """How many proofs hold."""
        return sum(link.proofs for link in self.links)

    @property
    def countersigned(self) -> int:
        """How many of them both ends have signed."""
        return sum(link.countersigned for link in self.links)


def verify(archive: Archive, *, root_hash: bytes | None = None, max_loss: float = MAX_LOSS) -> Report:
    """Check everything, and return what it shows. ``root_hash`` is the hash of the mesh's root key (an invite
    pins it, too); without it the file's own root is believed. Raises ProofError naming what does not hold."""
    if not archive.proofs:
        raise ProofError("there is no proof in the file")
    try:
        root = load_root(archive.root, root_hash)
        mesh = describe_mesh(root)
    except PhantomMeshError as error:
        raise ProofError(str(error), fix=error.fix) from error
    signatures = _Signatures(root, archive)
    alpha = fit.FALSE_REJECTIONS / 2 / len(archive.proofs)
    links: dict[tuple[bytes, bytes], list[Checked]] = {}
    for proof in archive.proofs:
        checked = _check(proof, signatures, alpha, max_loss)
        plan = checked.statement.plan
        links.setdefault((plan.sender, plan.receiver), []).append(checked)
    signatures.check_heads()
    reports = []
    for (sender, receiver), of_link in links.items():
        names = signatures.name(sender), signatures.name(receiver)
        with_where = f"{names[0]} to {names[1]}"
        _check_chain(of_link, with_where)
        _check_together(of_link, with_where, fit.FALSE_REJECTIONS / 2 / len(links), max_loss)
        reports.append(_report(of_link, *names))
    report = Report(mesh.name, mesh.root_hash, root_hash is not None, tuple(reports))
    if not report.countersigned:
        raise ProofError(
            "no proof in the file is countersigned: it is the senders' word alone",
            fix="export again once the peers have answered; it takes two epochs",
        )
    return report


class _Signatures:
    """The nodes' certificates, verified once each, and their heads."""

    def __init__(self, root: x509.Certificate, archive: Archive) -> None:
        self._root, self._certificates = root, archive.certificates
        self._members: dict[bytes, Member] = {}
        self._heads: dict[bytes, dict[int, tuple[Head, bytes]]] = {}
        self._seen: set[tuple[bytes, bytes]] = set()

    def name(self, node: bytes) -> str:
        """What to call a node: by its certificate, else by its id."""
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


def _check(proof: Proof, signatures: _Signatures, alpha: float, max_loss: float) -> Checked:
    """One proof by itself. Raises ProofError."""
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
    found = check_statement(statement, alpha, max_loss)
    if found is None and receipt is not None:
        found = unreceived(statement, receipt, max_loss)
    if found is not None:
        raise ProofError(f"{where}: {found}")
    return Checked(statement, leaf_hash(proof.statement.leaf), receipt, receipt_head)


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
    return leaf


def check_statement(statement: Statement, alpha: float, max_loss: float = MAX_LOSS) -> str | None:
    """Say what of a statement does not hold by itself, or None."""
    if statement.start_ms >= statement.end_ms:
        return "it ends before it begins"
    if (found := fit.implausible(statement.plan)) is not None:
        return found
    entropies = (
        ("entropy", statement.shannon, fit.entropy_bits(statement.packets)),
        ("min-entropy", statement.minimum, fit.min_entropy_bits(statement.packets)),
    )
    for what, said, bits in entropies:
        if abs(said - fit.millionths(bits)) > ROUNDING:
            return f"the {what} of the packets is {bits:.6f} bits, not {said / 1e6:.6f}"
    return fit.misfit(statement.plan, statement.packets, statement.octets, alpha) or unsent(
        statement, max_loss
    )


def _check_chain(proofs: Sequence[Checked], where: str) -> None:
    """Whether the statements of one link follow each other. Raises ProofError."""
    first = proofs[0].statement
    if (first.number == 0) != (first.previous == FIRST):
        raise ProofError(f"{where}, {first.plan.name}: the chain does not begin here")
    for before, proof in pairwise(proofs):
        if found := _does_not_follow(before, proof):
            raise ProofError(f"{where}, {proof.statement.plan.name}: {found}")
    rounds = [proof.receipt_head.sequence for proof in proofs if proof.receipt_head is not None]
    if rounds != sorted(rounds):
        raise ProofError(f"{where}: the countersignatures are not in the order of the epochs")


def _does_not_follow(before: Checked, proof: Checked) -> str | None:
    last, this = before.statement, proof.statement
    if this.number != last.number + 1:
        return f"proof {last.number + 1} of the link is missing before proof {this.number}"
    if this.previous != before.hash:
        return "the chain is broken: it does not name the proof before it"
    if this.start_ms + OVERLAP_MS < last.end_ms:
        return "it begins before the epoch before it ends"
    if this.start_ms == last.end_ms and this.late_open != last.late_close:
        return "what was sent at its beginning is not what was sent at the end of the epoch before"
    return None


def _check_together(proofs: Sequence[Checked], where: str, alpha: float, max_loss: float) -> None:
    """What no single epoch shows: a bias in all of them, a little taken from each. Raises ProofError."""
    epochs = [(proof.statement.plan, proof.statement.packets) for proof in proofs]
    if found := fit.misfit_together(epochs, alpha):
        raise ProofError(f"{where}: {found}")
    if found := unsent_together([proof.statement for proof in proofs], max_loss):
        raise ProofError(f"{where}, all {len(proofs)} epochs together: {found}")
    for run in _runs(proofs):
        if lost := unreceived_together(run, max_loss):
            raise ProofError(f"{where}, {run[0][0].plan.name} to {run[-1][0].plan.name} together: {lost}")


def _runs(proofs: Sequence[Checked]) -> Iterator[list[tuple[Statement, Receipt]]]:
    """Countersigned epochs that follow each other without a gap."""
    run: list[tuple[Statement, Receipt]] = []
    for proof in proofs:
        if run and (proof.receipt is None or proof.statement.start_ms != run[-1][0].end_ms):
            yield run
            run = []
        if proof.receipt is not None:
            run.append((proof.statement, proof.receipt))
    if run:
        yield run


def _report(proofs: Sequence[Checked], sender: str, receiver: str) -> LinkReport:
    statements = [proof.statement for proof in proofs]
    packets = [sum(s.packets[i] for s in statements) for i in range(len(ZEROS))]
    fits = [found for s in statements if (found := fit.fit(s.plan, s.packets)).tested]
    return LinkReport(
        sender=sender,
        receiver=receiver,
        proofs=len(proofs),
        countersigned=sum(proof.receipt is not None for proof in proofs),
        tested=len(fits),
        packets=sum(packets),
        octets=sum(sum(s.octets) for s in statements),
        shannon_bits=round(fit.entropy_bits(packets), 6),
        minimum_bits=round(fit.min_entropy_bits(packets), 6),
        least_p_value=min((f.p_value for f in fits if f.p_value is not None), default=None),
        since_ms=statements[0].start_ms,
        until_ms=statements[-1].end_ms,
    )
