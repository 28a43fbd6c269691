# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks a file of proofs, offline: pure, and from nothing but the file and the mesh's root.

In this order: the certificate chains up to the root; each head's signature, and that a node's heads do not
contradict each other; each leaf's way up to its head; that statement, commitment and receipt are of one link
and epoch. A failure of any of these makes the whole file worthless. Then each direction of a link gets a
verdict of its own: the chain of its statements and its dates; entropies, recomputed; the fit of counts and
plan; both ends' counters; the bytes that the receiver counted against the plans; and whether all this is
enough to show that there was scattering. docs/proofs.md says what this proves and what it does not.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from phantommesh.errors import PhantomMeshError
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.chain import Checked
from phantommesh.proofs.genuine import Signatures, genuine
from phantommesh.proofs.statement import Proof, ProofError, Signed
from phantommesh.proofs.verdict import DEMANDS, Demands, LinkReport, Verdict, judge
from phantommesh.trust.certificates import describe_mesh, load_root


@dataclass(frozen=True, slots=True)
class Report:
    """All that is shown. ``pinned``: the root is the one that the caller expected."""

    mesh: str
    root_hash: bytes
    pinned: bool
    links: tuple[LinkReport, ...]

    @property
    def proofs(self) -> int:
        """How many proofs there are."""
        return sum(link.proofs for link in self.links)

    @property
    def countersigned(self) -> int:
        """How many of them both ends have signed."""
        return sum(link.countersigned for link in self.links)

    @property
    def verdict(self) -> Verdict:
        """That of the worst link: ``fails`` if any does."""
        found = {link.verdict for link in self.links}
        return "fails" if "fails" in found else "too little" if "too little" in found else "holds"

    @property
    def problem(self) -> ProofError | None:
        """Say what is wrong with the first link that does not hold, those that fail first; None if all
        hold."""
        if (verdict := self.verdict) == "holds":
            return None
        link = next(link for link in self.links if link.verdict == verdict)
        return ProofError(f"{link.sender} to {link.receiver}: {link.reason}", fix=link.fix or "")


def verify(archive: Archive, *, root_hash: bytes | None = None, demands: Demands = DEMANDS) -> Report:
    """Check everything, and return what it shows if all links hold. Raises ProofError naming what does not
    hold."""
    report = examine(archive, root_hash=root_hash, demands=demands)
    if (problem := report.problem) is not None:
        raise problem
    return report


def examine(archive: Archive, *, root_hash: bytes | None = None, demands: Demands = DEMANDS) -> Report:
    """Check everything, and return a verdict on each link. ``root_hash`` is the hash of the mesh's root key
    (an invite pins it, too); without it the file's own root is believed. Raises ProofError where the file is
    not genuine."""
    if not archive.proofs:
        raise ProofError("there is no proof in the file")
    try:
        root = load_root(archive.root)
        mesh = describe_mesh(root)
    except PhantomMeshError as error:
        raise ProofError(str(error), fix=error.fix) from error
    if root_hash is not None and mesh.root_hash != root_hash:
        raise ProofError(
            f"the file is of another mesh: the hash of its root key is {mesh.root_hash.hex()}",
            fix="check --root (or the state directory), or ask for a file of your mesh",
        )
    signatures, proofs = Signatures(root, archive), _distinct(archive.proofs)
    links: dict[tuple[bytes, bytes], list[Checked]] = {}
    for proof in proofs:
        checked = genuine(proof, signatures)
        plan = checked.statement.plan
        links.setdefault((plan.sender, plan.receiver), []).append(checked)
    signatures.check_heads()
    reports = tuple(
        judge(of_link, (signatures.name(a), signatures.name(b)), demands, len(proofs), len(links))
        for (a, b), of_link in links.items()
    )
    return Report(mesh.name, mesh.root_hash, root_hash is not None, reports)


def _distinct(proofs: Iterable[Proof]) -> list[Proof]:
    """The proofs, those that are there twice once: exports that overlap may be in one file. If a statement is
    there with a receipt and without, it was also exported before the peer had answered. Two receipts of one
    statement are two proofs, and contradict each other."""
    receipts = dict[Signed, dict[Signed | None, None]]()
    for proof in proofs:
        receipts.setdefault(proof.statement, {})[proof.receipt] = None
    return [
        Proof(statement, receipt)
        for statement, found in receipts.items()
        for receipt in found
        if receipt is not None or len(found) == 1
    ]
